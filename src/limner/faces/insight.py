"""InsightFace's SCRFD, for those who may use it: its code is MIT, its weights are for non-commercial research only."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import Any, Final

import numpy as np

from limner.errors import MissingDependency, WeightsUnavailable
from limner.faces.detect import DetectedFace, FaceDetector
from limner.registry import WeightFile

log = logging.getLogger(__name__)

BUFFALO: Final = WeightFile(
    name="insightface",
    repo="",  # the insightface package fetches them itself
    filename="buffalo_l",
    license="InsightFace-non-commercial",
    commercial=False,
    size=275_000_000,
)


class InsightFace(FaceDetector):
    """SCRFD from InsightFace's pack `buffalo_l` (Guo et al., ICLR 2022): five landmarks, strong on small faces.

    Args:
        model: InsightFace's detection model, prepared (see `load`).
    """

    name = "insightface"
    license = BUFFALO.license
    commercial = False
    levels = (320, 832)
    last_level = 2048

    def __init__(self, model: Any) -> None:
        self._model = model
        self._lock = threading.Lock()

    @classmethod
    def load(cls, *, accept_license: bool = False) -> InsightFace:
        """Loads the pack through the `insightface` package, which fetches it where it is missing.

        Args:
            accept_license: the user accepts terms that forbid commercial use.

        Raises:
            MissingDependency: the package is not installed.
            LicenseNotAccepted: neither the argument nor the environment accepts the licence.
            WeightsUnavailable: the package could not load its weights.
        """
        try:
            from insightface.app import FaceAnalysis
        except ImportError as e:
            raise MissingDependency(
                "The detector `insightface` needs the package of that name.",
                "pip install 'limner[insightface]'; or use the default detector, which needs nothing.",
            ) from e
        BUFFALO.demand_license(accept_license)
        log.warning("InsightFace's weights are for non-commercial research only.")
        try:
            with contextlib.redirect_stdout(sys.stderr):  # the package prints what it loads
                app = FaceAnalysis(
                    name=BUFFALO.filename, allowed_modules=["detection"], providers=["CPUExecutionProvider"]
                )
                app.prepare(ctx_id=-1, det_thresh=0.5, det_size=(640, 640))
        except Exception as e:  # whatever a failed download raises
            raise WeightsUnavailable(
                f"InsightFace could not load its pack {BUFFALO.filename} ({type(e).__name__}: {e}).",
                "Fetch it on another machine and place it in ~/.insightface/models, or use the default detector.",
            ) from e
        return cls(app.det_model)

    def scan(self, image: np.ndarray) -> list[DetectedFace]:
        """See `FaceDetector.scan`."""
        with self._lock:
            boxes, points = self._model.detect(np.ascontiguousarray(image[..., ::-1]), max_num=0)
        return [
            DetectedFace(
                (float(x0), float(y0), float(x1), float(y1)),
                float(min(score, 1.0)),
                None if points is None else np.asarray(points[i], np.float64),
            )
            for i, (x0, y0, x1, y1, score) in enumerate(boxes)
        ]
