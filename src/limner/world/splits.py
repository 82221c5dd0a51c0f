"""Who belongs to which split. Splits are by identity: nobody is in two, so test people appear nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

from limner.errors import ConfigError
from limner.world.identity import Sitter, lookalike, sitter


@dataclass(frozen=True)
class Split:
    """A range of sitters' seeds.

    Attributes:
        start, count: seeds start … start + count - 1.
        combinations: which pairs of headwear or style and scene its pictures show, as in `sample_view`.
        about: what it is for.
    """

    start: int
    count: int
    combinations: str
    about: str

    @property
    def seeds(self) -> range:
        """Seeds of its sitters, in order."""
        return range(self.start, self.start + self.count)


SPLITS = {
    "train": Split(1_000_000, 20_000, "seen", "what models are trained on"),
    "named": Split(2_000_000, 400, "seen", "people with invented names, which captions mention; part of training"),
    "validation": Split(3_000_000, 1_000, "any", "choosing settings and checkpoints"),
    "test": Split(4_000_000, 1_000, "any", "reported results, and nothing else"),
    "hard": Split(5_000_000, 400, "any", "pairs with the same hair, skin and age, other bones: see `sitter_of`"),
}
"""Seeds under 1,000,000 are nobody's: for demonstrations and tests of the code."""


def split_of(name: str) -> Split:
    """The split of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SPLITS:
        raise ConfigError(f"Unknown split {name!r}; known: {', '.join(SPLITS)}.")
    return SPLITS[name]


def sitter_of(split: str, index: int) -> Sitter:
    """The `index`-th person of a split.

    In "hard" an even index and the odd one after it are lookalikes: alike in colouring, hair, age and glasses,
    different in geometry and marks.

    Raises:
        ConfigError: no such split, or not so many people in it.
    """
    chosen = split_of(split)
    if not 0 <= index < chosen.count:
        raise ConfigError(f"Person {index} of split {split!r} was asked for; it has 0 to {chosen.count - 1}.")
    seed = chosen.start + index
    if split == "hard" and index % 2:
        return lookalike(sitter(seed - 1), seed)
    return sitter(seed)
