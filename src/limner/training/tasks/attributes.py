"""Training the attribute reader: what a picture shows, in the words that prompts ask for, and pose and expression."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from limner.config import Config
from limner.data.cache import Column, Columns, Table, cache_root, in_processes
from limner.data.loader import Batch, Source
from limner.data.sitters import WorldPictures
from limner.data.tables import DataConfig, TableSource, example_pictures, open_pictures, picture_table, to_images
from limner.encoders.scorer import ANGLE, NUMBERS, Reader, ReaderConfig, save_reader
from limner.errors import ConfigError
from limner.training.dice import Dice
from limner.training.metrics import mean_interval
from limner.training.sheets import contact_sheet
from limner.training.task import Losses, Report, Task, channels_last
from limner.world import words
from limner.world.colors import COLORS
from limner.world.factors import CLOTHING, EYEWEAR, FACIAL_HAIR, HAIR_STYLES, HEADWEAR, SCENES, STYLES, View
from limner.world.labels import labels

if TYPE_CHECKING:
    from pathlib import Path

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "scene": SCENES,
    "time": ("day", *words.TIME),
    "style": STYLES,
    "headwear": HEADWEAR,
    "headwear_color": (*COLORS, "own"),
    "clothing": (*CLOTHING, "hidden"),
    "cloth_color": (*COLORS, "own", "hidden"),
    "eyewear": EYEWEAR,
    "hair": (*HAIR_STYLES, "hidden"),
    "hair_color": (*words.HAIR_COLOR, "hidden"),
    "facial_hair": FACIAL_HAIR,
    "expression": (*words.EXPRESSION, "other"),
    "gaze": (*words.GAZE, "hidden", "other"),
    "pose": (*words.POSE, "half"),
    "light_side": (*words.LIGHT_SIDE, "half"),
    "light_quality": (*words.LIGHT_QUALITY, "medium"),
    "light_tone": (*words.LIGHT_TONE, "neutral"),
    "light_level": (*words.LIGHT_LEVEL, "normal"),
    "framing": (*words.FRAMING, "usual"),
    "makeup": (*words.MAKEUP, "no"),
    "freckles": (*words.FRECKLES, "no"),
    "sex": tuple(words.SEX),
    "age": (*words.AGE, "adult"),
}
"""Every label of the world that a prompt can ask for (`limner.world.labels.labels`), and all values it can have."""


@dataclass(frozen=True)
class AttributesSettings(Config):
    """Settings of the task.

    Attributes:
        data, held_out: sitters; other pictures have no such truth.
        image_size: pictures are resized to this side.
        widths, blocks: of the network; see `limner.encoders.scorer.ReaderConfig`.
        numbers_weight: of the error in pose and expression.
        shift: deviation of a random move of the picture, in shares of its side; colour: of random gain and offset.
        validation: held-out pictures that are judged.
    """

    data: DataConfig
    held_out: DataConfig
    image_size: int = 128
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 2
    numbers_weight: float = 2.0
    shift: float = 0.02
    colour: float = 0.03
    validation: int = 1024

    def validate(self) -> None:
        for name in ("data", "held_out"):
            self.check(getattr(self, name).kind == "world", name, "pictures of the world (kind: world)")
        for name in ("numbers_weight", "shift", "colour"):
            self.check(getattr(self, name) >= 0, name, "0 or more")
        self.check(self.validation >= 2, "validation", "2 or more")
        self.network()

    def network(self) -> ReaderConfig:
        """The config of the network."""
        return ReaderConfig(
            self.image_size, self.widths, self.blocks, tuple(ATTRIBUTES), tuple(tuple(w) for w in ATTRIBUTES.values())
        )


class AttributesTask(Task[AttributesSettings]):
    """See `AttributesSettings`; metrics are the accuracy of every attribute on held-out pictures, their mean, and the
    mean error of yaw in degrees."""

    name = "attributes"
    settings_class: ClassVar = AttributesSettings

    def __init__(self, settings: AttributesSettings) -> None:
        super().__init__(settings)
        self.reader: Reader = channels_last(Reader(settings.network()))
        self.model = self.reader

    def prepare(self, report: Report) -> None:
        found = []
        for config in (self.settings.data, self.settings.held_out):
            pictures = open_pictures(config)
            assert isinstance(pictures, WorldPictures)
            truth = truth_table(pictures, report, config.workers)
            found.append((picture_table(pictures, config.size, config.size, report, config.workers), truth))
        self.train, self.held_out = found

    def source(self) -> Source:
        return _Labelled(*self.train)

    def example(self, rows: int) -> Batch:
        return {
            **example_pictures(rows, self.settings.data.size),
            "words": torch.zeros(rows, len(ATTRIBUTES), dtype=torch.long),
            "numbers": torch.zeros(rows, len(NUMBERS)),
        }

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        settings = self.settings
        images = self._moved(to_images(batch["image"]), dice.normal(2) * settings.shift)
        change = dice.normal(2, 3, 1, 1) * settings.colour
        logits, numbers, _ = model((images * (1 + change[:, 0]) + change[:, 1]).clamp(0, 1))
        errors = [F.cross_entropy(one, batch["words"][:, k]) for k, one in enumerate(logits)]
        spoken = torch.stack(errors).mean()
        counted = F.smooth_l1_loss(numbers, batch["numbers"], beta=0.1)
        return Losses(
            spoken + settings.numbers_weight * counted, {"words": spoken.detach(), "numbers": counted.detach()}
        )

    def validate(self) -> dict[str, float]:
        pictures, truth = self.held_out
        rows = np.linspace(0, len(pictures) - 1, min(self.settings.validation, len(pictures))).astype(int)
        right, error = [], []
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            logits, numbers, _ = self.reader(self._sized(self._pictures(part)))
            found = torch.stack([one.argmax(1) for one in logits], 1).cpu().numpy()
            right.append(found == truth["words"][part])
            error.append(np.abs(numbers[:, 0].cpu().numpy() - truth["numbers"][part][:, 0]) * ANGLE)
        correct = np.concatenate(right)
        each = {f"{name}": float(share) for name, share in zip(ATTRIBUTES, correct.mean(0), strict=True)}
        return {
            **mean_interval("accuracy", correct.mean(1)),
            **each,
            "yaw_error_degrees": float(np.concatenate(error).mean()),
            "n": len(rows),
        }

    def sheet(self) -> Image.Image:
        """Held-out pictures, as the network sees them."""
        return contact_sheet(list(self._sized(self._pictures(np.arange(min(32, len(self.held_out[0])))))), columns=8)

    def export(self, folder: Path) -> None:
        save_reader(folder, self.reader)

    def _pictures(self, rows: np.ndarray) -> torch.Tensor:
        return to_images(torch.from_numpy(self.held_out[0]["image"][rows])).to(self.device)

    def _sized(self, images: torch.Tensor) -> torch.Tensor:
        size = self.settings.image_size
        if images.shape[-1] == size:
            return images
        return F.interpolate(images, (size, size), mode="bilinear", antialias=True)

    def _moved(self, images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Moved by shares of the side, the border repeated; read at the network's size."""
        size = self.settings.image_size
        matrix = torch.zeros(len(images), 2, 3, device=images.device)
        matrix[:, 0, 0] = matrix[:, 1, 1] = 1
        matrix[:, :, 2] = 2 * shift
        grid = F.affine_grid(matrix, [len(images), 3, size, size], align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def truth_table(pictures: WorldPictures, report: Report, workers: int = 0) -> Table:
    """What is true of every picture; nothing is rendered for it.

    Columns: words (attributes) int64, places in `ATTRIBUTES`; numbers (len(NUMBERS)) float32.

    Raises:
        StorageError: the disk cannot hold it.
    """
    import os

    columns = {"words": Column("i8", (len(ATTRIBUTES),)), "numbers": Column("f4", (len(NUMBERS),))}
    spec = {"pictures": pictures.spec, "attributes": ATTRIBUTES, "numbers": NUMBERS}
    table = Table(cache_root(), "truth", spec, len(pictures), columns, block=512)
    missing = table.missing()
    if missing:
        with report("truth", sum(map(len, missing))) as advance:
            table.fill(in_processes(partial(_truths, pictures), missing, workers or os.cpu_count() or 1), advance)
    return table


def numbers_of(view: View) -> list[float]:
    """`NUMBERS` of a view."""
    e = view.expression
    return [view.yaw / ANGLE, view.pitch / ANGLE, view.roll / ANGLE, e.smile, e.open, e.brow, e.frown, e.blink]


def _truths(pictures: WorldPictures, block: range) -> Columns:
    said, numbers = [], []
    for row in block:
        sitter, view = pictures.view(row)
        truth = labels(sitter, view)
        said.append([_place(name, truth[name]) for name in ATTRIBUTES])
        numbers.append(numbers_of(view))
    return {"words": np.array(said, np.int64), "numbers": np.array(numbers, np.float32)}


def _place(name: str, word: str) -> int:
    try:
        return ATTRIBUTES[name].index(word)
    except ValueError as e:
        raise ConfigError(f"The world says {name} {word!r}, which the reader does not know.") from e


class _Labelled(Source):
    """Pictures with their truth."""

    def __init__(self, pictures: Table, truth: Table) -> None:
        self.sources: list[Any] = [TableSource(pictures, ("image",)), TableSource(truth, ("words", "numbers"))]

    def __len__(self) -> int:
        return len(self.sources[0])

    def batch(self, rows: np.ndarray, step: int) -> Batch:
        return {k: v for source in self.sources for k, v in source.batch(rows, step).items()}
