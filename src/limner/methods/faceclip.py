"""FaceCLIP as a method: identity and text are one conditioning, made by one encoder (arXiv 2504.14202)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from limner.encoders.faceclip import FaceCLIPEncoder
from limner.encoders.facet5 import FaceT5Encoder
from limner.methods.base import EncoderMethod, demand_prompts, demand_strength, each_once
from limner.types import Conditioning, Identity


class FaceCLIP(EncoderMethod):
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

    def nulls(self) -> dict[str, Tensor]:
        """The class token of the null face, for every face encoder."""
        return {f"null.{i}": null.class_token[0] for i, null in enumerate(self.encoder.null_faces())}

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
        person = None if identity is None else self.demand(identity)
        with_face = each_once(positive, lambda said: self.encoder.encode_identity(person, said, strength))
        without = each_once(negative, lambda said: self.encoder.encode_identity(None, said, 0.0))
        return Conditioning(
            prompt_embeds=with_face.tokens,
            pooled=with_face.pooled,
            negative_prompt_embeds=without.tokens,
            negative_pooled=without.pooled,
            face=None if identity is None else self._face(identity, len(positive), strength),
        )

    @staticmethod
    def _face(identity: Identity, rows: int, strength: float) -> Tensor:
        """(B, D): the first face encoder's class token, of the length of `strength`."""
        token = identity.tensors["class_token.0"].float()
        return (strength * token / token.norm().clamp(min=1e-6)).expand(rows, -1)
