"""Sizes of a FaceCLIP encoder and of its parts, and the presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

from limner.config import Config
from limner.errors import ConfigError

ACTIVATIONS = ("quick_gelu", "gelu")


@dataclass(frozen=True)
class FaceViTConfig(Config):
    """The face encoder.

    Attributes:
        image_size: pixels of the square input.
        patch_size: pixels of a patch; what is left over at the right and the bottom is not seen.
        width, depth, heads: of the transformer.
        output: channels of the class token (the identity vector).
        mask_ratio: share of patch tokens replaced by the mask token while training.
    """

    image_size: int = 112
    patch_size: int = 9
    width: int = 768
    depth: int = 24
    heads: int = 8
    output: int = 512
    mask_ratio: float = 0.05

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    def validate(self) -> None:
        self.check(1 <= self.patch_size <= self.image_size, "patch_size", f"1 to {self.image_size} (image_size)")
        self.check(self.width % self.heads == 0, "heads", f"a divisor of width {self.width}")
        self.check(self.depth >= 1, "depth", "at least 1")
        self.check(self.output >= 1, "output", "at least 1")
        self.check(0 <= self.mask_ratio < 1, "mask_ratio", "0 to 1")


@dataclass(frozen=True)
class TextTowerConfig(Config):
    """A CLIP text transformer.

    Attributes:
        width, depth, heads: of the transformer; its feed-forward part is four times as wide.
        activation: `quick_gelu` (OpenAI, MetaCLIP L) or `gelu`.
        context: tokens of a prompt, begin and end included.
        vocabulary: tokens known.
        projection: channels of the text feature.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    activation: str = "quick_gelu"
    context: int = 77
    vocabulary: int = 49408
    projection: int = 768

    def validate(self) -> None:
        self.check(self.width % self.heads == 0, "heads", f"a divisor of width {self.width}")
        self.check(self.activation in ACTIVATIONS, "activation", ", ".join(ACTIVATIONS))
        self.check(self.context >= 10, "context", "at least 10 (the identity prefix takes 8)")
        self.check(self.vocabulary >= 4, "vocabulary", "at least 4")
        self.check(min(self.depth, self.projection) >= 1, "depth", "at least 1, as projection")


@dataclass(frozen=True)
class FuserConfig(Config):
    """The fusion module; the cross and text attention have half the heads and half the feed-forward channels.

    Attributes:
        depth: layers.
        heads: of the face attention.
        points: sampled per query and head by a deformable face attention; 0 makes it an ordinary one (FaceT5).
        feedforward: channels of the face stream's feed-forward part.
        gain: initial value of the cross attention's per-channel gains.
    """

    depth: int = 6
    heads: int = 8
    points: int = 4
    feedforward: int = 2048
    gain: float = 1e-4

    def validate(self) -> None:
        self.check(self.depth >= 1, "depth", "at least 1")
        self.check(self.heads >= 2 and self.heads % 2 == 0, "heads", "an even number")
        self.check(self.points >= 0, "points", "0 (ordinary attention) or more")
        self.check(self.feedforward % self.heads == 0, "feedforward", f"a multiple of heads ({self.heads})")


@dataclass(frozen=True)
class BranchConfig(Config):
    """One text tower with its face encoder and fusion module."""

    face: FaceViTConfig
    text: TextTowerConfig
    fuser: FuserConfig = FuserConfig()

    def validate(self) -> None:
        if self.text.width % self.fuser.heads:
            raise ConfigError(f"Text width {self.text.width} is no multiple of the fuser's {self.fuser.heads} heads.")


@dataclass(frozen=True)
class FaceCLIPConfig(Config):
    """A FaceCLIP encoder of one or more branches.

    Attributes:
        branches: in the order in which their tokens are joined; the last one gives the pooled output.
        names: of the branches; in published files their parameters carry `name.` in front ("" = nothing).
        shared_face: one face encoder serves all branches (its weights are then kept once).
    """

    branches: tuple[BranchConfig, ...]
    names: tuple[str, ...]
    shared_face: bool = False

    @property
    def context(self) -> int:
        """Tokens of a prompt."""
        return self.branches[0].text.context

    @property
    def vocabulary(self) -> int:
        """Tokens known."""
        return self.branches[0].text.vocabulary

    def validate(self) -> None:
        self.check(len(self.branches) >= 1, "branches", "at least one")
        self.check(
            len(self.names) == len(set(self.names)) == len(self.branches), "names", "one name per branch, no two equal"
        )
        self.check(len(self.names) == 1 or all(self.names), "names", "non-empty where there are several")
        texts = {(b.text.context, b.text.vocabulary) for b in self.branches}
        self.check(len(texts) == 1, "branches", "branches of one context and one vocabulary")
        one_face = len({b.face for b in self.branches}) == 1
        self.check(one_face or not self.shared_face, "shared_face", "False where the branches' face encoders differ")

    def with_text(self, *, vocabulary: int | None = None, context: int | None = None) -> Self:
        """The same sizes for another vocabulary or context."""

        def changed(text: TextTowerConfig) -> TextTowerConfig:
            return dataclasses.replace(text, vocabulary=vocabulary or text.vocabulary, context=context or text.context)

        branches = tuple(dataclasses.replace(b, text=changed(b.text)) for b in self.branches)
        return dataclasses.replace(self, branches=branches)


_MINI_FACE = FaceViTConfig(patch_size=14, width=192, depth=6, heads=6, output=128)
_MINI_TEXT = TextTowerConfig(width=128, depth=4, heads=4, context=40, vocabulary=512, projection=128)
_MINI_FUSER = FuserConfig(depth=3, heads=8, points=4, feedforward=512, gain=0.1)
_FACE = FaceViTConfig()

TINY = BranchConfig(
    face=FaceViTConfig(width=96, depth=3, heads=4, output=48),
    text=TextTowerConfig(width=64, depth=3, heads=4, projection=64),
)
"""The layout of the parity data."""

L = BranchConfig(face=_FACE, text=TextTowerConfig())
"""MetaCLIP ViT-L/14 text tower; 461 M values."""

BIGG = BranchConfig(
    face=_FACE, text=TextTowerConfig(width=1280, depth=32, heads=20, activation="gelu", projection=1280)
)
"""MetaCLIP ViT-bigG/14 text tower; 1.1 B values."""

PRESETS: dict[str, FaceCLIPConfig] = {
    "mini": FaceCLIPConfig(
        branches=(
            BranchConfig(_MINI_FACE, _MINI_TEXT, _MINI_FUSER),
            BranchConfig(
                _MINI_FACE,
                TextTowerConfig(
                    width=192, depth=4, heads=6, activation="gelu", context=40, vocabulary=512, projection=192
                ),
                _MINI_FUSER,
            ),
        ),
        names=("face_clip_l", "face_clip_g"),
        shared_face=True,
    ),
    "tiny": FaceCLIPConfig((TINY,), ("",)),
    "L": FaceCLIPConfig((L,), ("face_clip_l",)),
    "bigG": FaceCLIPConfig((BIGG,), ("face_clip_g",)),
    "sdxl": FaceCLIPConfig((L, BIGG), ("face_clip_l", "face_clip_g")),
}
"""`sdxl` is the published encoder (L and bigG); `mini` trains on a CPU, for the vocabulary that `with_text` names."""


def preset(name: str) -> FaceCLIPConfig:
    """The preset called `name`; ConfigError lists the known ones."""
    if name not in PRESETS:
        raise ConfigError(f"Unknown FaceCLIP preset {name!r}; known: {', '.join(PRESETS)}.")
    return PRESETS[name]
