"""Styles: a rendered photo as a painter, a draughtsman or an old photographer would have made it.

Every style works at any size, with brushes, dots and grain scaled to it, and depends on nothing but its arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from limner.errors import ConfigError
from limner.world import painter
from limner.world.factors import STYLES
from limner.world.seeds import derive


def stylise(image: np.ndarray, mask: np.ndarray, style: str, seed: int) -> np.ndarray:
    """`image` in a style.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8, 0 where the background is; painters take finer brushes elsewhere.
        style: one of `STYLES`; "photo" returns the picture unchanged.
        seed: of grain, strokes and palette.

    Returns:
        (H, W, 3) uint8 RGB, a new array.

    Raises:
        ConfigError: no such style.
    """
    if style not in _TABLE:
        raise ConfigError(f"Unknown style {style!r}; known: {', '.join(STYLES)}.")
    return _TABLE[style](np.ascontiguousarray(image), mask, derive("style", style, seed))


def _unit(image: np.ndarray) -> float:
    """Length on the picture that is one pixel at 128 pixels, and never less than 0.6 of a pixel."""
    return max(image.shape[0] / 128, 0.6)


def _finish(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 255).astype(np.uint8)


def _noise(shape: tuple[int, ...], seed: int, sigma: float) -> np.ndarray:
    """(H, W) float32 Gaussian noise of unit spread, correlated over `sigma` pixels."""
    h, w = shape[:2]
    step = max(sigma, 1.0)
    cells = (max(round(w / step), 2), max(round(h / step), 2))
    grid = np.random.default_rng(seed).standard_normal((cells[1], cells[0]), np.float32)
    return cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC)


def _saturate(image: np.ndarray, k: float) -> np.ndarray:
    """(H, W, 3) float32 with chroma scaled by k around the luminance."""
    x = image.astype(np.float32)
    gray = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
    return np.clip(gray + (x - gray) * np.float32(k), 0, 255)


def _flatten(image: np.ndarray, colors: float, sigma: float) -> np.ndarray:
    """Bilateral filter over `sigma` pixels, on a smaller copy where the picture is large."""
    h, w = image.shape[:2]
    k = max(int(_unit(image)), 1)
    small = cv2.resize(image, (w // k, h // k), interpolation=cv2.INTER_AREA) if k > 1 else image
    small = cv2.bilateralFilter(small, round(sigma / k * 2) | 1, colors, sigma / k)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR) if k > 1 else small


def _skin(mask: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W) float32 in [0, 1]: skin and what sits on it, with a soft edge; where likeness lives."""
    face = np.isin(mask, (1, 5, 6)).astype(np.float32)
    return cv2.GaussianBlur(face, (0, 0), sigma)


def _photo(image: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    return image.copy()


def _sepia(image: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    u = _unit(image)
    gray: np.ndarray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    gray = cv2.GaussianBlur(gray, (0, 0), 0.45 * u) + _noise(gray.shape, seed, u) * np.float32(4)
    low, high = np.percentile(gray[:: max(int(u), 1)], (1, 98))
    even = (gray - np.float32(low)) * np.float32(250 / max(high - low, 60.0)) + 4
    h, w = gray.shape
    y, x = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)[None]
    fade = np.clip((x * x + y * y) * np.float32(0.42) - np.float32(0.18), 0, 1)
    t = np.clip(even / 255, 0, 1) ** np.float32(0.85) * (1 - fade)
    dark, light = np.array((34, 20, 10), np.float32), np.array((250, 230, 190), np.float32)
    tint = np.array((1.0, 1.12, 1.3), np.float32)
    return _finish(dark + (light - dark) * t[..., None] ** tint)


def _brush(
    picture: np.ndarray,
    mask: np.ndarray,
    angle: np.ndarray,
    seed: int,
    layers: tuple[tuple[float, float, float, float, float], ...],
    jitter: float,
    bristle: float,
    keep: float,
) -> np.ndarray:
    """Paints `picture` (float32) in layers of (radius, blur, spacing, reach, threshold), the last on the person only.

    Radius and blur are in pixels at 128; `keep` is the share of the person that stays unpainted, so that eyes survive.
    """
    u, f = picture.shape[0] / 128, np.float32
    canvas = cv2.GaussianBlur(picture, (0, 0), 4 * u)
    height = np.zeros(picture.shape[:2], np.float32)
    for k, (radius, blur, spacing, reach, threshold) in enumerate(layers):
        reference = cv2.GaussianBlur(picture, (0, 0), max(blur * u, 0.3))
        fine = k == len(layers) - 1
        if fine:
            reference[mask == 0] = canvas[mask == 0]
        painter.strokes(
            canvas, height, reference, angle, f(max(radius * u, 0.6)), f(spacing), f(reach), f(threshold),
            f(jitter * 0.5 if fine else jitter), f(bristle), derive(seed, k),
        )  # fmt: skip
    light = cv2.Sobel(height, cv2.CV_32F, 1, 0) + cv2.Sobel(height, cv2.CV_32F, 0, 1)
    body = cv2.GaussianBlur((mask > 0).astype(np.float32), (0, 0), u)[..., None]
    canvas += (cv2.GaussianBlur(picture, (0, 0), 0.45 * u) - canvas) * (np.float32(keep) * body)
    return canvas * (1 - np.float32(0.035) * np.clip(light, -2.5, 2.5)[..., None])


def _oil(image: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    angle = painter.orientation(image, 2.0 * _unit(image), seed)
    picture = _saturate(image, 1.25)
    layers = ((4.2, 2.0, 1.5, 0.8, -1.0), (2.2, 0.9, 1.3, 0.7, 42.0), (0.95, 0.3, 1.0, 0.6, 24.0))
    return _finish(_brush(picture, mask, angle, seed, layers, 16, 0.09, 0.4))


_FAUVE = (
    ("1c2a78", "2a6a8c", "d83a5a", "f28a3a", "ffd84a", "fff4c0"),
    ("3a1a6a", "2a8a5a", "e8502a", "f26a9a", "ffc04a", "f4ffb0"),
    ("12406a", "7a2a8a", "3aa86a", "f2704a", "ffb0a0", "fff0b0"),
)
"""Palettes of the person by luminance, dark to light."""
_GROUND = (
    ("1a3a6a", "1a8a8a", "5ac07a", "f2d84a"),
    ("6a1a5a", "d8386a", "f2884a", "ffe08a"),
    ("1a5a3a", "3a9a4a", "8ad0c0", "f4a0c0"),
)
"""Palettes of the background."""


def _palette(gray: np.ndarray, codes: tuple[str, ...]) -> np.ndarray:
    inks = np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in codes], np.float32)
    at = np.linspace(0, 255, len(codes))
    # Steps rather than a ramp: fields of flat colour with short transitions.
    ramp = np.arange(256) / 255 * (len(codes) - 1)
    near = np.floor(ramp) + np.clip((ramp % 1 - 0.5) * 3 + 0.5, 0, 1)
    table = np.stack([np.interp(near / (len(codes) - 1) * 255, at, inks[:, c]) for c in range(3)], 1)
    return table.astype(np.float32)[gray]


def _fauvism(image: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    u, rng = _unit(image), np.random.default_rng(seed)
    gray = cv2.createCLAHE(2.0, (2, 2)).apply(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    patches = _noise(gray.shape, derive(seed, 1), 22 * u) * 12
    toned = _finish(gray.astype(np.float32) + patches)
    first = int(rng.integers(len(_FAUVE)))
    picture = _palette(toned, _FAUVE[first])
    ground = _palette(toned, _GROUND[int(rng.integers(len(_GROUND)))])
    cloth = _palette(255 - toned // 2, _FAUVE[(first + 1) % len(_FAUVE)])
    picture = np.where((mask == 0)[..., None], ground, np.where((mask == 2)[..., None], cloth, picture))
    own = _saturate(image, 2.2)
    likeness = (np.float32(0.25) + np.float32(0.45) * _skin(mask, u))[..., None]
    picture = picture + (own - picture) * likeness
    angle = painter.orientation(image, 3 * u, seed)
    layers = ((4.6, 1.6, 1.5, 0.9, -1.0), (2.6, 0.9, 1.4, 0.8, 75.0), (1.1, 0.4, 1.1, 0.7, 50.0))
    painted = _brush(picture, mask, angle, seed, layers, 26, 0.12, 0.3)
    line = _contour(image, mask, u, 1.1) * (1 - np.float32(0.6) * _skin(mask, u))
    return _finish(painted + (np.array((20, 16, 70), np.float32) - painted) * line[..., None] * np.float32(0.8))


def _pointillism(image: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    u = _unit(image)
    picture = np.clip(_saturate(image, 1.6) * np.float32(1.04) + 6, 0, 255)
    canvas = np.empty_like(picture)
    canvas[:] = (238, 228, 204)
    soft = cv2.GaussianBlur(picture, (0, 0), 0.8 * u)
    fine = picture.copy()
    f = np.float32
    painter.dots(canvas, soft, f(2.1 * u), f(2.3 * u), f(1.0), derive(seed, 1))
    painter.dots(canvas, soft, f(1.6 * u), f(2.9 * u), f(0.95), derive(seed, 2))
    person = canvas.copy()
    painter.dots(person, fine, f(1.2 * u), f(1.75 * u), f(1.0), derive(seed, 3))
    painter.dots(person, fine, f(0.95 * u), f(1.9 * u), f(0.9), derive(seed, 4))
    body = cv2.GaussianBlur((mask > 0).astype(np.float32), (0, 0), u)[..., None]
    canvas += (person - canvas) * body
    return _finish(canvas + (picture - canvas) * (np.float32(0.3) * _skin(mask, u)[..., None]))


def _edges(image: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W) float32 dark-line strength in [0, 1]: difference of Gaussians, soft-thresholded.

    Winnemöller et al., "XDoG: An eXtended difference-of-Gaussians compendium", Computers & Graphics 36 (2012), eq. 7.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    a, b = (cv2.GaussianBlur(gray, (0, 0), s) for s in (sigma, sigma * 1.6))
    return np.clip((b - a - np.float32(1.5)) * np.float32(0.16), 0, 1)


def _contour(image: np.ndarray, mask: np.ndarray, u: float, width: float) -> np.ndarray:
    """(H, W) float32 in [0, 1]: inked lines around the parts of the person and along strong edges."""
    parts = np.zeros(mask.shape, np.uint8)
    parts[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    parts[1:] |= mask[1:] != mask[:-1]
    line = cv2.GaussianBlur(parts.astype(np.float32), (0, 0), 0.55 * width * u) * np.float32(1.9 * width * u)
    return np.clip(np.maximum(line, _edges(image, 0.9 * u)), 0, 1)


def _comic(image: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    u = _unit(image)
    smooth = _flatten(image, 32, 2.2 * u)
    hsv = cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV).astype(np.float32)
    level = np.floor(hsv[..., 2] / 255 * np.float32(4.4) + np.float32(0.35))
    hsv[..., 2] = np.clip(level / 4 * 235 + 34, 0, 255)
    hsv[..., 1] = np.clip(np.round(hsv[..., 1] / 36) * 36 * np.float32(1.4), 0, 255)
    flat = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.float32)
    h, w = mask.shape
    pitch = np.float32(3.6 * u)
    angle = np.float32(0.5)
    y, x = np.arange(h, dtype=np.float32)[:, None] / pitch, np.arange(w, dtype=np.float32)[None] / pitch
    c, s = np.cos(angle), np.sin(angle)
    screen = np.cos((x * c + y * s) * np.float32(2 * np.pi)) * np.cos((y * c - x * s) * np.float32(2 * np.pi))
    ramp = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1.5 * u).astype(np.float32) / 255
    tone = np.clip((screen - np.float32(2.2) * (ramp - np.float32(0.12))) * 3, 0, 1) * (mask == 0)
    flat *= 1 - np.float32(0.3) * tone[..., None]
    return _finish(flat * (1 - _contour(image, mask, u, 1.0)[..., None]) + 6)


def _hatch(shape: tuple[int, ...], seed: int, u: float, angle: float) -> np.ndarray:
    """(H, W) float32, about [-1, 1]: parallel pencil strokes that wander and vary in weight."""
    h, w = shape[:2]
    y, x = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None]
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    wander = _noise(shape, seed, 12 * u) * np.float32(1.1)
    lines = np.cos(((x * s - y * c) / np.float32(u) + wander) * np.float32(2 * np.pi / 2.7))
    return lines * np.float32(0.8) + _noise(shape, seed + 1, 3 * u) * np.float32(0.3)


def _pencil(image: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    u = _unit(image)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    wide = cv2.GaussianBlur(gray, (0, 0), 3.5 * u).astype(np.float32) + 1
    sketch = np.clip(gray.astype(np.float32) / wide, 0.2, 1.0)
    tone = cv2.GaussianBlur(gray, (0, 0), 0.9 * u).astype(np.float32) / 255
    tone = np.where(mask == 0, np.float32(0.35) + np.float32(0.65) * tone, np.float32(0.1) + np.float32(0.9) * tone)
    skin = _skin(mask, u)
    shade = np.zeros_like(tone)
    for k, (level, angle) in enumerate(((0.66, 0.9), (0.4, -0.75), (0.2, 0.1))):
        depth = np.clip((np.float32(level) - tone) * np.float32(3.2), 0, 1)
        ink = np.clip(_hatch(tone.shape, derive(seed, k), u, angle) + depth * np.float32(1.3) - np.float32(0.35), 0, 1)
        shade += ink * depth * np.float32(0.36)
    shade *= 1 - np.float32(0.45) * skin
    smudge = 1 - np.float32(0.6) * (1 - np.clip(tone, 0, 1)) * skin
    x = sketch**1.3 * (1 - np.clip(shade, 0, 0.85)) * smudge * (1 - np.float32(0.55) * _edges(image, 0.8 * u))
    x = np.float32(0.14) + np.float32(0.86) * x + _noise(tone.shape, derive(seed, 9), u) * np.float32(0.018)
    return _finish(x[..., None] * np.array((250, 248, 243), np.float32))


def _charcoal(image: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    u = _unit(image)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    gray = cv2.createCLAHE(2.5, (2, 2)).apply(gray)
    tone = _flatten(gray, 30, 1.6 * u).astype(np.float32) / 255
    grain = _noise(gray.shape, derive(seed, 1), u) * np.float32(0.11)
    streak = _noise((gray.shape[0], gray.shape[1]), derive(seed, 2), 1.3 * u)
    angle = np.float32(0.8)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]], np.float32)
    matrix[:, 2] = np.array(gray.shape[::-1]) / 2 - matrix[:, :2] @ (np.array(gray.shape[::-1]) / 2)
    streak = cv2.GaussianBlur(streak, (0, 0), 4.5 * u, sigmaY=0.3)
    streak = cv2.warpAffine(streak, matrix, gray.shape[::-1], borderMode=cv2.BORDER_REFLECT) * np.float32(0.34)
    skin = _skin(mask, u)
    if (mask == 1).any():  # spread the tones of the face, or dark faces sink into the paper's grain
        low, high = np.percentile(tone[mask == 1], (3, 97))
        spread = np.float32(0.22) + np.float32(0.6) * (tone - np.float32(low)) / np.float32(max(high - low, 0.05))
        tone += (spread - tone) * (np.float32(0.5) * skin)
    x = tone + (grain + streak) * (1 - np.float32(0.45) * (mask > 0) - np.float32(0.38) * skin)
    x = 1 / (1 + np.exp(-(x - np.float32(0.42) + np.float32(0.04) * skin) * (np.float32(7.5) - np.float32(3.2) * skin)))
    x *= 1 - (np.float32(0.75) - np.float32(0.45) * skin) * _contour(image, mask, u, 1.3)
    h, w = gray.shape
    yy, xx = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)[None]
    bare = np.clip((np.maximum(np.abs(xx), np.abs(yy)) - np.float32(0.78)) * 5 + streak * 2, 0, 1) * (mask == 0)
    x = x + (1 - x) * bare
    x = np.clip(x + grain * (np.float32(0.6) - np.float32(0.35) * skin), 0, 1)
    dark, paper = np.array((22, 20, 20), np.float32), np.array((222, 212, 192), np.float32)
    return _finish(dark + (paper - dark) * x[..., None])


def _watercolor(image: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    u = _unit(image)
    h, w = mask.shape
    flow = [_noise(mask.shape, derive(seed, k), 6 * u) * np.float32(0.9 * u) for k in (1, 2)]
    hold = np.where(mask > 0, np.float32(0.3), np.float32(1.3))
    hold = cv2.GaussianBlur(hold, (0, 0), 2 * u)
    gx, gy = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    wet = cv2.remap(image, gx + flow[0] * hold, gy + flow[1] * hold, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    smooth = _flatten(wet, 45, 2.4 * u)
    wide = cv2.resize(smooth, (w // 2, h // 2), interpolation=cv2.INTER_AREA)
    wide = cv2.resize(_flatten(wide, 60, 2.5 * u), (w, h), interpolation=cv2.INTER_LINEAR)
    body = cv2.GaussianBlur((mask > 0).astype(np.float32), (0, 0), 1.5 * u)[..., None]
    flat = wide + (smooth.astype(np.float32) - wide) * (np.float32(0.25) + np.float32(0.75) * body)
    flat = flat + (image - flat) * (np.float32(0.7) * _skin(mask, u)[..., None])
    ink = 1 - np.clip(_saturate(flat, 1.3) * np.float32(0.94) + 18, 0, 255) / 255
    gray = cv2.cvtColor(flat.astype(np.float32), cv2.COLOR_RGB2GRAY)
    rim = np.abs(cv2.GaussianBlur(gray, (0, 0), 0.8 * u) - cv2.GaussianBlur(gray, (0, 0), 2.0 * u))
    rim = np.clip(rim / 40, 0, 0.5) * (1 - np.float32(0.6) * body[..., 0])
    pool = 1 + rim + _noise(mask.shape, derive(seed, 3), 15 * u) * np.float32(0.13)
    paper = _noise(mask.shape, derive(seed, 4), 1.2 * u)
    ink *= (np.float32(0.76) * pool + paper * np.float32(0.04))[..., None]
    wobble = _noise(mask.shape, derive(seed, 5), 9 * u) * np.float32(0.011)
    edge = _frame(h, w, wobble + _noise(mask.shape, derive(seed, 6), 3 * u) * np.float32(0.004))
    ink *= (edge * (1 + np.float32(0.5) * (edge < 0.95) * (edge > 0.3)))[..., None]
    sheet = np.array((253, 250, 243), np.float32) - (paper * np.float32(2.2))[..., None]
    return _finish(sheet * (1 - np.clip(ink, 0, 1)))


def _frame(h: int, w: int, wobble: np.ndarray) -> np.ndarray:
    """(H, W) float32: 1 inside a border of bare paper with a wet, uneven edge, 0 outside."""
    y, x = np.linspace(0, 1, h, dtype=np.float32)[:, None], np.linspace(0, 1, w, dtype=np.float32)[None]
    inner = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y)) + wobble
    return np.clip((inner - np.float32(0.03)) * np.float32(30), 0, 1)


_TABLE: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "photo": _photo,
    "oil": _oil,
    "watercolor": _watercolor,
    "pencil": _pencil,
    "fauvism": _fauvism,
    "comic": _comic,
    "pointillism": _pointillism,
    "charcoal": _charcoal,
    "sepia": _sepia,
}
