"""Another picture of the same person: the reference for a picture to be painted."""

from __future__ import annotations

import numpy as np


class Partners:
    """For every row, other rows of the same person; a function of (row, step) alone.

    Args:
        identities: (N,) whose picture each row is.
        eligible: (N,) bool, rows that can serve as a reference; a person without any other such row falls back to any
            other row, and at last to the row itself.
    """

    def __init__(self, identities: np.ndarray, eligible: np.ndarray | None = None) -> None:
        self._identities = np.asarray(identities)
        good = np.ones(len(identities), bool) if eligible is None else np.asarray(eligible, bool)
        self._good = _Groups(self._identities, np.flatnonzero(good))
        self._all = _Groups(self._identities, np.arange(len(identities)))

    def of(self, rows: np.ndarray, step: int) -> np.ndarray:
        """A partner for each of the rows (B,): (B,) int64."""
        mixed = _mix(np.asarray(rows, np.uint64), step)
        return np.array([self._one(int(r), int(m)) for r, m in zip(rows, mixed, strict=True)], np.int64)

    def _one(self, row: int, number: int) -> int:
        for groups in (self._good, self._all):
            members = groups.of(self._identities[row])
            others = len(members) - int(row in members)
            if others:
                choice = members[number % len(members)]
                return int(choice if choice != row else members[(number + 1) % len(members)])
        return row


class _Groups:
    """Rows by identity."""

    def __init__(self, identities: np.ndarray, rows: np.ndarray) -> None:
        self._rows = rows[np.argsort(identities[rows], kind="stable")]
        names, starts, counts = np.unique(identities[self._rows], return_index=True, return_counts=True)
        self._places = {int(n): slice(s, s + c) for n, s, c in zip(names, starts, counts, strict=True)}

    def of(self, identity: int) -> np.ndarray:
        return self._rows[self._places.get(int(identity), slice(0, 0))]


def _mix(rows: np.ndarray, step: int) -> np.ndarray:
    """Well-mixed 32-bit numbers from rows and a step (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = rows + np.uint64((step + 1) * 0x9E3779B97F4A7C15 % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(32)
