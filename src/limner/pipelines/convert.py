"""Published full-size files → one folder in diffusers' layout, written once and loaded quickly ever after."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.errors import StorageError, WeightsMismatch
from limner.pipelines import sdxl

if TYPE_CHECKING:
    import torch

    from limner.pipelines.faceclip import FaceCLIPPipeline


def convert_faceclip_sdxl(files: dict[str, Path], folder: Path) -> None:
    """Builds FaceCLIP-SDXL from its files and saves it in bfloat16, as it was published to be used.

    The folder appears only when everything was converted and checked.

    Args:
        files: `encoder`, `unet` (the published `.pt` files; code in them is never run), `vae` (safetensors) and
            `tokenizer` (CLIP's byte-pair merges).
        folder: to write.

    Raises:
        WeightsMismatch, UnsafeCheckpoint: a file does not fit, or carries code.
        StorageError: no space, no permission.
    """
    temporary = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        build_faceclip_sdxl(files).save_pretrained(str(temporary))
        temporary.replace(folder)
    except OSError as e:
        raise StorageError(f"Cannot write {folder}: {e}.", "Free some space, or set LIMNER_CACHE elsewhere.") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def build_faceclip_sdxl(files: dict[str, Path]) -> FaceCLIPPipeline:
    """The pipeline of the published files, in bfloat16 on the CPU; arguments and errors as above."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    from limner.encoders.checkpoint import read_checkpoint
    from limner.encoders.faceclip import clip_tokenizer, from_published
    from limner.encoders.published import SDXL_UNET
    from limner.pipelines.faceclip import FaceCLIPPipeline

    vae = _filled(AutoencoderKL, sdxl.VAE, _halved(_tensors(files["vae"])), "autoencoder")  # small, so it comes first
    encoder = from_published(_halved(read_checkpoint(files["encoder"])), clip_tokenizer(files["tokenizer"]))
    unet = _filled(UNet2DConditionModel, SDXL_UNET, _halved(read_checkpoint(files["unet"])), "UNet")
    scheduler: Any = EulerDiscreteScheduler(**sdxl.SCHEDULER)
    return FaceCLIPPipeline(vae=vae, unet=unet, scheduler=scheduler, encoder=encoder)


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    """Everything in a safetensors file; WeightsMismatch for one that is none, or was cut off."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as e:
        raise WeightsMismatch(f"{file} cannot be read as safetensors ({e}).", "Fetch the file again.") from e


def _halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Floating-point tensors as bfloat16, under keys without the `model.` that files may carry."""
    import torch

    return {k.removeprefix("model."): v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in state.items()}


def _filled(kind: Any, config: dict[str, Any], state: dict[str, torch.Tensor], what: str) -> Any:
    """A diffusers model with these weights, without ever allocating others."""
    import torch

    with torch.device("meta"):
        model = kind.from_config(config)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as e:
        raise WeightsMismatch(f"The file is no {what} of Stable Diffusion XL: {e}") from e
    return model.eval()
