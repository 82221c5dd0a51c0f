"""Head, ears, neck, and the clothed torso below them."""

from __future__ import annotations

import numpy as np

from limner.world.patches import Array, Patch, around, lathe, smoothstep, tilt, tube
from limner.world.shape import Form


def ears(f: Form, material: int) -> list[Patch]:
    """Two ears: flattened cups with a raised rim."""
    rows, columns = 18, 28
    u = np.linspace(0, 1, rows)[:, None]
    a = around(columns)[None]
    profile = np.interp(u, (0, 0.25, 0.6, 0.8, 1.0), (0.00, 0.035, 0.012, 0.055, -0.03))
    spread = np.interp(u, (0, 0.25, 0.6, 0.8, 1.0), (0.0, 0.35, 0.72, 0.98, 0.86))
    r = f.ear_r
    up = np.cos(a)
    height = np.where(up > 0, 0.20, 0.18) * r
    width = 0.115 * r * (1 + 0.25 * up)
    out = []
    for side in (-1, 1):
        y = spread * height * up
        z = spread * width * np.sin(a) * -side
        x = side * (profile * 1.5 + 0.02 + 0.0 * a)
        ear = np.stack([x, y, z], -1)
        ear = tilt(ear, 10 * side, (0, 0, 0), axis=2)
        ear = tilt(ear, -side * (10 + 24 * f.ear_out), (0, 0, 0.06), axis=1)
        ear = tilt(ear, 12, (0, 0, 0))
        ear += np.asarray((side * (0.675 * f.cranium_w + 0.03), f.ear_y - 0.02, -0.06))
        openness = 0.45 + 0.55 * smoothstep(0.35, 0.85, u) + 0 * a
        out.append(Patch(ear, material, openness=openness))
    return out


def neck(f: Form, sex: str, material: int) -> Patch:
    """The neck: from inside the head down to the collar; rows sway from the head's rotation to the torso's."""
    rows = 14
    t = np.linspace(0, 1, rows)
    r = 0.365 * f.neck_r * (1 + 0.02 * f.fullness) * (1 + 0.06 * t + 0.35 * smoothstep(0.72, 1.0, t))
    points = lathe(r, np.linspace(-0.42, -1.42, rows), columns=36, depth=1.02, center=(0, -0.14))
    points[..., 2] -= 0.12 * t[:, None]
    if sex == "man":
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        points[..., 2] += 0.035 * np.exp(-((x / 0.07) ** 2) - ((y + 1.02) / 0.09) ** 2) * (z > 0)
    openness = np.broadcast_to((0.45 + 0.55 * smoothstep(0.1, 0.75, t))[:, None], points.shape[:2])
    return Patch(points, material, sway=smoothstep(0.05, 0.95, t), openness=openness)


def clothes(kind: str, sex: str, f: Form, main: int, second: int, skin: int) -> list[Patch]:
    """The garment's patches in materials `main` (the torso), `second` (trim); `skin` where it leaves skin bare."""
    wide = 1.04 if sex == "man" else 0.90
    n = 0.38 * f.neck_r
    torso = _torso(wide, n * (1.5 if kind == "scoop" else 1.16))
    parts = [Patch(torso, main, sway=1.0)]
    collar = _COLLARS.get(kind)
    if collar is not None:
        parts += [Patch(p, m, sway=1.0) for p, m in collar(n, main, second)]
    return (
        [*parts, Patch(_torso(wide * 0.985, n * 1.0) - (0, 0.035, 0), skin, sway=1.0)]
        if kind in ("scoop", "scrubs", "robe")
        else parts
    )


def _torso(wide: float, opening: float) -> Array:
    """Shoulders and chest, from the neck opening down."""
    radius = np.asarray((opening, opening * 1.18, 0.62, 0.92, 1.13, 1.24, 1.30, 1.34))
    radius[2:] *= wide
    y = (-1.10, -1.14, -1.21, -1.31, -1.46, -1.68, -2.15, -3.6)
    depth = (1.0, 0.98, 0.84, 0.64, 0.55, 0.53, 0.54, 0.56)
    return lathe(radius, y, depth=depth, center=(0, -0.27), rows=34, columns=56, power=2.25)


def _ring(n: float, heights: tuple[float, ...], widths: tuple[float, ...], rows: int = 10) -> Array:
    """A collar around the neck; `widths` in neck radii by row, top first."""
    ring = lathe(np.asarray(widths) * n, heights, depth=1.02, center=(0, -0.26), columns=40, rows=rows)
    ring[..., 1] -= 0.05 * np.cos(np.arctan2(ring[..., 0], ring[..., 2] + 0.26))
    return ring


def _crew(n: float, main: int, second: int) -> list[tuple[Array, int]]:
    a = around(37)[:-1]
    path = np.stack([np.sin(a) * n * 1.18, -1.105 - 0.055 * np.cos(a), np.cos(a) * n * 1.20 - 0.26], -1)
    return [(tube(path, 0.045, 8, closed=True), second)]


def _turtleneck(n: float, main: int, second: int) -> list[tuple[Array, int]]:
    return [(_ring(n, (-0.88, -0.85, -0.95, -1.08, -1.18), (1.08, 1.16, 1.22, 1.22, 1.36), 14), main)]


def _shirt(n: float, main: int, second: int) -> list[tuple[Array, int]]:
    """A stand-up collar whose two points fold over in front."""
    a = np.linspace(0.16, 2 * np.pi - 0.16, 44)[None]
    t = np.linspace(0, 1, 8)[:, None]
    front = np.abs(np.cos(a / 2)) ** 6
    r = n * (1.10 + 0.30 * t + 0.25 * front * t)
    y = -0.98 - 0.17 * t - 0.19 * front * t - 0.06 * np.cos(a)
    return [(np.stack([np.sin(a) * r, y, np.cos(a) * r * 1.05 - 0.26], -1), main)]


def _suit(n: float, main: int, second: int) -> list[tuple[Array, int]]:
    """The shirt's collar; lapels and tie are painted."""
    return [(p, second) for p, _ in _shirt(n, main, second)]


def _hoodie(n: float, main: int, second: int) -> list[tuple[Array, int]]:
    a = around(41)[:-1]
    back = 0.5 - 0.5 * np.cos(a)
    path = np.stack(
        [
            np.sin(a) * n * (1.45 + 0.35 * back),
            -1.16 + 0.14 * back - 0.06 * np.cos(a),
            np.cos(a) * n * (1.4 + 0.5 * back) - 0.27,
        ],
        -1,
    )
    strings = [
        (
            tube(np.asarray([[s * 0.13, -1.24, 0.28], [s * 0.15, -1.40, 0.34], [s * 0.14, -1.70, 0.46]]), 0.022, 6),
            second,
        )
        for s in (-1, 1)
    ]
    return [(tube(path, 0.10 + 0.06 * back, 10, closed=True), main), *strings]


def _stand(n: float, main: int, second: int) -> list[tuple[Array, int]]:
    return [(_ring(n, (-0.95, -0.95, -1.05, -1.18), (1.16, 1.24, 1.27, 1.36)), main)]


def _coat(n: float, main: int, second: int) -> list[tuple[Array, int]]:
    return [(_ring(n, (-0.93, -0.92, -1.06, -1.20), (1.26, 1.36, 1.44, 1.50)), second)]


_COLLARS = {
    "tshirt": _crew, "striped": _crew, "turtleneck": _turtleneck, "shirt": _shirt, "suit": _suit, "hoodie": _hoodie,
    "chef": _stand, "police": _shirt, "firefighter": _coat,
}  # fmt: skip
