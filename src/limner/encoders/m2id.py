"""The M² ID encoder of DreamIdentity: one face → k words of a text-to-image model (arXiv 2307.00300, section 3.2).

Multi-scale: V = [v3, v6, v9, v12, v_final] of a recogniser. Multi-word: word i is s_i = MLP_i(V).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional as F

from limner.config import Config
from limner.encoders.checkpoint import write_safetensors
from limner.encoders.config import PRESETS as FACECLIP_PRESETS
from limner.encoders.config import FaceViTConfig
from limner.encoders.face_vit import FaceTokens, check_images, fuse_faces
from limner.encoders.scales import Backbone, ClipVisionConfig, build_backbone, quarters
from limner.errors import ConfigError, CorruptData, WeightsMismatch, WeightsUnavailable

FILE = "model.safetensors"
METADATA = "limner.m2id"
WORD_SCALE = 0.02
"""Standard deviation of an untrained word's channels: that of CLIP's word embeddings before training."""


@dataclass(frozen=True)
class M2IDConfig(Config):
    """Sizes of an M² ID encoder.

    Attributes:
        widths: channels of the word embeddings of each text tower of the base, in order.
        words: k, the words that stand for one person.
        layers: of the backbone, counted from 1, whose summaries are read besides the final identity vector.
        multi_scale: False reads the identity vector alone (the paper's ablation).
        hidden: channels inside each MLP; the paper names none.
        face, clip: the backbone's sizes; exactly one of them.
    """

    widths: tuple[int, ...]
    words: int = 2
    layers: tuple[int, ...] = (3, 6, 9, 12)
    multi_scale: bool = True
    hidden: int = 1024
    face: FaceViTConfig | None = None
    clip: ClipVisionConfig | None = None

    @property
    def backbone(self) -> FaceViTConfig | ClipVisionConfig:
        """The sizes of the backbone, of either kind."""
        found = self.face or self.clip
        assert found is not None
        return found

    @property
    def read(self) -> tuple[int, ...]:
        """The layers that are really read: none without `multi_scale`."""
        return self.layers if self.multi_scale else ()

    @property
    def scales(self) -> tuple[int, ...]:
        """Channels of each part of V."""
        return (*(self.backbone.width for _ in self.read), self.backbone.output)

    def validate(self) -> None:
        self.check((self.face is None) != (self.clip is None), "face", "sizes of either face or clip, not of both")
        self.check(bool(self.widths) and min(self.widths) >= 1, "widths", "one positive number per text tower")
        self.check(self.words >= 1, "words", "1 or more")
        self.check(self.hidden >= 1, "hidden", "1 or more")
        rising = all(a < b for a, b in zip(self.layers, self.layers[1:], strict=False))
        inside = all(1 <= n <= self.backbone.depth for n in self.layers)
        self.check(rising and inside, "layers", f"rising numbers from 1 to {self.backbone.depth}")


_FACE, _MINI_FACE = FaceViTConfig(), FACECLIP_PRESETS["mini"].branches[0].face

PRESETS: dict[str, M2IDConfig] = {
    "sd21": M2IDConfig(widths=(1024,), layers=quarters(_FACE.depth), face=_FACE),
    "sdxl": M2IDConfig(widths=(768, 1280), layers=quarters(_FACE.depth), face=_FACE),
    "mini": M2IDConfig(widths=(128, 192), layers=quarters(_MINI_FACE.depth), hidden=256, face=_MINI_FACE),
}
"""By base. The paper reads a recogniser of 12 layers at each quarter (3, 6, 9, 12). The face encoder whose weights can
be had has 24, so `sd21` and `sdxl` read its quarters: 6, 12, 18, 24."""


def preset(name: str) -> M2IDConfig:
    """The preset called `name`; ConfigError lists the known ones."""
    if name not in PRESETS:
        raise ConfigError(f"Unknown M² ID preset {name!r}; known: {', '.join(PRESETS)}.")
    return PRESETS[name]


class WordHead(nn.Module):
    """V → the words of every tower: one MLP per word and tower.

    Each part of V has a layer normalisation of its own: the layers of a transformer differ in length by a factor of
    ten and more, and the identity vector has length 1.
    """

    def __init__(self, config: M2IDConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(n) for n in config.scales)
        channels = sum(config.scales)
        self.towers = nn.ModuleList(
            nn.ModuleList(_mlp(channels, config.hidden, width) for _ in range(config.words)) for width in config.widths
        )

    def forward(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """The parts of V, each (B, its channels) → for every tower (B, k, its width)."""
        own = next(self.parameters())
        v = torch.cat([norm(s.to(own)) for norm, s in zip(self.norms, scales, strict=True)], -1)
        return [torch.stack([mlp(v) for mlp in cast(nn.ModuleList, mlps)], 1) for mlps in self.towers]


class M2IDEncoder(ModelMixin):
    """Aligned faces → the words that stand for them.

    Args:
        config: sizes; one of `PRESETS` or of one's own.
        backbone: a trained recogniser of the sizes in `config`; None makes an untrained one.
    """

    def __init__(self, config: M2IDConfig, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.config = config
        if backbone is not None and backbone.config != config.backbone:
            raise WeightsMismatch("The backbone's sizes differ from those in the config of the M² ID encoder.")
        self.backbone = build_backbone(config.backbone) if backbone is None else backbone
        self.head = WordHead(config)
        self._nulls: tuple[Any, list[Tensor]] | None = None

    def scales(self, images: Tensor) -> list[Tensor]:
        """V of faces (B, 3, H, W) in [0, 1] of any size: (B, width) per layer, then the identity vector (B, output)."""
        return self.backbone(images, self.config.read)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Faces (B, 3, H, W) in [0, 1] → for every tower (B, k, width)."""
        return self.head(self.scales(images))

    @torch.no_grad()
    @apply_forward_hook
    def enroll(self, images: Tensor, weights: Sequence[float] | None = None) -> dict[str, Tensor]:
        """What is kept of one person: `words.i` (k, width) for tower i, and `class_token.0`, the identity vector (D),
        of length 1, by which pictures of the person can be told.

        Several pictures are fused where they are still descriptions of a face: each part of V becomes the weighted mean
        at its usual length (see `fuse_faces`).

        Args:
            images: (R, 3, H, W) in [0, 1]: aligned faces of the same person.
            weights: of the R pictures; equal if None.

        Raises:
            ImageError: images of another shape, type or range.
            ConfigError: weights that do not fit.
        """
        scales = self.scales(check_images(images).to(next(self.parameters()).device))
        fused = [fuse_faces(FaceTokens(v, v[:, None]), weights).class_token for v in scales]
        kept = {f"words.{i}": words[0] for i, words in enumerate(self.head(fused))}
        return {**kept, "class_token.0": F.normalize(fused[-1][0].float(), dim=-1)}

    @torch.no_grad()
    def null_words(self) -> list[Tensor]:
        """The words (k, width) of an all-zero picture, for every tower; by them an identity tells who made it.

        They are computed once for the weights as they are.
        """
        weights = tuple((p.data_ptr(), p._version, p.dtype) for p in self.parameters())
        if self._nulls is None or self._nulls[0] != weights:
            size = self.config.backbone.image_size
            kept = self.enroll(torch.zeros(1, 3, size, size))
            self._nulls = weights, [kept[f"words.{i}"] for i in range(len(self.config.widths))]
        return self._nulls[1]

    def save_pretrained(self, path: str | Path) -> None:  # type: ignore[override]
        """Writes model.safetensors, with the config in its metadata, into a folder.

        Raises:
            StorageError: it cannot be written.
        """
        write_safetensors(Path(path) / FILE, self.state_dict(), {METADATA: json.dumps(self.config.to_dict())})

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, *, torch_dtype: torch.dtype | None = None, **_: Any
    ) -> M2IDEncoder:
        """Reads what `save_pretrained` wrote, in evaluation mode.

        Raises:
            WeightsUnavailable: no such file.
            CorruptData: damaged, or not written by Limner.
            WeightsMismatch: keys or shapes that do not fit the config in the file.
        """
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file

        file = Path(path) / FILE
        if not file.is_file():
            raise WeightsUnavailable(
                f"{file} does not exist.", "Train it: recipes/full/dreamidentity-sd21.yaml, or a recipe of your own."
            )
        try:
            with safe_open(str(file), framework="pt") as f:
                config = M2IDConfig.from_dict(json.loads((f.metadata() or {})[METADATA]))
            state = load_file(file)
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as e:
            raise CorruptData(f"{file} is damaged or is no M² ID encoder ({e!r}).", "Copy or train it again.") from e
        encoder = cls(config)
        try:
            encoder.load_state_dict(state)
        except RuntimeError as e:
            raise WeightsMismatch(f"{file} does not fit its own config: {e}.") from e
        # ModelMixin.to would warn of modules kept in float32, of which there are none.
        return nn.Module.to(encoder, torch_dtype or torch.float32).eval()


def word_norm(words: Sequence[Tensor]) -> Tensor:
    """L_reg = Σ_i ‖s_i‖ of each face, over its words in every tower: [(B, k, width), …] → (B,) float32."""
    return torch.stack([w.float().norm(dim=-1).sum(1) for w in words]).sum(0)


def _mlp(channels: int, hidden: int, width: int) -> nn.Sequential:
    """Two layers; the second is drawn so that untrained words have the size of untrained word embeddings."""
    last = nn.Linear(hidden, width)
    # An activation of Linear's default gain on normalised input has a root mean square of about 0.3.
    nn.init.normal_(last.weight, std=WORD_SCALE / (0.3 * math.sqrt(hidden)))
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), last)
