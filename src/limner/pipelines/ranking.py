"""Best of N: paint more than is wanted, and keep what resembles the person most."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from limner.errors import FaceError
from limner.faces import FaceEmbedder, FaceFinder
from limner.types import Portrait

if TYPE_CHECKING:
    from PIL import Image

Ranker = Callable[["Image.Image"], float]
"""Scores a picture; higher is better. Any function will do."""

NO_FACE = -1.0


class Likeness:
    """How much a picture resembles a person to a recogniser: the cosine of its largest face with a reference.

    A picture without a face scores -1, so it is never preferred. A ranker must not be the recogniser that an evaluation
    uses, and a score that was selected for is no measurement: it only says which of several pictures is best.

    Args:
        embedder: the recogniser; by default of the CLI, the face encoder of the method itself.
        reference: (D,) embedding of the person by the same recogniser.
        finder: None makes one with default settings.
    """

    def __init__(self, embedder: FaceEmbedder, reference: np.ndarray, finder: FaceFinder | None = None) -> None:
        self.embedder, self.finder = embedder, finder or FaceFinder()
        self.reference = reference / np.linalg.norm(reference)

    def __call__(self, image: Any) -> float:
        """The cosine, -1 to 1."""
        try:
            face = self.finder.face(image)
        except FaceError:
            return NO_FACE
        return float(self.embedder.embed(face) @ self.reference)


def keep_best(portraits: Iterable[Portrait], ranker: Ranker, keep: int) -> list[Portrait]:
    """The `keep` portraits that the ranker scores highest, best first, with the score under `scores["likeness"]`."""
    scored = [
        dataclasses.replace(p, scores={**p.scores, "likeness": round(float(ranker(p.image)), 4)}) for p in portraits
    ]
    return sorted(scored, key=lambda p: -p.scores["likeness"])[:keep]
