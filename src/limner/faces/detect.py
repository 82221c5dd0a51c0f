"""The contract of face detectors, and the search over scales that makes any of them find tiny, huge and tight faces."""

from __future__ import annotations

import dataclasses
import logging
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from limner.errors import ConfigError, WeightsUnavailable
from limner.faces.align import halved, invert, similarity, template, transform, usual_box, warp

log = logging.getLogger(__name__)

Box = tuple[float, float, float, float]

MAX_FACES: Final = 100
"""Of a crowd only this many, the largest, are kept: what is smaller is of no use to anybody."""


@dataclass(frozen=True)
class DetectedFace:
    """Where a face lies in a picture.

    Attributes:
        box: (x0, y0, x1, y1) in source pixels, hairline to chin; may reach over the picture's border.
        score: confidence in [0, 1].
        landmarks: (5, 2) float64 in source pixels in the order of `limner.types.LANDMARKS`, or None.
    """

    box: Box
    score: float
    landmarks: np.ndarray | None = None

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the box."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    @property
    def area(self) -> float:
        """Pixels in the box."""
        return self.size[0] * self.size[1]

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the box."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def moved(self, scale: np.ndarray, offset: np.ndarray) -> DetectedFace:
        """The same face after every point p became scale · p + offset, per axis."""
        box = (np.reshape(self.box, (2, 2)) * scale + offset).ravel().tolist()
        points = None if self.landmarks is None else self.landmarks * scale + offset
        return dataclasses.replace(self, box=tuple(box), landmarks=points)


class FaceDetector(ABC):
    """Finds faces. A backend supplies `scan`, one look at a picture of moderate size; `detect` is the same for all.

    Attributes:
        name: what `--detector` takes.
        license: of its weights; `commercial` says whether they may be used commercially.
        landmarks: whether it finds them, and not boxes alone.
        levels: longest sides in pixels at which every picture is scanned, ascending.
        last_level: longest side of the last attempt at tiny faces, when nothing else found any.
        look_sizes: sides of the second look at a face, and at one of fewer than 48 pixels: enlarged too much, a face
            falls apart.
        last_sizes: sides at which the face is looked at once more when it stands upright, for its landmarks alone: a
            detector is off by a little that depends on the size of the face, and their mean by less.
    """

    name: ClassVar[str]
    license: ClassVar[str]
    commercial: ClassVar[bool] = True
    landmarks: ClassVar[bool] = True
    levels: ClassVar[tuple[int, ...]]
    last_level: ClassVar[int]
    look_sizes: ClassVar[tuple[int, int]] = (256, 160)
    last_sizes: ClassVar[tuple[int, ...]] = ()

    @abstractmethod
    def scan(self, image: np.ndarray) -> list[DetectedFace]:
        """Faces in a (H, W, 3) uint8 RGB picture, seen at the size it has. May be called from several threads."""

    def detect(self, image: np.ndarray) -> list[DetectedFace]:
        """All faces in a (H, W, 3) uint8 RGB picture of any size, from left to right.

        The picture is scanned at every one of `levels`. Only if that finds no clear face, it is scanned with a border
        around it (tight crops), magnified (tiny faces) and on its side (lost EXIF orientation), in this order, until
        there is one; on its side also if a face was found that lies. What has landmarks is then seen again by
        `second_look`, which drops what only looked like a face and steadies the landmarks.
        """
        found: list[DetectedFace] = []
        for attempt, least, sure in _ATTEMPTS:
            lying = attempt is _on_its_side and any(_is_lying(face) for face in found)
            if any(face.score >= _CLEAR for face in found) and not lying:
                continue
            faces = _suppressed([face for face in attempt(self, image) if min(face.size) > 0 and face.score >= least])
            largest = sorted(faces, key=lambda face: -face.area)[:MAX_FACES]
            seen = (second_look(self, image, face) for face in largest)
            found = _suppressed(found + [face for face in seen if face is not None and face.score >= sure])
        return sorted(found, key=lambda face: face.center)


def _is_lying(face: DetectedFace) -> bool:
    """Whether the eyes are less beside than above each other: then the picture lies on its side or upside down."""
    if face.landmarks is None:
        return False
    along, down = face.landmarks[1] - face.landmarks[0]
    return bool(along < abs(down))


def second_look(detector: FaceDetector, image: np.ndarray, face: DetectedFace) -> DetectedFace | None:
    """The face as seen again from nearer by; box-only faces pass as they are.

    It is looked at with the landmarks it has, and unless that settles it, turned by quarters too: a face upside down is
    often taken for an upright one, but with a lower score (seven photos: upright 0.92 or more, else 0.91 or less).
    What looked unlikely at first, as small turned faces do, must look very much like a face now.

    Returns:
        the face as it was seen best, its score the mean over both looks (0 where nothing was seen); None if it was not.
    """
    if face.landmarks is None:
        return face
    if np.ptp(face.landmarks, axis=0).max() < 1:
        return None
    size = detector.look_sizes[face.size[0] < _SMALL]
    best = _closer(detector, image, face.landmarks, size)
    if best is not None and best.score >= _UPRIGHT:
        return best
    if face.score < _LIKELY:
        return best if best is not None and best.score >= _TURNED else None
    for quarters in (1, 2, 3):
        turned = _closer(detector, image, _turned(face.landmarks, quarters), size)
        if turned is not None and turned.score >= max(_TURNED, min(best.score + _CLEARLY, _UPRIGHT) if best else 0.0):
            best = turned
    return best


def _closer(detector: FaceDetector, image: np.ndarray, points: np.ndarray, size: int) -> DetectedFace | None:
    """The face as the mean of two looks, plain and mirrored, turned upright by what was seen before.

    YuNet sees faces of fewer than 140 pixels nearer to upright than they are (by two thirds of 30°), larger ones only
    by a sixth. So each look enlarges the face and turns it by what the last one said, until that changes little.
    On seven photos, scaled, mirrored and rotated by up to 40°, the corners of an aligned crop move by 1.4 of 112
    pixels, by 2.1 without the last sizes.
    """
    seen = None
    for _ in range(_LOOKS):
        looks = _both(detector, image, points, size)
        if not looks:
            break
        before, points = points, np.mean([landmarks for _, landmarks in looks], axis=0)
        x0, y0, x1, y1 = np.mean([look.box for look, _ in looks], axis=0).tolist()
        seen = DetectedFace((x0, y0, x1, y1), sum(look.score for look, _ in looks) / 2, points)
        if _angle(before, points) < _STEADY:
            break
    if seen is None or not detector.last_sizes:
        return seen
    last = [landmarks for side in detector.last_sizes for _, landmarks in _both(detector, image, points, side)]
    return dataclasses.replace(seen, landmarks=np.mean(last, axis=0)) if last else seen


def _both(
    detector: FaceDetector, image: np.ndarray, points: np.ndarray, size: int
) -> list[tuple[DetectedFace, np.ndarray]]:
    """What is seen of a face as it is, and mirrored."""
    looks = (_look(detector, image, points, size, mirrored) for mirrored in (False, True))
    return [look for look in looks if look is not None]


_LOOK_ZOOM, _LOOKS, _STEADY, _SMALL = 0.8, 4, 3.0, 48
_UPRIGHT, _TURNED, _CLEARLY, _CLEAR, _LIKELY = 0.915, 0.85, 0.03, 0.8, 0.6


def _turned(points: np.ndarray, quarters: int) -> np.ndarray:
    """Landmarks turned clockwise by quarters around their middle."""
    middle = points.mean(0)
    turn = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), quarters)
    return (points - middle) @ turn.T + middle


def _angle(before: np.ndarray, after: np.ndarray) -> float:
    """Degrees between two sets of landmarks."""
    matrix = similarity(before, after)
    return abs(float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))))


def _look(
    detector: FaceDetector, image: np.ndarray, landmarks: np.ndarray, size: int, mirrored: bool
) -> tuple[DetectedFace, np.ndarray] | None:
    """The face that the detector sees where these landmarks say it is, and its landmarks, in source coordinates."""
    matrix = similarity(landmarks, template(size, _LOOK_ZOOM))
    view = warp(image, matrix, size)
    seen = detector.scan(np.ascontiguousarray(view[:, ::-1]) if mirrored else view)
    expected = DetectedFace(usual_box(size, _LOOK_ZOOM), 1.0)
    best = max(seen, key=lambda other: overlap(expected, other), default=None)
    if best is None or best.landmarks is None or overlap(expected, best) < 0.3:
        return None
    points, middle = best.landmarks, np.array([best.center])
    if mirrored:
        flip = np.array([[-1.0, 0, size], [0, 1, 0]])
        points, middle = transform(points, flip)[[1, 0, 2, 4, 3]], transform(middle, flip)
    back = invert(matrix)
    center = transform(middle, back)[0]
    cos, sin = np.abs(back[0, :2])  # the upright box around the ellipse in the turned box
    half = np.hypot(np.array(best.size) / 2 * cos, np.array(best.size[::-1]) / 2 * sin)
    x0, y0, x1, y1 = np.hstack([center - half, center + half]).tolist()
    return DetectedFace((x0, y0, x1, y1), best.score), transform(points, back)


def overlap(a: DetectedFace, b: DetectedFace) -> float:
    """Intersection over union of two boxes."""
    shared = _shared(a, b)
    return shared / (a.area + b.area - shared) if shared else 0.0


def _shared(a: DetectedFace, b: DetectedFace) -> float:
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    return max(width, 0.0) * max(height, 0.0)


def _suppressed(faces: list[DetectedFace]) -> list[DetectedFace]:
    """Of faces that mean the same one, the surest."""
    kept: list[DetectedFace] = []
    for face in sorted(faces, key=lambda f: -f.score):
        if all(overlap(face, k) < 0.35 and _shared(face, k) < 0.7 * min(face.area, k.area) for k in kept):
            kept.append(face)
    return kept


def _resized(image: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture with its longest side at `longest` pixels, and how many source pixels one of its pixels is wide and
    high, (2,)."""
    import cv2

    scale = longest / max(image.shape[:2])
    small, factor = halved(image, scale)
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    how = cv2.INTER_LINEAR if scale <= 1 else cv2.INTER_CUBIC
    return cv2.resize(small, size, interpolation=how), factor * np.array(small.shape[1::-1]) / size


def _scan(detector: FaceDetector, image: np.ndarray, longest: int, border: float = 0.0) -> list[DetectedFace]:
    """Scans the picture with its longest side resized to `longest` pixels and a grey border (share of that) around."""
    import cv2

    small, ratio = _resized(image, longest)
    pad = round(border * longest)
    if pad:
        small = cv2.copyMakeBorder(small, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=(128, 128, 128))
    return [face.moved(ratio, -pad * ratio) for face in detector.scan(small)]


def _at_levels(detector: FaceDetector, image: np.ndarray) -> list[DetectedFace]:
    first, *rest = detector.levels
    longest = max(image.shape[:2])
    sizes = sorted({first, *(min(level, longest) for level in rest if longest > first)})
    base, factor = halved(image, sizes[-1] / longest)
    faces = [face for size in sizes for face in _scan(detector, base, size)]
    return [face.moved(np.full(2, float(factor)), np.zeros(2)) for face in faces]


def _with_border(detector: FaceDetector, image: np.ndarray) -> list[DetectedFace]:
    return _scan(detector, image, detector.levels[0], border=0.5)


def _magnified(detector: FaceDetector, image: np.ndarray) -> list[DetectedFace]:
    return _scan(detector, image, min(4 * max(image.shape[:2]), detector.last_level))


def _on_its_side(detector: FaceDetector, image: np.ndarray) -> list[DetectedFace]:
    """Turned by a quarter to either side, and upside down."""
    base, ratio = _resized(image, min(detector.levels[-1], max(image.shape[:2])))
    height, width = base.shape[:2]
    faces = []
    for quarters, back in (
        (1, np.array([[0.0, -1, width], [1, 0, 0]])),
        (3, np.array([[0.0, 1, 0], [-1, 0, height]])),
        (2, np.array([[-1.0, 0, width], [0, -1, height]])),
    ):
        for face in detector.scan(np.ascontiguousarray(np.rot90(base, quarters))):
            ends = transform(np.reshape(face.box, (2, 2)), back)
            x0, y0, x1, y1 = np.hstack([ends.min(0), ends.max(0)]).tolist()
            points = None if face.landmarks is None else transform(face.landmarks, back)
            faces.append(DetectedFace((x0, y0, x1, y1), face.score, points).moved(ratio, np.zeros(2)))
    return faces


_ATTEMPTS: Final = (
    (_at_levels, 0.0, 0.5),
    (_with_border, 0.0, 0.5),
    (_magnified, _LIKELY, 0.85),
    (_on_its_side, _LIKELY, 0.75),
)
"""Ways to look, the least score at first, and at the second look; the last resorts see faces in gravel otherwise."""

DETECTORS: Final = ("auto", "yunet", "mini", "cascade", "insightface")

_said: set[str] = set()


def make_detector(
    name: str = "auto", *, weights: str | Path | None = None, accept_license: bool = False
) -> FaceDetector:
    """A detector by name.

    Args:
        name: `yunet`; `mini`, for sitters; `cascade`; `insightface`; or `auto`: YuNet, and only where its weights are
            neither on this machine nor to be had, Limner's own, which says so once.
        weights: local file of the detector's weights, for those that have some.
        accept_license: of weights that forbid commercial use (InsightFace's).

    Raises:
        ConfigError: unknown name, or weights for a detector that takes none.
        WeightsUnavailable, WeightsMismatch, MissingDependency, LicenseNotAccepted: as their names say.
    """
    if name not in DETECTORS:
        raise ConfigError(f"Unknown face detector {name!r}; allowed: {', '.join(DETECTORS)}.")
    if name in ("auto", "yunet"):
        from limner.faces.yunet import YUNET, YuNet

        try:
            return YuNet.load(weights)
        except WeightsUnavailable as e:
            if name == "yunet" or weights or os.environ.get(YUNET.variable):
                raise
            _say_once(
                f"{e.message} Falling back to Limner's own small detector, which knows synthetic people; on photos it "
                "is less exact, and sees a face in gravel now and then."
            )
            name = "mini"
    if weights:
        raise ConfigError(f"The face detector {name!r} takes no weights file; got {weights}.")
    if name == "insightface":
        from limner.faces.insight import InsightFace

        return InsightFace.load(accept_license=accept_license)
    if name == "mini":
        from limner.faces.mini import MiniDetector

        return MiniDetector.load()
    from limner.faces.cascade import Cascade

    return Cascade()


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        log.warning(text)
