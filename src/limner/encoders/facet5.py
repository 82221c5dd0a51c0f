"""FaceT5, the encoder of FaceT5-FLUX: FaceCLIP's face encoder and fuser over the tokens of a T5 (arXiv 2504.14202)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from limner.config import Config
from limner.encoders import facet5_published as layout
from limner.encoders.branch import Encoded, FusingModule
from limner.encoders.checkpoint import load_part, write_safetensors
from limner.encoders.config import FaceViTConfig, FuserConfig, TextTowerConfig
from limner.encoders.enrolling import EnrollingEncoder
from limner.encoders.face_vit import FaceTokens, FaceViT
from limner.encoders.published import Shapes, demand_layout, shapes_of, strip_prefix
from limner.encoders.text_tower import TextTower
from limner.encoders.tokenizer import PromptTokenizer, encode_prompts
from limner.errors import ConfigError, PromptError, WeightsMismatch

FILE = "model.safetensors"
METADATA = "limner.facet5"
T5_TOKENIZER, CLIP_TOKENIZER = "tokenizer_t5", "tokenizer_clip"
"""Folders of the tokenizers, beside the weights."""


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


class FaceT5Encoder(FusingModule, EnrollingEncoder, ModelMixin):
    """A face and a prompt in, conditioning of FLUX out; a diffusers model as far as pipelines need one.

    As FaceCLIP, but: the text stream is T5's, which enters the fuser as it is, with sinusoidal positions; the face
    stream's self-attention is ordinary; no word of the prompt stands for the person (no prefix, nothing replaced), so
    that the face enters through the fuser alone; pooled is the row of a plain CLIP-L at the end of the prompt.

    The layout is that of the code that was released with the published weights; the weights themselves were never at
    hand.

    Args:
        config: sizes; one of `FACET5_PRESETS` or of one's own.
        t5_tokenizer, clip_tokenizer: of prompts, both padding with id 0; None leaves only `forward` usable.
    """

    def __init__(self, config: FaceT5Config, t5_tokenizer: Any = None, clip_tokenizer: Any = None) -> None:
        super().__init__()
        self.config = config
        self.face_encoder = FaceViT(config.face)
        self.t5 = T5EncoderModel(_transformers_config(config.t5)).encoder
        self.clip = TextTower(config.clip)
        self._build_fusion(config.t5.width, config.face, config.fuser, project_text=False)
        # Published files hold the table, rounded as the weights are.
        self.register_buffer("positional_embedding", sinusoidal_positions(config.t5.context, config.t5.width)[None])
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
            PromptTruncated: a prompt was too long for T5, or for CLIP, which reads 77 tokens of it.
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
        positions = self.positional_embedding[0, : text.shape[1]].to(text)
        clip = self.clip(clip_ids.to(self.device))
        fused = self.fuse(text, positions, faces)
        return Encoded(fused, clip.pooled, clip.feature, faces.class_token.expand(len(text), -1))

    # --- files ----------------------------------------------------------------------------------------------------

    def to_published(self) -> dict[str, Tensor]:
        """The state dict in the published layout; tensors are not copied."""
        return layout.to_published(self.state_dict())

    def save_pretrained(self, path: str | Path, **_: Any) -> None:  # type: ignore[override]
        """Writes `model.safetensors` (published keys, the config in its metadata) and both tokenizers into a folder.

        Raises:
            StorageError: it cannot be written.
        """
        state = {k: v.cpu() for k, v in self.to_published().items()}
        write_safetensors(Path(path) / FILE, state, {METADATA: json.dumps(self.config.to_dict())})
        for name, tokenizer in ((T5_TOKENIZER, self.t5_tokenizer), (CLIP_TOKENIZER, self.clip_tokenizer)):
            if tokenizer is not None:
                tokenizer.save_pretrained(Path(path) / name)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, *, torch_dtype: torch.dtype | None = None, **_: Any
    ) -> FaceT5Encoder:
        """Reads what `save_pretrained` wrote.

        Args:
            path: the folder.
            torch_dtype: of the weights; None means float32.
            **_: what diffusers passes to every component; there is one way to load this one.

        Raises:
            WeightsUnavailable: no such folder or file.
            CorruptData: damaged, or not written by Limner.
            WeightsMismatch: keys or shapes that do not fit the config in the file.
        """
        values, state = load_part(Path(path) / FILE, METADATA)
        folders = (Path(path) / T5_TOKENIZER, Path(path) / CLIP_TOKENIZER)
        t5, clip = (PromptTokenizer.from_pretrained(f) if f.is_dir() else None for f in folders)
        encoder = from_published(state, t5, clip, FaceT5Config.from_dict(values))
        # ModelMixin.to would warn of modules kept in float32, of which there are none.
        return nn.Module.to(encoder, torch_dtype or torch.float32).eval()


def from_published(
    state: Mapping[str, Any], t5_tokenizer: Any, clip_tokenizer: Any, config: FaceT5Config | None = None
) -> FaceT5Encoder:
    """The encoder of a published state dict, strictly: every key is used, or named in the error.

    Tensors are adopted as they are (type and memory), not copied; but CLIP's projections, which are packed.

    Args:
        state: published keys; `model.` in front of all is allowed.
        t5_tokenizer, clip_tokenizer: as of `FaceT5Encoder`.
        config: sizes; None takes the preset whose T5 is as wide, and the vocabularies and contexts of the file.

    Raises:
        WeightsMismatch: missing or unexpected keys, wrong shapes, or a width that no preset has.
    """
    state = dict(layout.without_stale(strip_prefix(state)))
    given = shapes_of(state)
    config = config or _infer_config(given)
    with torch.device("meta"):
        encoder = FaceT5Encoder(config, t5_tokenizer, clip_tokenizer)
    demand_layout(shapes_of(encoder.to_published()), given, "FaceT5 encoder")
    encoder.load_state_dict(layout.from_published(state, encoder.state_dict()), strict=True, assign=True)
    return encoder.eval()


def _infer_config(shapes: Shapes) -> FaceT5Config:
    """The preset whose T5 is as wide, with vocabularies and contexts as the shapes say."""

    def shape(key: str) -> tuple[int, ...]:
        return shapes.get(layout.published_names(key)[0]) or (0, 0)

    vocabulary, width = shape("t5.embed_tokens.weight")[-2:]
    found = next((c for c in FACET5_PRESETS.values() if c.t5.width == width), None)
    if found is None:
        known = " or ".join(str(c.t5.width) for c in FACET5_PRESETS.values())
        raise WeightsMismatch(
            f"A FaceT5 encoder with a T5 of {known} channels is expected; got "
            + (f"one of {width}." if width else f"keys such as {next(iter(shapes), 'none')}."),
            "Is this face_t5_encoder.pt, and not the transformer's file?",
        )
    t5, clip = found.t5, found.clip
    return dataclasses.replace(
        found,
        t5=dataclasses.replace(t5, vocabulary=vocabulary, context=shape("positional_embedding")[-2] or t5.context),
        clip=dataclasses.replace(
            clip,
            vocabulary=shape("clip.token_embedding.weight")[0] or clip.vocabulary,
            context=shape("clip.positional_embedding")[0] or clip.context,
        ),
    )


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
