"""Published full-size files → one folder in diffusers' layout, written once and loaded quickly ever after."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.errors import StorageError, WeightsMismatch
from limner.pipelines import flux, sdxl

if TYPE_CHECKING:
    import torch

    from limner.pipelines.faceclip import FaceCLIPPipeline
    from limner.pipelines.facet5 import FaceT5FluxPipeline


def convert(model: str, files: dict[str, Path], folder: Path) -> None:
    """Builds a published model from its files and saves it in bfloat16, as it was published to be used.

    The folder appears only when everything was converted and checked. Files stay mapped, and what is bfloat16 already
    goes from there to the new files.

    Args:
        model: a key of `BUILDERS`.
        files: by component, as the builder has them; code in `.pt` files is never run.
        folder: to write.

    Raises:
        WeightsMismatch, UnsafeCheckpoint: a file does not fit, or carries code.
        StorageError: no space, no permission.
    """
    temporary = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        BUILDERS[model](files).save_pretrained(str(temporary))
        temporary.replace(folder)
    except OSError as e:
        raise StorageError(f"Cannot write {folder}: {e}.", "Free some space, or set LIMNER_CACHE elsewhere.") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def build_faceclip_sdxl(files: dict[str, Path]) -> FaceCLIPPipeline:
    """FaceCLIP-SDXL in bfloat16 on the CPU; errors as above.

    Args:
        files: `encoder`, `unet` (the published `.pt` files), `vae` (safetensors) and `tokenizer` (CLIP's byte-pair
            merges).
    """
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    from limner.encoders.checkpoint import read_checkpoint
    from limner.encoders.faceclip import clip_tokenizer, from_published
    from limner.encoders.published import SDXL_UNET
    from limner.pipelines.faceclip import FaceCLIPPipeline

    base = "Stable Diffusion XL"
    vae = _filled(AutoencoderKL, sdxl.VAE, _halved(_tensors(files["vae"])), f"autoencoder of {base}")  # small, so first
    encoder = from_published(_halved(read_checkpoint(files["encoder"])), clip_tokenizer(files["tokenizer"]))
    unet = _filled(UNet2DConditionModel, SDXL_UNET, _halved(read_checkpoint(files["unet"])), f"UNet of {base}")
    scheduler: Any = EulerDiscreteScheduler(**sdxl.SCHEDULER)
    return FaceCLIPPipeline(vae=vae, unet=unet, scheduler=scheduler, encoder=encoder)


def build_facet5_flux(files: dict[str, Path]) -> FaceT5FluxPipeline:
    """FaceT5-FLUX in bfloat16 on the CPU; errors as above.

    Args:
        files: `encoder`, `transformer` (the published `.pt` files), `vae` (safetensors), `tokenizer` (T5's
            tokenizer.json) and `clip_tokenizer` (CLIP's byte-pair merges).
    """
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    from limner.encoders.checkpoint import read_checkpoint
    from limner.encoders.facet5 import from_published
    from limner.encoders.tokenizer import clip_tokenizer, t5_tokenizer
    from limner.pipelines.facet5 import FaceT5FluxPipeline

    base = "FLUX.1-dev"
    vae = _filled(AutoencoderKL, flux.VAE, _halved(_tensors(files["vae"])), f"autoencoder of {base}")  # small, so first
    tokenizers = t5_tokenizer(files["tokenizer"]), clip_tokenizer(files["clip_tokenizer"])
    encoder = from_published(_halved(read_checkpoint(files["encoder"])), *tokenizers)
    state = _halved(read_checkpoint(files["transformer"]))
    transformer = _filled(FluxTransformer2DModel, flux.TRANSFORMER, state, f"transformer of {base}")
    scheduler: Any = FlowMatchEulerDiscreteScheduler(**flux.SCHEDULER)
    return FaceT5FluxPipeline(vae=vae, transformer=transformer, scheduler=scheduler, encoder=encoder)


BUILDERS = {"faceclip-sdxl": build_faceclip_sdxl, "facet5-flux": build_facet5_flux}
"""Registered model → what makes its pipeline of its files."""


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
    """A diffusers model with these weights, without ever allocating others; `what` it is, for people."""
    import torch

    with torch.device("meta"):
        model = kind.from_config(config)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as e:
        raise WeightsMismatch(f"The file is no {what}: {e}") from e
    return model.eval()
