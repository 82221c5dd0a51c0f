"""What a method may tell the denoiser besides embeddings: how loud an adapter is, and what its weights become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from limner.types import Conditioning


@dataclass(frozen=True)
class Steering:
    """How the denoiser itself differs while one conditioning is painted.

    Attributes:
        adapter_scale: of the IP-Adapter in the UNet, 0 to 1; without one it means nothing.
        change: name of a UNet parameter → what is added to it, of its shape.
        photo: (1, C, H/8, W/8) latents that the UNet reads beside the noisy ones (InstructPix2Pix), or None.
        photo_guidance: weight of the photo in guidance (arXiv 2211.09800, Equation 3); 1 adds none.
    """

    adapter_scale: float = 0.0
    change: Mapping[str, Tensor] = field(default_factory=dict)
    photo: Tensor | None = None
    photo_guidance: float = 1.0

    def to(self, *args: Any, **kwargs: Any) -> Steering:
        """Every tensor moved as `Tensor.to` would."""
        change = {k: v.to(*args, **kwargs) for k, v in self.change.items()}
        photo = None if self.photo is None else self.photo.to(*args, **kwargs)
        return Steering(self.adapter_scale, change, photo, self.photo_guidance)


@dataclass(frozen=True)
class SteeredConditioning(Conditioning):
    """A conditioning with its steering."""

    steering: Steering = field(default_factory=Steering)
