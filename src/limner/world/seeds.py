"""Seeds: one way to derive independent random streams from a few words and numbers, alike in every process."""

from __future__ import annotations

import hashlib
import random

LIMIT = 2**31
"""Seeds are integers from 0 to LIMIT - 1."""


def derive(*parts: int | str) -> int:
    """A seed in [0, LIMIT) that depends on every part and its place, and on nothing else."""
    text = "\x1f".join(f"{type(p).__name__[0]}{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") % LIMIT


def stream(*parts: int | str) -> random.Random:
    """A generator of its own for `parts` (Mersenne Twister, whose `random()` Python keeps stable across versions)."""
    return random.Random(derive(*parts))
