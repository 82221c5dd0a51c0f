"""Headwear and eyewear, fitted to the head that wears them."""

from __future__ import annotations

import numpy as np

from limner.world.patches import Array, Patch, blob, lathe, smoothstep, tilt, tube
from limner.world.shape import Form

RIM = {
    "chef": 0.50, "wizard": 0.50, "nurse": None, "police": 0.50, "firefighter": 0.46, "crown": 0.62, "cap": 0.50,
    "headphones": None, "beanie": 0.42, "hat": 0.50,
}  # fmt: skip
"""Height at which each presses the hair flat; None = it does not."""
COVERS_TOP = ("chef", "wizard", "police", "firefighter", "cap", "beanie", "hat")
_LEAN = {"beanie": 14.0, "crown": 8.0}


def headwear(kind: str, f: Form, main: int, second: int, hair_top: float) -> list[Patch]:
    """The patches of a piece of headwear in materials `main` and `second` (trim).

    Args:
        hair_top: height of the highest hair, for what sits on top of it.
    """
    w, d = 0.72 * f.cranium_w + 0.075, (0.84 * f.cranium_d + 0.065) / (0.72 * f.cranium_w + 0.075)
    parts = _BUILDERS[kind](w, d, main, second, f, hair_top)
    lean = _LEAN.get(kind, 9.0)
    pivot = (0.0, 0.45, -0.12)
    if kind in ("headphones", "nurse"):
        return parts
    return [Patch(tilt(p.points, lean, pivot), p.material, two_sided=True, rest=p.points) for p in parts]


def _dome(w: float, d: float, bottom: float, top: float, square: float = 2.0, rows: int = 22) -> Array:
    """A half ellipsoid from `top` down to `bottom`, half width w."""
    t = np.linspace(0.02, 1, rows)
    e = np.pi / 2 * (1 - t)
    return lathe(
        w * np.cos(e) ** (2 / square), bottom + (top - bottom) * np.sin(e) ** (2 / square), depth=d, center=(0, -0.12)
    )


def _chef(w: float, d: float, main: int, second: int, f: Form, hair_top: float) -> list[Patch]:
    band = lathe([w * 1.0, w * 1.0, w * 0.99], [1.02, 0.75, 0.44], depth=d, center=(0, -0.12), rows=8)
    puff = lathe(
        [0.05, 0.6, 1.02, 1.12, 1.0, 0.80],
        [1.56, 1.55, 1.44, 1.24, 1.05, 0.98],
        depth=d * 0.95,
        center=(0, -0.12),
        rows=20,
        columns=60,
    )
    a = np.arctan2(puff[..., 0], puff[..., 2] + 0.12)
    r = np.hypot(puff[..., 0], puff[..., 2] + 0.12)
    pleat = 1 + 0.035 * np.sin(11 * a) * smoothstep(0.1, 0.7, r)
    puff[..., 0] *= pleat
    puff[..., 2] = (puff[..., 2] + 0.12) * pleat - 0.12
    return [Patch(band, main), Patch(puff, main)]


def _wizard(w: float, d: float, main: int, second: int, f: Form, hair_top: float) -> list[Patch]:
    t = np.linspace(0, 1, 26)
    cone = lathe(w * 1.02 * t**0.9 + 0.01, 1.98 - 1.50 * t, depth=d, center=(0, -0.12))
    bend = 0.22 * (1 - t) ** 2
    cone[..., 0] += bend[:, None]
    cone[..., 0] += (0.025 * np.sin(14 * t))[:, None]
    brim = _brim(w, d, 0.51, 1.62, 0.05)
    band = lathe([w * 0.95, w * 1.05], [0.68, 0.53], depth=d, center=(0, -0.12))
    return [Patch(cone, main), Patch(brim, main), Patch(band, second)]


def _brim(w: float, d: float, y: float, wide: float, wave: float, dip: float = 0.0) -> Array:
    """A flat ring from the head out to `wide` times its width."""
    t = np.linspace(0, 1, 8)
    ring = lathe(w * (0.96 + (wide - 0.96) * t), np.full(8, y), depth=d, center=(0, -0.12), columns=56)
    a = np.arctan2(ring[..., 0], ring[..., 2])
    ring[..., 1] += (wave * np.sin(2 * a + 0.6) - dip * np.cos(a)) * t[:, None] ** 1.5
    return ring


def _nurse(w: float, d: float, main: int, second: int, f: Form, hair_top: float) -> list[Patch]:
    y = hair_top - 0.05
    box = blob((0, y + 0.07, 0.10), (0.43, 0.17, 0.16), 12, 40, power=5.0)
    box[..., 0] *= 1 + 0.28 * np.clip((box[..., 1] - y) / 0.25, -0.3, 1)
    box[..., 1] += 0.06 * (1 - (box[..., 0] / 0.5) ** 2) - 0.10 * (box[..., 0] / 0.45) ** 2
    return [Patch(tilt(box, 16, (0, y, 0)), main, rest=box - np.asarray((0, y + 0.07, 0)))]


def _police(w: float, d: float, main: int, second: int, f: Form, hair_top: float) -> list[Patch]:
    band = lathe([w * 1.01, w * 1.01], [0.72, 0.48], depth=d, center=(0, -0.12), columns=48)
    top = lathe(
        [0.04, 0.75, 1.02, 1.09, 0.98, w * 1.0],
        [0.98, 1.03, 1.02, 0.95, 0.84, 0.70],
        depth=d,
        center=(0, -0.10),
        rows=20,
        columns=48,
    )
    top[..., 1] += 0.10 * np.clip(top[..., 2], -0.5, 1)
    return [Patch(band, second), Patch(top, main), _visor(w, d, second, 0.50, 0.40, -0.24)]


def _visor(w: float, d: float, material: int, y: float, reach: float, dip: float) -> Patch:
    """A peak over the forehead."""
    a = np.linspace(-1.12, 1.12, 28)[None]
    t = np.linspace(0, 1, 8)[:, None]
    out = reach * np.cos(a * 1.35) ** 0.6 * t
    x = np.sin(a) * (w * 1.0 + 0.55 * out)
    z = np.cos(a) * (w * d * 1.0 + out) - 0.12
    h = y + dip * t**1.3 * np.cos(a * 1.2) - 0.05 * np.abs(a) * t
    return Patch(np.stack([x, h + np.zeros_like(x), z], -1), material)


def _firefighter(w: float, d: float, main: int, second: int, f: Form, hair_top: float) -> list[Patch]:
    dome = _dome(w * 1.07, d * 1.02, 0.46, 1.22, 2.2)
    brim = _brim(w * 1.06, d * 1.03, 0.47, 1.34, 0.0, -0.10)
    back = brim[..., 2] < -0.12
    brim[..., 2] = np.where(back, -0.12 + (brim[..., 2] + 0.12) * 1.18, brim[..., 2])
    t = np.linspace(0, np.pi, 20)
    crest = np.stack([0 * t, 0.46 + 0.80 * np.sin(t), -0.12 + 0.98 * w * d * 1.08 * np.cos(t)], -1)
    shield = blob((0, 0.82, w * d * 1.02 - 0.12), (0.21, 0.26, 0.05), 12, 20, power=3.0)
    return [
        Patch(dome, main),
        Patch(brim, main),
        Patch(tube(crest, 0.055, 8), main),
        Patch(tilt(shield, -24, (0, 0.82, 0.5)), second),
    ]


def _crown(w: float, d: float, main: int, second: int, f: Form, hair_top: float) -> list[Patch]:
    t = np.linspace(0, 1, 8)
    ring = lathe(w * (1.10 - 0.12 * t), 1.02 - 0.44 * t, depth=d * 0.98, center=(0, -0.12), columns=113)
    a = np.linspace(0, 8 * 2 * np.pi, 113)
    ring[..., 1] += 0.19 * (np.arccos(np.cos(a)) / np.pi)[None] * (1 - t)[:, None] ** 1.2
    rim = lathe([w * 0.985, w * 1.02, w * 0.985], [0.68, 0.63, 0.57], depth=d * 0.98, center=(0, -0.12), columns=48)
    jewels = []
    for k in range(-2, 3):
        angle = k * np.pi / 4
        at = (np.sin(angle) * w * 1.05, 0.79, np.cos(angle) * w * d * 1.03 - 0.12)
        jewels.append(Patch(blob(at, (0.07, 0.08, 0.06), 8, 10), second))
    return [Patch(ring, main), Patch(rim, main), *jewels]


def _cap(w: float, d: float, main: int, second: int, f: Form, hair_top: float) -> list[Patch]:
    dome = _dome(w * 1.01, d, 0.46, 1.14, 2.1)
    return [
        Patch(dome, main),
        _visor(w, d, second, 0.50, 0.56, -0.10),
        Patch(blob((0, 1.14, -0.12), (0.06, 0.03, 0.06), 6, 10), second),
    ]


def _headphones(w: float, d: float, main: int, second: int, f: Form, hair_top: float) -> list[Patch]:
    t = np.linspace(-1.0, 1.0, 30)
    a = t * np.pi / 2 * 1.08
    reach = max(hair_top + 0.05, 0.98)
    arc = np.stack([np.sin(a) * (w + 0.12), 0.0 + (reach + 0.02) * np.cos(a), np.full(30, -0.08)], -1)
    band = lathe([1.0], [0.0], columns=4)
    band = np.stack([tube(arc, 1.0, 9)[..., i] for i in range(3)], -1)
    band = arc[:, None] + (band - arc[:, None]) * np.asarray((0.055, 0.055, 0.12))
    cups = [Patch(blob((s * (w + 0.09), 0.0 + f.ear_y, -0.08), (0.11, 0.25, 0.22), 12, 22, 2.6), main) for s in (-1, 1)]
    caps = [Patch(blob((s * (w + 0.20), 0.0 + f.ear_y, -0.08), (0.03, 0.15, 0.13), 8, 16), second) for s in (-1, 1)]
    return [Patch(band, main), *cups, *caps]


def _beanie(w: float, d: float, main: int, second: int, f: Form, hair_top: float) -> list[Patch]:
    dome = _dome(w * 1.04, d, 0.42, 1.20, 2.0)
    fold = lathe(
        [w * 1.02, w * 1.09, w * 1.09, w * 1.02],
        [0.66, 0.62, 0.42, 0.38],
        depth=d,
        center=(0, -0.12),
        rows=10,
        columns=60,
    )
    return [Patch(dome, main), Patch(fold, second), Patch(blob((0, 1.27, -0.12), (0.17, 0.16, 0.17)), second)]


def _hat(w: float, d: float, main: int, second: int, f: Form, hair_top: float) -> list[Patch]:
    crown = lathe(
        [0.02, 0.25, 0.5, 0.64, w * 0.93, w * 1.0],
        [1.14, 1.16, 1.20, 1.16, 0.85, 0.48],
        depth=d,
        center=(0, -0.12),
        rows=24,
    )
    crown[..., 1] -= 0.10 * np.exp(-((crown[..., 0] / 0.16) ** 2)) * smoothstep(0.95, 1.2, crown[..., 1])
    band = lathe([w * 0.985, w * 1.02], [0.67, 0.50], depth=d, center=(0, -0.12))
    return [Patch(crown, main), Patch(_brim(w, d, 0.50, 1.55, 0.0, 0.06), main), Patch(band, second)]


_BUILDERS = {
    "chef": _chef, "wizard": _wizard, "nurse": _nurse, "police": _police, "firefighter": _firefighter, "crown": _crown,
    "cap": _cap, "headphones": _headphones, "beanie": _beanie, "hat": _hat,
}  # fmt: skip


def eyewear(dark: bool, seed: int, f: Form, frame: int, lens: int) -> list[Patch]:
    """Glasses in front of the eyes: two rims, bridge, temples; lenses when `dark`.

    Args:
        seed: shape of the frame: round to square, size.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x61A]))
    square, size = float(rng.uniform(0, 1)), float(rng.uniform(0.165, 0.20)) * (1.12 if dark else 1.0)
    thick = float(rng.uniform(0.018, 0.030))
    power = 2.0 + 2.6 * square
    front = max(0.715 - f.eye_depth, 0.66 + f.nose_bridge + 0.10)
    a = np.linspace(0, 2 * np.pi, 33)[:-1]
    c, s = np.cos(a), np.sin(a)
    norm = (np.abs(c) ** power + np.abs(s) ** power) ** (-1 / power)
    out = []
    middle = f.eye_x * 1.03
    for side in (-1, 1):
        x = side * middle + size * 1.06 * c * norm
        y = f.eye_y - 0.015 + size * (0.92 - 0.14 * square) * s * norm
        z = front - 0.34 * (np.abs(x) - 0.08) ** 2
        rim = np.stack([x, y, z], -1)
        out.append(Patch(tube(rim, thick, 7, closed=True), frame))
        if dark:
            rows = np.linspace(0.02, 1, 6)[:, None, None]
            center = np.asarray([side * middle, f.eye_y - 0.015, front - 0.34 * (middle - 0.08) ** 2 + 0.02])
            disc = center + (np.concatenate([rim, rim[:1]])[None] - center) * rows
            out.append(Patch(disc, lens))
        edge = side * (middle + size * 1.06)
        temple = np.asarray(
            [
                [edge, f.eye_y + 0.04, front - 0.34 * (abs(edge) - 0.08) ** 2],
                [side * max(abs(edge) + 0.04, 0.60 * f.face_w + 0.04), f.eye_y + 0.04, 0.40],
                [side * (0.66 * f.cranium_w + 0.08), f.eye_y + 0.05, 0.0],
                [side * (0.66 * f.cranium_w + 0.08), f.eye_y - 0.02, -0.22],
            ]
        )
        out.append(Patch(tube(temple, thick * 0.9, 6), frame))
    inner = middle - size * 1.02
    bridge = np.stack(
        [
            np.linspace(-inner, inner, 7),
            f.eye_y + 0.05 + 0.03 * np.cos(np.linspace(-1.5, 1.5, 7)),
            np.full(7, front + 0.02),
        ],
        -1,
    )
    out.append(Patch(tube(bridge, thick, 6), frame))
    return out
