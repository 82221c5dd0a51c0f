"""The working folder of a benchmark: what is in it is whole, so that work can be killed and resumed at any moment."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limner.errors import CorruptData, OutputConflict, StorageError, UnreadableImage
from limner.evaluation.recipe import Benchmark, MethodSpec
from limner.registry import file_sha256
from limner.types import Identity, write_atomic

MAIN = "main"


@dataclass(frozen=True)
class Cell:
    """The pictures of one person for one prompt by one method.

    Attributes:
        group: `main`, `slice-NAME`, or `curve-sS-gG`: which photos and which dials.
        method, person: names.
        prompt: place in the recipe.
    """

    group: str
    method: str
    person: str
    prompt: int


class Store:
    """What was painted so far.

    Layout: `pictures/GROUP/METHOD/PERSON/PP-K.png` and `PP.json` (written last: the cell is done);
    `people/SET/METHOD/PERSON.safetensors` and `.json`, who was enrolled and what it took.

    Args:
        out: folder of the benchmark.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def claim(self, benchmark: Benchmark) -> None:
        """Makes the folder this benchmark's, or checks that what was painted in it still fits.

        Methods, curve, slices, scorers and reports may change between runs; people, prompts and pictures may not, nor
        the dials of a method of the same name, nor its weights (`limner.evaluation.painting.demand_same_weights`).

        Raises:
            OutputConflict: it belongs to another benchmark, or holds something else.
            StorageError: it cannot be made.
        """
        path = self.out / "recipe.yaml"
        if path.exists():
            old = Benchmark.load(path)
            for name in ("people", "prompts", "pictures"):
                if getattr(old, name) != getattr(benchmark, name):
                    raise OutputConflict(
                        f"{self.out} holds a benchmark with other {name}.", "Choose another folder with --out."
                    )
        elif self.out.exists() and any(self.out.iterdir()):
            raise OutputConflict(
                f"{self.out} is not empty and holds no benchmark.", "Choose another folder with --out."
            )
        make_folder(self.out)
        known = {n: MethodSpec.from_dict(m) for n, m in (_read(self.out / "methods.json") or {}).items()}
        for method in benchmark.methods:
            if known.setdefault(method.name, method) != method:
                raise OutputConflict(
                    f"{self.out} holds pictures of another method called {method.name!r}.",
                    "Give it another name, or choose another folder with --out.",
                )
        import yaml

        write_atomic(self.out / "methods.json", json.dumps({n: m.to_dict() for n, m in known.items()}).encode())
        write_atomic(path, yaml.safe_dump(benchmark.to_dict(), sort_keys=False).encode())

    def facts(self, cell: Cell) -> dict[str, Any] | None:
        """What is known of a painted cell: seeds, seconds (per picture), weights (sha256 by component), error (why it
        failed); None if not painted."""
        return _read(self._cell(cell).with_suffix(".json"))

    def complete(self, cell: Cell, pictures: int) -> bool:
        """Whether a cell was painted with so many pictures, and those that did not fail are all there."""
        facts = self.facts(cell)
        if facts is None or int(facts["wanted"]) < pictures:
            return False
        return all(self.picture(cell, k).is_file() for k in range(int(facts["pictures"])))

    def write(self, cell: Cell, images: Sequence[np.ndarray], facts: dict[str, Any]) -> None:
        """Keeps the pictures (H, W, 3) uint8 of a cell."""
        place = self._cell(cell)
        make_folder(place.parent)
        for k, image in enumerate(images):
            write_atomic(self.picture(cell, k), encode_png(image))
        write_atomic(place.with_suffix(".json"), json.dumps({**facts, "pictures": len(images)}).encode())

    def picture(self, cell: Cell, k: int) -> Path:
        """Where picture `k` of a cell lies."""
        place = self._cell(cell)
        return place.with_name(f"{place.name}-{k}.png")

    def identity(self, people: str, method: str, person: str) -> tuple[Identity | None, dict[str, Any]] | None:
        """Who was enrolled before, with what is known of the enrolling (seconds, memory_mb, weights, error); None if
        nobody.

        `people` names the reference photos: `main` or a slice.
        """
        place = self.out / "people" / people / method / person
        facts = _read(place.with_name(place.name + ".json"))
        if facts is None:
            return None
        saved = place.with_name(place.name + ".safetensors")
        return (Identity.load(saved) if saved.is_file() else None), facts

    def write_identity(
        self, people: str, method: str, person: str, identity: Identity | None, facts: dict[str, Any]
    ) -> None:
        """Keeps an enrolled person."""
        place = self.out / "people" / people / method / person
        make_folder(place.parent)
        if identity is not None:
            identity.save(place.with_name(place.name + ".safetensors"))
        write_atomic(place.with_name(place.name + ".json"), json.dumps(facts).encode())

    def enrolments(self, people: str, method: str) -> list[dict[str, Any]]:
        """The facts of everybody whom a method has enrolled."""
        found = [_read(p) for p in sorted((self.out / "people" / people / method).glob("*.json"))]
        return [f for f in found if f is not None]

    def _cell(self, cell: Cell) -> Path:
        return self.out / "pictures" / cell.group / cell.method / cell.person / f"{cell.prompt:02d}"


def make_folder(folder: Path) -> Path:
    """The folder, made if need be; StorageError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StorageError(f"Cannot make {folder}: {e.strerror or e}.", "Choose another folder with --out.") from e
    return folder


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB as the bytes of a PNG."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB; UnreadableImage names the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as e:
        raise UnreadableImage(f"{path} is no picture that can be read ({e}).", "Delete it, and run again.") from e


def picture_sha256(path: Path) -> str:
    """Of the file; UnreadableImage names it."""
    try:
        return file_sha256(path)
    except OSError as e:
        raise UnreadableImage(f"{path} cannot be read ({e.strerror or e}).", "Run again: it is painted anew.") from e


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as e:
        raise CorruptData(f"{path} is damaged ({e}).", "Delete it; it is made again.") from e
