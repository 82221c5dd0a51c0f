"""The published full-size models as configurations: what they are built of, without their weights.

Each names what sets a model apart from the defaults of its diffusers class, as its published `config.json` says, and
the number of values that its published weights hold. `build` on the meta device costs no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limner.encoders.published import SDXL_UNET
from limner.errors import ConfigError
from limner.pipelines import flux, sdxl

if TYPE_CHECKING:
    from torch import nn

    from limner.encoders.word_towers import WordTowers


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
        "FluxTransformer2DModel", "black-forest-labs/FLUX.1-dev/transformer", 11_901_408_320, flux.TRANSFORMER
    ),
    "flux-vae": Base("AutoencoderKL", "black-forest-labs/FLUX.1-dev/vae", 83_819_683, flux.VAE),
}

_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_BIGG = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
TEXT_TOWERS: dict[str, tuple[dict[str, Any], ...]] = {
    "sd21-base": ({**_H, "hidden_act": "gelu"},),
    "sdxl-base": ({**_L, "hidden_act": "quick_gelu"}, {**_BIGG, "hidden_act": "gelu", "projection_dim": 1280}),
}
"""Text towers of whole bases: arguments of CLIPTextConfig, as their published text_encoder/config.json."""

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


def build_towers(base: str, device: str = "meta") -> WordTowers:
    """The text towers of a base with random weights (none on the meta device) and tokenizers that know no words.

    Args:
        base: a key of `TEXT_TOWERS`.
        device: where they are to be.
    """
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from limner.encoders.pseudo_words import NEUTRAL
    from limner.encoders.tokenizer import build_word_tokenizer
    from limner.encoders.word_towers import WordTowers

    configs = [CLIPTextConfig(**values) for values in TEXT_TOWERS[base]]
    with torch.device(device):
        towers: list[Any] = [CLIPTextModel(configs[0]), *map(CLIPTextModelWithProjection, configs[1:])]
    tokenizers = [build_word_tokenizer((NEUTRAL,), context=c.max_position_embeddings) for c in configs]
    return WordTowers(towers, tokenizers, penultimate=len(towers) > 1).eval()


def count(model: nn.Module) -> int:
    """Values that a model holds (buffers of statistics not counted); what parts share counts once."""
    return sum(p.numel() for p in model.parameters())
