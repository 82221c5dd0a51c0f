"""Brush strokes and dots: the engine behind the painted styles.

Painterly rendering in layers from coarse to fine brushes, where a stroke is laid only while the canvas still differs
from the picture (A. Hertzmann, "Painterly Rendering with Curved Brush Strokes of Multiple Sizes", SIGGRAPH 1998, here
with straight bristled strokes and relief).
"""

from __future__ import annotations

import math

import cv2
import numba
import numpy as np


def orientation(image: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """(H, W) float32 angle in radians along the edges, from the structure tensor; free-flowing where nothing leads.

    Args:
        image: (H, W, 3) uint8.
        sigma: smoothing in pixels.
        seed: of the free flow.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    gx, gy = (cv2.Sobel(gray, cv2.CV_32F, i, 1 - i, scale=1 / 8) for i in (1, 0))
    tensor = cv2.GaussianBlur(np.dstack((gx * gx - gy * gy, 2 * gx * gy)), (0, 0), sigma)
    free = (np.random.default_rng(seed).random((3, 3, 2), np.float32) - np.float32(0.5)) * np.float32(14)
    tensor = cv2.add(tensor, cv2.resize(free, gray.shape[::-1], interpolation=cv2.INTER_CUBIC))
    return cv2.phase(tensor[..., 0], tensor[..., 1]) * np.float32(0.5) + np.float32(math.pi / 2)


@numba.njit(cache=True)
def _next(state: np.uint32) -> np.uint32:
    """xorshift32: Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8 (2003)."""
    state = np.uint32(state ^ np.uint32(state << np.uint32(13)))
    state = np.uint32(state ^ np.uint32(state >> np.uint32(17)))
    return np.uint32(state ^ np.uint32(state << np.uint32(5)))


@numba.njit(cache=True)
def _unit(state: np.uint32) -> np.float32:
    return np.float32(state >> np.uint32(8)) * np.float32(1.0 / 16777216.0)


@numba.njit(cache=True)
def _length(reference: np.ndarray, x: float, y: float, c: float, s: float, step: float, tolerance: float) -> int:
    """How many steps from (x, y) along (c, s) the picture keeps its colour; at most 4."""
    h, w = reference.shape[0], reference.shape[1]
    i0, j0 = int(y), int(x)
    for k in range(1, 5):
        i, j = int(y + s * step * k), int(x + c * step * k)
        if i < 0 or j < 0 or i >= h or j >= w:
            return k
        d = np.float32(0)
        for ch in range(3):
            d += abs(reference[i, j, ch] - reference[i0, j0, ch])
        if d > tolerance:
            return k - 1
    return 4


@numba.njit(cache=True)
def _stroke(canvas: np.ndarray, height: np.ndarray, stroke: np.ndarray, ink: np.ndarray, bristle: float) -> None:
    """One capsule; stroke = (x0, y0, x1, y1, radius, phase), ink in [0, 255]."""
    zero, one, half = np.float32(0), np.float32(1), np.float32(0.5)
    x0, y0, x1, y1, radius, phase = stroke[0], stroke[1], stroke[2], stroke[3], stroke[4], stroke[5]
    ux, uy = x1 - x0, y1 - y0
    length = math.sqrt(ux * ux + uy * uy) + np.float32(1e-6)
    ux, uy = ux / length, uy / length
    profile = np.empty(17, np.float32)
    for k in range(17):
        t = np.float32(k) / np.float32(8) - one
        profile[k] = math.sin(t * np.float32(7.0) + phase) * math.sin(t * np.float32(3.1) + phase * np.float32(1.7))
    reach = radius + one
    top, bottom = max(int(min(y0, y1) - reach), 0), min(int(max(y0, y1) + reach) + 1, canvas.shape[0])
    left, right = max(int(min(x0, x1) - reach), 0), min(int(max(x0, x1) + reach) + 1, canvas.shape[1])
    outer = (radius + half) * (radius + half)
    for i in range(top, bottom):
        dy = np.float32(i) + half - y0
        first, last = left, right
        if abs(uy) > np.float32(0.05):
            middle, spread = x0 - half + dy * ux / uy, (radius + half) / abs(uy)
            first, last = max(left, math.ceil(middle - spread)), min(right, int(middle + spread) + 1)
        for j in range(first, last):
            dx = np.float32(j) + half - x0
            u, v = dx * ux + dy * uy, dy * ux - dx * uy
            over = max(max(-u, u - length), zero)
            d = over * over + v * v
            if d >= outer:
                continue
            a = min(radius - math.sqrt(d) + half, one)
            t = min(max(v / radius, -one), one)
            hair = profile[int((t + one) * np.float32(8))]
            tone = one + bristle * hair
            for ch in range(3):
                canvas[i, j, ch] += (ink[ch] * tone - canvas[i, j, ch]) * a
            height[i, j] += (one - t * t * half + half * hair - height[i, j]) * a


@numba.njit(cache=True)
def strokes(
    canvas: np.ndarray,
    height: np.ndarray,
    reference: np.ndarray,
    angle: np.ndarray,
    radius: float,
    spacing: float,
    reach: float,
    threshold: float,
    jitter: float,
    bristle: float,
    seed: int,
) -> None:
    """Lays one layer of strokes of one brush (in place).

    Args:
        canvas, height: (H, W, 3) and (H, W) float32, colour in [0, 255] and thickness of the paint.
        reference: (H, W, 3) float32, the picture at this brush's detail.
        angle: (H, W) float32 direction of strokes in radians.
        radius: half the width of a stroke in pixels; `spacing` the distance of strokes, `reach` a quarter of the
            longest half of one, both in radii.
        threshold: summed channel difference of canvas and reference under which nothing is painted.
        jitter: spread of the colour of strokes in [0, 255]; `bristle` the tone variation inside one.
        seed: of all of it.
    """
    h, w = canvas.shape[0], canvas.shape[1]
    step = max(radius * spacing, np.float32(0.8))
    rows, columns = int(h / step) + 1, int(w / step) + 1
    total = rows * columns
    stride = total * 61 // 100 + 1
    while math.gcd(stride, total) != 1:
        stride += 1
    state = np.uint32(seed * 2654435761 + 97) | np.uint32(1)
    ink, stroke = np.empty(3, np.float32), np.empty(6, np.float32)
    for k in range(total):
        cell = (k * stride) % total
        state = _next(state)
        x = (np.float32(cell % columns) + _unit(state)) * step
        state = _next(state)
        y = (np.float32(cell // columns) + _unit(state)) * step
        i, j = int(y), int(x)
        if i >= h or j >= w:
            continue
        state = _next(state)
        shift = (_unit(state) - np.float32(0.5)) * np.float32(2) * jitter
        difference = np.float32(0)
        for ch in range(3):
            difference += abs(canvas[i, j, ch] - reference[i, j, ch])
        if difference < threshold:
            continue
        for ch in range(3):
            state = _next(state)
            own = (_unit(state) - np.float32(0.5)) * jitter
            ink[ch] = min(max(reference[i, j, ch] + shift + own, np.float32(0)), np.float32(255))
        state = _next(state)
        a = angle[i, j] + (_unit(state) - np.float32(0.5)) * np.float32(0.5)
        c, s = np.float32(math.cos(a)), np.float32(math.sin(a))
        long = radius * reach
        ahead = np.float32(_length(reference, x, y, c, s, long, np.float32(60)))
        behind = np.float32(_length(reference, x, y, -c, -s, long, np.float32(60)))
        stroke[0], stroke[1] = x - c * long * behind, y - s * long * behind
        stroke[2], stroke[3] = x + c * long * ahead, y + s * long * ahead
        stroke[4] = radius
        stroke[5] = _unit(state) * np.float32(6.28)
        _stroke(canvas, height, stroke, ink, bristle)


@numba.njit(cache=True)
def dots(canvas: np.ndarray, reference: np.ndarray, radius: float, spacing: float, keep: float, seed: int) -> None:
    """Lays round dots of pure colour on a jittered grid (in place).

    Args:
        canvas: (H, W, 3) float32 in [0, 255].
        reference: (H, W, 3) float32; a dot takes its colour here, split into neighbouring hues.
        radius, spacing: of the dots in pixels.
        keep: share of grid places that get a dot.
        seed: of places and hues.
    """
    h, w = canvas.shape[0], canvas.shape[1]
    one, half = np.float32(1), np.float32(0.5)
    rows, columns = int(h / spacing) + 2, int(w / spacing) + 2
    total = rows * columns
    stride = total * 61 // 100 + 1
    while math.gcd(stride, total) != 1:
        stride += 1
    state = np.uint32(seed * 2654435761 + 193) | np.uint32(1)
    for k in range(total):
        cell = (k * stride) % total
        state = _next(state)
        x = (np.float32(cell % columns) + _unit(state) - half) * spacing
        state = _next(state)
        y = (np.float32(cell // columns) + _unit(state) - half) * spacing
        state = _next(state)
        chance = _unit(state)
        state = _next(state)
        if chance > keep:
            continue
        i, j = min(max(int(y), 0), h - 1), min(max(int(x), 0), w - 1)
        # Divisionism: each dot leans to one primary and the next leans away, so that they mix in the eye.
        pick = int(state >> np.uint32(8)) % 3
        state = _next(state)
        lean = (_unit(state) - np.float32(0.4)) * np.float32(70)
        r = radius * (np.float32(0.8) + np.float32(0.4) * chance / max(keep, np.float32(0.01)))
        for a in range(max(int(y - r - one), 0), min(int(y + r + one) + 1, h)):
            for b in range(max(int(x - r - one), 0), min(int(x + r + one) + 1, w)):
                dx, dy = np.float32(b) + half - x, np.float32(a) + half - y
                alpha = min(max(r - math.sqrt(dx * dx + dy * dy) + half, np.float32(0)), one)
                if alpha > np.float32(0):
                    for ch in range(3):
                        tint = lean if ch == pick else -lean * np.float32(0.35)
                        ink = min(max(reference[i, j, ch] + tint, np.float32(0)), np.float32(255))
                        canvas[a, b, ch] += (ink - canvas[a, b, ch]) * alpha
