"""Perturbed-attention guidance (arXiv 2403.17377): away from what the UNet would paint if some of its layers did not
look around. Faces and backgrounds get firmer outlines; too much of it makes pictures flat.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import (
    Attention,
    PAGCFGIdentitySelfAttnProcessor2_0,
    PAGIdentitySelfAttnProcessor2_0,
)

from limner.errors import ConfigError

SMALL = 32
"""Latent places along a side up to which a UNet is perturbed where it attends most finely."""


@contextlib.contextmanager
def perturbed(unet: Any, scale: float, guidance: float, layers: Sequence[str] = ("mid",)) -> Iterator[None]:
    """While it is open, every call of the UNet is guided; afterwards it is as it was.

    The rows with conditioning are denoised once more with the self-attention of `layers` replaced by its values alone
    (section 3.2). They come out so that the caller's own guidance makes of them what Equation 10 and section 4.2 say:
    e(∅) + w (e(c) - e(∅)) + s (e(c) - ê(c)), or without guidance e(c) + s (e(c) - ê(c)).

    Args:
        scale: s; 0 changes nothing.
        guidance: w of the caller; above 1 the first half of the rows is unconditional.
        layers: beginnings of names of parts of the UNet, as in `mid` or `up_blocks.1`.

    Raises:
        ConfigError: no self-attention in one of the layers; or the UNet is guided already (InstructPix2Pix).
    """
    if not scale:
        yield
        return
    if unet._forward_hooks:
        raise ConfigError("This method has a guidance of its own; pag_scale cannot be given with it.")
    guided = guidance > 1
    chosen = self_attentions(unet, layers)
    before = [layer.processor for layer in chosen]
    processor: Any = PAGCFGIdentitySelfAttnProcessor2_0() if guided else PAGIdentitySelfAttnProcessor2_0()

    def enter(_unet: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = len(given[0])
        return _again(given, rows, guided), _again(named, rows, guided)

    def leave(_unet: Any, _given: Any, output: Any) -> Any:
        *without, told, blind = output[0].chunk(3 if guided else 2)
        return (torch.cat([*without, told + scale / (guidance if guided else 1) * (told - blind)]), *output[1:])

    hooks = [unet.register_forward_pre_hook(enter, with_kwargs=True), unet.register_forward_hook(leave)]
    try:
        for layer in chosen:
            layer.processor = processor
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, own in zip(chosen, before, strict=True):
            layer.processor = own


def default_layers(unet: Any) -> tuple[str, ...]:
    """Where a UNet is perturbed: in the middle, as diffusers does with SDXL; one of at most `SMALL` places a side, on
    both sides where it attends most finely (docs/trainings.md)."""
    size = unet.config.sample_size
    if max(size if isinstance(size, (tuple, list)) else (size,)) > SMALL:
        return ("mid",)
    attending = [name for name, module in unet.named_modules() if isinstance(module, Attention)]
    blocks = sorted({".".join(name.split(".")[:2]) for name in attending if name.startswith(("down", "up"))})
    down, up = ([b for b in blocks if b.startswith(side)] for side in ("down", "up"))
    return down[0], up[-1]


def self_attentions(unet: Any, layers: Sequence[str]) -> list[Attention]:
    """The self-attention layers of the parts whose names begin so.

    Raises:
        ConfigError: there is none in one of them.
    """
    found = []
    for start in layers:
        own = [
            module
            for name, module in unet.named_modules()
            if isinstance(module, Attention) and not module.is_cross_attention and name.startswith(start)
        ]
        if not own:
            raise ConfigError(f"The UNet has no self-attention in {start!r}, where guidance was to perturb it.")
        found += own
    return found


def _again(value: Any, rows: int, guided: bool) -> Any:
    """What the UNet is given, with the rows that have conditioning once more at the end."""
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == rows:
        return torch.cat([value, value[rows // 2 :] if guided else value])
    if isinstance(value, dict):
        return {k: _again(v, rows, guided) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_again(v, rows, guided) for v in value)
    return value
