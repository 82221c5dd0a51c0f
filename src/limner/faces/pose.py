"""Head pose from five landmarks."""

from __future__ import annotations

from typing import Final

import numpy as np

from limner.types import Pose

_FRONTAL: Final = np.array([(-19.1, -20.4), (19.1, -20.4), (0, 2.0), (-16.2, 19.4), (16.2, 19.4)]) / 38.2
"""Landmarks of a face seen from the front, eye distance 1: YuNet's mean over seven frontal photos, made symmetric. (It
sets noses lower than the ArcFace template does, which as zero would read as looking down by 10°.)"""
_DEPTH: Final = np.array([0, 0, -0.55, -0.05, -0.05])
"""How far each landmark lies behind the plane of the eyes (negative: in front of it). Read off MediaPipe's canonical
face: eyes 6.3 cm apart, nose tip 3.5 cm and mouth corners 0.3 cm before them."""

MODEL: Final = np.column_stack([_FRONTAL - _FRONTAL.mean(0), _DEPTH - _DEPTH.mean()])
"""(5, 3) an average face: x right, y down, z away from the viewer; the distance of the eyes is 1."""


def estimate_pose(landmarks: np.ndarray) -> Pose:
    """Yaw, pitch and roll in degrees (signs as in `limner.types.Pose`), from (5, 2) landmarks.

    A scaled orthographic fit (DeMenthon & Davis, IJCV 1995, without the perspective iteration): the affine camera that
    best takes `MODEL` to the landmarks, turned into the nearest rotation. These are estimates: on rendered heads of
    known pose yaw is right to about 5° and roll to 3° (to 15° where the head is turned by 45°), but YuNet's landmarks
    show only a quarter of the pitch.
    """
    centered = np.asarray(landmarks, np.float64) - np.mean(landmarks, axis=0)
    camera = np.linalg.lstsq(MODEL, centered, rcond=None)[0].T
    u, _, vt = np.linalg.svd(camera, full_matrices=False)
    right, down = u @ vt
    away = np.cross(right, down)
    # Columns of (right, down, away) are where the head's own axes point; its nose looks along -z.
    roll = np.arctan2(down[0], right[0])
    cos, sin = np.cos(roll), np.sin(roll)
    nose = -np.array([right[2] * cos + down[2] * sin, down[2] * cos - right[2] * sin, away[2]])
    yaw, pitch = np.arctan2(nose[0], -nose[2]), -np.arcsin(np.clip(nose[1], -1, 1))
    return Pose(*(float(np.degrees(angle)) for angle in (yaw, pitch, roll)))
