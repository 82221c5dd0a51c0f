"""Backgrounds made by people: studio, street, kitchen, library, stage."""

from __future__ import annotations

import math
from random import Random

import numpy as np

from limner.world.canvas import Canvas, Ink, axes, lattice, mix, scale

STUDIO = (
    "8fa3b4", "b9a68c", "7c8a78", "a08a96", "9a9a9e", "c08a6a", "5c7a8c", "b4bcc4", "8c6a72", "56606e", "c9b8a4",
    "6e7a9c",
)  # fmt: skip


def studio(c: Canvas, r: Random, mood: str) -> None:
    """A painted backdrop: one colour, lit behind the head, darker at the edges."""
    base = scale(r.choice(STUDIO), r.uniform(0.85, 1.1))
    base = mix(base, (r.uniform(60, 220), r.uniform(60, 220), r.uniform(60, 220)), 0.22)
    dark = 0.32 if mood == "dark" else r.uniform(0.62, 0.8)
    xs, ys = axes(c.n)
    x, y = np.float32(r.uniform(0.35, 0.65)), np.float32(r.uniform(0.3, 0.5))
    d = np.sqrt((xs - x) ** 2 + ((ys - y) * np.float32(0.9)) ** 2)
    c.px[...] = np.array([min(v * 1.1, 250) for v in base], np.uint8)
    c.blend(np.clip((d - np.float32(0.08)) / np.float32(0.72), 0, 1) ** np.float32(1.2), scale(base, dark * 0.75))
    mottle = r.choice((0.0, 0.05, 0.14))
    if mottle:
        c.multiply(1 + np.float32(mottle) * lattice(c.n, r.getrandbits(31), (4, 4), 3))
    c.blur(0.015)


def street(c: Canvas, r: Random, mood: str) -> None:
    """Two rows of houses that run to a vanishing point, windows, lamps, a road."""
    night = mood == "night"
    sky = {"night": ("0a1030", "2a2a58"), "sunset": ("6a5a9a", "ffb48a")}.get(
        mood, (r.choice(("6aaee6", "86bce8", "9cc4e0")), "dceaf2")
    )
    x, y = 0.5 + r.uniform(-0.04, 0.04), r.uniform(0.58, 0.64)
    c.gradient(((0, sky[0]), (y, sky[1])))
    c.gradient(((y, "5a5c66" if not night else "1c1e2c"), (1, "7c7e86" if not night else "34364a")), y)
    fronts = ["b8604a", "d8b488", "c8a890", "8a6a5a", "dccfb8", "9aa4ac", "a8503e", "e0c080"]
    r.shuffle(fronts)
    for side in (-1, 1):
        # Depth t runs from the vanishing point (0) to the picture's edge (1.15); everything scales with it.
        edges = [0.16, 0.32, 0.6, 1.25]
        for k in range(3):
            t0, t1 = edges[k], edges[k + 1]
            tall = r.uniform(1.05, 1.5)
            wall = scale(fronts.pop(), (0.24 if night else 0.92) - (0.14 if side > 0 else 0) * (not night))
            wall = mix(sky[1], wall, 0.55 + 0.15 * k)
            u0, u1 = x + side * 0.56 * t0, x + side * 0.56 * t1
            top0, top1 = y - tall * 0.62 * t0, y - tall * 0.62 * t1
            c.polygon(((u0, top0), (u1, top1), (u1, y + 0.3 * t1), (u0, y + 0.3 * t0)), wall)
            c.stroke(((u0, top0), (u1, top1)), 0.012, scale(wall, 0.7))
            _windows(c, r, (x, y, side, t0, t1, tall), wall, night)
    pavement = "9a9aa0" if not night else "3a3a50"
    for side in (-1, 1):
        c.polygon(((x, y), (x + side * 0.44, 1.0), (x + side * 0.75, 1.0)), pavement)
    for k in range(4):
        t = 0.25 * 1.7**k
        c.polygon(
            (
                (x - 0.01 * t, y + 0.2 * t),
                (x + 0.01 * t, y + 0.2 * t),
                (x + 0.016 * t, y + 0.27 * t),
                (x - 0.016 * t, y + 0.27 * t),
            ),
            "e8e8e0",
        )
    c.blur(0.01)
    for side in (-1, 1):
        lx, top = x + side * r.uniform(0.3, 0.36), r.uniform(0.2, 0.28)
        c.stroke(((lx, 0.9), (lx, top), (lx - side * 0.07, top - 0.03)), 0.016, "22262e")
        if night:
            c.glow(lx - side * 0.08, top - 0.01, 0.16, "ffb860", 0.9)
        c.ellipse(lx - side * 0.085, top - 0.015, 0.032, 0.018, "fff0c0" if night else "e8e8e8")
    if night:
        for _ in range(16):
            s = r.uniform(0.012, 0.03)
            c.glow(r.random(), r.uniform(0.45, 0.85), s, r.choice(("ff6a4a", "ffd070", "70c0ff", "ff5a9a")), 0.8)
    c.blur(0.006)


def _windows(c: Canvas, r: Random, place: tuple[float, ...], wall: tuple[float, ...], night: bool) -> None:
    x, y, side, t0, t1, tall = place
    columns = 3
    for i in range(columns):
        a, b = t0 + (t1 - t0) * (i + 0.25) / columns, t0 + (t1 - t0) * (i + 0.75) / columns
        ua, ub = x + side * 0.56 * a, x + side * 0.56 * b
        if min(abs(ua - 0.5), abs(ub - 0.5)) > 0.55:
            continue
        for j in range(4):
            v = tall * 0.62 * (0.9 - 0.28 * j)
            w = v - tall * 0.62 * 0.17
            if night:
                glass = r.choice(("ffd27a", "ffbe5a", "2a3048", "20263c", "ffe0a0"))
            else:
                glass = r.choice(("4a6074", "5a7488", "3c5064", "9cc0d8"))
            c.polygon(((ua, y - v * a), (ub, y - v * b), (ub, y - w * b), (ua, y - w * a)), glass)


def kitchen(c: Canvas, r: Random, mood: str) -> None:
    """Tiles, a window or hood, pans on a rail, shelves of jars, a worktop."""
    tile, grout = r.choice(
        (("f4f2ea", "cfd6d2"), ("cfe4e0", "f4f8f6"), ("f2e2c0", "d8bc8c"), ("b8d4e4", "f0f6fa"), ("e8d0c8", "faf2ee"))
    )
    cells = r.choice((8, 9, 10))
    c.px[...] = np.array([int(tile[i : i + 2], 16) for i in (0, 2, 4)], np.uint8)
    grid = np.random.default_rng(r.getrandbits(31)).random((cells, cells), np.float32)
    index = (np.arange(c.n) * cells) // c.n
    c.multiply(np.float32(0.9) + np.float32(0.14) * grid[index][:, index])
    lines = [k / cells for k in range(1, cells)]
    c.bars([(-0.05, t - 0.006, 1.05, t + 0.006, grout) for t in lines])
    c.bars([(t - 0.006, -0.05, t + 0.006, 1.05, grout) for t in lines])
    side = r.choice((-1, 1))
    wood = r.choice(("9a6a3e", "7a4e2e", "c09a6a", "5a6a72"))
    _window(c, r, 0.5 - side * 0.34)
    rail = r.uniform(0.1, 0.15)
    lo, hi = sorted((0.5 + side * 0.16, 0.5 + side * 0.5))
    c.rectangle(lo, rail, hi, rail + 0.018, "50545a")
    for k in range(3):
        x = lo + 0.06 + k * 0.12
        s, metal = r.uniform(0.042, 0.058), r.choice(("b86a3a", "3a3e44", "c8884a", "8a9096"))
        c.stroke(((x, rail), (x, rail + 0.12)), 0.018, scale(metal, 0.7))
        c.ellipse(x, rail + 0.14 + s, s, s, metal)
        c.ellipse(x - s * 0.25, rail + 0.14 + s * 0.75, s * 0.5, s * 0.5, scale(metal, 1.3))
    jars = []
    for y in (0.5, 0.72):
        jars.append((lo, y, hi + 0.05, y + 0.026, wood))
        for k in range(4):
            x, h, w = lo + 0.045 + k * 0.085, r.uniform(0.08, 0.13), r.uniform(0.028, 0.038)
            jars.append(
                (x - w, y - h, x + w, y, r.choice(("d0502e", "e8b040", "5a8a4a", "f0e8d8", "6a3a2a", "88b0c0")))
            )
            jars.append((x - w * 0.8, y - h - 0.02, x + w * 0.8, y - h, "e8e0d0"))
    c.bars(jars)
    c.rectangle(-0.05, 0.86, 1.05, 1.05, scale(wood, 0.9))
    c.rectangle(-0.05, 0.86, 1.05, 0.88, scale(wood, 1.25))
    c.blur(0.009)
    if mood == "evening":
        c.dim(0.62)
        c.glow(0.5 + side * 0.3, 0.0, 0.5, "ffb860", 0.5)


def _window(c: Canvas, r: Random, x: float) -> None:
    c.rectangle(x - 0.15, 0.1, x + 0.15, 0.52, "fbfbf6")
    for sx in (-1, 1):
        c.rectangle(x + sx * 0.068 - 0.055, 0.13, x + sx * 0.068 + 0.055, 0.49, "bfe4f6")
        c.rectangle(x + sx * 0.068 - 0.055, 0.36, x + sx * 0.068 + 0.055, 0.49, "a8d890")
    c.rectangle(x - 0.17, 0.52, x + 0.17, 0.55, "ece8dc")
    pot = r.choice(("c8643a", "e8e0d0", "5a7aa0"))
    for k in range(6):
        c.ellipse(x + 0.04 * math.cos(k), 0.42 - 0.012 * k, 0.035, 0.02, "4f9a3c", 60 * k)
    c.polygon(((x - 0.045, 0.45), (x + 0.045, 0.45), (x + 0.033, 0.525), (x - 0.033, 0.525)), pot)


BOOKS = (
    "8a2e26",
    "2e4a6a",
    "3a5a3a",
    "c89a4a",
    "5a3a5a",
    "d8c8a8",
    "1e3a3a",
    "a85a2a",
    "6a6a72",
    "b8433a",
    "e0d8c4",
    "274060",
)


def library(c: Canvas, r: Random, mood: str) -> None:
    """Wooden shelves full of books; now and then a ladder, a lamp."""
    wood = r.choice(("6a3e20", "4a2c18", "84562e", "3a2416"))
    c.px[...] = np.array([v * 0.45 for v in mix(wood, wood, 0)], np.uint8)
    rows = r.choice((4, 5))
    pitch = 1.0 / rows
    books: list[tuple[float, float, float, float, Ink]] = []
    for k in range(rows):
        foot = (k + 1) * pitch - 0.03
        x = -0.02
        while x < 1.02:
            if r.random() < 0.05:
                x += r.uniform(0.03, 0.06)
                continue
            w, h = r.uniform(0.018, 0.042), pitch * r.uniform(0.62, 0.84)
            books.append((x, foot - h, x + w * 0.94, foot, scale(r.choice(BOOKS), r.uniform(0.75, 1.15))))
            if r.random() < 0.5:
                books.append((x, foot - h * 0.8, x + w * 0.94, foot - h * 0.72, "e0b860"))
            x += w
        books.append((-0.05, foot, 1.05, foot + 0.03, wood))
        books.append((-0.05, foot, 1.05, foot + 0.008, scale(wood, 1.5)))
    c.bars(books)
    for x in (r.uniform(0.27, 0.31), r.uniform(0.68, 0.73)):
        c.rectangle(x - 0.018, -0.05, x + 0.018, 1.05, scale(wood, 1.15))
    if r.random() < 0.4:
        x = r.choice((0.1, 0.8))
        for dx in (0.0, 0.11):
            c.stroke(((x + dx, 1.0), (x + dx + 0.03, 0.05)), 0.018, "c89a5e")
        for k in range(8):
            y = 0.12 + k * 0.11
            c.stroke(((x + 0.03 - y * 0.03, y), (x + 0.14 - y * 0.03, y)), 0.014, "b8884e")
    c.blur(0.008)
    xs, ys = axes(c.n)
    light = np.float32(r.choice((0.1, 0.5, 0.9)))
    c.multiply(np.float32(1.25) - np.float32(0.6) * np.sqrt((xs - light) ** 2 + (ys - np.float32(0.2)) ** 2))
    if mood == "evening":
        c.dim(0.7)
        c.glow(float(light), 0.1, 0.4, "ffb050", 0.45)
    c.blur(0.004)


def stage(c: Canvas, r: Random, mood: str) -> None:
    """Curtains drawn to both sides, a valance, spotlights, boards."""
    cloth = r.choice(("b01e2a", "9a1830", "c02a24", "8a1a4a", "5a1a8a", "1e3a9a"))
    beam = r.choice(("ffe8b0", "ffd0f0", "b8d8ff", "fff4d8"))
    xs, ys = axes(c.n)
    c.gradient(((0, "0c0a14"), (0.75, "2a2034")))
    c.gradient(((0.8, "6a4426"), (1, "9a6a3c")), 0.8)
    for k in range(1, 12):
        c.stroke(((0.5 + (k - 6) * 0.06, 0.8), (0.5 + (k - 6) * 0.13, 1.0)), 0.006, "4a2e18")
    for x in (r.uniform(0.28, 0.38), r.uniform(0.62, 0.72)):
        aim = 0.5 + (x - 0.5) * r.uniform(-1.2, 0.4)
        width = np.float32(0.02) + ys * np.float32(0.2)
        offset = (xs - np.float32(x) - (np.float32(aim) - np.float32(x)) * ys) / width
        c.blend(np.exp(-(offset**2) * 2) * np.float32(0.55) * (1 - ys * np.float32(0.6)), beam)
        c.ellipse(aim, 0.9, 0.2, 0.045, mix("9a6a3c", beam, 0.6))
    c.blur(0.012)
    _curtains(c, r, cloth)
    c.blur(0.006)


def _curtains(c: Canvas, r: Random, cloth: str) -> None:
    xs, ys = axes(c.n)
    folds, phase = np.float32(r.uniform(46, 62)), np.float32(r.random() * 6.3)
    reach = np.float32(r.uniform(0.25, 0.29))
    edge = reach + np.float32(0.05) * np.sin(ys * np.float32(2.4) - np.float32(0.6)) - np.float32(0.04) * ys
    gap = np.minimum(xs, 1 - xs)
    tone = np.float32(0.4) * np.sin(gap * folds * (1 + np.float32(0.12) * ys) + phase) - np.float32(0.34)
    drop = np.float32(0.13) + np.float32(0.035) * np.abs(np.sin(xs * np.float32(math.pi * 5)))
    swag = np.float32(0.35) * np.cos((drop - ys) * np.float32(70)) - np.float32(0.28)
    for alpha, fold in ((edge - gap, tone), (drop - ys, swag)):
        alpha = np.clip(alpha * np.float32(c.n * 0.5), 0, 1)
        c.blend(alpha, cloth)
        c.multiply(1 + alpha * fold)
    c.blend(1 - np.abs(drop - ys) * np.float32(90), "e2b24a")
