"""Colour words: which linear RGB a word stands for, and which word a colour deserves."""

from __future__ import annotations

from random import Random

import numpy as np

from limner.world.factors import Color

ANCHORS = {
    "red": ("b81c24", "d8342c", "8e1420"),
    "orange": ("e87a1e", "d0661a"),
    "yellow": ("f0cc3a", "e2b81e"),
    "green": ("2f8a3e", "1e5c34", "6aa850"),
    "blue": ("2a5ec4", "4a86d8", "3a6ea8"),
    "navy": ("18244c", "101c3c"),
    "purple": ("6a2a9a", "4c2478", "8e5ab8"),
    "pink": ("ee8ab0", "e05a94", "f4b4c8"),
    "brown": ("6e4426", "8a5a34", "4c3020"),
    "beige": ("d8c4a0", "c8b48e"),
    "white": ("f2f1ec", "e6e6e4"),
    "grey": ("8c8e92", "6a6c70", "a8aaac"),
    "black": ("1a1a1c", "262628"),
}
"""sRGB shades of each colour word."""
COLORS = tuple(ANCHORS)
DYES = {"pink": "d6568e", "blue": "3a62c0", "green": "3c8a58", "purple": "7a3fa0"}
"""Hair colours that nobody is born with, sRGB."""


def linear(code: str) -> Color:
    """sRGB hex code → linear RGB (power 2.2, as everywhere in the world)."""
    r, g, b = ((int(code[i : i + 2], 16) / 255) ** 2.2 for i in (0, 2, 4))
    return (r, g, b)


_WORDS = [word for word, codes in ANCHORS.items() for _ in codes]
_POINTS = np.array([linear(code) for codes in ANCHORS.values() for code in codes])


def _perceived(rgb: np.ndarray) -> np.ndarray:
    """Oklab coordinates of linear RGB (B. Ottosson, "A perceptual color space for image processing", 2020)."""
    to_cone = np.array(
        ((0.4122214708, 0.5363325363, 0.0514459929), (0.2119034982, 0.6806995451, 0.1073969566),
         (0.0883024619, 0.2817188376, 0.6299787005))
    )  # fmt: skip
    to_lab = np.array(
        ((0.2104542553, 0.7936177850, -0.0040720468), (1.9779984951, -2.4285922050, 0.4505937099),
         (0.0259040371, 0.7827717662, -0.8086757660))
    )  # fmt: skip
    return np.asarray(np.cbrt(rgb @ to_cone.T) @ to_lab.T)


_SEEN = _perceived(_POINTS)


def word(color: Color) -> str:
    """The colour word nearest to a linear RGB colour."""
    distance = ((_SEEN - _perceived(np.asarray(color, np.float64))) ** 2).sum(1)
    return _WORDS[int(distance.argmin())]


def sample(name: str, random: Random) -> Color:
    """A linear RGB colour that `word` calls `name`, varied around one of its shades."""
    base = linear(random.choice(ANCHORS[name]))
    for spread in (0.22, 0.12, 0.05):
        value, tints = random.uniform(-spread, spread), [random.uniform(-spread, spread) * 0.5 for _ in range(3)]
        r, g, b = (min(max(c * (1 + value + t), 0.0), 0.96) for c, t in zip(base, tints, strict=True))
        if word((r, g, b)) == name:
            return (r, g, b)
    return base
