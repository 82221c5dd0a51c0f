"""The head as a solid: a signed distance of smoothly blended volumes, and the star-shaped surface cut from it.

Head space: x to the viewer's right, y up, z towards the viewer; the unit is about half a head height (12 cm). The face
is sampled radially on a latitude-longitude grid around `CENTER`, denser at the front; hair and beards are layers over
the same grid, so that they meet the skin in clean lines.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

CENTER = (0.0, -0.05, 0.0)
ROWS, COLUMNS = 96, 132
COARSE = 4
SMILE_LIFT = 0.06
"""How far a full smile raises the corners of the mouth."""
JIT: dict[str, Any] = {"cache": True, "fastmath": True, "error_model": "numpy", "nogil": True}
INLINE: dict[str, Any] = {**JIT, "forceinline": True}


class Form(NamedTuple):
    """Geometry of a head with its expression; lengths in head units, ratios around 1, angles as slopes.

    The first block is the person's, the second (`smile` …) the picture's.
    """

    cranium_w: float = 1.0
    cranium_h: float = 1.0
    cranium_d: float = 1.0
    forehead_z: float = 0.0
    face_w: float = 1.0
    face_h: float = 1.0
    jaw_w: float = 0.94
    jaw_y: float = 0.0
    jaw_d: float = 1.0
    chin_w: float = 1.0
    chin_y: float = 0.0
    chin_z: float = 0.0
    chin_cleft: float = 0.0
    cheek_w: float = 1.0
    cheek_z: float = 1.05
    fullness: float = 0.0
    brow_ridge: float = 0.01
    eye_x: float = 0.276
    eye_y: float = 0.112
    eye_r: float = 0.15
    eye_depth: float = 0.008
    eye_open: float = 0.82
    eye_tilt: float = 0.06
    eye_hood: float = 0.0
    iris_r: float = 0.44
    nose_len: float = 0.11
    nose_w: float = 1.0
    nose_bridge: float = 0.0
    nose_bridge_w: float = 1.0
    nose_tip_y: float = -0.185
    nose_tip_r: float = 1.0
    nose_hook: float = 0.0
    mouth_w: float = 0.235
    mouth_y: float = -0.45
    mouth_z: float = -0.035
    lip_upper: float = 0.035
    lip_lower: float = 0.045
    ear_r: float = 1.02
    ear_out: float = 0.4
    ear_y: float = 0.0
    neck_r: float = 0.95
    brow_y: float = 0.205
    brow_t: float = 0.03
    brow_arch: float = 0.7
    brow_tilt: float = 0.0
    brow_gap: float = 0.0
    skew_eyes: float = 0.0
    skew_brows: float = 0.0
    skew_nose: float = 0.0
    skew_mouth: float = 0.0
    skew_jaw: float = 0.0
    sag: float = 0.0
    smile: float = 0.0
    open: float = 0.0
    brow_raise: float = 0.0
    frown: float = 0.0
    blink: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0


@njit(**INLINE)
def ellipsoid(x, y, z, a, b, c):
    """Bounded approximation of the distance to an ellipsoid with semi-axes a, b, c."""
    x /= a
    y /= b
    z /= c
    k0 = math.sqrt(x * x + y * y + z * z)
    x /= a
    y /= b
    z /= c
    return k0 * (k0 - 1.0) / math.sqrt(x * x + y * y + z * z + 1e-9)


@njit(**INLINE)
def union(a, b, k):
    """Smooth minimum with blend radius k."""
    h = max(k - abs(a - b), 0.0)
    return min(a, b) - h * h * 0.25 / k


@njit(**INLINE)
def carve(a, b, k):
    """Smooth maximum with blend radius k: `a` without the complement of `b`."""
    h = max(k - abs(a - b), 0.0)
    return max(a, b) + h * h * 0.25 / k


@njit(**INLINE)
def capsule(x, y, z, ax, ay, az, bx, by, bz, ra, rb):
    """Distance to a segment with radii ra at its start and rb at its end."""
    ux = bx - ax
    uy = by - ay
    uz = bz - az
    x -= ax
    y -= ay
    z -= az
    t = min(max((x * ux + y * uy + z * uz) / (ux * ux + uy * uy + uz * uz), 0.0), 1.0)
    x -= ux * t
    y -= uy * t
    z -= uz * t
    return math.sqrt(x * x + y * y + z * z) - (ra + (rb - ra) * t)


@njit(**INLINE)
def bump(x):
    """Smooth hill of height 1 on (-1, 1)."""
    x = max(1.0 - x * x, 0.0)
    return x * x


@njit(**INLINE)
def skull_distance(x, y, z, f):
    """Distance to cranium, face mass, jaw, chin and cheeks: everything but the features."""
    x += f.skew_jaw * max(-y - 0.2, 0.0)
    ax = math.sqrt(x * x + 0.0006)
    drop = f.open * 0.13
    d = ellipsoid(x, y - 0.27, z + 0.12, 0.72 * f.cranium_w, 0.74 * f.cranium_h, 0.84 * f.cranium_d)
    d = union(d, ellipsoid(x, y - 0.50, z - 0.22 - f.forehead_z, 0.46, 0.34, 0.40), 0.25)
    d = union(d, ellipsoid(x, y + 0.12, z - 0.10, 0.58 * f.face_w, 0.80 * f.face_h, 0.62), 0.22)
    d = union(
        d,
        ellipsoid(ax - 0.25 * f.jaw_w, y + 0.50 + f.jaw_y + drop * 0.5, z - 0.14, 0.28, 0.31, 0.42 * f.jaw_d),
        0.22,
    )
    d = union(d, ellipsoid(x, y + 0.74 + f.chin_y + drop, z - 0.46 - f.chin_z, 0.235 * f.chin_w, 0.165, 0.20), 0.24)
    d = union(
        d,
        ellipsoid(
            ax - 0.37 * f.cheek_w, y + 0.14 - f.smile * 0.05, z - 0.47, 0.18, 0.15, 0.18 * f.cheek_z + f.smile * 0.03
        ),
        0.20,
    )
    # buccal fat and jowls
    d = union(
        d,
        ellipsoid(ax - 0.36 * f.face_w, y + 0.40 + f.sag * 0.14, z - 0.34, 0.17 + 0.10 * f.fullness, 0.20, 0.20)
        + 0.10
        - 0.10 * f.fullness
        - 0.03 * f.sag,
        0.16,
    )
    return d


@njit(**INLINE)
def skin_distance(x, y, z, f):
    """Distance to the head's skin, expression included; ears and neck are parts of their own."""
    d = skull_distance(x, y, z, f)
    ax = math.sqrt(x * x + 0.0004)
    side = 1.0 if x > 0 else -1.0
    eye_y = f.eye_y + side * f.skew_eyes * bump((ax - f.eye_x) / 0.3)
    # muzzle, brow ridge, sockets, eyeballs
    d = union(d, ellipsoid(x, y - f.mouth_y, z - 0.44 - f.mouth_z, 0.30, 0.22, 0.30), 0.15)
    d = union(d, ellipsoid(ax - 0.24, y - eye_y - 0.15, z - 0.60, 0.24, 0.07, 0.08 + f.brow_ridge), 0.12)
    d = carve(d, -ellipsoid(ax - f.eye_x, y - eye_y + 0.01, z - 0.84 + f.eye_depth, 0.19, 0.11, 0.17), 0.12)
    d = union(d, ellipsoid(ax - f.eye_x, y - eye_y, z - 0.60 + f.eye_depth, f.eye_r, f.eye_r * 0.80, 0.125), 0.035)
    # nose
    xn = x - f.skew_nose * bump((y - f.nose_tip_y) / 0.3)
    an = math.sqrt(xn * xn + 0.0002)
    tip_z = 0.70 + f.nose_len
    d = union(
        d,
        capsule(
            xn, y, z, 0.0, eye_y + 0.02, 0.64 + f.nose_bridge, 0.0, f.nose_tip_y + 0.03, tip_z,
            0.055 * f.nose_bridge_w, 0.072 * f.nose_w,
        ),
        0.10,
    )  # fmt: skip
    d -= f.nose_hook * bump((y - f.nose_tip_y - 0.12) / 0.10) * bump(xn / 0.12)
    d = union(
        d,
        ellipsoid(xn, y - f.nose_tip_y, z - tip_z, 0.085 * f.nose_w * f.nose_tip_r, 0.075 * f.nose_tip_r, 0.085),
        0.05,
    )
    d = union(
        d,
        ellipsoid(an - 0.10 * f.nose_w, y - f.nose_tip_y + 0.015, z - tip_z + 0.10, 0.065 * f.nose_w, 0.055, 0.085),
        0.05,
    )
    # lips follow the curve of the face; the mouth is carved only as far as it opens
    q = min(max(x / f.mouth_w, -1.15), 1.15)
    my = y - f.mouth_y - f.smile * SMILE_LIFT * (q * q) + 0.02 * f.smile - f.skew_mouth * q
    mz = z - f.mouth_z + 1.5 * x * x
    edge = (ax - f.mouth_w) * 0.8
    bow = math.sqrt(x * x + 0.0025) - 0.05
    upper = ellipsoid(bow, my - 0.035, mz - 0.735, f.mouth_w * 0.85, f.lip_upper * 0.9, 0.055)
    lower = ellipsoid(x, my + 0.05 + f.open * 0.17, mz - 0.728, f.mouth_w * 0.72, f.lip_lower * 0.95, 0.06)
    d = union(d, max(upper, edge), 0.035)
    d = union(d, max(lower, edge), 0.04)
    depth = 0.86 + 0.10 * max(1.0 - 6.0 * f.open, 0.0)
    inside = ellipsoid(x, my + 0.006 + f.open * 0.075, mz - depth, f.mouth_w * 0.88, 0.012 + f.open * 0.080, 0.155)
    d = carve(d, -max(inside, edge), 0.03)
    fold = 0.6 * f.smile + 0.5 * f.sag
    d += (
        fold
        * 0.012
        * bump((ax - 0.09 - f.mouth_w + 0.55 * (y - f.mouth_y)) / 0.06)
        * bump((y - f.mouth_y - 0.08) / 0.17)
        * max(z, 0.0)
    )
    d += f.chin_cleft * bump(x / 0.05) * bump((y + 0.72 + f.chin_y + f.open * 0.13) / 0.10) * max(z, 0.0)
    return d


@njit(**JIT)
def _march(dx, dy, dz, radius, steps, smooth, f):
    """Moves each radius along its direction onto the surface (in place). Branch-free, so that it becomes SIMD."""
    cx, cy, cz = CENTER
    for _ in range(steps):
        if smooth:
            for i in range(radius.shape[0]):
                r = radius[i]
                radius[i] = r - 0.94 * skull_distance(cx + dx[i] * r, cy + dy[i] * r, cz + dz[i] * r, f)
        else:
            for i in range(radius.shape[0]):
                r = radius[i]
                radius[i] = r - 0.94 * skin_distance(cx + dx[i] * r, cy + dy[i] * r, cz + dz[i] * r, f)


@njit(**JIT)
def _occlusion(x, y, z, nx, ny, nz, f, out):
    """Ambient openness (n,) of skin points in [0, 1], from distances a little way out along the normal."""
    for i in range(x.shape[0]):
        near = max(0.07 - skin_distance(x[i] + nx[i] * 0.07, y[i] + ny[i] * 0.07, z[i] + nz[i] * 0.07, f), 0.0)
        far = max(0.22 - skin_distance(x[i] + nx[i] * 0.22, y[i] + ny[i] * 0.22, z[i] + nz[i] * 0.22, f), 0.0)
        out[i] = min(max(1.0 - 7.86 * near - 3.41 * far, 0.0), 1.0)


@lru_cache(maxsize=1)
def directions() -> np.ndarray:
    """(ROWS, COLUMNS, 3) float64 unit directions: rows from the crown down, columns around, the front in the middle.

    The first and last columns coincide at the back. Spacing is finest where the face is.
    """
    v = np.linspace(0, 1, ROWS)
    elevation = np.pi / 2 - np.pi * (v + 0.045 * np.sin(2 * np.pi * v) - 0.02 * np.sin(4 * np.pi * v))
    t = np.linspace(-1, 1, COLUMNS)
    azimuth = np.pi * (0.60 * t + 0.40 * t**3)
    e, a = np.meshgrid(elevation, azimuth, indexing="ij")
    return np.ascontiguousarray(np.stack([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)], -1))


@lru_cache(maxsize=8)
def _knots(n: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every `step`-th of 0 … n - 1 and the last; for each of the n, the knot before it and the weight of the next."""
    knots = np.unique(np.r_[0:n:step, n - 1])
    at = np.clip(np.searchsorted(knots, np.arange(n), side="right") - 1, 0, len(knots) - 2)
    return knots, at, (np.arange(n) - knots[at]) / (knots[at + 1] - knots[at])


@njit(**JIT)
def _enlarge(coarse, row, row_weight, column, column_weight):
    """Bilinear (n, m) enlargement of values at the knots."""
    out = np.empty((row.shape[0], column.shape[0]))
    for i in range(row.shape[0]):
        a, u = row[i], row_weight[i]
        for j in range(column.shape[0]):
            b, v = column[j], column_weight[j]
            above = coarse[a, b] + (coarse[a, b + 1] - coarse[a, b]) * v
            below = coarse[a + 1, b] + (coarse[a + 1, b + 1] - coarse[a + 1, b]) * v
            out[i, j] = above + (below - above) * u
    return out


@lru_cache(maxsize=1)
def _coarse() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every COARSE-th direction, as columns."""
    return _columns(directions()[_knots(ROWS, COARSE)[0]][:, _knots(COLUMNS, COARSE)[0]])


@lru_cache(maxsize=1)
def _front() -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Flat indices of the directions that meet features, and those directions; elsewhere the skull is smooth."""
    d = directions()
    near = (np.abs(np.arctan2(d[..., 0], d[..., 2])) < np.deg2rad(112)) & (np.abs(d[..., 1]) < 0.92)
    return np.flatnonzero(near), _columns(d[near])


def surface_radius(f: Form, smooth: bool = False) -> np.ndarray:
    """(ROWS, COLUMNS) float64 distance of the skin (or, if `smooth`, of the featureless skull) from CENTER."""
    rows, columns = _knots(ROWS, COARSE), _knots(COLUMNS, COARSE)
    r = np.full(len(rows[0]) * len(columns[0]), 1.35)
    _march(*_coarse(), r, 14, smooth, f)
    full = _enlarge(r.reshape(len(rows[0]), -1), *rows[1:], *columns[1:]).reshape(-1)
    if not smooth:
        fine, near = _front()
        part = full[fine]
        _march(*near, part, 3, False, f)
        full[fine] = part
    return full.reshape(ROWS, COLUMNS)


def star_points(radius: np.ndarray) -> np.ndarray:
    """(ROWS, COLUMNS, 3) points at `radius` from CENTER."""
    return directions() * radius[..., None] + np.asarray(CENTER)


def occlusion(points: np.ndarray, normals: np.ndarray, f: Form) -> np.ndarray:
    """(U, V) ambient openness of the grid of skin points; computed at every other point, and spread."""
    rows, columns = _knots(points.shape[0], 2), _knots(points.shape[1], 2)
    p, n = points[rows[0]][:, columns[0]], normals[rows[0]][:, columns[0]]
    out = np.empty(p.shape[0] * p.shape[1])
    _occlusion(*_columns(p), *_columns(n), f, out)
    return _enlarge(out.reshape(p.shape[:2]), *rows[1:], *columns[1:])


def _columns(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and z of a (U, V, 3) grid as three flat contiguous arrays."""
    x, y, z = np.ascontiguousarray(grid.reshape(-1, 3).T)
    return x, y, z
