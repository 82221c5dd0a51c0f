"""IP-Adapter-FaceID: a recogniser's identity vector as four tokens with attention of their own (arXiv 2308.06721)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from limner.encoders.face_vit import fuse_faces
from limner.methods.base import demand_faces, face_images, quality_weights
from limner.methods.rival import Rival
from limner.methods.steering import Steering
from limner.types import Face, Identity


class IPAdapter(Rival):
    """Decoupled cross-attention, Z = Attention(Q, K, V) + s·Attention(Q, K', V') (section 3.2.2); K', V' come from
    the identity tokens, and the scale s is the strength. The prompt is the base's own: `S*` is read as "person".

    Identity: `class_token.0` (D), the recogniser's identity vector.
    """

    name: ClassVar[str] = "ip-adapter"
    version: ClassVar[int] = 1
    names_person: ClassVar[bool] = False

    def enroll(self, faces: Sequence[Face]) -> Identity:
        """See `Method.enroll`; several pictures are fused, weighted by their quality where it is known."""
        weights = quality_weights(demand_faces(faces))
        seen = fuse_faces(self.encoder.see(face_images(faces)), weights)
        return self.made({"class_token.0": seen.class_token[0]}, faces, weights=[round(w, 4) for w in weights])

    def probe(self) -> Tensor:
        size = self.encoder.backbone.config.image_size
        return self.encoder.see(torch.zeros(1, 3, size, size)).class_token[0]

    def words(self, person: Mapping[str, Tensor]) -> None:
        return None

    def steer(self, person: Mapping[str, Tensor] | None, strength: float) -> Steering:
        return Steering(adapter_scale=0.0 if person is None else strength)

    def image_embeds(self, person: Mapping[str, Tensor] | None) -> list[Tensor]:
        """[(2, 1, D)]: nobody is zeros, as in training."""
        token = self._zeros() if person is None else person["class_token.0"].to(self._zeros())
        own = token[None, None]
        return [torch.cat([torch.zeros_like(own), own])]

    def _zeros(self) -> Tensor:
        like = next(self.encoder.parameters())
        return torch.zeros(self.encoder.backbone.config.output, device=like.device, dtype=like.dtype)
