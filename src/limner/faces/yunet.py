"""YuNet through OpenCV: the default detector; 0.2 MB, MIT, five landmarks.

Wu, Peng, Yu: YuNet: A Tiny Millisecond-level Face Detector, Machine Intelligence Research 2023. Weights from the OpenCV
model zoo.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from limner.faces.detect import DetectedFace, FaceDetector
from limner.registry import WeightFile, register_weights

YUNET: Final = register_weights(
    WeightFile(
        name="yunet",
        repo="opencv/face_detection_yunet",
        filename="face_detection_yunet_2023mar.onnx",
        license="MIT",
        size=232_589,
        sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        variable="LIMNER_YUNET",
    )
)


class YuNet(FaceDetector):
    """Faces of about 10 to 400 pixels in one scan, with landmarks.

    Args:
        path: the ONNX file, verified (see `load`).
    """

    name = "yunet"
    license = "MIT"
    levels = (160, 320, 832)
    last_level = 2048
    last_sizes = (144, 192, 256)

    def __init__(self, path: Path) -> None:
        import cv2

        with _quiet():
            self._net = cv2.FaceDetectorYN.create(str(path), "", (320, 320), _MIN_SCORE, 0.3, 500)
        self._lock = threading.Lock()  # the input size is state of the net

    @classmethod
    def load(cls, weights: str | Path | None = None) -> YuNet:
        """With `weights`, else what LIMNER_YUNET names, else the cached file, else a download.

        Raises:
            WeightsUnavailable, WeightsMismatch: from `WeightFile.resolve`.
        """
        return cls(YUNET.resolve(weights))

    def scan(self, image: np.ndarray) -> list[DetectedFace]:
        """See `FaceDetector.scan`."""
        import cv2

        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        with self._lock:
            self._net.setInputSize((bgr.shape[1], bgr.shape[0]))
            _, rows = self._net.detect(bgr)
        if rows is None:
            return []
        return [
            DetectedFace((x, y, x + w, y + h), min(score, 1.0), np.array(points).reshape(5, 2))
            for x, y, w, h, *points, score in np.asarray(rows, np.float64).tolist()
        ]


_MIN_SCORE: Final = 0.35
"""Low, for the second look sorts out what is no face."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without OpenCV 5's warning about a default of its own; older versions neither warn nor have this module."""
    import cv2

    log = getattr(cv2.utils, "logging", None)
    level = log.getLogLevel() if log else None
    if log:
        log.setLogLevel(log.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        if log:
            log.setLogLevel(level)
