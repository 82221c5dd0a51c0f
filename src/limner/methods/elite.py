"""ELITE: a global word for the person, and their picture's patches with attention of their own (arXiv 2302.13848)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from limner.encoders.face_vit import FaceTokens, fuse_faces
from limner.methods.base import demand_faces, face_images, quality_weights
from limner.methods.rival import Rival
from limner.methods.steering import Steering
from limner.types import Face, Identity

DETAIL = 0.6
"""lambda at inference, below the 1 of training, so that prompts can still edit."""


class Elite(Rival):
    """Global mapping (section 3.2): words from several layers of CLIP, of which the first is used. Local mapping
    (section 3.3): patch tokens with keys and values of their own, weighted by lambda = `DETAIL`·strength.

    Identity: `words.i` (1, width) for tower i; `patch_tokens.0` (N, W), of CLIP's last layer.
    """

    name: ClassVar[str] = "elite"
    version: ClassVar[int] = 1

    def enroll(self, faces: Sequence[Face]) -> Identity:
        """See `Method.enroll`; several pictures are fused, weighted by their quality where it is known."""
        images, weights = face_images(demand_faces(faces)), quality_weights(faces)
        encoder = self.encoder
        assert encoder.words is not None
        words = encoder.words.enroll(images, weights)
        patches = fuse_faces(encoder.see(images), weights).patch_tokens[0]
        first = {k: v[:1] for k, v in words.items() if k.startswith("words.")}
        return self.made({**first, "patch_tokens.0": patches}, faces, weights=[round(w, 4) for w in weights])

    def probe(self) -> Tensor:
        assert self.encoder.words is not None
        return torch.cat([words[0].float() for words in self.encoder.words.null_words()])

    def steer(self, person: Mapping[str, Tensor] | None, strength: float) -> Steering:
        return Steering(adapter_scale=0.0 if person is None else DETAIL * strength)

    def image_embeds(self, person: Mapping[str, Tensor] | None) -> list[Tensor]:
        """[(2, 1, N, W)]: nobody is zeros, as in training."""
        like = next(self.encoder.parameters())
        tokens = self._nobody().patch_tokens[0] if person is None else person["patch_tokens.0"].to(like)
        own = tokens[None, None]
        return [torch.cat([torch.zeros_like(own), own])]

    def _nobody(self) -> FaceTokens:
        size = self.encoder.backbone.config.image_size
        seen = self.encoder.see(torch.zeros(1, 3, size, size))
        return FaceTokens(*(torch.zeros_like(t) for t in seen))
