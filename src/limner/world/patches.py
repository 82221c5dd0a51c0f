"""Patches: grids of points with a material, and the few shapes that garments, hats and frames are made of.

Rows of a grid run down, columns counter-clockwise seen from above, so that normals point outwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Patch:
    """A piece of surface in head space.

    Attributes:
        points: (U, V, 3) float64.
        material: index into the picture's material table.
        sway: 0 follows the head's rotation, 1 the torso's; a number or (U,) by row.
        openness: (U, V) ambient openness, None = 1.
        two_sided: draw back faces too.
        rest: (U, V, 3) coordinates that paint is laid on by, None = points.
        normals: (U, V, 3), None = from the grid.
    """

    points: Array
    material: int
    sway: float | Array = 0.0
    openness: Array | None = None
    two_sided: bool = True
    rest: Array | None = None
    normals: Array | None = None


def smoothstep(a: float | Array, b: float | Array, x: float | Array) -> Array:
    """0 below a, 1 above b, smooth between; also for a > b, falling."""
    t = np.clip((x - a) / (b - a), 0, 1)
    return t * t * (3 - 2 * t)


def around(n: int, start: float = -np.pi, end: float = np.pi) -> Array:
    """(n,) azimuths; the full circle by default, closed, with the seam at the back."""
    return np.linspace(start, end, n)


def lathe(
    radius: Sequence[float] | Array,
    y: Sequence[float] | Array,
    *,
    columns: int = 40,
    depth: float | Sequence[float] | Array = 1.0,
    center: tuple[float, float] = (0.0, 0.0),
    power: float = 2.0,
    rows: int = 0,
) -> Array:
    """(U, V, 3) surface of revolution with superelliptic cross-section.

    Args:
        radius: half width by row, top to bottom; `depth` scales it along z (a number or by row).
        y: height by row.
        center: x and z of the axis.
        power: 2 = ellipse, larger = squarer.
        rows: resample the profile to this many rows with a smooth curve; 0 = keep it.
    """
    r = np.asarray(radius, float)
    h = np.asarray(y, float)
    d = np.broadcast_to(np.asarray(depth, float), r.shape)
    if rows:
        r, h, d = (_smooth(len(r), rows) * np.stack([r, h, d])[:, None]).sum(-1)
    a = around(columns)
    s, c = np.sin(a), np.cos(a)
    norm = (np.abs(s) ** power + np.abs(c) ** power) ** (-1 / power)
    x = r[:, None] * (s * norm) + center[0]
    z = (r * d)[:, None] * (c * norm) + center[1]
    return np.stack([x, np.broadcast_to(h[:, None], x.shape), z], -1)


@lru_cache(maxsize=32)
def _smooth(knots: int, rows: int) -> Array:
    """(rows, knots) weights of a Catmull-Rom curve through `knots` evenly spaced values."""
    at = np.linspace(0, knots - 1, rows)
    k = np.minimum(at.astype(int), knots - 2)
    t = at - k
    basis = np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], -1) / 2
    w = np.zeros((rows, knots))
    for j in range(4):
        np.add.at(w, (np.arange(rows), np.clip(k - 1 + j, 0, knots - 1)), basis[:, j])
    return w


def blob(
    center: Sequence[float], size: Sequence[float], rows: int = 14, columns: int = 24, power: float = 2.0
) -> Array:
    """(rows, columns, 3) superellipsoid around `center` with half sizes `size`."""
    e = np.linspace(np.pi / 2, -np.pi / 2, rows)[:, None]
    a = around(columns)[None]

    def curve(v: Array) -> Array:
        return np.sign(v) * np.abs(v) ** (2 / power)

    x = curve(np.cos(e)) * curve(np.sin(a))
    y = np.broadcast_to(curve(np.sin(e)), x.shape)
    z = curve(np.cos(e)) * curve(np.cos(a))
    return np.stack([x, y, z], -1) * np.asarray(size, float) + np.asarray(center, float)


def tube(path: Array, radius: float | Array, columns: int = 8, closed: bool = False) -> Array:
    """(U, columns, 3) tube of `radius` along a (U, 3) path."""
    path = np.asarray(path, float)
    ahead = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True) + 1e-12
    side = _cross(ahead, np.where(np.abs(ahead[:, 1:2]) > 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]]))
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-12
    up = _cross(side, ahead)
    a = around(columns)[None, :, None]
    r = np.broadcast_to(np.asarray(radius, float), (len(path),))[:, None, None]
    out = path[:, None] + r * (np.cos(a) * side[:, None] + np.sin(a) * up[:, None])
    return np.concatenate([out, out[:1]]) if closed else out


def _cross(a: Array, b: Array) -> Array:
    """Cross products (N, 3); numpy's own spends most of its time on generality."""
    return a[:, (1, 2, 0)] * b[:, (2, 0, 1)] - a[:, (2, 0, 1)] * b[:, (1, 2, 0)]


def tilt(points: Array, degrees: float, pivot: Sequence[float], axis: int = 0) -> Array:
    """Points turned by `degrees` about `axis` (0 = x: positive leans back) through `pivot`."""
    a = np.deg2rad(degrees)
    p = points - np.asarray(pivot, float)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    q = p.copy()
    q[..., i] = np.cos(a) * p[..., i] - np.sin(a) * p[..., j] if axis else np.cos(a) * p[..., i] + np.sin(a) * p[..., j]
    q[..., j] = (
        np.sin(a) * p[..., i] + np.cos(a) * p[..., j] if axis else -np.sin(a) * p[..., i] + np.cos(a) * p[..., j]
    )
    return q + np.asarray(pivot, float)
