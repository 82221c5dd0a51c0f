"""Ways to paint in less memory (or less time) with the same pipeline: named settings over what diffusers offers.

What a mode promises of its pictures:
- *exact*: the very pictures of the plain mode, on the same device;
- *faithful*: they show the same, but tiles of a decoded picture are blended and sums are taken in another order;
- otherwise the UNet's weights are rounded, and the pictures differ in details.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limner.config import Config
from limner.errors import ConfigError, MissingDependency

if TYPE_CHECKING:
    import torch

    from limner.pipelines.enrolling import EnrollingPipeline
    from limner.types import Conditioning, Identity

OFFLOADS = ("none", "model", "sequential")
WEIGHTS = ("", "fp8", "int8", "nf4")
PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}
"""What rounds weights to each form; fp8 needs nothing but torch."""


@dataclass(frozen=True)
class MemoryMode(Config):
    """What is done to save memory or time.

    Attributes:
        free_encoders: encode all prompts first, then give up the encoder's memory.
        offload: `model` keeps only the model at work on the GPU; `sequential` only the layer at work (much slower).
        vae_slicing: decode pictures one by one.
        vae_tiling: decode large pictures in blended tiles, where the autoencoder can.
        attention_slicing: the UNet's attention in slices; of no use where torch has a fused attention (CUDA), nor known
            to FLUX's transformer. Whatever else is said of a UNet here holds of that transformer too.
        compile: backend of torch.compile for the UNet (`inductor`); empty compiles nothing.
        weights: how the UNet's weights are kept: `fp8` (8-bit floats, all but its norms and embeddings), `int8` (linear
            layers, torchao), `nf4` (linear layers, 4 bits, bitsandbytes); empty keeps them as they are. Sums are taken
            in the model's own number type in all of them.
    """

    free_encoders: bool = False
    offload: str = "none"
    vae_slicing: bool = False
    vae_tiling: bool = False
    attention_slicing: bool = False
    compile: str = ""
    weights: str = ""

    def validate(self) -> None:
        self.check(self.offload in OFFLOADS, "offload", ", ".join(OFFLOADS))
        self.check(self.weights in WEIGHTS, "weights", ", ".join(WEIGHTS[1:]) + " or nothing")
        self.check(not self.weights or self.offload == "none", "weights", "nothing, where models are offloaded")

    @property
    def exact(self) -> bool:
        """Whether pictures are promised to equal the plain mode's, bit for bit."""
        return self.faithful and not (self.vae_slicing or self.vae_tiling or self.attention_slicing or self.compile)

    @property
    def faithful(self) -> bool:
        """Whether the weights are the plain mode's."""
        return not self.weights


MODES: dict[str, MemoryMode] = {
    "plain": MemoryMode(),
    "freed": MemoryMode(free_encoders=True),
    "sliced": MemoryMode(free_encoders=True, vae_slicing=True, vae_tiling=True, attention_slicing=True),
    "offload": MemoryMode(offload="model", vae_slicing=True, vae_tiling=True),
    "sequential": MemoryMode(offload="sequential", vae_slicing=True, vae_tiling=True),
    "fp8": MemoryMode(free_encoders=True, vae_slicing=True, vae_tiling=True, weights="fp8"),
    "int8": MemoryMode(free_encoders=True, vae_slicing=True, vae_tiling=True, weights="int8"),
    "nf4": MemoryMode(free_encoders=True, vae_slicing=True, vae_tiling=True, weights="nf4"),
    "compiled": MemoryMode(compile="inductor"),
}
"""By the name that `--memory` takes; `compiled` is for many pictures. `limner.pipelines.fitting` chooses among them."""


def memory_mode(name: str) -> MemoryMode:
    """The mode called `name`; ConfigError lists the known ones."""
    if name not in MODES:
        raise ConfigError(f"memory is {name!r}; allowed: {', '.join(MODES)}.")
    return MODES[name]


def demand_device(mode: MemoryMode, device: torch.device) -> None:
    """Raises where the mode cannot be had here; before anything is loaded.

    Raises:
        ConfigError: the mode needs another device than `device`.
        MissingDependency: it needs a package that is not installed.
    """
    lacking = ""
    if mode.offload != "none" and device.type != "cuda":
        lacking = f"Offloading ({mode.offload}) needs a CUDA GPU"
    elif mode.weights == "nf4" and device.type != "cuda":
        lacking = "Weights of 4 bits (nf4) need a CUDA GPU"
    elif mode.weights == "fp8" and device.type == "mps":
        lacking = "Weights of 8-bit floats (fp8) need a CUDA GPU or a CPU"
    if lacking:
        raise ConfigError(
            f"{lacking}; the device is {device.type}.", f"Modes for this device: {', '.join(modes_for(device))}."
        )
    package = PACKAGES.get(mode.weights)
    if package and not _installed(package):
        raise MissingDependency(
            f"Weights in {mode.weights} need the package {package}, which is not installed.",
            'Install it with: pip install "limner[quant]"',
        )


def modes_for(device: torch.device) -> list[str]:
    """Names of the modes that a device of this type can have, whether or not their packages are installed."""
    only_cuda = {n for n, m in MODES.items() if m.offload != "none" or m.weights == "nf4"}
    refused = only_cuda if device.type != "cuda" else set()
    return [n for n, m in MODES.items() if n not in refused and not (m.weights == "fp8" and device.type == "mps")]


def quantization(mode: MemoryMode, dtype: torch.dtype, denoiser: str = "unet") -> Any:
    """diffusers' PipelineQuantizationConfig with which a pipeline must be loaded for this mode; None for most modes.
    `denoiser` is the name of the component that denoises."""
    if mode.weights not in PACKAGES:
        return None
    from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, TorchAoConfig

    if mode.weights == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        how: Any = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return PipelineQuantizationConfig(quant_mapping={denoiser: how})


def place(pipe: EnrollingPipeline, mode: MemoryMode, device: torch.device) -> None:
    """Brings a pipeline that is on the CPU to `device`, as the mode has it; once per pipeline.

    Encoders are not freed here (see `encode_then_free`); int8 and nf4 weights must have been loaded as such (see
    `quantization`).

    Raises:
        ConfigError, MissingDependency: the mode cannot be had here.
    """
    demand_device(mode, device)
    if mode.vae_slicing:
        pipe.vae.enable_slicing()
    if mode.vae_tiling and hasattr(pipe.vae, "use_tiling"):
        pipe.vae.enable_tiling()
    if mode.attention_slicing and hasattr(pipe.denoiser, "set_attention_slice"):
        pipe.denoiser.set_attention_slice("max")
    if mode.weights == "fp8":
        import torch

        pipe.denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=pipe.denoiser.dtype)
    if mode.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif mode.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    if mode.compile:
        pipe.denoiser.compile(backend=mode.compile)


def encode(
    pipe: Any, identity: Identity | None, prompts: Sequence[str], negative_prompt: str = "", strength: float = 1.0
) -> dict[str, Conditioning]:
    """Prompt → conditioning of every distinct prompt. What a method changes in the denoiser for the person (large, and
    the same for every prompt) is held once.

    Raises:
        PromptError, WeightsMismatch, ConfigError: as `Method.condition`.
    """
    from limner.methods.steering import SteeredConditioning

    made: dict[str, Conditioning] = {}
    first: Conditioning | None = None
    for prompt in dict.fromkeys(prompts):
        told = pipe.condition(prompt, identity, negative_prompt, strength)
        first = first or told
        if isinstance(told, SteeredConditioning) and isinstance(first, SteeredConditioning):
            told = dataclasses.replace(told, steering=first.steering)
        made[prompt] = told
    return made


def encode_then_free(
    pipe: Any, identity: Identity | None, prompts: Sequence[str], negative_prompt: str = "", strength: float = 1.0
) -> dict[str, Conditioning]:
    """As `encode`; the memory of the pipeline's encoder is then given up for good: it can enrol and encode nothing any
    more, but its sizes are still known. After an error the encoder is kept."""
    import torch

    made = encode(pipe, identity, prompts, negative_prompt, strength)
    pipe.encoder.free()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return made


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None
