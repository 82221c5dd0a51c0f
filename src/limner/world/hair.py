"""Hair and beards: layers over the head's own grid, curtains for what hangs, and a few free shapes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from limner.world.patches import Array, Patch, blob, smoothstep, tube
from limner.world.shape import CENTER, COLUMNS, ROWS, SMILE_LIFT, Form, directions

_ROWS, _COLUMNS = np.unique(np.r_[0:ROWS:2, ROWS - 1]), np.unique(np.r_[0:COLUMNS:2, COLUMNS - 1])

LINE_AZIMUTHS = np.deg2rad((0, 25, 48, 62, 74, 88, 104, 130, 180))
"""Where the hairline's heights are given: front, temples, sideburn, ear, behind the ear, nape."""


@dataclass(frozen=True)
class Cut:
    """A hair style. Lengths in head units.

    Attributes:
        line: hairline height at `LINE_AZIMUTHS`.
        thick: thickness over the sides; `top` adds over the crown, `front` adds over the forehead.
        curl: height of curls, `curl_size` their number around the head.
        part: lifts one side of the top.
        length: how far a curtain hangs below the ears (0 = none); `flare` its width, `wave` its waviness.
        opening: half angle of the curtain's opening in degrees.
    """

    line: tuple[float, ...]
    thick: float = 0.07
    top: float = 0.05
    front: float = 0.0
    curl: float = 0.0
    curl_size: float = 9.0
    part: float = 0.0
    length: float = 0.0
    flare: float = 1.0
    wave: float = 0.0
    opening: float = 58.0
    extra: str = ""


_SHORT = (0.60, 0.58, 0.47, 0.20, 0.02, 0.10, -0.18, -0.42, -0.50)
_LONG = (0.62, 0.60, 0.48, 0.20, 0.00, -0.10, -0.35, -0.55, -0.60)
_BANGS = (0.34, 0.33, 0.30, 0.12, -0.05, -0.10, -0.35, -0.55, -0.60)
CUTS = {
    "short": Cut(_SHORT, 0.055, 0.06, 0.02),
    "side": Cut(_SHORT, 0.06, 0.10, 0.05, part=0.07),
    "quiff": Cut(_SHORT, 0.045, 0.10, 0.20),
    "fringe": Cut((0.38, 0.37, 0.33, 0.15, 0.00, 0.08, -0.20, -0.44, -0.52), 0.075, 0.06, 0.02),
    "curly": Cut((0.52, 0.51, 0.42, 0.16, -0.02, -0.10, -0.35, -0.52, -0.58), 0.17, 0.10, 0.03, curl=0.06),
    "afro": Cut((0.56, 0.54, 0.44, 0.18, -0.02, -0.08, -0.34, -0.50, -0.55), 0.34, 0.14, 0.04, curl=0.03, curl_size=16),
    "receding": Cut((0.90, 0.78, 0.66, 0.30, 0.02, 0.10, -0.18, -0.42, -0.50), 0.035, 0.0),
    "bob": Cut(_LONG, 0.08, 0.05, part=0.05, length=0.50, flare=1.02),
    "bob_fringe": Cut(_BANGS, 0.08, 0.05, 0.02, length=0.52, flare=1.02),
    "long": Cut(_LONG, 0.075, 0.04, part=0.05, length=1.45, flare=1.03),
    "wavy": Cut(_LONG, 0.09, 0.06, part=0.06, length=1.15, flare=1.13, wave=0.05),
    "bun": Cut((0.64, 0.62, 0.50, 0.24, 0.04, 0.10, -0.18, -0.44, -0.54), 0.035, 0.02, extra="bun"),
    "ponytail": Cut((0.63, 0.61, 0.49, 0.23, 0.03, 0.10, -0.18, -0.44, -0.54), 0.04, 0.03, extra="ponytail"),
}
"""Every style with hair; "shaved" has none, only the painted shade."""


def hash_noise(n: int, seed: int) -> Array:
    """(n,) values in [-1, 1] that depend on the seed alone."""
    return np.random.Generator(np.random.Philox(key=[seed, 0x4A])).uniform(-1, 1, n)


def thin(grid: Array) -> Array:
    """Every other row and column of a (ROWS, COLUMNS, …) grid: what hair and beards are laid on."""
    return grid[_ROWS][:, _COLUMNS]


@lru_cache(maxsize=1)
def _grid() -> tuple[Array, Array]:
    """Thinned directions (U, V, 3) and their signed azimuth (U, V), 0 at the front."""
    d = np.ascontiguousarray(thin(directions()))
    return d, np.arctan2(d[..., 0], d[..., 2])


def _points(radius: Array) -> Array:
    return _grid()[0] * radius[..., None] + np.asarray(CENTER)


def _clumps(style_seed: int, scale: float) -> Array:
    """(U, V) smooth bumps of about unit height over the thinned grid, `scale` of them around the head."""
    d, _ = _grid()
    rng = np.random.Generator(np.random.Philox(key=[style_seed, 0xC1]))
    total = np.zeros(d.shape[:2])
    for _ in range(5):
        w = rng.normal(size=3)
        w *= scale / np.linalg.norm(w)
        total += np.sin(d @ w + rng.uniform(0, 6.28))
    return total / 2.2


def hair_layer(skin: Array, skull: Array, cut: Cut, seed: int, squeeze: float | None) -> tuple[Array, Array]:
    """Points (U, V, 3) of the hair's surface and its coverage (U, V) in [0, 1].

    Args:
        skin, skull: (ROWS, COLUMNS) radii of the skin and of the featureless skull.
        squeeze: height above which headgear presses the hair flat, or None.
    """
    d, a = _grid()
    base = thin(np.maximum(skin, skull))
    y = d[..., 1] * base + CENTER[1]
    line = np.interp(np.abs(a), LINE_AZIMUTHS, cut.line)
    jag = np.interp(a, np.linspace(-np.pi, np.pi, 180), hash_noise(180, seed))
    cover = smoothstep(0.0, 0.09, y - line - 0.008 * jag)
    high = smoothstep(0.25, 0.85, y)
    front = smoothstep(1.25, 0.5, np.abs(a)) * smoothstep(0.35, 0.8, y) * smoothstep(1.02, 0.75, y * 0.9)
    thick = cut.thick + cut.top * high + cut.front * front
    if cut.part:
        x = d[..., 0]
        thick = thick + cut.part * high * np.tanh(4 * (x + 0.18)) - 0.05 * high * np.exp(-(((x + 0.2) / 0.05) ** 2))
    if cut.curl:
        thick = thick + cut.curl * _clumps(seed, cut.curl_size) * (0.4 + 0.6 * cover)
    else:
        thick = thick + 0.006 * jag * (1 - 0.7 * high)
    if squeeze is not None:
        # under a hat the hair lies flat; below its rim it springs out again
        flat = smoothstep(squeeze - 0.16, squeeze, y)
        thick = thick * (1 - flat) + 0.02 * flat
    bare = thin(skin) - 0.05  # below the skull too, which fills the hollows of the eyes
    return _points(cover * (base + np.maximum(thick, 0.012)) + (1 - cover) * bare), cover


def curtain(cut: Cut, f: Form, seed: int, material: int, hatted: bool) -> Patch:
    """The hair that hangs: a sheet around the back and sides, its front edges turned in towards the face."""
    rows, columns = 26, 44
    t = np.linspace(0, 1, rows)[:, None]
    v = np.linspace(-1, 1, columns)[None]
    top, bottom = 0.62 if not hatted else 0.50, -0.12 - cut.length
    y = top + (bottom - top) * t
    opening = np.deg2rad(cut.opening) * (1 - 0.22 * smoothstep(-0.4, -1.2, y)) * (1 - 0.25 * smoothstep(0.2, 0.6, y))
    a = np.pi + v * (np.pi - opening)
    full = smoothstep(0.75, 0.1, y)
    rx = (0.70 * f.cranium_w + cut.thick * (0.45 + 0.75 * full)) * (1 + (cut.flare - 1) * smoothstep(0.1, -0.7, y))
    rx = np.maximum(rx, (0.58 * f.face_w + 0.13) * smoothstep(0.3, -0.1, y))
    rz = 0.80 * f.cranium_d + cut.thick * 0.8 - 0.14 * smoothstep(-0.2, -0.9, y)
    crown = np.sqrt(np.clip(1 - ((y - 0.25) / 0.82) ** 2, 0.05, 1))
    shrink = np.where(y > 0.25, crown, 1.0)
    tuck = 1 - 0.20 * smoothstep(0.80, 1.0, np.abs(v)) - (0.10 if cut.length < 1 else 0.03) * smoothstep(0.75, 1.0, t)
    lock = np.interp(v[0], np.linspace(-1, 1, 40), hash_noise(40, seed + 7))[None]
    ripple = 0.010 * lock * (0.4 + t) + cut.wave * np.sin(9.5 * t + 2.2 * lock + 3 * np.abs(v)) * t
    r = shrink * tuck
    x = np.sin(a) * (rx * r + ripple)
    z = np.cos(a) * (rz * r + ripple) - 0.10
    ends = 0.05 * lock * smoothstep(0.7, 1.0, t)
    openness = 0.55 + 0.45 * smoothstep(1.0, 0.72, np.abs(v)) * np.ones_like(t)
    return Patch(np.stack([x, y + ends, z], -1), material, openness=openness)


def extras(cut: Cut, material: int, hatted: bool, seed: int) -> list[Patch]:
    """Buns and ponytails."""
    if cut.extra == "bun" and not hatted:
        return [Patch(blob((0, 0.98, -0.42), (0.27, 0.25, 0.27)), material)]
    if cut.extra == "bun":
        return [Patch(blob((0, -0.12, -0.98), (0.22, 0.22, 0.17)), material)]
    if cut.extra == "ponytail":
        t = np.linspace(0, 1, 16)
        sway = 0.22 * float(hash_noise(1, seed)[0])
        path = np.stack(
            [sway * t**2 * 2, 0.42 - 1.5 * t**1.3, -0.84 - 0.42 * np.sin(np.pi * np.minimum(t * 1.25, 1) * 0.9)], -1
        )
        radius = 0.05 + 0.17 * np.sin(np.pi * (0.12 + 0.80 * t)) * np.minimum(1, 4 * t + 0.25)
        return [Patch(tube(path, radius, 14), material)]
    return []


def beard_layer(points: Array, skin: Array, f: Form, kind: str, seed: int) -> Array:
    """Points (U, V, 3) of a beard's surface; below the skin where there is none.

    Args:
        points, skin: the head's (ROWS, COLUMNS) skin, as points and radii.
    """
    points, skin = thin(points), thin(skin)
    depth = {"moustache": 0.028, "goatee": 0.05, "beard": 0.045, "full_beard": 0.10}[kind]
    jag = _clumps(seed, 24.0)
    cover = beard_cover(points, f, kind)
    length = depth * (1 + 0.16 * jag)
    if kind == "full_beard":
        length = length * (1 + 0.9 * smoothstep(-0.6, -1.0, points[..., 1]))
    return _points(skin + cover * length - (1 - cover) * 0.03)


def beard_cover(points: Array, f: Form, kind: str) -> Array:
    """Where on the skin a beard of this kind grows, in [0, 1]; (U, V)."""
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    ax = np.abs(x)
    # the jaw, up to a line from the corner of the mouth to the sideburn
    line = -0.34 + 0.42 * smoothstep(0.30, 0.66, ax)
    jaw = smoothstep(line + 0.05, line - 0.05, y) * smoothstep(-0.22, -0.06, z)
    q = np.clip(x / f.mouth_w, -1.2, 1.2)
    my = y - f.mouth_y - f.smile * SMILE_LIFT * q * q + 0.02 * f.smile
    lips = np.sqrt((x / (f.mouth_w * 1.15)) ** 2 + ((my + 0.02 + f.open * 0.09) / (0.095 + f.open * 0.10)) ** 2)
    free = smoothstep(0.95, 1.12, lips)
    lip = smoothstep(f.mouth_w * 1.35, f.mouth_w * 1.1, ax + 0.5 * np.maximum(my - 0.02, 0)) * smoothstep(
        0.20, 0.13, my
    )
    above = lip * smoothstep(0.035, 0.06, my) * smoothstep(0.3, 0.45, z)
    if kind == "moustache":
        return above * free
    if kind == "goatee":
        chin = smoothstep(0.27, 0.20, ax) * smoothstep(-0.40, -0.46, y) * smoothstep(0.15, 0.30, z)
        return np.maximum(above, np.maximum(chin, lip * smoothstep(0.0, -0.05, my))) * free
    return np.maximum(jaw, above) * free
