"""FaceCLIP as a method: identity and text are one conditioning, made by one encoder (arXiv 2504.14202)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from limner.encoders.faceclip import Encoded, FaceCLIPEncoder
from limner.encoders.facet5 import FaceT5Encoder
from limner.errors import WeightsMismatch
from limner.methods.base import Method, demand_faces, demand_prompts, demand_strength
from limner.types import Conditioning, Face, Identity

SAME_WEIGHTS = 0.98
"""Cosine between the null face of the identity's encoder and of this one; rounding to half precision keeps 0.999."""


class FaceCLIP(Method):
    """Conditioning of an SDXL-shaped denoiser by a FaceCLIP encoder.

    Prompt embeddings are the fused tokens of all branches, joined on channels (SDXL: 77 × (768 + 1280)); pooled is the
    last branch's. The unconditional branch has the null face, no prefix and the negative prompt, and goes through the
    same fuser.

    Identity: per face encoder i `class_token.i`, `patch_tokens.i` (see `FaceCLIPEncoder.enroll`), and `null.i`, the
    class token of the null face, by which an identity is recognised as made by these weights, at any precision.

    Args:
        encoder: of any size.
        tokenizer: replaces the encoder's own; None keeps it.
        model: name of the weights, written into identities.
    """

    name: ClassVar[str] = "faceclip"
    version: ClassVar[int] = 1

    encoder: FaceCLIPEncoder | FaceT5Encoder

    def __init__(self, encoder: FaceCLIPEncoder, tokenizer: Any = None, *, model: str = "") -> None:
        self.encoder = encoder
        if tokenizer is not None and tokenizer is not encoder.tokenizer:
            encoder.tokenizer = tokenizer
        self.model = model or f"faceclip-{encoder.config.digest()[:12]}"

    def enroll(self, faces: Sequence[Face]) -> Identity:
        """See `Method.enroll`; several pictures are weighted by their quality, where it is known."""
        images = torch.from_numpy(np.stack([face.image for face in demand_faces(faces)]))
        weights = [1.0 if face.quality is None else max(face.quality.score, 0.01) for face in faces]
        tensors = self.encoder.enroll(images, weights)
        tensors |= {f"null.{i}": null.class_token[0] for i, null in enumerate(self.encoder.null_faces())}
        info = {"references": len(faces), "weights": [round(w, 4) for w in weights]}
        return Identity(tensors=tensors, method=self.name, version=self.version, model=self.model, info=info)

    def condition(
        self,
        identity: Identity | None,
        prompts: Sequence[str],
        *,
        negative_prompts: Sequence[str] | None = None,
        strength: float = 1.0,
    ) -> Conditioning:
        """See `Method.condition`; `strength` is `FaceCLIPEncoder.encode_identity`'s."""
        positive, negative = demand_prompts(prompts, negative_prompts)
        demand_strength(strength)
        person = None if identity is None else self._demand(identity)
        with_face = self._encode(person, positive, strength)
        without = self._encode(None, negative, 0.0)
        return Conditioning(
            prompt_embeds=with_face.tokens,
            pooled=with_face.pooled,
            negative_prompt_embeds=without.tokens,
            negative_pooled=without.pooled,
        )

    def _encode(self, person: Mapping[str, Tensor] | None, prompts: list[str], strength: float) -> Encoded:
        """Each distinct prompt once: four pictures of one sentence cost one encoding."""
        distinct = list(dict.fromkeys(prompts))
        encoded = self.encoder.encode_identity(person, distinct, strength)
        rows = torch.tensor([distinct.index(p) for p in prompts], device=encoded.tokens.device)
        return Encoded(*(value[rows] for value in encoded))

    def _demand(self, identity: Identity) -> Mapping[str, Tensor]:
        identity.demand(self.name, self.version)
        for i, null in enumerate(self.encoder.null_faces()):
            theirs, ours = identity.tensors.get(f"null.{i}"), null.class_token[0].float()
            if theirs is None or theirs.shape != ours.shape or _cosine(theirs, ours) < SAME_WEIGHTS:
                raise WeightsMismatch(
                    f"This identity was enrolled with other weights ({identity.model}) than these ({self.model}).",
                    "Enrol the face again with the model that is to paint it.",
                )
        return identity.tensors


def _cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.to(b), b, dim=0).item()
