"""A small canvas in unit coordinates on which scenes are drawn, alike at every size.

x runs from 0 (left) to 1 (right), y from 0 (top) to 1 (bottom); lengths are shares of the side. Colours are sRGB
strings ("e8c9a0") or triples in [0, 255].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import cos, floor, radians, sin

import cv2
import numba
import numpy as np

Ink = str | tuple[float, float, float]
_SHIFT = 4


def rgb(ink: Ink) -> tuple[float, float, float]:
    """The triple in [0, 255] of a colour."""
    return _parse(ink) if isinstance(ink, str) else ink


@cache
def _parse(ink: str) -> tuple[float, float, float]:
    return float(int(ink[0:2], 16)), float(int(ink[2:4], 16)), float(int(ink[4:6], 16))


def mix(a: Ink, b: Ink, t: float) -> tuple[float, float, float]:
    """`a` at t = 0, `b` at t = 1."""
    p, q = rgb(a), rgb(b)
    return p[0] + (q[0] - p[0]) * t, p[1] + (q[1] - p[1]) * t, p[2] + (q[2] - p[2]) * t


def scale(ink: Ink, k: float) -> tuple[float, float, float]:
    """`ink` made darker (k < 1) or brighter (k > 1), clipped."""
    r, g, b = rgb(ink)
    return min(r * k, 255.0), min(g * k, 255.0), min(b * k, 255.0)


@cache
def axes(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in unit coordinates: x (1, n) and y (n, 1), float32, read-only."""
    t = (np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(n)
    t.flags.writeable = False
    return t[None, :], t[:, None]


def lattice(n: int, seed: int, cells: tuple[int, int], octaves: int = 1) -> np.ndarray:
    """(n, n) float32 smooth noise, about [-1, 1], with `cells` (across, down) random values, doubled per octave."""
    rng = np.random.default_rng(seed)
    fine = (cells[0] << (octaves - 1), cells[1] << (octaves - 1))
    total = np.zeros((fine[1], fine[0]), np.float32)
    for k in range(octaves):
        grid = (rng.random((cells[1] << k, cells[0] << k), np.float32) * 2 - 1) * np.float32(0.5**k)
        total += grid if k == octaves - 1 else cv2.resize(grid, fine, interpolation=cv2.INTER_CUBIC)
    return cv2.resize(total, (n, n), interpolation=cv2.INTER_CUBIC)


@numba.njit(cache=True)
def _multiply(px: np.ndarray, field: np.ndarray) -> None:
    for i in range(px.shape[0]):
        for j in range(px.shape[1]):
            for c in range(3):
                px[i, j, c] = np.uint8(min(max(np.float32(px[i, j, c]) * field[i, j], np.float32(0)), np.float32(255)))


@numba.njit(cache=True)
def _blend(px: np.ndarray, alpha: np.ndarray, r: np.float32, g: np.float32, b: np.float32) -> None:
    for i in range(px.shape[0]):
        for j in range(px.shape[1]):
            a = min(max(alpha[i, j], np.float32(0)), np.float32(1))
            for c in range(3):
                v = np.float32(px[i, j, c])
                ink = r if c == 0 else (g if c == 1 else b)
                px[i, j, c] = np.uint8(v + (ink - v) * a)


@numba.njit(cache=True)
def _bars(px: np.ndarray, bars: np.ndarray) -> None:
    """Paints rows (x0, y0, x1, y1, r, g, b), in pixels, with covered shares at the edges."""
    n = px.shape[0]
    for k in range(len(bars)):
        x0, y0, x1, y1 = bars[k, 0], bars[k, 1], bars[k, 2], bars[k, 3]
        for i in range(max(int(y0), 0), min(int(y1) + 1, n)):
            ay = min(y1, np.float32(i + 1)) - max(y0, np.float32(i))
            for j in range(max(int(x0), 0), min(int(x1) + 1, n)):
                a = ay * (min(x1, np.float32(j + 1)) - max(x0, np.float32(j)))
                if a > np.float32(0):
                    for c in range(3):
                        v = np.float32(px[i, j, c])
                        px[i, j, c] = np.uint8(v + (bars[k, 4 + c] - v) * a)


@numba.njit(cache=True)
def _dots(px: np.ndarray, dots: np.ndarray) -> None:
    """Paints ellipses, rows (x, y, rx, ry, cos, sin, r, g, b), in pixels, with an edge one pixel soft."""
    n, one, half = px.shape[0], np.float32(1), np.float32(0.5)
    for k in range(len(dots)):
        x, y, rx, ry, cos, sin = dots[k, 0], dots[k, 1], dots[k, 2], dots[k, 3], dots[k, 4], dots[k, 5]
        reach = max(rx, ry) + one
        for i in range(max(int(y - reach), 0), min(int(y + reach) + 1, n)):
            for j in range(max(int(x - reach), 0), min(int(x + reach) + 1, n)):
                dx, dy = np.float32(j) + half - x, np.float32(i) + half - y
                u, v = (dx * cos + dy * sin) / rx, (dy * cos - dx * sin) / ry
                d = np.sqrt(u * u + v * v)
                a = min(max((one - d) * min(rx, ry) + half, np.float32(0)), one)
                if a > np.float32(0):
                    for c in range(3):
                        v0 = np.float32(px[i, j, c])
                        px[i, j, c] = np.uint8(v0 + (dots[k, 6 + c] - v0) * a)


@numba.njit(cache=True)
def _glow(px: np.ndarray, fx: np.ndarray, fy: np.ndarray, r: np.float32, g: np.float32, b: np.float32) -> None:
    for i in range(px.shape[0]):
        for j in range(px.shape[1]):
            a = fx[j] * fy[i]
            if a > np.float32(0.002):
                for c in range(3):
                    ink = r if c == 0 else (g if c == 1 else b)
                    px[i, j, c] = np.uint8(min(np.float32(px[i, j, c]) + ink * a, np.float32(255)))


class Canvas:
    """An (n, n, 3) uint8 sRGB picture being drawn; every method paints over what is there.

    Attributes:
        n: side in pixels.
        px: the pixels.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.px = np.empty((n, n, 3), np.uint8)

    def gradient(self, stops: Sequence[tuple[float, Ink]], y0: float = 0.0, y1: float = 1.0) -> None:
        """Fills rows from y0 to y1 with a vertical gradient; stops are (y, colour), y rising."""
        a, b = round(y0 * self.n), round(y1 * self.n)
        ys = axes(self.n)[1][a:b, 0]
        where = [s[0] for s in stops]
        inks = np.array([rgb(s[1]) for s in stops])
        for c in range(3):
            self.px[a:b, :, c] = np.interp(ys, where, inks[:, c])[:, None]

    def polygon(self, points: Sequence[tuple[float, float]], ink: Ink) -> None:
        """A filled polygon, any shape."""
        cv2.fillPoly(self.px, [self._fixed(points)], rgb(ink), cv2.LINE_AA, _SHIFT)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, ink: Ink) -> None:
        """An upright filled rectangle."""
        self.bars([(x0, y0, x1, y1, ink)])

    def bars(self, bars: Sequence[tuple[float, float, float, float, Ink]]) -> None:
        """Upright rectangles (x0, y0, x1, y1, colour), the first at the back."""
        n = self.n
        rows = [(x0 * n, y0 * n, x1 * n, y1 * n, *rgb(ink)) for x0, y0, x1, y1, ink in bars]
        _bars(self.px, np.array(rows, np.float32))

    def ellipse(self, x: float, y: float, rx: float, ry: float, ink: Ink, angle: float = 0.0) -> None:
        """A filled ellipse turned by `angle` degrees clockwise."""
        self.dots([(x, y, rx, ry, angle, ink)])

    def dots(self, dots: Sequence[tuple[float, float, float, float, float, Ink]]) -> None:
        """Filled ellipses (x, y, rx, ry, angle in degrees clockwise, colour), the first at the back."""
        n = self.n
        rows = [
            (x * n, y * n, rx * n, ry * n, cos(radians(a)), sin(radians(a)), *rgb(ink)) for x, y, rx, ry, a, ink in dots
        ]
        _dots(self.px, np.array(rows, np.float32))

    def stroke(self, points: Sequence[tuple[float, float]], width: float, ink: Ink) -> None:
        """A polyline of constant width (at least one pixel)."""
        thick = max(round(width * self.n), 1)
        cv2.polylines(self.px, [self._fixed(points)], False, rgb(ink), thick, cv2.LINE_AA, _SHIFT)

    def blur(self, sigma: float) -> None:
        """Gaussian blur with `sigma` in shares of the side."""
        cv2.GaussianBlur(self.px, (0, 0), sigma * self.n, dst=self.px, borderType=cv2.BORDER_REPLICATE)

    def multiply(self, field: np.ndarray, y0: float = 0.0, y1: float = 1.0) -> None:
        """Scales the brightness of the rows from y0 to y1 by `field`, broadcastable to (n, n)."""
        a, b = round(y0 * self.n), round(y1 * self.n)
        _multiply(self.px[a:b], self._full(field)[a:b])

    def dim(self, k: float) -> None:
        """Scales the brightness of everything by k in [0, 1]."""
        cv2.convertScaleAbs(self.px, dst=self.px, alpha=k)

    def blend(self, alpha: np.ndarray, ink: Ink) -> None:
        """Mixes `ink` in by `alpha`, clipped to [0, 1] and broadcastable to (n, n)."""
        _blend(self.px, self._full(alpha), *(np.float32(v) for v in rgb(ink)))

    def glow(self, x: float, y: float, radius: float, ink: Ink, strength: float = 1.0) -> None:
        """Adds light that fades from (x, y) with a Gaussian of `radius`."""
        xs, ys = axes(self.n)
        k = np.float32(-1.0 / (radius * radius))
        fx, fy = np.exp((xs[0] - np.float32(x)) ** 2 * k), np.exp((ys[:, 0] - np.float32(y)) ** 2 * k)
        _glow(self.px, fx, fy, *(np.float32(v * strength) for v in rgb(ink)))

    def _full(self, field: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(field, (self.n, self.n)), np.float32)

    def _fixed(self, points: Sequence[tuple[float, float]]) -> np.ndarray:
        k, half = self.n * (1 << _SHIFT), (1 << (_SHIFT - 1)) - 0.5
        return np.array([(floor(x * k - half), floor(y * k - half)) for x, y in points], np.int32)
