"""The offline fallback: the frontal LBP cascade that comes inside scikit-image. Boxes only, no landmarks."""

from __future__ import annotations

import threading
from typing import Final

import numpy as np

from limner.faces.detect import DetectedFace, FaceDetector


class Cascade(FaceDetector):
    """Upright frontal faces: found on all seven photos of the tests, but also in a rocket; 0.1 s, up to 2 s for none.

    Ahonen, Hadid, Pietikäinen: Face Description with Local Binary Patterns, TPAMI 2006; trained for OpenCV.
    """

    name = "cascade"
    landmarks = False
    license = "BSD-3-Clause"
    levels = (160,)
    last_level = 320

    def __init__(self) -> None:
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade as Windows

        self._windows = Windows(lbp_frontal_face_cascade_filename())
        self._lock = threading.Lock()

    def scan(self, image: np.ndarray) -> list[DetectedFace]:
        """See `FaceDetector.scan`."""
        import cv2

        shortest = min(image.shape[:2])
        if shortest < _WINDOW:
            return []
        grey = cv2.equalizeHist(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        with self._lock:
            hits = self._windows.detect_multi_scale(
                grey, scale_factor=1.2, step_ratio=1, min_size=(_WINDOW, _WINDOW), max_size=(shortest, shortest)
            )
        return [_face(hit["c"], hit["r"], hit["width"]) for hit in hits]


_WINDOW: Final = 24
_SCORE: Final = 0.8
"""A cascade says yes or no. Every yes counts as a clear face, so that the search ends there."""


def _face(left: float, top: float, side: float) -> DetectedFace:
    """The cascade's square reaches from brow to lip; boxes here reach from hairline to chin."""
    x, y = left + side / 2, top + 0.55 * side
    half = np.array([0.5, 0.68]) * side
    return DetectedFace((x - half[0], y - half[1], x + half[0], y + half[1]), _SCORE)
