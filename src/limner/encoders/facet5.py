"""FaceT5, the encoder of FaceT5-FLUX: FaceCLIP's face encoder and fuser over the tokens of a T5 (arXiv 2504.14202)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from limner.config import Config
from limner.encoders.branch import Encoded, FusingModule
from limner.encoders.config import FaceViTConfig, FuserConfig, TextTowerConfig
from limner.encoders.enrolling import EnrollingEncoder
from limner.encoders.face_vit import FaceTokens, FaceViT
from limner.encoders.text_tower import TextTower
from limner.encoders.tokenizer import encode_prompts
from limner.errors import ConfigError, PromptError


@dataclass(frozen=True)
class T5Sizes(Config):
    """The text encoder of a T5 v1.1 (gated GELU).

    Attributes:
        width, depth, heads, head_width, feedforward: of the transformer.
        vocabulary: tokens known, with the unused ones that round it up.
        context: tokens of a prompt.
    """

    width: int = 4096
    depth: int = 24
    heads: int = 64
    head_width: int = 64
    feedforward: int = 10240
    vocabulary: int = 32128
    context: int = 512

    def validate(self) -> None:
        self.check(self.width >= 2 and self.width % 2 == 0, "width", "an even number")
        self.check(self.context >= 1, "context", "at least 1")
        for name in ("depth", "heads", "head_width", "feedforward", "vocabulary"):
            self.check(getattr(self, name) >= 1, name, "at least 1")


@dataclass(frozen=True)
class FaceT5Config(Config):
    """Sizes of a FaceT5 encoder; `clip` is the tower that gives the pooled output."""

    face: FaceViTConfig
    t5: T5Sizes
    clip: TextTowerConfig
    fuser: FuserConfig

    def validate(self) -> None:
        if self.t5.width % self.fuser.heads:
            raise ConfigError(f"T5 width {self.t5.width} is no multiple of the fuser's {self.fuser.heads} heads.")


FACET5_PRESETS: dict[str, FaceT5Config] = {
    "flux": FaceT5Config(FaceViTConfig(), T5Sizes(), TextTowerConfig(), FuserConfig(points=0)),
    "tiny": FaceT5Config(
        face=FaceViTConfig(patch_size=28, width=32, depth=2, heads=2, output=16),
        t5=T5Sizes(width=32, depth=2, heads=2, head_width=16, feedforward=64, vocabulary=64, context=24),
        clip=TextTowerConfig(width=16, depth=2, heads=2, context=24, vocabulary=64, projection=16),
        fuser=FuserConfig(depth=2, heads=4, points=0, feedforward=32, gain=0.5),
    ),
}
"""`flux` has the published sizes; `tiny` runs in milliseconds."""


def sinusoidal_positions(count: int, width: int) -> Tensor:
    """(count, width) float32: sines in even channels, cosines in odd ones (Vaswani et al. 2017, section 3.5)."""
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    angle = torch.arange(count, dtype=torch.float32)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class FaceT5Encoder(FusingModule, EnrollingEncoder):
    """A face and a prompt in, conditioning of FLUX out.

    As FaceCLIP, but: the text stream is T5's, with sinusoidal positions; the face stream's self-attention is ordinary;
    no word of the prompt stands for the person (no prefix, nothing replaced), so that the face enters through the
    fuser alone; pooled is the row of a plain CLIP-L at the end of the prompt.

    What of the published layout could not be verified, since neither its weights nor a list of their keys were at
    hand: the names of the keys (those of the parts shared with FaceCLIP are taken from it, `t5` and `clip` are
    Limner's); numbers of heads and feed-forward channels of the fuser at this width (taken from FaceCLIP); whether
    sines and cosines alternate or lie in halves, and whether the positions are projected as FaceCLIP's are; whether
    512 tokens are fused. Published FaceT5 weights can therefore not be imported.

    Args:
        config: sizes; one of `FACET5_PRESETS` or of one's own.
        t5_tokenizer, clip_tokenizer: of prompts, both padding with id 0; None leaves only `forward` usable.
    """

    def __init__(self, config: FaceT5Config, t5_tokenizer: Any = None, clip_tokenizer: Any = None) -> None:
        super().__init__()
        self.config = config
        self.face_encoder = FaceViT(config.face)
        self.t5 = T5EncoderModel(_transformers_config(config.t5))
        self.clip = TextTower(config.clip)
        self._build_fusion(config.t5.width, config.face, config.fuser)
        self.t5_tokenizer, self.clip_tokenizer = t5_tokenizer, clip_tokenizer
        self.train()

    @property
    def faces(self) -> list[FaceViT]:
        """The one face encoder."""
        return [self.face_encoder]

    @torch.no_grad()
    @apply_forward_hook
    def encode_identity(
        self, identity: Mapping[str, Tensor] | None, prompts: Sequence[str], strength: float = 1.0
    ) -> Encoded:
        """Encodes B prompts for one enrolled person.

        With strength s the patch tokens are s·person + (1 − s)·null face. Pooled and text feature never depend on the
        person.

        Args:
            identity: from `enroll`; None is the null face.
            prompts: B sentences.
            strength: 0 to 1.

        Raises:
            WeightsMismatch: an identity of other shapes.
            ConfigError: strength outside [0, 1], or no tokenizers.
            PromptError: no prompts.

        Warns:
            PromptTruncated: a prompt was too long for T5.
        """
        if isinstance(prompts, str) or not prompts:
            raise PromptError("A non-empty list of prompts is expected.", "Write [prompt].")
        if self.t5_tokenizer is None or self.clip_tokenizer is None:
            raise ConfigError("This encoder has no tokenizers.", "Set t5_tokenizer and clip_tokenizer.")
        (faces,) = self._person(identity, strength)
        t5_ids = encode_prompts(self.t5_tokenizer, prompts, self.config.t5.context)
        return self(t5_ids, encode_prompts(self.clip_tokenizer, prompts, self.config.clip.context), faces)

    def forward(self, t5_ids: Tensor, clip_ids: Tensor, faces: FaceTokens) -> Encoded:
        """Encodes token ids (B, T) of T5 and (B, T') of CLIP with faces of batch B, or 1 for all; no padding mask."""
        text = self.t5(input_ids=t5_ids.to(self.device)).last_hidden_state
        positions = sinusoidal_positions(*text.shape[1:]).to(text)
        clip = self.clip(clip_ids.to(self.device))
        fused = self.fuse(text, positions, faces)
        return Encoded(fused, clip.pooled, clip.feature, faces.class_token.expand(len(text), -1))


def _transformers_config(sizes: T5Sizes) -> T5Config:
    return T5Config(
        vocab_size=sizes.vocabulary,
        d_model=sizes.width,
        d_kv=sizes.head_width,
        d_ff=sizes.feedforward,
        num_layers=sizes.depth,
        num_heads=sizes.heads,
        feed_forward_proj="gated-gelu",
    )
