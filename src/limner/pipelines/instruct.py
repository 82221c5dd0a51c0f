"""InstructPix2Pix's pipeline: a UNet that reads a photo beside the noise, and guidance by both photo and text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from limner.errors import ConfigError
from limner.methods.instruct_pix2pix import InstructPix2Pix
from limner.methods.steering import SteeredConditioning
from limner.pipelines.rivals import RivalPipeline
from limner.types import Conditioning


class InstructPix2PixPipeline(RivalPipeline):
    """Photo + prompt → edited photo; see `limner.methods.instruct_pix2pix`."""

    rival = InstructPix2Pix

    @property
    def method(self) -> InstructPix2Pix:
        zero_empty = bool(self.config.force_zeros_for_empty_prompt)
        return InstructPix2Pix(self.encoder, self.unet, self.vae, self.default_size[0], zero_empty=zero_empty)

    def prepare_latents(self, batch_size: int, num_channels_latents: int, *args: Any, **kwargs: Any) -> Tensor:
        """As in diffusers; half of what the UNet reads is noise."""
        return super().prepare_latents(batch_size, self.vae.config.latent_channels, *args, **kwargs)

    @contextmanager
    def _steered(self, conditioning: Conditioning, guidance: float) -> Iterator[Conditioning]:
        if conditioning.regions:
            raise ConfigError("instruct-pix2pix edits one photo; it cannot paint several people in one picture.")
        steering = conditioning.steering if isinstance(conditioning, SteeredConditioning) else None
        photo = steering.photo if steering else None
        weight = steering.photo_guidance if steering else 1.0
        with (
            super()._steered(conditioning, guidance) as told,
            beside(self.unet, photo, weight, guided=guidance > 1),
        ):
            yield told


@contextmanager
def beside(unet: Any, photo: Tensor | None, photo_guidance: float, *, guided: bool) -> Iterator[None]:
    """While it is open, the UNet is called as any other, and reads the photo beside the noise.

    With guidance, a call has the unconditional rows first. They come out as e(∅, ∅) + s_I (e(I, ∅) - e(∅, ∅)), and the
    others as much above them as e(I, T) is above e(I, ∅), so that the caller's own guidance by text makes of both what
    section 3.2.1 of arXiv 2211.09800 says.

    Args:
        photo: (1, C, h, w), or None for no photo, which the UNet knows as zeros.
        photo_guidance: s_I.
        guided: whether calls have unconditional rows.

    Raises:
        ConfigError: the UNet is called with noise of another size than the photo.
    """
    three = guided and photo is not None

    def enter(_unet: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        noisy, *rest = given
        if photo is not None and photo.shape[-2:] != noisy.shape[-2:]:
            (high, wide), (h, w) = photo.shape[-2:], noisy.shape[-2:]
            raise ConfigError(
                f"instruct-pix2pix edits the photo at the size it was enrolled at ({wide} × {high} latents); a picture "
                f"of {w} × {h} was asked for.",
                "Leave --size out.",
            )
        own = torch.zeros_like(noisy) if photo is None else photo.to(noisy).expand(len(noisy), -1, -1, -1)
        if three:
            half = noisy[: len(noisy) // 2]
            noisy, own = torch.cat([half] * 3), own[: len(half)]
            own = torch.cat([torch.zeros_like(own), own, own])
            added = named.get("added_cond_kwargs") or {}
            named = {
                **named,
                "encoder_hidden_states": _thrice(named["encoder_hidden_states"]),
                "added_cond_kwargs": {k: _thrice(v) for k, v in added.items()},
            }
        return (torch.cat([noisy, own], 1), *rest), named

    def leave(_unet: Any, _given: Any, output: Any) -> Any:
        if not three:
            return None
        nothing, seen, told = output[0].chunk(3)
        base = nothing + photo_guidance * (seen - nothing)
        return (torch.cat([base, base + told - seen]), *output[1:])

    hooks = [unet.register_forward_pre_hook(enter, with_kwargs=True), unet.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _thrice(rows: Tensor) -> Tensor:
    """Unconditional rows twice, then the others."""
    without, given = rows.chunk(2)
    return torch.cat([without, without, given])
