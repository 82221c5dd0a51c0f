"""Painting in a few steps: published LoRAs that teach SDXL's UNet to, and the dials that each was made for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from limner.errors import ConfigError, WeightsMismatch
from limner.registry import WeightFile, register_weights

if TYPE_CHECKING:
    from limner.pipelines.enrolling import EnrollingPipeline

RAIL = "CreativeML Open RAIL++-M"


@dataclass(frozen=True)
class FewStep:
    """A few-step LoRA.

    Attributes:
        name: what `--fast` takes.
        file: the LoRA.
        base: of the models that it was trained for (`ModelSpec.base`).
        scheduler, steps, guidance_scale: what it was trained to be sampled with; 1 is no guidance.
        source: the paper.
    """

    name: str
    file: WeightFile
    base: str
    scheduler: str
    steps: int
    guidance_scale: float
    source: str


FEW_STEP: dict[str, FewStep] = {
    "lcm": FewStep(
        name="lcm",
        file=register_weights(
            WeightFile(
                name="lcm-lora-sdxl",
                repo="latent-consistency/lcm-lora-sdxl",
                filename="pytorch_lora_weights.safetensors",
                license=RAIL,
                size=394_000_000,
                variable="LIMNER_LCM_LORA",
            )
        ),
        base="sdxl",
        scheduler="lcm",
        steps=4,
        guidance_scale=1.0,
        source="LCM-LoRA: A Universal Stable-Diffusion Acceleration Module (arXiv 2311.05556)",
    ),
    "lightning": FewStep(
        name="lightning",
        file=register_weights(
            WeightFile(
                name="sdxl-lightning-4step-lora",
                repo="ByteDance/SDXL-Lightning",
                filename="sdxl_lightning_4step_lora.safetensors",
                license=RAIL,
                size=394_000_000,
                variable="LIMNER_LIGHTNING_LORA",
            )
        ),
        base="sdxl",
        scheduler="euler-trailing",
        steps=4,
        guidance_scale=1.0,
        source="SDXL-Lightning: Progressive Adversarial Diffusion Distillation (arXiv 2402.13929)",
    ),
}
"""By the name that `--fast` takes. Lightning's file is that of four steps: other numbers need other files."""


def few_step(name: str) -> FewStep:
    """The few-step LoRA called `name`; ConfigError lists the known ones."""
    if name not in FEW_STEP:
        raise ConfigError(f"fast is {name!r}; allowed: {', '.join(FEW_STEP)}.")
    return FEW_STEP[name]


def apply_lora(pipe: EnrollingPipeline, name: str, file: Path, *, fuse: bool) -> None:
    """Puts a LoRA into the UNet of a pipeline that is still on the CPU.

    Args:
        name: of the adapter.
        file: safetensors.
        fuse: adds it to the weights, so that painting costs nothing extra; rounded weights cannot be added to.

    Raises:
        WeightsMismatch: it is no LoRA, or for a UNet of another shape.
    """
    from safetensors import SafetensorError

    hint = f"It must be a LoRA for a UNet like this one ({pipe.unet.config.block_out_channels} channels)."
    try:
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
        raise WeightsMismatch(f"{file} cannot be loaded as a LoRA ({' '.join(str(e).split())[:200]}).", hint) from e
    if name not in pipe.get_list_adapters().get("unet", []):
        raise WeightsMismatch(f"{file} has no layers for the UNet.", hint)
    if fuse:
        pipe.fuse_lora(components=["unet"], adapter_names=[name])
        pipe.unload_lora_weights()
