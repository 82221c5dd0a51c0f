"""The published full-size models as configurations: what they are built of, without their weights.

Each names what sets a model apart from the defaults of its diffusers class, as its published `config.json` says, and
the number of values that its published weights hold. `build` on the meta device costs no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limner.encoders.published import SDXL_UNET
from limner.errors import ConfigError
from limner.pipelines import sdxl

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Base:
    """One published model.

    Attributes:
        kind: class of diffusers.
        source: repository and folder of its published config.
        parameters: values that the published weights hold.
        config: arguments of the class.
    """

    kind: str
    source: str
    parameters: int
    config: dict[str, Any]


BASES: dict[str, Base] = {
    "sdxl-unet": Base(
        "UNet2DConditionModel", "stabilityai/stable-diffusion-xl-base-1.0/unet", 2_567_463_684, SDXL_UNET
    ),
    "sdxl-vae": Base("AutoencoderKL", "stabilityai/stable-diffusion-xl-base-1.0/vae", 83_653_863, sdxl.VAE),
    "sd21-base-unet": Base(
        "UNet2DConditionModel",
        "stabilityai/stable-diffusion-2-1-base/unet",
        865_910_724,
        {
            "sample_size": 64,
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
    ),
    "flux-transformer": Base(
        "FluxTransformer2DModel", "black-forest-labs/FLUX.1-dev/transformer", 11_901_408_320, {"guidance_embeds": True}
    ),
}

ENCODERS = ("L", "bigG", "sdxl", "flux")
"""Full-size encoders that `build` knows besides `BASES`: FaceCLIP's branches, both of them, and FaceT5."""


def build(name: str, device: str = "meta") -> nn.Module:
    """The model with random weights (none on the meta device), in evaluation mode.

    Args:
        name: a key of `BASES`, or one of `ENCODERS`.
        device: where it is to be.

    Raises:
        ConfigError: no such name.
    """
    import diffusers
    import torch

    from limner.encoders.faceclip import FaceCLIPEncoder, preset
    from limner.encoders.facet5 import FACET5_PRESETS, FaceT5Encoder

    if name not in (*BASES, *ENCODERS):
        raise ConfigError(f"Unknown full-size model {name!r}; known: {', '.join((*BASES, *ENCODERS))}.")
    with torch.device(device):
        if name in BASES:
            return getattr(diffusers, BASES[name].kind)(**BASES[name].config).eval()
        if name == "flux":
            return FaceT5Encoder(FACET5_PRESETS[name]).eval()
        return FaceCLIPEncoder(preset(name)).eval()


def count(model: nn.Module) -> int:
    """Values that a model holds (buffers of statistics not counted); what parts share counts once."""
    return sum(p.numel() for p in model.parameters())
