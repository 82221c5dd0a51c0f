"""An invisible mark that says "painted by Limner", which survives JPEG and resizing.

Spread spectrum on the luminance's DCT (Cox, Kilian, Leighton & Shamoon 1997), with several code words of which the
embedder takes the one nearest to the picture (informed coding: Miller, Doërr & Cox 2004).

Let c(u, v) be the orthonormal DCT-II of the luminance divided by √(HW), for frequencies u, v counted per picture. The
basis cos(π (x + ½) u / W) is the same function of the picture at every resolution, so a picture that was resized as a
whole has (nearly) the same c, and nothing has to be synchronised. A key draws `CODES` sets of signs w = ±1 for the
(u, v) of a ring `BAND`. Embedding adds Σ w·a·cos·cos, with a = (mean of |c| nearby)^-½, louder where the picture is
busy. The detector computes

    score = max over codes of Σ w·g / √(Σ g²),    g = clip(c / mean of |c| nearby, ±2).

g of an unmarked picture does not depend on w. Whatever that picture, over the draw of the key
P(score ≥ t) ≤ CODES · exp(−t²/2) (Hoeffding 1963, Theorem 2, and the union bound): 7.7·10⁻⁴ at `THRESHOLD`. That bounds
the false alarms with no assumption on pictures; measured rates are lower (benchmarks/bench_watermark.py).

What it does not survive: cropping, rotation, mirroring, and somebody who has read this file. It labels, it does not
lock. It holds no message: only mark or no mark.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from limner.errors import ImageError

KEY = b"limner/1"
BAND = (18, 76)
"""Radii of the ring of frequencies, in half periods per picture: finer than features, coarse enough for 96 pixels."""
CODES = 8
THRESHOLD = 4.3
MIN_SIDE = 64
LOUDNESS = (1.0, 1.5, 2.0, 2.45)
"""Root mean square of the pattern in levels of 255, tried in turn: 48.1, 44.6, 42.1 and 40.3 dB."""
TARGET = 9.0
"""Score after wear (0.75×, JPEG) at which the pattern is loud enough."""
QUIET = 0.02
"""Least mean of |c| that counts: what lies below is flat, where rounding and JPEG decide."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Mark:
    """What the detector says.

    Attributes:
        score: correlation with the best code, in standard deviations of an unmarked picture's with one code.
        detected: whether that is at least `THRESHOLD`.
    """

    score: float

    @property
    def detected(self) -> bool:
        return self.score >= THRESHOLD


def embed(picture: np.ndarray, key: bytes = KEY) -> np.ndarray:
    """The picture with the mark in it.

    Args:
        picture: (H, W, 3) uint8, both sides at least `MIN_SIDE`.
        key: the detector must be given the same.

    Returns:
        (H, W, 3) uint8, at 40.2 dB from the picture or nearer.

    Raises:
        ImageError: another shape or type, or too small.
    """
    _demand(picture)
    luma = picture.astype(np.float32) @ _LUMA
    spectrum = _spectrum(luma)
    signs = _codes(key)[int(np.argmax(_scores(spectrum, key)))]
    amplitude = _ring() * np.maximum(_blur(np.abs(spectrum)), QUIET) ** -0.5
    pattern = _picture(signs * amplitude, luma.shape) * _mask(luma)
    pattern /= max(float(np.sqrt(np.mean(pattern**2))), 1e-9)
    marked = picture
    for loudness in LOUDNESS:
        shifted = picture.astype(np.float32) + (loudness * pattern)[..., None]
        marked = np.clip(np.rint(shifted), 0, 255).astype(np.uint8)
        if detect(_worn(marked), key).score >= TARGET:
            break
    return marked


def detect(picture: np.ndarray, key: bytes = KEY) -> Mark:
    """Whether the mark is in a picture, (H, W, 3) uint8, of any size from `MIN_SIDE` on.

    Raises:
        ImageError: another shape or type, or too small.
    """
    _demand(picture)
    return Mark(round(float(_scores(_spectrum(picture.astype(np.float32) @ _LUMA), key).max()), 2))


def _scores(spectrum: np.ndarray, key: bytes) -> np.ndarray:
    """(CODES,) of a spectrum (N, N); all 0 for a picture of one colour."""
    g = np.clip(spectrum / np.maximum(_blur(np.abs(spectrum)), 1e-9), -2, 2) * _ring()
    norm = float(np.sqrt(np.sum(g**2)))
    return np.tensordot(_codes(key), g, 2) / norm if norm > 1e-6 else np.zeros(CODES)


def _worn(picture: np.ndarray) -> np.ndarray:
    """After 0.75× resize and JPEG at quality 75: the least that a mark should live through."""
    import cv2

    side = [max(MIN_SIDE, round(0.75 * s)) for s in picture.shape[1::-1]]
    small = cv2.resize(picture, side, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1]


def _demand(picture: np.ndarray) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ImageError(f"A picture of (H, W, 3) uint8 is expected; got {picture.shape} {picture.dtype}.")
    if min(picture.shape[:2]) < MIN_SIDE:
        raise ImageError(f"A watermark needs pictures of {MIN_SIDE} pixels or more; got {picture.shape[:2]}.")


@lru_cache(maxsize=8)
def _codes(key: bytes) -> np.ndarray:
    """(CODES, N, N) signs ±1; N is the outer radius of `BAND`."""
    shape = (CODES, BAND[1], BAND[1])
    bits = np.frombuffer(hashlib.shake_256(key).digest(int(np.prod(shape))), np.uint8).reshape(shape) & 1
    return bits.astype(np.float32) * 2 - 1


@lru_cache(maxsize=1)
def _ring() -> np.ndarray:
    """(N, N): 1 for the frequencies that are used, else 0."""
    radius = np.hypot(*np.mgrid[: BAND[1], : BAND[1]])
    return ((radius >= BAND[0]) & (radius < BAND[1])).astype(np.float32)


@lru_cache(maxsize=8)
def _basis(size: int) -> np.ndarray:
    """(N, size): the first N functions of the orthonormal DCT-II; rows that `size` pixels cannot hold are 0."""
    k, x = np.arange(BAND[1])[:, None], np.arange(size)[None]
    rows = np.cos(np.pi * (x + 0.5) * k / size) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    return (rows * (k < size)).astype(np.float32)


def _spectrum(luma: np.ndarray) -> np.ndarray:
    """(H, W) → (N, N), the same for every resolution of one picture."""
    height, width = luma.shape
    spectrum: np.ndarray = _basis(height) @ luma @ _basis(width).T
    return spectrum / np.float32(np.sqrt(height * width))


def _picture(spectrum: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_spectrum`."""
    picture: np.ndarray = _basis(shape[0]).T @ spectrum @ _basis(shape[1])
    return picture * np.float32(np.sqrt(shape[0] * shape[1]))


def _mask(luma: np.ndarray) -> np.ndarray:
    """(H, W) from 0.6 (flat) to 1.8 (busy): noise hides in texture."""
    import cv2

    window = tuple(max(3, side // 16) | 1 for side in luma.shape[::-1])
    mean, square = cv2.blur(luma, window), cv2.blur(luma**2, window)
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    return 0.6 + np.minimum(deviation / 12, 1.2)


def _blur(values: np.ndarray) -> np.ndarray:
    import cv2

    return np.asarray(cv2.blur(values, (7, 7)))
