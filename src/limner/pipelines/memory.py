"""Ways to paint in less memory (or less time) with the same pipeline: named settings over what diffusers offers.

What a mode promises of its pictures:
- *exact*: the very pictures of the plain mode, on the same device;
- otherwise they show the same, but tiles of a decoded picture are blended and sums are taken in another order.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limner.config import Config
from limner.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from limner.pipelines.portrait import PortraitPipeline
    from limner.types import Conditioning, Identity

OFFLOADS = ("none", "model", "sequential")


@dataclass(frozen=True)
class MemoryMode(Config):
    """What is done to save memory or time.

    Attributes:
        free_encoders: encode all prompts first, then give up the encoder's memory.
        offload: `model` keeps only the model at work on the GPU; `sequential` only the layer at work (much slower).
        vae_slicing: decode pictures one by one.
        vae_tiling: decode large pictures in blended tiles, where the autoencoder can.
        attention_slicing: the UNet's attention in slices; of no use where torch has a fused attention (CUDA).
        compile: backend of torch.compile for the UNet (`inductor`); empty compiles nothing.
    """

    free_encoders: bool = False
    offload: str = "none"
    vae_slicing: bool = False
    vae_tiling: bool = False
    attention_slicing: bool = False
    compile: str = ""

    def validate(self) -> None:
        self.check(self.offload in OFFLOADS, "offload", ", ".join(OFFLOADS))

    @property
    def exact(self) -> bool:
        """Whether pictures are promised to equal the plain mode's, bit for bit."""
        return not (self.vae_slicing or self.vae_tiling or self.attention_slicing or self.compile)


MODES: dict[str, MemoryMode] = {
    "plain": MemoryMode(),
    "freed": MemoryMode(free_encoders=True),
    "sliced": MemoryMode(free_encoders=True, vae_slicing=True, vae_tiling=True, attention_slicing=True),
    "offload": MemoryMode(offload="model", vae_slicing=True, vae_tiling=True),
    "sequential": MemoryMode(offload="sequential", vae_slicing=True, vae_tiling=True),
    "compiled": MemoryMode(compile="inductor"),
}
"""By the name that `--memory` takes, from the fastest start to the least memory; `compiled` is for many pictures."""


def memory_mode(name: str) -> MemoryMode:
    """The mode called `name`; ConfigError lists the known ones."""
    if name not in MODES:
        raise ConfigError(f"memory is {name!r}; allowed: {', '.join(MODES)}.")
    return MODES[name]


def demand_device(mode: MemoryMode, device: torch.device) -> None:
    """Raises ConfigError where the mode moves models to a GPU and from it, but `device` is none."""
    if mode.offload != "none" and device.type != "cuda":
        raise ConfigError(
            f"Offloading ({mode.offload}) needs a CUDA GPU; the device is {device.type}.",
            f"Modes for this device: {', '.join(n for n, m in MODES.items() if m.offload == 'none')}.",
        )


def place(pipe: PortraitPipeline, mode: MemoryMode, device: torch.device) -> None:
    """Brings a pipeline that is on the CPU to `device`, as the mode has it; once per pipeline.

    Encoders are not freed here (see `encode_then_free`).

    Raises:
        ConfigError: the mode cannot be had on this device.
    """
    demand_device(mode, device)
    if mode.vae_slicing:
        pipe.vae.enable_slicing()
    if mode.vae_tiling and hasattr(pipe.vae, "use_tiling"):
        pipe.vae.enable_tiling()
    if mode.attention_slicing:
        pipe.unet.set_attention_slice("max")
    if mode.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif mode.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    if mode.compile:
        pipe.unet.compile(backend=mode.compile)


def encode_then_free(
    pipe: Any, identity: Identity | None, prompts: Sequence[str], negative_prompt: str = "", strength: float = 1.0
) -> dict[str, Conditioning]:
    """Prompt → conditioning of every distinct prompt; the memory of the pipeline's encoder is then given up for good:
    it can enrol and encode nothing any more, but its sizes are still known.

    Raises:
        PromptError, WeightsMismatch, ConfigError: as `Method.condition`; the encoder is then kept.
    """
    import torch

    made = {prompt: pipe.condition(prompt, identity, negative_prompt, strength) for prompt in dict.fromkeys(prompts)}
    pipe.encoder.free()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return made
