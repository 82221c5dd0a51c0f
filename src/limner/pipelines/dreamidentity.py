"""DreamIdentity on any base of diffusers' SD 2.1 or SDXL shape, Limner's mini base among them (arXiv 2307.00300).

The base is not changed at all: the person enters as words of its own text towers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from limner.diffusion.lora import FaceDetailer
from limner.encoders.autoencoder import PatchAutoencoder
from limner.encoders.dreamidentity import FaceWordsEncoder
from limner.encoders.m2id import M2IDEncoder
from limner.encoders.word_towers import WordTowers
from limner.errors import CorruptData, WeightsUnavailable
from limner.faces import FaceEmbedder
from limner.methods.dreamidentity import DreamIdentity
from limner.pipelines.recogniser import OwnRecogniser
from limner.pipelines.words import WordsPipeline

STEPS, GUIDANCE = 30, 7.5
"""The paper's: DDIM, 30 steps, guidance 7.5."""


class DreamIdentityPipeline(WordsPipeline):
    """Face + prompt with `S*` → portrait, by DreamIdentity.

    Args:
        vae, unet, scheduler: of the base; the UNet has text_time conditioning (SDXL, mini) or none (SD 2.1).
        encoder: M² ID encoder and the base's text towers.
        default_steps, default_guidance, default_pag: what the model is recommended to be sampled with.
        same_person: cosine of the recogniser's identity vectors from which two pictures are taken to show one person;
            None where that was not measured: no reference is then left out.
        world: `sitters` if the model only knows Limner's synthetic people; empty otherwise.
        controlnet: steers the eyes to a place (`limner.pipelines.gaze`); None where nobody asks for one.
        force_zeros_for_empty_prompt: as in diffusers: an empty negative prompt is zeros.
        detailer: as in `FaceCLIPPipeline`; of the base.
    """

    encoder: FaceWordsEncoder
    model_cpu_offload_seq: Any = "encoder->unet->vae"
    _offloaded_whole = ("encoder",)
    _optional_components = ["controlnet", "detailer"]  # noqa: RUF012 (diffusers' way)

    def __init__(
        self,
        vae: AutoencoderKL | PatchAutoencoder,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        encoder: FaceWordsEncoder,
        default_steps: int = STEPS,
        default_guidance: float = GUIDANCE,
        same_person: float | None = None,
        world: str = "",
        force_zeros_for_empty_prompt: bool = False,
        controlnet: ControlNetModel | None = None,
        default_pag: float = 0.0,
        detailer: FaceDetailer | None = None,
    ) -> None:
        super().__init__(
            components={
                "vae": vae, "unet": unet, "scheduler": scheduler, "encoder": encoder, "controlnet": controlnet,
                "detailer": detailer,
            },
            facts={
                "default_steps": default_steps, "default_guidance": default_guidance, "same_person": same_person,
                "world": world, "force_zeros_for_empty_prompt": force_zeros_for_empty_prompt,
                "default_pag": default_pag,
            },
        )  # fmt: skip
        self._demand_width()

    @property
    def towers(self) -> WordTowers:
        return self.encoder.towers

    @property
    def method(self) -> DreamIdentity:
        """DreamIdentity over this pipeline's encoder."""
        return DreamIdentity(self.encoder, zero_empty=bool(self.config.force_zeros_for_empty_prompt))

    @property
    def embedder(self) -> FaceEmbedder:
        """The encoder's backbone as a recogniser."""
        return OwnRecogniser(self.method, self.encoder.m2id.config.backbone.output, self.config.same_person)


def assemble(
    base: str | Path, m2id: str | Path | M2IDEncoder, dtype: torch.dtype = torch.float32, **facts: Any
) -> DreamIdentityPipeline:
    """A pipeline over a base and an M² ID encoder that was trained for it, on the CPU, sampled by DDIM.

    Args:
        base: folder of SD 2.1-base, SDXL (diffusers' layout), of a base that `limner train` made, or of a model
            over one.
        m2id: the encoder, or its folder.
        facts: of the pipeline: default_steps, default_guidance, default_pag, same_person, world.

    Raises:
        WeightsUnavailable: something is not there.
        WeightsMismatch: the encoder was trained for another base.
        CorruptData: damaged.
    """
    from limner.pipelines.slim import base_towers

    base = Path(base)
    towers = base_towers(base, dtype)
    if not isinstance(m2id, M2IDEncoder):
        m2id = M2IDEncoder.from_pretrained(m2id, torch_dtype=dtype)
    vae, unet, scheduler = base_parts(base, dtype)
    facts = {"force_zeros_for_empty_prompt": zeros_for_empty(base, towers), **facts}
    return DreamIdentityPipeline(vae, unet, scheduler, FaceWordsEncoder(m2id, towers), **facts)


def base_parts(base: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Any]:
    """Autoencoder, UNet and a DDIM scheduler on the noise schedule of a base, or of the one that a slim folder names.

    Raises:
        WeightsUnavailable: one of them is not there.
        CorruptData: damaged.
    """
    from limner.pipelines.loading import named_base

    base = named_base(base) or base
    for part, file in (("unet", "config.json"), ("vae", "config.json"), ("scheduler", "scheduler_config.json")):
        if not (base / part / file).is_file():
            raise WeightsUnavailable(
                f"{base} is no text-to-image base: it has no {part}/{file}.",
                "Give the folder of SD 2.1-base or SDXL in diffusers' layout, or the weights/ of a mini-base training.",
            )
    name = json.loads((base / "vae" / "config.json").read_text(encoding="utf-8")).get("_class_name")
    kind: Any = PatchAutoencoder if name == PatchAutoencoder.__name__ else AutoencoderKL
    try:
        vae = kind.from_pretrained(base / "vae", local_files_only=True)
        unet: Any = UNet2DConditionModel.from_pretrained(base / "unet", local_files_only=True)
        config = json.loads((base / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError) as e:
        raise CorruptData(f"The base in {base} cannot be loaded ({type(e).__name__}: {e}).") from e
    # Diffusers' default would clip latents to ±1, which washes every picture out.
    # ModelMixin.to would warn of modules kept in float32, of which there are none.
    vae, unet = (nn.Module.to(model, dtype).eval() for model in (vae, unet))
    return vae, unet, DDIMScheduler.from_config({**config, "clip_sample": False})


def base_detailer(base: Path, dtype: torch.dtype = torch.float32) -> FaceDetailer | None:
    """The face detailer of a base, or of the one that a slim folder names; None where it has none.

    Raises:
        CorruptData: damaged.
    """
    from limner.pipelines.loading import named_base

    folder = (named_base(base) or base) / "detailer"
    if not (folder / FaceDetailer.config_name).is_file():
        return None
    try:
        return nn.Module.to(FaceDetailer.from_pretrained(folder, local_files_only=True), dtype).eval()
    except (OSError, ValueError, RuntimeError) as e:
        raise CorruptData(f"The face detailer in {folder} cannot be loaded ({type(e).__name__}: {e}).") from e


def zeros_for_empty(base: Path, towers: WordTowers) -> bool:
    """What the base's own pipeline does with an empty negative prompt; SDXL's zeros where it does not say."""
    index = base / "model_index.json"
    values = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    return bool(values.get("force_zeros_for_empty_prompt", towers.penultimate))
