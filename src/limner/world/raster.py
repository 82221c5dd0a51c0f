"""Grids of points → samples on the canvas: a small z-buffer rasteriser, and depth maps seen from a light."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from limner.world.shape import INLINE, JIT

ATTRIBUTES = 10
"""Interpolated per vertex: rest position (3), normal (3), ambient openness (1), position (3); the last two in camera
space."""


@njit(**JIT)
def grid_normals(p, out):
    """Unit normals (U, V, 3) of a grid of points, by central differences; degenerate rows borrow from neighbours."""
    n_u, n_v = p.shape[0], p.shape[1]
    for i in range(n_u):
        i0 = max(i - 1, 0)
        i1 = min(i + 1, n_u - 1)
        for j in range(n_v):
            closed = (
                abs(p[i, 0, 0] - p[i, n_v - 1, 0])
                + abs(p[i, 0, 1] - p[i, n_v - 1, 1])
                + abs(p[i, 0, 2] - p[i, n_v - 1, 2])
                < 1e-6
            )
            j0 = j - 1
            j1 = j + 1
            if j0 < 0:
                j0 = n_v - 2 if closed else 0
            if j1 >= n_v:
                j1 = 1 if closed else n_v - 1
            k = i
            length = 0.0
            nx = ny = nz = 0.0
            for _ in range(3):
                ax = p[i1, j, 0] - p[i0, j, 0]
                ay = p[i1, j, 1] - p[i0, j, 1]
                az = p[i1, j, 2] - p[i0, j, 2]
                bx = p[k, j1, 0] - p[k, j0, 0]
                by = p[k, j1, 1] - p[k, j0, 1]
                bz = p[k, j1, 2] - p[k, j0, 2]
                nx = ay * bz - az * by
                ny = az * bx - ax * bz
                nz = ax * by - ay * bx
                length = math.sqrt(nx * nx + ny * ny + nz * nz)
                if length > 1e-9:
                    break
                k = k + 1 if i < n_u // 2 else k - 1
            length = max(length, 1e-12)
            out[i, j, 0] = nx / length
            out[i, j, 1] = ny / length
            out[i, j, 2] = nz / length


@njit(**INLINE)
def _span(a, b, c, size):
    """First and last of `size` samples whose centres lie within the extent of three coordinates."""
    return max(math.ceil(min(a, min(b, c)) - 0.5), 0), min(math.floor(max(a, max(b, c)) - 0.5), size - 1)


@njit(**INLINE)
def _weights(px, py, x1, y1, x2, y2, area):
    """Barycentric weights of the second and third corner; everything relative to the first."""
    return (px * y2 - py * x2) / area, (x1 * py - y1 * px) / area


@njit(**JIT)
def rasterise(screen, attributes, shapes, materials, two_sided, depth, material, buffer):
    """Draws every patch into the sample buffers (in place).

    Args:
        screen: (N, 3) x, y in samples and distance from the camera.
        attributes: (N, ATTRIBUTES); normals in camera space, towards the viewer is +z.
        shapes: (P, 3) int: first vertex, U, V of each patch.
        materials: (P,) int material of each patch.
        two_sided: (P,) whether back faces are drawn, with turned normals.
        depth: (S, S) nearest distance so far, inf where empty.
        material: (S, S) int16, -1 where empty.
        buffer: (S, S, ATTRIBUTES).
    """
    height, width = depth.shape
    for k in range(shapes.shape[0]):
        first, n_u, n_v = shapes[k, 0], shapes[k, 1], shapes[k, 2]
        for i in range(n_u - 1):
            for j in range(n_v - 1):
                a = first + i * n_v + j
                d = a + n_v
                for half in range(2):
                    if half == 0:
                        i0, i1, i2 = a, d, a + 1
                    else:
                        i0, i1, i2 = a + 1, d, d + 1
                    x0, y0 = screen[i0, 0], screen[i0, 1]
                    x1, y1 = screen[i1, 0], screen[i1, 1]
                    x2, y2 = screen[i2, 0], screen[i2, 1]
                    area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
                    front = area < 0.0
                    if (not front and not two_sided[k]) or abs(area) < 1e-9:
                        continue
                    left, right = _span(x0, x1, x2, width)
                    top, bottom = _span(y0, y1, y2, height)
                    z0, z1, z2 = screen[i0, 2], screen[i1, 2], screen[i2, 2]
                    for y in range(top, bottom + 1):
                        py = y + 0.5
                        for x in range(left, right + 1):
                            px = x + 0.5
                            w1, w2 = _weights(px - x0, py - y0, x1 - x0, y1 - y0, x2 - x0, y2 - y0, area)
                            w0 = 1.0 - w1 - w2
                            if w0 < -1e-6 or w1 < -1e-6 or w2 < -1e-6:
                                continue
                            z = w0 * z0 + w1 * z1 + w2 * z2
                            if z >= depth[y, x]:
                                continue
                            depth[y, x] = z
                            material[y, x] = materials[k]
                            for c in range(ATTRIBUTES):
                                buffer[y, x, c] = (
                                    w0 * attributes[i0, c] + w1 * attributes[i1, c] + w2 * attributes[i2, c]
                                )
                            if not front:  # inner sides are turned to the viewer, and darker
                                for c in range(3, 6):
                                    buffer[y, x, c] = -buffer[y, x, c]
                                buffer[y, x, 6] *= 0.5


@njit(**JIT)
def depth_map(screen, shapes, stride, depth):
    """Nearest depths of all patches, both sides, into `depth` (in place); large grids at every `stride`-th vertex."""
    height, width = depth.shape
    for k in range(shapes.shape[0]):
        first, n_u, n_v = shapes[k, 0], shapes[k, 1], shapes[k, 2]
        step = stride if n_u > 40 else 1
        for i in range(0, n_u - 1, step):
            below = min(i + step, n_u - 1)
            for j in range(0, n_v - 1, step):
                beside = min(j + step, n_v - 1)
                for half in range(2):
                    if half == 0:
                        i0 = first + i * n_v + j
                        i1 = first + below * n_v + j
                        i2 = first + i * n_v + beside
                    else:
                        i0 = first + i * n_v + beside
                        i1 = first + below * n_v + j
                        i2 = first + below * n_v + beside
                    x0, y0 = screen[i0, 0], screen[i0, 1]
                    x1, y1 = screen[i1, 0], screen[i1, 1]
                    x2, y2 = screen[i2, 0], screen[i2, 1]
                    area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
                    if abs(area) < 1e-9:
                        continue
                    left, right = _span(x0, x1, x2, width)
                    top, bottom = _span(y0, y1, y2, height)
                    for y in range(top, bottom + 1):
                        py = y + 0.5
                        for x in range(left, right + 1):
                            px = x + 0.5
                            w1, w2 = _weights(px - x0, py - y0, x1 - x0, y1 - y0, x2 - x0, y2 - y0, area)
                            w0 = 1.0 - w1 - w2
                            if w0 < -1e-6 or w1 < -1e-6 or w2 < -1e-6:
                                continue
                            z = w0 * screen[i0, 2] + w1 * screen[i1, 2] + w2 * screen[i2, 2]
                            depth[y, x] = min(depth[y, x], z)


@njit(**JIT)
def emit(points, rest, normals, openness, sway, head, torso, pivot, camera, first, screen, attributes):
    """Places one grid in camera space, projects it, and writes its vertices from index `first` on (in place).

    Args:
        points, rest: (U, V, 3) head space.
        normals: (U, V, 3) head space, or an empty array: then taken from the placed grid.
        openness: (U, V) or (1, 1).
        sway: (U,) or (1,), 0 head to 1 torso; head, torso: (3, 3) rotations about `pivot`.
        camera: distance, zoom, offset x, offset y, canvas centre; the last four in samples.
        screen: (N, 3); attributes: (N, ATTRIBUTES).
    """
    n_u, n_v = points.shape[0], points.shape[1]
    placed = np.empty((n_u, n_v, 3))
    for i in range(n_u):
        w = sway[i] if sway.shape[0] > 1 else sway[0]
        r = (1 - w) * head + w * torso
        for j in range(n_v):
            k = first + i * n_v + j
            x = points[i, j, 0] - pivot[0]
            y = points[i, j, 1] - pivot[1]
            z = points[i, j, 2] - pivot[2]
            px = r[0, 0] * x + r[0, 1] * y + r[0, 2] * z + pivot[0]
            py = r[1, 0] * x + r[1, 1] * y + r[1, 2] * z + pivot[1]
            pz = r[2, 0] * x + r[2, 1] * y + r[2, 2] * z + pivot[2]
            placed[i, j, 0] = px
            placed[i, j, 1] = py
            placed[i, j, 2] = pz
            far = max(camera[0] - pz, 0.05)
            screen[k, 0] = camera[4] + camera[1] * px / far + camera[2]
            screen[k, 1] = camera[4] - camera[1] * py / far + camera[3]
            screen[k, 2] = far
            for c in range(3):
                attributes[k, c] = rest[i, j, c]
            attributes[k, 6] = openness[i, j] if openness.shape[0] > 1 else openness[0, 0]
            attributes[k, 7] = px
            attributes[k, 8] = py
            attributes[k, 9] = pz
    if normals.shape[0] == 0:
        bent = np.empty((n_u, n_v, 3))
        grid_normals(placed, bent)
        for i in range(n_u):
            for j in range(n_v):
                for c in range(3):
                    attributes[first + i * n_v + j, 3 + c] = bent[i, j, c]
    else:
        for i in range(n_u):
            for j in range(n_v):
                for c in range(3):
                    attributes[first + i * n_v + j, 3 + c] = (
                        head[c, 0] * normals[i, j, 0] + head[c, 1] * normals[i, j, 1] + head[c, 2] * normals[i, j, 2]
                    )


@njit(**JIT)
def light_view(attributes, count, axes, texels, flat, frame):
    """Vertices as a light sees them, scaled to a map of `texels` (in place).

    Args:
        axes: (3, 3) rows: right, up, towards the light.
        flat: (N, 3) x, y in texels and distance along the light.
        frame: (4, 3) axes, and a row of offset x, offset y and texels per unit.
    """
    low0 = low1 = 1e9
    high0 = high1 = -1e9
    for k in range(count):
        x, y, z = attributes[k, 7], attributes[k, 8], attributes[k, 9]
        u = x * axes[0, 0] + y * axes[0, 1] + z * axes[0, 2]
        v = x * axes[1, 0] + y * axes[1, 1] + z * axes[1, 2]
        flat[k, 0] = u
        flat[k, 1] = v
        flat[k, 2] = -(x * axes[2, 0] + y * axes[2, 1] + z * axes[2, 2])
        if y > -2.0:
            low0, high0 = min(low0, u), max(high0, u)
            low1, high1 = min(low1, v), max(high1, v)
    density = texels / max(high0 - low0, high1 - low1)
    for k in range(count):
        flat[k, 0] = (flat[k, 0] - low0) * density
        flat[k, 1] = (flat[k, 1] - low1) * density
    frame[:3] = axes
    frame[3, 0] = low0
    frame[3, 1] = low1
    frame[3, 2] = density


def normals_of(points: np.ndarray) -> np.ndarray:
    """(U, V, 3) unit normals of a grid; outwards when U runs down and V runs counter-clockwise seen from above."""
    out = np.empty_like(points)
    grid_normals(points, out)
    return out
