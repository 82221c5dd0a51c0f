"""Backgrounds out of doors: beach, forest, snow, desert, garden, mountains, space.

A head will cover the middle, so what makes a scene known stands in its left and right thirds and at its top.
"""

from __future__ import annotations

import math
from random import Random

import numpy as np

from limner.world.canvas import Canvas, Ink, axes, lattice, mix, scale


def ridge(r: Random, base: float, height: float, points: int, jag: float) -> list[tuple[float, float]]:
    """A skyline from left to right that closes along the bottom; `jag` in [0, 1] roughens it."""
    phase, wave = r.random() * 6.3, r.uniform(0.8, 1.6)
    line = [(-0.05, 1.05)]
    for i in range(points + 1):
        x = -0.05 + 1.1 * i / points
        y = math.sin(wave * 6.3 * x + phase) * (1 - jag) + (r.random() * 2 - 1) * jag
        line.append((x, base - height * (0.5 + 0.5 * y)))
    return [*line, (1.05, 1.05)]


def clouds(c: Canvas, r: Random, ink: Ink, y1: float, cover: float) -> None:
    """Soft clouds above y1; `cover` in [0, 1]."""
    field = lattice(c.n, r.getrandbits(31), (4, 7), 2)
    fade = np.clip((y1 - axes(c.n)[1]) / y1 * 3, 0, 1)
    c.blend(np.clip(field + np.float32(2 * cover - 1), 0, 1) * fade, ink)


def beach(c: Canvas, r: Random, mood: str) -> None:
    """Sky, sea with foam, sand; a palm on one side, a striped parasol on the other."""
    horizon = r.uniform(0.44, 0.54)
    shore = horizon + r.uniform(0.15, 0.2)
    if mood == "sunset":
        sky, sea, sand = ("5c4a8e", "f0805a", "ffd08a"), ("6a5a9a", "d98a78"), ("c79a78", "a87a5e")
    else:
        sky = (r.choice(("3f9be0", "2f8ad6", "58b0ea")), "9ad4f2", "d8f0f8")
        sea, sand = (r.choice(("0f7fae", "1592b4", "1279c0")), "49c8cc"), ("f2dfae", "dcc087")
    c.gradient(((0, sky[0]), (horizon * 0.7, sky[1]), (horizon, sky[2])), 0, horizon)
    sun = r.choice((0.12, 0.88))
    if mood == "sunset":
        c.glow(sun, horizon - 0.08, 0.3, "ff9a4a", 0.6)
        c.ellipse(sun, horizon - 0.08, 0.075, 0.075, "fff2c0")
    else:
        clouds(c, r, "ffffff", horizon, r.uniform(0.3, 0.5))
    c.gradient(((horizon, sea[0]), (shore, sea[1])), horizon, shore)
    waves = lattice(c.n, r.getrandbits(31), (5, 40))
    c.multiply(1 + np.float32(0.12) * waves, horizon, shore)
    c.gradient(((shore, sand[0]), (1, sand[1])), shore)
    c.multiply(1 + np.float32(0.06) * lattice(c.n, r.getrandbits(31), (20, 40)), shore)
    edge = [(x / 12, shore + 0.012 * math.sin(x * 1.3 + sun * 9)) for x in range(-1, 14)]
    c.stroke(edge, 0.022, mix("ffffff", sky[2], 0.2))
    if r.random() < 0.5:
        x, y = r.choice((r.uniform(0.1, 0.22), r.uniform(0.78, 0.9))), horizon - 0.005
        c.polygon(((x, y), (x + 0.055, y), (x, y - 0.11)), "ffffff")
        c.polygon(((x - 0.05, y), (x + 0.065, y), (x + 0.045, y + 0.025), (x - 0.035, y + 0.025)), "a03c32")
    side = r.choice((-1, 1))
    _parasol(c, r, 0.5 - side * r.uniform(0.33, 0.38), r.uniform(0.42, 0.48))
    c.blur(0.009)
    _palm(c, r, 0.5 + side * r.uniform(0.38, 0.43), side, 0.55 if mood == "sunset" else 1.0)
    c.blur(0.005)


def _palm(c: Canvas, r: Random, x: float, side: int, tone: float) -> None:
    top = r.uniform(0.1, 0.17)
    bend = side * 0.1
    trunk = [(x + bend * (1 - t) ** 2, 1.0 - (1.0 - top) * t) for t in (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)]
    c.stroke(trunk, 0.042, scale("7a5836", tone))
    c.stroke([(p[0] - 0.008, p[1]) for p in trunk], 0.014, scale("a88258", tone))
    for k in range(9):
        a = math.pi * (k + r.random() * 0.5) / 8.5
        dx, dy = math.cos(a), -math.sin(a) * 0.55
        reach = r.uniform(0.24, 0.32)
        spine = [(x + dx * reach * t, top + dy * reach * t + 0.30 * t * t * reach * 2.2) for t in (0, 0.35, 0.7, 1)]
        lower = [(p[0], p[1] + w) for p, w in zip(spine[1:3], (0.055, 0.06), strict=True)]
        green = scale(r.choice(("2f7a34", "3c9040", "276a3a", "4ea044")), tone)
        c.polygon((*spine, *reversed(lower)), green)


def _parasol(c: Canvas, r: Random, x: float, y: float) -> None:
    a, b = r.choice((("e03a3a", "fff4e4"), ("f2b01e", "fffbea"), ("2a6cc8", "f4f8ff"), ("e8649a", "fff0f4")))
    c.stroke(((x, y), (x, 0.86)), 0.014, "f0ece0")
    for k in range(6):
        ends = [(x + 0.2 * math.cos(math.pi * (1 - t / 6)), t) for t in (k, k + 1)]
        rim = [(e, y + 0.13 - 0.02 * math.sin(math.pi * t / 6)) for e, t in ends]
        arc = [(x + 0.2 * math.cos(math.pi * (1 - t / 6)) * 0.62, y + 0.03) for t in (k, k + 1)]
        c.polygon(((x, y - 0.02), arc[0], rim[0], rim[1], arc[1]), a if k % 2 else b)


def forest(c: Canvas, r: Random, mood: str) -> None:
    """Trunks in three depths before a bright haze, foliage above, shafts of light."""
    if mood == "autumn":
        haze, deep, leaves = "f2d9a0", "5a3a1c", ("d9842a", "c8581e", "e8b03a", "a8481a")
        ground = ("b8702e", "6a3a18")
    else:
        haze, deep = r.choice((("cfe8a8", "16331c"), ("bfe4b4", "123022"), ("e2eeb0", "20361a")))
        leaves, ground = ("2f6a2a", "3f8432", "5a9c3a", "245a2c"), ("4a7a34", "20401c")
    c.gradient(((0, mix(haze, deep, 0.35)), (0.45, haze), (0.7, mix(haze, ground[0], 0.5))))
    c.gradient(((0.7, ground[0]), (1, ground[1])), 0.7)
    c.multiply(1 + np.float32(0.25) * lattice(c.n, r.getrandbits(31), (14, 22), 2), 0.68)
    for depth, count, width in ((0.25, 9, 0.022), (0.6, 6, 0.045), (1.0, 3, 0.085)):
        for k in range(count):
            x = (k + r.uniform(0.1, 0.9)) / count if depth < 1 else (0.03, 0.17, 0.9)[k] + r.uniform(-0.05, 0.06)
            foot = 0.70 + 0.22 * depth + r.uniform(-0.02, 0.02)
            bark = mix(haze, mix(deep, "5c4026", 0.55), 0.25 + 0.75 * depth)
            w, lean = width * r.uniform(0.7, 1.2), r.uniform(-0.04, 0.04)
            c.polygon(
                ((x - w / 2 + lean, -0.05), (x + w / 2 + lean, -0.05), (x + w * 0.75, foot), (x - w * 0.75, foot)), bark
            )
            c.stroke(((x - w * 0.3 + lean, 0), (x - w * 0.45, foot)), w * 0.2, mix(bark, haze, 0.35))
        if depth < 1:
            c.blur(0.012)
    dots = []
    for _ in range(46):
        x, y = r.random(), abs(r.gauss(0, 0.13))
        w = r.uniform(0.03, 0.075)
        y *= 0.6 if 0.3 < x < 0.7 else 1.0
        dots.append((x, y, w, w * 0.7, r.uniform(0, 180), scale(r.choice(leaves), r.uniform(0.6, 1.2))))
    for _ in range(26):
        x, y = r.random(), r.uniform(0.78, 1.0)
        dots.append((x, y, 0.05, 0.022, r.uniform(-50, 50), scale(r.choice(leaves), r.uniform(0.6, 1.1))))
    c.dots(dots)
    c.blur(0.009)
    _shafts(c, r, haze)


def _shafts(c: Canvas, r: Random, ink: Ink) -> None:
    xs, ys = axes(c.n)
    slope, phase = r.choice((-0.55, 0.55)), r.random() * 6.3
    t = (xs + slope * ys) * np.float32(26) + np.float32(phase)
    beams = np.clip(np.sin(t) + np.float32(0.6) * np.sin(t * np.float32(0.43)) - np.float32(0.35), 0, 1)
    c.blend(beams * np.clip(np.float32(0.42) - ys * np.float32(0.42), 0, 1), mix(ink, "ffffff", 0.4))


def snow(c: Canvas, r: Random, mood: str) -> None:
    """White hills and firs under snow, flakes in the air."""
    if mood == "dusk":
        sky, hill, tree = ("4a5a92", "c8a8c8"), ("b0bce0", "8a98c8"), "22384e"
    else:
        sky = r.choice((("a8c4dc", "e6eef4"), ("b8c4d0", "eceff2"), ("8ab8e4", "e2f0fa")))
        hill, tree = ("ffffff", "d4e2f0"), "2a5248"
    c.gradient(((0, sky[0]), (0.6, sky[1])))
    for k, base in enumerate((0.56, 0.66, 0.8)):
        white = mix(sky[1], hill[0], 0.4 + 0.3 * k)
        c.polygon(ridge(r, base, 0.1, 14, 0.0), white)
        if k < 2:
            for i in range(9):
                x, h = (i + r.random()) / 9, r.uniform(0.1, 0.2) * (1 + 0.3 * k)
                _fir(c, x, base + r.uniform(-0.02, 0.05), h, mix(tree, sky[1], 0.6 - 0.3 * k), mix(white, hill[1], 0.3))
            c.blur(0.008)
    for x in (r.uniform(0.02, 0.12), r.uniform(0.17, 0.26), r.uniform(0.76, 0.84), r.uniform(0.9, 0.98)):
        _fir(c, x, r.uniform(0.84, 0.95), r.uniform(0.55, 0.8), tree, hill[0])
    c.blur(0.008)
    flakes = []
    for _ in range(70):
        w = r.uniform(0.006, 0.013)
        flakes.append((r.random(), r.random(), w, w, 0.0, "ffffff"))
    c.dots(flakes)
    c.blur(0.004)


def _fir(c: Canvas, x: float, foot: float, height: float, dark: Ink, white: Ink) -> None:
    tiers = 4 if height > 0.3 else 2
    for k in range(tiers):
        t = k / tiers
        y1 = foot - height * 0.86 * t
        y0 = y1 - height * (0.46 - 0.12 * t)
        w = height * (0.25 - 0.16 * t)
        c.polygon(((x, y0), (x + w, y1), (x - w, y1)), scale(dark, 0.8 + 0.25 * t))
        low, mid = y1 - (y1 - y0) * 0.04, y0 + (y1 - y0) * 0.5
        for side in (-w, w):
            c.polygon(((x, y0), (x + side, low), (x + side * 0.55, low), (x + side * 0.2, mid)), white)


def desert(c: Canvas, r: Random, mood: str) -> None:
    """Dunes with sharp crests, a cactus or two, a low sun or a mesa."""
    if mood == "sunset":
        sky, sands = ("b03a5a", "ff9a4a", "ffd890"), ("d9783a", "b85a2e", "8a3c26")
    else:
        sky = (r.choice(("4aa8d8", "5cb8dc", "3f98d0")), "bfe0dc", "f6e6bc")
        sands = r.choice((("f0b86a", "e29a48", "c87a32"), ("f4c884", "e8b060", "d09444")))
    c.gradient(((0, sky[0]), (0.35, sky[1]), (0.55, sky[2])))
    sun = (r.choice((r.uniform(0.1, 0.22), r.uniform(0.78, 0.9))), r.uniform(0.12, 0.3))
    c.glow(*sun, 0.2, "fff0c0", 0.5)
    c.ellipse(*sun, 0.065, 0.065, "fffbe0")
    if r.random() < 0.5:
        x, top = r.choice((0.14, 0.86)), r.uniform(0.36, 0.42)
        rock = mix("b0583a", sky[2], 0.3)
        c.polygon(((x - 0.17, 0.6), (x - 0.11, top), (x + 0.1, top), (x + 0.18, 0.6)), rock)
        c.polygon(((x + 0.02, top), (x + 0.1, top), (x + 0.18, 0.6), (x + 0.06, 0.6)), scale(rock, 0.8))
    for k, base in enumerate((0.58, 0.68, 0.84)):
        crest = ridge(r, base, 0.13, 18, 0.0)
        c.polygon(crest, mix(sands[k], sky[2], 0.25 - 0.12 * k))
        shade = [(x, y + 0.05 + 0.03 * math.sin(9 * x + k)) for x, y in crest[1:-1]]
        c.polygon((*shade, (1.05, 1.05), (-0.05, 1.05)), mix(scale(sands[k], 0.86), sky[2], 0.15 - 0.07 * k))
    ripples = np.sin(axes(c.n)[1] * 110 + lattice(c.n, r.getrandbits(31), (4, 4)) * 5) * np.float32(0.045)
    c.multiply(1 + ripples, 0.72)
    c.blur(0.008)
    for x in (r.uniform(0.07, 0.2), r.uniform(0.8, 0.93)):
        _cactus(c, x, r.uniform(0.8, 0.92), r.uniform(0.42, 0.6), "2e4a34" if mood == "sunset" else "3a8a4a", r)
    c.blur(0.006)


def _cactus(c: Canvas, x: float, foot: float, height: float, ink: Ink, r: Random) -> None:
    top, light, w = foot - height, mix(ink, "d8f0a0", 0.3), 0.062
    parts = [([(x, foot), (x, top)], w)]
    for side in (-1, 1):
        y = foot - height * r.uniform(0.38, 0.58)
        reach = side * 0.095
        parts.append(([(x, y), (x + reach, y), (x + reach, y - height * r.uniform(0.22, 0.34))], w * 0.72))
    for line, width in parts:
        c.stroke(line, width, ink)
        c.stroke([(p[0] - width * 0.22, p[1]) for p in line[-2:]], width * 0.22, light)


def garden(c: Canvas, r: Random, mood: str) -> None:
    """A clipped hedge, beds full of flowers, a white fence or rose arch."""
    c.gradient(((0, r.choice(("8cc8f0", "a4d4f4", "b8dcec"))), (0.3, "e6f4f4")))
    tone = 0.78 if mood == "evening" else 1.0
    hedge = r.choice(("4f9a3c", "5aa848", "3f8a40"))
    c.dots([
        (r.random(), r.uniform(0.14, 0.3), r.uniform(0.08, 0.14), 0.11, 0.0, scale(hedge, r.uniform(0.75, 1.1)))
        for _ in range(16)
    ])  # fmt: skip
    c.rectangle(-0.05, 0.26, 1.05, 1.05, scale(hedge, 0.72))
    c.multiply(1 + np.float32(0.3) * lattice(c.n, r.getrandbits(31), (26, 26), 2), 0.1)
    c.blur(0.008)
    if r.random() < 0.5:
        for k in range(12):
            x = (k + 0.5) / 12
            c.polygon(((x - 0.026, 0.95), (x - 0.026, 0.5), (x, 0.46), (x + 0.026, 0.5), (x + 0.026, 0.95)), "f8f8f4")
        c.bars([(-0.05, y, 1.05, y + 0.035, "ececE6") for y in (0.58, 0.8)])
    flowers: list[tuple[float, float, float, float, float, Ink]] = []
    palette = r.choice(
        (
            ("e8365a", "ff7ab0", "ffffff", "f2c832"),
            ("b05ad8", "f29ad0", "ffe04a", "ffffff"),
            ("f2502a", "ffb02a", "fff0d0", "e83a7a"),
        )
    )
    for k in range(130):
        low = k / 130
        x, y = r.random(), 0.34 + 0.66 * low + r.uniform(-0.05, 0.05)
        w = 0.014 + 0.032 * low * r.uniform(0.6, 1.1)
        flowers.append((x, y, w, w * 0.85, 0.0, r.choice(palette)))
        if low > 0.3:
            flowers.append((x, y, w * 0.35, w * 0.3, 0.0, "f6d040"))
        elif r.random() < 0.5:
            flowers.append((x + 0.03, y, w, w * 0.6, r.uniform(0, 180), scale(hedge, 1.25)))
    c.dots(flowers)
    c.dim(tone)
    if mood == "evening":
        c.glow(r.choice((0.05, 0.95)), 0.1, 0.6, "ffb050", 0.3)
    c.blur(0.007)


def mountains(c: Canvas, r: Random, mood: str) -> None:
    """Snow-capped peaks over a lake that mirrors them, dark pines at the sides."""
    if mood == "dawn":
        sky, rock, cap, lake = ("7a7ac0", "f6b8a8"), ("6a5a86", "4a4470"), "ffd8cc", "c898b0"
    else:
        sky = (r.choice(("2f78c8", "3f8ad4", "2a6ab4")), "c4e0f2")
        rock, cap, lake = r.choice((("5a708c", "3c5270"), ("6a6e80", "484e60"))), "ffffff", "3a98a8"
    water = r.uniform(0.66, 0.72)
    c.gradient(((0, sky[0]), (0.6, sky[1])))
    clouds(c, r, mix(sky[1], "ffffff", 0.6), 0.5, 0.35)
    far = mix(rock[0], sky[1], 0.5)
    for x in (0.32, 0.66):
        _peak(c, r, x + r.uniform(-0.06, 0.06), 0.34, water, 0.34, far, scale(far, 0.88), mix(cap, sky[1], 0.3))
    for x in (r.uniform(0.06, 0.2), r.uniform(0.8, 0.95)):
        _peak(c, r, x, r.uniform(0.06, 0.18), water, r.uniform(0.34, 0.44), rock[0], rock[1], cap)
    c.polygon(ridge(r, water + 0.03, 0.07, 20, 0.25), mix("3a6a44" if mood == "day" else "4a4a66", sky[1], 0.15))
    c.blur(0.008)
    row = round(water * c.n)
    mirror = c.px[max(2 * row - c.n, 0) : row][::-1].astype(np.float32)
    mirror += (np.array([int(lake[i : i + 2], 16) for i in (0, 2, 4)], np.float32) - mirror) * np.float32(0.5)
    c.px[row : row + len(mirror)] = mirror
    c.multiply(1 + np.float32(0.1) * lattice(c.n, r.getrandbits(31), (3, 44)), water)
    for x in (r.uniform(0.0, 0.06), r.uniform(0.1, 0.17), r.uniform(0.85, 0.9), r.uniform(0.94, 1.0)):
        pine, h = scale("1e4436", 1.0 if mood == "day" else 0.75), r.uniform(0.26, 0.42)
        for k in range(4):
            y, w = 0.97 - h * 0.22 * k, h * (0.2 - 0.035 * k)
            c.polygon(((x, y - h * 0.36), (x + w, y), (x - w, y)), scale(pine, 0.85 + 0.1 * k))
    c.blur(0.006)


def _peak(c: Canvas, r: Random, x: float, top: float, foot: float, half: float, lit: Ink, dark: Ink, cap: Ink) -> None:
    turn = r.uniform(-0.04, 0.04)
    c.polygon(((x, top), (x + half, foot + 0.03), (x - half, foot + 0.03)), lit)
    c.polygon(((x, top), (x + half, foot + 0.03), (x + turn, foot + 0.03), (x + 0.03, top + 0.16)), dark)
    h, teeth = foot - top, [(0.0, 0.0)]
    for t, drop in ((0.42, 0.42), (0.22, 0.30), (0.05, 0.44), (-0.14, 0.29), (-0.38, 0.40)):
        teeth.append((t, drop + r.uniform(-0.05, 0.05)))
    line = [(x + half * (t if abs(t) < 0.3 else math.copysign(d, t)), top + h * d) for t, d in teeth]
    c.polygon(line, cap)
    c.polygon((line[0], line[1], line[2], line[3], (x + 0.02, top + h * 0.2)), mix(cap, dark, 0.3))


def space(c: Canvas, r: Random, mood: str) -> None:
    """Stars, a coloured nebula, a planet with a ring."""
    a, b = r.choice((("6a2aa8", "1e6ac8"), ("c83a7a", "3a3ac0"), ("1e8a9a", "4a2a9a"), ("d0602a", "6a2a8a")))
    c.gradient(((0, "05060f"), (1, "0a0a1e")))
    xs, ys = axes(c.n)
    band = np.exp(-(((xs - 0.5) * np.float32(r.choice((-0.8, 0.8))) + ys - np.float32(r.uniform(0.3, 0.6))) ** 2) * 14)
    for ink in (a, b):
        cloud = np.clip(lattice(c.n, r.getrandbits(31), (4, 4), 3) * np.float32(0.7) + np.float32(0.45), 0, 1)
        c.blend(cloud * cloud * band * np.float32(0.9), ink)
    c.blur(0.012)
    stars = []
    for k in range(90):
        w = 0.0045 if k % 6 else 0.009
        stars.append((r.random(), r.random(), w, w, 0.0, r.choice(("ffffff", "ffffff", "cfe0ff", "ffe8c8"))))
    c.dots(stars)
    c.blur(0.004)
    side = r.choice((-1, 1))
    _planet(c, r, 0.5 + side * r.uniform(0.33, 0.38), r.uniform(0.17, 0.3), r.uniform(0.11, 0.15))
    if r.random() < 0.6:
        x, y, s = 0.5 - side * r.uniform(0.34, 0.42), r.uniform(0.4, 0.75), r.uniform(0.03, 0.05)
        c.ellipse(x, y, s, s, "b8b8c0")
        c.ellipse(x + s * 0.35, y + s * 0.2, s * 0.8, s * 0.85, "5a5a66")
    c.blur(0.0045)


def _planet(c: Canvas, r: Random, x: float, y: float, s: float) -> None:
    body, stripe, ring = r.choice(
        (("e0a05a", "b8703a", "f0d8a8"), ("5a9ad8", "3a6ab0", "d0e4f8"), ("c86a5a", "943c3a", "f0c8b0"))
    )
    tilt = r.uniform(-28, 28)
    c.glow(x, y, s * 1.5, scale(body, 0.5), 0.6)
    c.ellipse(x, y, s * 1.95, s * 0.52, ring, tilt)
    c.ellipse(x, y, s * 1.6, s * 0.38, "0a0a18", tilt)
    c.ellipse(x, y, s, s, body)
    a = math.radians(tilt)
    for k in (-0.45, 0.05, 0.5):
        c.ellipse(
            x - math.sin(a) * k * s, y + math.cos(a) * k * s, s * math.sqrt(1 - k * k) * 0.97, s * 0.1, stripe, tilt
        )
    dx, dy = axes(c.n)[0] - np.float32(x), axes(c.n)[1] - np.float32(y)
    inside = dx * dx + dy * dy < s * s
    shadow = np.clip((dx + dy) / np.float32(s) * np.float32(0.75) + np.float32(0.1), 0, 0.85)
    c.blend(shadow * inside, "060612")
    front = [(x + s * 1.78 * math.cos(t) * math.cos(a) - s * 0.45 * math.sin(t) * math.sin(a),
              y + s * 1.78 * math.cos(t) * math.sin(a) + s * 0.45 * math.sin(t) * math.cos(a))
             for t in [math.pi * k / 12 for k in range(13)]]  # fmt: skip
    c.stroke(front, s * 0.17, ring)
