"""Networks that judge pictures: a convolutional recogniser and an attribute reader, built unlike anything that paints.

Both begin with PixelUnshuffle(4), so that all convolutions run at a quarter of the side: fast on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.config import Config
from limner.encoders.checkpoint import fill_part, load_part, save_part
from limner.encoders.face_vit import FaceTokens

RECOGNISER, READER = "recogniser.safetensors", "reader.safetensors"
PATCH = 4
NUMBERS = ("yaw", "pitch", "roll", "smile", "open", "brow", "frown", "blink")
"""What the reader estimates besides words: degrees divided by `ANGLE`, and `limner.world.factors.Expression`."""
ANGLE = 45.0


@dataclass(frozen=True)
class ConvFaceConfig(Config):
    """A residual recogniser over ArcFace crops.

    Attributes:
        image_size: side of the crop in pixels, a multiple of 4.
        widths: channels of the stages; each after the first halves the side.
        blocks: residual blocks of every stage.
        output: length of the identity vector.
    """

    image_size: int = 112
    widths: tuple[int, ...] = (48, 96, 144)
    blocks: int = 2
    output: int = 128

    def validate(self) -> None:
        self.check(bool(self.widths) and min(self.widths) >= 1, "widths", "one or more positive numbers")
        multiple = PATCH * 2 ** (len(self.widths) - 1)
        self.check(
            self.image_size % multiple == 0 and self.image_size > 0, "image_size", f"positive multiples of {multiple}"
        )
        self.check(self.blocks >= 1, "blocks", "1 or more")
        self.check(self.output >= 1, "output", "1 or more")


class ConvFace(nn.Module):
    """Crops (B,3,S,S) in [0, 1] → identity vectors of unit length.

    Residual units with activation first (He et al., arXiv 1603.05027) and the global depth-wise convolution of
    MobileFaceNets (Chen et al., CCBR 2018, Section 3.2) in the place of the mean, since what lies where in an aligned
    crop matters.
    """

    def __init__(self, config: ConvFaceConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = _trunk(config.widths, config.blocks)
        side, width = config.image_size // PATCH // 2 ** (len(config.widths) - 1), config.widths[-1]
        self.head = nn.Sequential(
            nn.Conv2d(width, width, side, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.Flatten(),
            nn.Linear(width, config.output, bias=False),
            nn.BatchNorm1d(config.output),
        )

    def forward(self, faces: Tensor) -> FaceTokens:
        """Class tokens (B, output) of unit length; there are no patch tokens (B, 0, output)."""
        vector = F.normalize(self.head(self.trunk(faces * 2 - 1)).float(), dim=-1)
        return FaceTokens(vector, vector[:, None][:, :0])


@dataclass(frozen=True)
class ReaderConfig(Config):
    """A residual network that reads attributes off whole pictures.

    Attributes:
        image_size: pictures are resized to this side.
        widths, blocks: as in `ConvFaceConfig`.
        attributes: the names of what it reads.
        words: the words of each attribute, in the order of its logits.
    """

    image_size: int = 128
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 2
    attributes: tuple[str, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()

    def validate(self) -> None:
        self.check(bool(self.widths) and min(self.widths) >= 1, "widths", "one or more positive numbers")
        multiple = PATCH * 2 ** (len(self.widths) - 1)
        self.check(
            self.image_size % multiple == 0 and self.image_size > 0, "image_size", f"positive multiples of {multiple}"
        )
        self.check(self.blocks >= 1, "blocks", "1 or more")
        self.check(len(self.attributes) == len(self.words), "words", "a list of words for every attribute")
        self.check(all(len(w) >= 2 for w in self.words), "words", "two words or more for an attribute")


class Reader(nn.Module):
    """Pictures (B,3,S,S) in [0, 1] → logits of every attribute's words, `NUMBERS`, and the features they come from."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = _trunk(config.widths, config.blocks)
        self.words = nn.Linear(2 * config.widths[-1], sum(map(len, config.words)))
        self.numbers = nn.Linear(2 * config.widths[-1], len(NUMBERS))

    def features(self, pictures: Tensor) -> Tensor:
        """(B, 2 · last width): mean and maximum of every channel over the places."""
        maps = self.trunk(pictures * 2 - 1).float()
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)

    def forward(self, pictures: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Logits (B, words) per attribute, numbers (B, len(NUMBERS)), features (B, 2 · last width)."""
        features = self.features(pictures)
        logits = self.words(features).float().split([len(w) for w in self.config.words], dim=1)
        return list(logits), self.numbers(features).float(), features


def save_recogniser(folder: Path, network: ConvFace) -> None:
    """Writes recogniser.safetensors into a folder."""
    save_part(folder / RECOGNISER, network, network.config.to_dict())


def load_recogniser(folder: Path) -> ConvFace:
    """The recogniser that `save_recogniser` wrote, in evaluation mode; half-precision weights become float32.

    Raises:
        WeightsUnavailable: not there.
        CorruptData, WeightsMismatch: damaged, or of another shape than its config says.
    """
    values, state = load_part(folder / RECOGNISER)
    return fill_part(ConvFace(ConvFaceConfig.from_dict(values)), state, folder / RECOGNISER)


def save_reader(folder: Path, network: Reader) -> None:
    """Writes reader.safetensors into a folder."""
    save_part(folder / READER, network, network.config.to_dict())


def load_reader(folder: Path) -> Reader:
    """The reader that `save_reader` wrote, in evaluation mode; raises as `load_recogniser`."""
    values, state = load_part(folder / READER)
    return fill_part(Reader(ReaderConfig.from_dict(values)), state, folder / READER)


def _trunk(widths: tuple[int, ...], blocks: int) -> nn.Sequential:
    """(B,3,S,S) → (B, last width, S/4/2^(stages-1), the same)."""
    layers: list[nn.Module] = [
        nn.PixelUnshuffle(PATCH),
        nn.Conv2d(3 * PATCH**2, widths[0], 3, padding=1, bias=False),
    ]
    before = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(_Residual(before, width, 2 if stage and not block else 1))
            before = width
    return nn.Sequential(*layers, nn.BatchNorm2d(before), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(inplace=True),
            nn.Conv2d(before, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
        )
        plain = stride == 1 and before == width
        self.short = nn.Identity() if plain else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.short(x) + self.body(x)
