"""How much of a person a face picture can tell, and what to do where that is little."""

from __future__ import annotations

from typing import Final

import numpy as np

from limner.faces.align import box_similarity, scale_of, similarity, template, warp
from limner.faces.detect import DetectedFace
from limner.types import Pose, Quality

GOOD_SIZE: Final = 112
"""Width in pixels from which recognisers see all they can: it is the size of their input."""
_SHARP, _BLURRED = 0.55, 0.4  # seven photos as taken: 0.57 to 0.78; blurred by 2 of 112 pixels: 0.29 to 0.39

_LEFT_EYE, _RIGHT_EYE, _MOUTH = (38.8, 52.5, 22, 12), (74.0, 52.5, 22, 12), (56.5, 93, 34, 16)
_LEFT_CHEEK, _RIGHT_CHEEK, _NOSE = (34, 74, 12, 10), (78, 74, 12, 10), (56, 62, 12, 12)
"""(center x, center y, width, height) in a crop of 112."""


def judge(image: np.ndarray, face: DetectedFace, pose: Pose | None) -> Quality:
    """Size, sharpness, one score in [0, 1], and a sentence for each thing that is wrong.

    The score is the product of what size, sharpness, pose, framing and light each leave. Hints of sunglasses, masks
    and harsh light compare a few windows of the aligned face, and need landmarks.

    Args:
        image: (H, W, 3) uint8, the picture that the face was found in.
    """
    size = face.size[0]
    crop = _crop(image, face, GOOD_SIZE)
    sharp = sharpness(_crop(image, face, int(np.clip(_native(face), 24, GOOD_SIZE))))
    visible = _visible(image, face)
    warnings = [*_size_warnings(size, sharp, visible), *_pose_warnings(pose)]
    light = 1.0
    if face.landmarks is None:
        warnings.append("the detector gives no landmarks: the face is placed by its box, and not turned upright")
    else:
        light, hints = _look_at_skin(crop, sharp >= _BLURRED)
        warnings += hints
    frontal = 1.0 if pose is None else float(np.cos(np.radians(pose.yaw)) * np.cos(np.radians(pose.pitch)))
    score = min(1.0, size / GOOD_SIZE) * min(1.0, sharp / _SHARP) * max(frontal, 0.0) * visible * light
    return Quality(size=float(size), sharpness=sharp, score=float(np.clip(score, 0, 1)), warnings=tuple(warnings))


def sharpness(crop: np.ndarray) -> float:
    """0 (blurred) to 1: one minus the blur of Crété et al. (The blur effect, SPIE 2007) of a (S, S, 3) uint8 crop.

    A sharp picture loses much of its steps between neighbours when it is blurred again, a blurred one hardly any.
    """
    import cv2

    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    kept = []
    for axis, kernel in ((0, (1, 11)), (1, (11, 1))):
        steps = np.abs(np.diff(grey, axis=axis))
        softer = np.abs(np.diff(cv2.blur(grey, kernel), axis=axis))
        total = float(steps.sum())
        kept.append(1 - float(np.maximum(0, steps - softer).sum()) / total if total else 1.0)
    return 1 - max(kept)


def _crop(image: np.ndarray, face: DetectedFace, size: int) -> np.ndarray:
    if face.landmarks is None:
        return warp(image, box_similarity(face.box, size), size, extend=True)
    return warp(image, similarity(face.landmarks, template(size)), size, extend=True)


def _native(face: DetectedFace) -> float:
    """Side of the ArcFace crop in source pixels."""
    if face.landmarks is None:
        return 1 / scale_of(box_similarity(face.box, 1))
    return 1 / scale_of(similarity(face.landmarks, template(1)))


def _visible(image: np.ndarray, face: DetectedFace) -> float:
    """Share of the box that lies inside the picture."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = face.box
    return max(0.0, min(x1, width) - max(x0, 0.0)) * max(0.0, min(y1, height) - max(y0, 0.0)) / face.area


def _size_warnings(size: float, sharp: float, visible: float) -> list[str]:
    warnings = []
    if size < GOOD_SIZE:
        warnings.append(f"the face is {size:.0f} px wide; {GOOD_SIZE} or more gives a better likeness")
    if sharp < _BLURRED:
        warnings.append(f"the face is blurred (sharpness {sharp:.2f}); {_BLURRED} or more gives a better likeness")
    if visible < 0.9:
        warnings.append(f"{1 - visible:.0%} of the face lies outside the picture; take one that shows all of it")
    return warnings


def _pose_warnings(pose: Pose | None) -> list[str]:
    warnings = []
    if pose and abs(pose.yaw) > 35:
        side = "right" if pose.yaw > 0 else "left"
        warnings.append(f"the head is turned {abs(pose.yaw):.0f}° to the {side}; one from the front tells more")
    if pose and abs(pose.pitch) > 15:
        way = "up" if pose.pitch > 0 else "down"
        warnings.append(f"the head looks {way} by {abs(pose.pitch):.0f}°; one at eye level tells more")
    return warnings


def _look_at_skin(crop: np.ndarray, clear: bool) -> tuple[float, list[str]]:
    """What light and cover leave of a (112, 112, 3) crop, in [0, 1], and hints; of cover only in a `clear` picture.

    Thresholds were set on seven photos and versions of them with painted sunglasses and masks: the eyes of uncovered
    faces (upper quartile of CIE L*) have 0.48 or more of the skin's light (covered: 0.08), their mouths spread by 15 or
    more over CIE a* and deviate by 9 or more over L* (covered: 0).
    """
    import cv2

    lab = cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)

    def window(x: float, y: float, width: float, height: float) -> np.ndarray:
        rows, columns = (slice(int(c - d / 2), int(c + d / 2)) for c, d in ((y, height), (x, width)))
        return lab[rows, columns].reshape(-1, 3)

    left, right = (float(np.median(window(*cheek)[:, 0])) for cheek in (_LEFT_CHEEK, _RIGHT_CHEEK))
    cheeks = np.vstack([window(*part) for part in (_LEFT_CHEEK, _RIGHT_CHEEK, _NOSE)])
    skin, color = float(np.median(cheeks[:, 0])), float(np.hypot(*np.median(cheeks[:, 1:], axis=0)))
    eyes = np.mean([np.percentile(window(*eye)[:, 0], 75) for eye in (_LEFT_EYE, _RIGHT_EYE)])
    mouth = window(*_MOUTH)
    red = float(np.subtract(*np.percentile(mouth[:, 1], (90, 10))))
    left_over, hints = 1.0, []
    if skin < 20 or skin > 97:
        left_over *= 0.5
        hints.append(f"the face is too {'dark' if skin < 20 else 'bright'}; take one in even light")
        clear = False
    if min(left, right) < 0.45 * max(left, right):
        left_over *= 0.8
        hints.append("one half of the face lies in shadow or is covered; take one in even light")
    if clear and eyes < 0.3 * skin:
        left_over *= 0.5
        hints.append("the eyes look covered (sunglasses?); take one that shows them")
    if clear and (float(mouth[:, 0].std()) < 4 or (red < 6 and color > 8)):
        left_over *= 0.5
        hints.append("the mouth looks covered (mask, hand?); take one that shows it")
    return left_over, hints
