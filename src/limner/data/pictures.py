"""Pictures with what is known about them, from folders and shards of the user's, behind one small interface."""

from __future__ import annotations

import json
import tarfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limner.errors import ConfigError, CorruptData, ImageError, UnreadableImage
from limner.faces.images import load_image, upright_size

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
METADATA = "metadata.jsonl"
DECODING = "upright, on white"
"""How pictures are decoded; a part of what caches are named by."""


@dataclass(frozen=True)
class Sample:
    """One picture with what is known about it.

    Attributes:
        image: (H,W,3) uint8 RGB, as people see it (see `limner.faces.images.load_image`).
        caption: a sentence that describes picture and person; empty if there is none.
        prompt: a sentence that calls the person S*, as users of identity-preserving models do; else the caption.
        identity: number of the person, counted from 0.
        landmarks: (5,2) float32 in pixels, in the order of `limner.types.LANDMARKS`; NaN if unknown.
        reference: whether the face shows well enough to be the reference for another picture of the person.
    """

    image: np.ndarray
    caption: str
    prompt: str
    identity: int
    landmarks: np.ndarray
    reference: bool = True


class Pictures(ABC):
    """N pictures, by number; always the same for the same number. Instances can be pickled.

    Attributes:
        spec: JSON-able values on which the content depends (caches are named by it).
        sizes: (N,2) int64, height and width of each.
        persons: how many people there are.
    """

    spec: dict[str, Any]
    sizes: np.ndarray
    persons: int

    def __len__(self) -> int:
        return len(self.sizes)

    @abstractmethod
    def sample(self, row: int) -> Sample:
        """One picture.

        Raises:
            UnreadableImage: damaged; names the file.
            ImageTooLarge: names the file too.
        """


class FolderPictures(Pictures):
    """A folder in the form of the `datasets` library: pictures, and metadata.jsonl with one object per picture.

    An object has `file_name` and any of `text` (the caption), `prompt`, `identity` (string or number), `landmarks`
    (five [x, y] in pixels) and `reference` (false for pictures that should not serve as the reference of another).
    Without metadata.jsonl every sub-folder is a person.

    Raises:
        ConfigError: no such folder, or no pictures in it.
        CorruptData: a damaged line; names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = _read_metadata(folder)
        if not rows:
            raise ConfigError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).", "Check `data.path`.")
        self.files = [folder / str(r["file_name"]) for r in rows]
        self.sizes = np.array([_size(f) for f in self.files], np.int64)
        self.rows = _Rows(rows, str(folder))
        self.persons = len(set(self.rows.identities))
        stamps = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in self.files]
        self.spec = {
            "kind": "folder", "path": str(folder.resolve()), "files": stamps, "rows": rows, "decoding": DECODING,
        }  # fmt: skip

    def sample(self, row: int) -> Sample:
        return self.rows.sample(row, load_image(self.files[row]))


class ShardPictures(Pictures):
    """Uncompressed webdataset shards (`*.tar`): members with one stem are one sample.

    A sample has a picture, and any of `.txt` (the caption) and `.json` (fields as in `FolderPictures`; those of
    `limner world build` are understood). The tar files are indexed once and then read at random, so that order and
    resume are exact, as for every other source.

    Raises:
        ConfigError: no shards there, or no pictures in them.
        CorruptData: a damaged shard; names it.
    """

    def __init__(self, folder: Path) -> None:
        shards = sorted(folder.glob("*.tar"))
        if not shards:
            raise ConfigError(f"{folder} holds no shards (*.tar).", "Check `data.path`.")
        self.places: list[tuple[Path, int, int]] = []
        rows, sizes = [], []
        for shard in shards:
            for place, row, size in _index(shard):
                self.places.append(place)
                rows.append(row)
                sizes.append(size)
        if not rows:
            raise ConfigError(f"The shards in {folder} hold no pictures ({', '.join(SUFFIXES)}).", "Check `data.path`.")
        self.sizes = np.array(sizes, np.int64)
        self.rows = _Rows(rows, str(folder))
        self.persons = len(set(self.rows.identities))
        stamps = [[s.name, s.stat().st_size, s.stat().st_mtime_ns] for s in shards]
        self.spec = {"kind": "shards", "path": str(folder.resolve()), "files": stamps, "decoding": DECODING}

    def sample(self, row: int) -> Sample:
        shard, offset, size = self.places[row]
        with shard.open("rb") as f:
            f.seek(offset)
            data = f.read(size)
        try:
            return self.rows.sample(row, load_image(data))
        except ImageError as e:
            raise type(e)(f"{shard}, sample {row}: {e.message}", e.hint) from e


def fit(image: np.ndarray, height: int, width: int) -> tuple[np.ndarray, tuple[int, int], float]:
    """Resizes so that the picture just covers height × width, and crops its middle.

    Returns:
        the (height, width, 3) picture, (top, left) of the crop in resized pixels, and the scale of the resizing.
    """
    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return image, (0, 0), 1.0
    scale = max(height / h, width / w)
    rows, columns = max(height, round(h * scale)), max(width, round(w * scale))
    resized = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.LANCZOS))
    top, left = (rows - height) // 2, (columns - width) // 2
    return resized[top : top + height, left : left + width], (top, left), scale


def _read_metadata(folder: Path) -> list[dict[str, Any]]:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder.", "Check `data.path`.")
    path = folder / METADATA
    if not path.is_file():
        files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        return [{"file_name": str(p), "identity": str(p.parent)} for p in files]
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if not (folder / row["file_name"]).is_file():
                raise KeyError(f"{row['file_name']} does not exist")
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise CorruptData(f"{path}, line {number}: {e}.", 'A line looks like {"file_name": "a.png"}.') from e
        rows.append(row)
    return rows


def _index(shard: Path) -> list[tuple[tuple[Path, int, int], dict[str, Any], tuple[int, int]]]:
    """The samples of a shard: place of the picture's bytes, its fields, its (height, width)."""
    samples: dict[str, dict[str, Any]] = {}
    found = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                parent, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                suffix = suffix.lower()
                file = tar.extractfile(member)
                if file is None:
                    continue
                sample = samples.setdefault(f"{parent}/{stem}", {})
                if suffix == "txt":
                    sample["text"] = file.read().decode("utf-8").strip()
                elif suffix == "json":
                    sample.update(json.loads(file.read()))
                elif f".{suffix}" in SUFFIXES:
                    sample["_place"] = (shard, member.offset_data, member.size)
                    with Image.open(file) as image:
                        sample["_size"] = upright_size(image)
    except (tarfile.TarError, OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise CorruptData(f"The shard {shard} cannot be read ({e}).", "Shards are uncompressed .tar files.") from e
    for sample in samples.values():
        if "_place" in sample:
            place, size = sample.pop("_place"), sample.pop("_size")
            found.append((place, sample, size))
    return found


class _Rows:
    """Captions, persons and landmarks from the rows of a metadata file."""

    def __init__(self, rows: list[dict[str, Any]], of: str) -> None:
        persons: dict[str, int] = {}
        self.captions = [str(row.get("text", row.get("caption", ""))) for row in rows]
        self.prompts = [str(row.get("prompt", c)) for row, c in zip(rows, self.captions, strict=True)]
        self.references = [bool(row.get("reference", True)) for row in rows]
        self.names = [str(row.get("identity", row.get("seed", f"picture {i}"))) for i, row in enumerate(rows)]
        self.identities = [persons.setdefault(name, len(persons)) for name in self.names]
        self.landmarks = np.full((len(rows), 5, 2), np.nan, np.float32)
        for i, row in enumerate(rows):
            if row.get("landmarks") is not None:
                try:
                    self.landmarks[i] = np.asarray(row["landmarks"], np.float32).reshape(5, 2)
                except (TypeError, ValueError) as e:
                    raise CorruptData(
                        f"{of}, picture {i}: landmarks must be five [x, y]; got {row['landmarks']}."
                    ) from e

    def sample(self, row: int, image: np.ndarray) -> Sample:
        return Sample(
            image,
            self.captions[row],
            self.prompts[row],
            self.identities[row],
            self.landmarks[row],
            self.references[row],
        )


def _size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return upright_size(image)
    except OSError as e:
        raise UnreadableImage(f"{file} is no picture that can be read ({e}).", "Remove or replace it.") from e
