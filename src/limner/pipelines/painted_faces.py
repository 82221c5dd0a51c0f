"""The faces in pictures that are being painted: whose each is, found by the detector that fits the model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from limner.faces import DetectedFace, FaceDetector, make_detector
from limner.types import Conditioning

Box = tuple[float, float, float, float]
EVERYWHERE: Box = (0.0, 0.0, 1.0, 1.0)


class PaintedFace(NamedTuple):
    """A face in one of several pictures.

    Attributes:
        row: number of the picture.
        person: number of the person in the list that was asked for.
        face: with landmarks, in pixels.
    """

    row: int
    person: int
    face: DetectedFace

    @property
    def landmarks(self) -> np.ndarray:
        """(5, 2), in pixels."""
        assert self.face.landmarks is not None
        return self.face.landmarks


def people(conditioning: Conditioning) -> list[tuple[Box, Conditioning]]:
    """Everybody whom a conditioning speaks of, and the part of the picture in which they are: shares of its sides."""
    return [*conditioning.regions] or [(EVERYWHERE, conditioning)]


def painted_faces(detector: FaceDetector, pictures: torch.Tensor, boxes: Sequence[Box]) -> list[PaintedFace]:
    """The largest face in each box of each picture, where there is one.

    Args:
        pictures: (B, 3, H, W); values outside [0, 1] are cut.
        boxes: (x0, y0, x1, y1) in shares of the picture's sides; a face belongs where its middle is.
    """
    found = []
    height, width = pictures.shape[2:]
    for row, picture in enumerate(as_pixels(pictures)):
        known = [f for f in detector.scan(picture) if f.landmarks is not None]
        for person, (x0, y0, x1, y1) in enumerate(boxes):
            near = [f for f in known if x0 <= f.center[0] / width < x1 and y0 <= f.center[1] / height < y1]
            if near:
                found.append(PaintedFace(row, person, max(near, key=lambda f: f.area)))
    return found


def as_pixels(pictures: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] → (B, H, W, 3) uint8."""
    return (pictures.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


@functools.cache
def detector_for(world: str) -> FaceDetector:
    """The detector for what a model of this world paints: the mini one for sitters."""
    return make_detector("mini" if world == "sitters" else "auto")
