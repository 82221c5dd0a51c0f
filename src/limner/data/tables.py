"""Pictures of one size as a table: what every training reads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limner.config import Config
from limner.data.cache import Column, Columns, Table, cache_root, in_processes, texts
from limner.data.loader import Batch, Source
from limner.data.pictures import FolderPictures, Pictures, ShardPictures, fit
from limner.errors import ConfigError
from limner.world.dataset import WorldConfig

KINDS = ("world", "folder", "shards")
CAPTION_BYTES = 512
Report = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class DataConfig(Config):
    """Where pictures come from.

    Attributes:
        kind: `world` (synthetic sitters), `folder` (pictures and metadata.jsonl) or `shards` (webdataset tar files).
        path: of folder or shards.
        sitters: data sets of the world, of the same size as `size`.
        size: side of the square pictures in pixels; others are resized and cropped at the middle.
        workers: processes that render or decode; 0 means as many as there are cores.
    """

    kind: str = "world"
    path: str = ""
    sitters: tuple[WorldConfig, ...] = ()
    size: int = 128
    workers: int = 0

    def validate(self) -> None:
        self.check(self.kind in KINDS, "kind", ", ".join(KINDS))
        self.check(bool(self.path) == (self.kind != "world"), "path", "a path for folder and shards, else nothing")
        self.check(bool(self.sitters) == (self.kind == "world"), "sitters", "data sets for world, else nothing")
        self.check(all(s.size == self.size for s in self.sitters), "sitters", f"data sets of size {self.size}")
        self.check(8 <= self.size <= 4096 and self.size % 8 == 0, "size", "8 to 4096, a multiple of 8")
        self.check(self.workers >= 0, "workers", "0 or more")


def open_pictures(config: DataConfig) -> Pictures:
    """The pictures that a config names.

    Raises:
        ConfigError, CorruptData: see the classes in `limner.data.pictures`.
    """
    if config.kind == "world":
        from limner.data.sitters import WorldPictures

        return WorldPictures(config.sitters)
    return (FolderPictures if config.kind == "folder" else ShardPictures)(Path(config.path))


def picture_table(
    pictures: Pictures, height: int, width: int, report: Report, workers: int = 0, rows: np.ndarray | None = None
) -> Table:
    """All pictures (or some `rows` of them) at height × width, rendered or decoded once.

    Columns: image (height,width,3) uint8; caption; prompt; identity; landmarks (5,2) in pixels of the picture as
    stored; reference, see `Sample`; time (6) int32, SDXL's size conditioning: original height and width, top and left
    of the crop, height and width.

    Raises:
        StorageError: the disk cannot hold it.
    """
    import os

    chosen = np.arange(len(pictures)) if rows is None else rows
    columns = {
        "image": Column("u1", (height, width, 3)),
        "caption": Column(f"S{CAPTION_BYTES}"),
        "prompt": Column(f"S{CAPTION_BYTES}"),
        "identity": Column("i8"),
        "landmarks": Column("f4", (5, 2)),
        "reference": Column("?"),
        "time": Column("i4", (6,)),
    }
    spec: dict[str, Any] = {"pictures": pictures.spec, "size": [height, width]}
    if rows is not None:
        spec["rows"] = rows.tolist()
    table = Table(cache_root(), "pictures", spec, len(chosen), columns)
    missing = table.missing()
    if missing:
        with report(f"pictures {height}×{width}", sum(map(len, missing))) as advance:
            work = partial(_block, pictures, chosen, height, width)
            table.fill(in_processes(work, missing, workers or os.cpu_count() or 1), advance)
    return table


def demand(table: Table, *, captions: bool = False, landmarks: bool = False, persons: bool = False) -> None:
    """Raises ConfigError unless every picture of a table has what a training needs."""
    lacking = ""
    if captions and not all(table["caption"]):
        lacking = "a caption (`text` in metadata.jsonl, or a .txt file in shards)"
    if landmarks and np.isnan(table["landmarks"]).any():
        lacking = "five landmarks (`landmarks`: five [x, y] in pixels)"
    if persons and len(np.unique(table["identity"])) < 2:
        lacking = "a person (`identity`), and there must be several"
    if lacking:
        raise ConfigError(f"For this training every picture needs {lacking}; some have none.", "See docs/training.md.")


class TableSource(Source):
    """Chosen columns of a table as training rows; numbers become tensors, row by row as they are stored."""

    def __init__(self, table: Table, columns: tuple[str, ...]) -> None:
        self.table, self.columns = table, columns

    def __len__(self) -> int:
        return len(self.table)

    def batch(self, rows: np.ndarray, step: int) -> Batch:
        return {name: torch.from_numpy(self.table[name][rows]) for name in self.columns}


def to_images(pixels: torch.Tensor) -> torch.Tensor:
    """(B,H,W,3) uint8 → (B,3,H,W) float32 in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 255


def example_pictures(rows: int, size: int, *, landmarks: bool = False) -> Batch:
    """Columns of made-up pictures, for measuring time and memory without data."""
    batch = {"image": torch.zeros(rows, size, size, 3, dtype=torch.uint8)}
    if landmarks:
        places = torch.tensor([[0.4, 0.45], [0.6, 0.45], [0.5, 0.55], [0.42, 0.65], [0.58, 0.65]]) * size
        batch["landmarks"] = places.expand(rows, 5, 2)
    return batch


def captions_of(table: Table, column: str = "caption") -> list[str]:
    """The captions (or the prompts) of a table as strings."""
    return texts(table[column])


def _block(pictures: Pictures, chosen: np.ndarray, height: int, width: int, block: range) -> Columns:
    """The columns of one block of rows."""
    names = ("image", "caption", "prompt", "identity", "landmarks", "reference", "time")
    found: dict[str, list[Any]] = {name: [] for name in names}
    for row in chosen[block.start : block.stop]:
        sample = pictures.sample(int(row))
        image, (top, left), scale = fit(sample.image, height, width)
        found["image"].append(image)
        found["caption"].append(_text(sample.caption))
        found["prompt"].append(_text(sample.prompt))
        found["identity"].append(sample.identity)
        found["landmarks"].append(sample.landmarks * scale - np.array([left, top], np.float32))
        found["reference"].append(sample.reference)
        found["time"].append([*sample.image.shape[:2], top, left, height, width])
    return {k: np.array(v) for k, v in found.items()}


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) > CAPTION_BYTES:
        raise ConfigError(f"A caption has {len(data)} bytes; {CAPTION_BYTES} fit: {text[:60]!r}…", "Shorten it.")
    return data
