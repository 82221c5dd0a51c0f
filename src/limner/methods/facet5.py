"""FaceT5 as a method: FaceCLIP's contract over the encoder of FaceT5-FLUX."""

from __future__ import annotations

from typing import Any, ClassVar

from limner.encoders.facet5 import FaceT5Encoder
from limner.methods.faceclip import FaceCLIP
from limner.types import Conditioning


class FaceT5(FaceCLIP):
    """Conditioning of a FLUX transformer: prompt embeddings (B, T, 4096) are the fused T5 tokens, pooled (B, 768) is
    CLIP-L's. Identities are FaceCLIP's in form, but of weights of their own, and are not exchanged with it.

    Args:
        encoder: of any size, with its tokenizers.
        model: name of the weights, written into identities.
    """

    name: ClassVar[str] = "facet5"
    version: ClassVar[int] = 1

    def __init__(self, encoder: FaceT5Encoder, *, model: str = "") -> None:
        self.encoder = encoder
        self.model = model or f"facet5-{encoder.config.digest()[:12]}"


def flux_arguments(conditioning: Conditioning) -> dict[str, Any]:
    """The arguments by which diffusers' `FluxPipeline` takes a conditioning; with `true_cfg_scale` > 1 (published: 3.5)
    it uses the unconditional branch too."""
    return {
        "prompt_embeds": conditioning.prompt_embeds,
        "pooled_prompt_embeds": conditioning.pooled,
        "negative_prompt_embeds": conditioning.negative_prompt_embeds,
        "negative_pooled_prompt_embeds": conditioning.negative_pooled,
    }
