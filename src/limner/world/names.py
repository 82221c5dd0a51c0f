"""Invented names: the celebrities of this world, whom a base model knows by name as real ones know real people."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from limner.world.splits import SPLITS


@cache
def names() -> tuple[str, ...]:
    """Two-part names, no word twice; the k-th belongs to the k-th sitter of the split "named"."""
    return tuple(files("limner.world").joinpath("names.txt").read_text(encoding="utf-8").split("\n")[:-1])


def name_of(seed: int) -> str | None:
    """The name of the sitter with this seed, or None for the many without one."""
    k = seed - SPLITS["named"].start
    return names()[k] if 0 <= k < SPLITS["named"].count else None


def seed_of(name: str) -> int | None:
    """The seed of the sitter of this name (case does not matter), or None."""
    wanted = " ".join(name.lower().split())
    found = (k for k, known in enumerate(names()) if known.lower() == wanted)
    k = next(found, None)
    return None if k is None else SPLITS["named"].start + k
