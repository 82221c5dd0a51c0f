"""Paint and light: what colour a point of a material has, and how much of it is seen.

Materials are rows of a float64 table with the columns `KIND` … `GLOSS`; the painted features of the face (eyes, brows,
lips, nostrils, moles, freckles, stubble, lines of age) are laid on in head space.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from limner.world.raster import ATTRIBUTES
from limner.world.shape import INLINE, JIT, SMILE_LIFT

KIND, R1, G1, B1, R2, G2, B2, PATTERN, SPECULAR, GLOSS = range(10)
MATERIAL_COLUMNS = 10
FACE, SKIN, CLOTH, HAIR, BEARD, SOLID, LENS = range(7)
"""Kinds of material."""
(
    PLAIN, STRIPES, BUTTONS, LAPELS, DOUBLE_BREASTED, TRIM, V_NECK, UNIFORM, REFLECTIVE, STARS, CROSS, BADGE, RIBS,
    WOVEN,
) = range(14)  # fmt: skip
"""Patterns of cloth and headwear."""


@njit(**INLINE)
def _hash(a, b):
    """Value in [0, 1) of a lattice point; integer arithmetic, so that it is the same on every machine."""
    h = (int(a) * 374761393 + int(b) * 668265263) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF) * (1.0 / 65536)


@njit(**INLINE)
def _step(a, b, x):
    t = min(max((x - a) / (b - a), 0.0), 1.0)
    return t * t * (3 - 2 * t)


@njit(**JIT)
def noise(x, y):
    """Smooth value noise in [0, 1] on the plane."""
    ix = math.floor(x)
    iy = math.floor(y)
    fx = x - ix
    fy = y - iy
    fx = fx * fx * (3 - 2 * fx)
    fy = fy * fy * (3 - 2 * fy)
    a = _hash(ix, iy)
    b = _hash(ix + 1, iy)
    c = _hash(ix, iy + 1)
    d = _hash(ix + 1, iy + 1)
    return a + (b - a) * fx + (c - a) * fy + (a - b - c + d) * fx * fy


@njit(**INLINE)
def _spot(q):
    """Soft spot: close to exp(-q), zero from q = 4 on, and cheap."""
    t = max(1 - 0.25 * q, 0.0)
    t *= t
    return t * t


@njit(**INLINE)
def _power(x, n):
    """x ** n on [0, 1] as a highlight needs it (Schlick, A fast alternative to Phong's specular model, 1994)."""
    return x / (n - n * x + x)


@njit(**INLINE)
def _blend(c, r, g, b, w):
    c[0] += (r - c[0]) * w
    c[1] += (g - c[1]) * w
    c[2] += (b - c[2]) * w


@njit(**JIT)
def _paint_skin(x, y, z, f, look, c):
    """Base tone, blush, mottling, freckles, moles, stubble and lines of age."""
    ax = abs(x)
    front = _step(0.1, 0.35, z)
    k = 0.20 * _spot(((ax - 0.36) ** 2 + (y + 0.20) ** 2) / 0.028) * front
    k += 0.13 * _spot((x * x + (y - f.nose_tip_y) ** 2) / 0.012) * front
    k *= 1 + 1.3 * look.makeup
    c[0] *= 1 + 0.15 * k
    c[1] *= 1 - 0.72 * k
    c[2] *= 1 - 0.60 * k
    n = (noise(x * 7 + look.texture, y * 7 + z * 5) - 0.5) * 0.07
    for i in range(3):
        c[i] *= 1 + n
    if look.freckles > 0:
        u, v = x * 27 + look.texture, y * 27 - look.texture
        iu, iv = math.floor(u), math.floor(v)
        du = u - iu - 0.34 - 0.32 * _hash(iu, iv)
        dv = v - iv - 0.34 - 0.32 * _hash(iu + 17, iv)
        size = 0.10 + 0.24 * _hash(iu, iv + 31)
        w = _step(size + 0.16, size - 0.10, math.sqrt(du * du + dv * dv)) * look.freckles
        w *= _step(0.35, 0.5, _hash(iu + 5, iv + 3))
        w *= min(1.0, 1.3 * math.exp(-((ax - 0.22) ** 2 / 0.06 + (y + 0.10) ** 2 / 0.03))) * front
        c[0] *= 1 - 0.35 * w
        c[1] *= 1 - 0.52 * w
        c[2] *= 1 - 0.58 * w
    # lines of age: forehead, crow's feet, nose to mouth, under the eyes
    if look.lines > 0:
        w = look.lines * front
        s = 0.14 * w * math.exp(-((((y - 0.47 + 0.03 * math.sin(5 * x)) * 17) % 1.0 - 0.5) ** 2) / 0.02)
        s *= _step(0.34, 0.39, y) * _step(0.62, 0.56, y) * _step(0.36, 0.25, ax)
        fold = (ax - 0.085 - f.mouth_w * (1 + 0.1 * f.smile)) + 0.60 * (y - f.mouth_y - 0.02)
        s += (
            0.30
            * w
            * math.exp(-((fold / 0.022) ** 2))
            * _step(f.mouth_y - 0.06, f.mouth_y + 0.03, y)
            * _step(f.nose_tip_y + 0.06, f.nose_tip_y - 0.03, y)
        )
        bag = math.sqrt(((ax - f.eye_x) / 0.15) ** 2 + ((y - f.eye_y + 0.05) / 0.14) ** 2)
        s += 0.22 * w * math.exp(-(((bag - 1.0) / 0.12) ** 2)) * _step(f.eye_y - 0.04, f.eye_y - 0.10, y)
        c[0] *= 1 - 0.75 * s
        c[1] *= 1 - 0.95 * s
        c[2] *= 1 - 0.95 * s


@njit(**JIT)
def _paint_moles(x, y, z, moles, e, c):
    front = _step(0.1, 0.3, z)
    for j in range(moles.shape[0]):
        r = moles[j, 2]
        w = 1 - _step(r - e, r + e, math.sqrt((x - moles[j, 0]) ** 2 + (y - moles[j, 1]) ** 2))
        w *= front * min(1.0, r / (0.7 * e))
        c[0] *= 1 - 0.72 * w
        c[1] *= 1 - 0.82 * w
        c[2] *= 1 - 0.84 * w


@njit(**JIT)
def _paint_mouth(x, y, z, f, look, e, c):
    """Nostrils, lips, teeth and the dark between them. Returns the specular factor and extra shine."""
    if z < 0.3 or abs(x) > f.mouth_w * 1.3 or y > f.nose_tip_y + 0.1 or y < f.mouth_y - 0.42:
        return 0.0
    an = abs(x - f.skew_nose)
    w = 1 - _step(0.020, 0.046, math.sqrt((an - 0.060 * f.nose_w) ** 2 + ((y - f.nose_tip_y + 0.062) * 1.7) ** 2))
    w *= _step(0.62, 0.70, z) * 0.72
    c[0] *= 1 - 0.78 * w
    c[1] *= 1 - 0.86 * w
    c[2] *= 1 - 0.86 * w
    shine = 0.0
    if abs(x) < f.mouth_w * 1.15 and abs(y - f.mouth_y) < 0.42 and z > 0.3:
        q = min(max(x / f.mouth_w, -1.15), 1.15)
        my = y - f.mouth_y - f.smile * SMILE_LIFT * q * q + 0.02 * f.smile - f.skew_mouth * q
        full = max(1 - q * q, 0.0)
        upper = f.lip_upper * 1.35 * math.sqrt(full) * (1 - 0.22 * math.exp(-((x / 0.035) ** 2))) * (1 - 0.25 * abs(q))
        lower = -f.lip_lower * 1.5 * math.sqrt(full) * (1 - 0.15 * q * q) - f.open * 0.20 * full
        w = _step(upper + e, upper - e, my) * _step(lower - e, lower + e, my)
        _blend(c, look.lip_r, look.lip_g, look.lip_b, w)
        shine = 0.22 * w + 0.08 * w * (1.0 if my < 0 else 0.0)
        top = 0.012 * f.open
        bottom = -0.024 - f.open * 0.155 * full
        inside = _step(top + e * 0.7, top - e * 0.7, my) * _step(bottom - e * 0.7, bottom + e * 0.7, my)
        inside *= _step(1.0, 0.93, abs(q))
        gum = -0.105 * (0.55 + 0.45 * full)
        teeth = _step(gum - e * 0.5, gum + e * 0.5, my) * _step(0.10, 0.28, f.open) * _step(0.94, 0.78, abs(q))
        tongue = _step(bottom + 0.055, bottom + 0.02, my) * _step(0.3, 0.6, f.open) * _step(0.7, 0.4, abs(q))
        r, g, b = 0.11 + 0.28 * tongue, 0.035 + 0.06 * tongue, 0.035 + 0.07 * tongue
        r, g, b = r + (0.82 - r) * teeth, g + (0.78 - g) * teeth, b + (0.70 - b) * teeth
        amount = inside * (0.62 if f.open < 0.05 else 1.0)
        _blend(c, r, g, b, amount)
        shine *= 1 - inside
    return shine


@njit(**JIT)
def _paint_eye(x, y, z, f, look, e, c):
    """One eye: lids, white, iris with limbal ring, pupil, catchlight, lashes. Returns how far the skin shines on."""
    side = 1.0 if x > 0 else -1.0
    ax = abs(x)
    wide = f.eye_r * 1.02
    u = (ax - f.eye_x) / wide
    v = (y - f.eye_y - side * f.skew_eyes) / wide - f.eye_tilt * u
    if z < 0.3 or abs(u) > 1.7 or abs(v) > 1.6:
        return 1.0
    e = e / wide
    cup = max(1 - u * u, 0.0)
    opening = f.eye_open * (1 - 0.10 * f.smile + 0.13 * f.brow_raise) * (1 - f.blink)
    rest = -0.16 * f.blink
    upper = 0.57 * opening * math.sqrt(cup) * (1 - 0.10 * u) + rest * cup
    lower = -(0.46 * math.sqrt(f.eye_open) - 0.13 * f.smile) * cup * (1 + 0.12 * u) * (1 - 0.75 * f.blink) + rest * cup
    # crease above, hollow below
    lid = 0.20 * (1 - 0.75 * f.eye_hood) + 0.22 * f.blink
    crease = math.exp(-(((v - upper - lid) / 0.085) ** 2)) * _step(1.15, 0.8, abs(u)) * (1 - 0.35 * f.eye_hood)
    c[0] *= 1 - 0.30 * crease
    c[1] *= 1 - 0.38 * crease
    c[2] *= 1 - 0.38 * crease
    shadow = (
        look.makeup
        * _step(upper + 0.42, upper + 0.05, v)
        * _step(upper - 0.05, upper + 0.02, v)
        * _step(1.2, 0.85, abs(u))
    )
    _blend(c, 0.30 * c[0], 0.20 * c[1] + 0.02, 0.35 * c[2] + 0.03, 0.45 * shadow)
    hollow = math.exp(-(((v + 0.75) / 0.25) ** 2)) * _step(1.1, 0.5, abs(u))
    c[0] *= 1 - 0.06 * hollow
    c[1] *= 1 - 0.10 * hollow
    c[2] *= 1 - 0.07 * hollow
    inside = (
        _step(upper + e * 0.8, upper - e * 0.8, v)
        * _step(lower - e * 0.8, lower + e * 0.8, v)
        * _step(1.0, 0.97, abs(u))
    )
    if inside > 0:
        gx = u * side - 0.42 * f.gaze_x
        gy = v + f.eye_tilt * u - 0.24 * f.gaze_y - 0.09
        rr = math.sqrt(gx * gx + gy * gy)
        lit = 0.78 + 0.22 * _step(upper, upper - 0.45, v)
        r, g, b = 0.80 * lit, 0.78 * lit, 0.76 * lit
        corner = _step(0.62, 1.0, -u) * 0.5
        r, g, b = r, g * (1 - 0.35 * corner), b * (1 - 0.35 * corner)
        w = _step(f.iris_r + e * 0.8, f.iris_r - e * 0.8, rr)
        rim = 1.0 - 0.60 * _step(f.iris_r * 0.66, f.iris_r, rr)
        lift = (1.0 + 0.55 * _step(0.15, -0.45, gy)) * lit
        r += (look.iris_r * rim * lift - r) * w
        g += (look.iris_g * rim * lift - g) * w
        b += (look.iris_b * rim * lift - b) * w
        w = _step(f.iris_r * 0.44 + e * 0.7, f.iris_r * 0.44 - e * 0.7, rr)
        r, g, b = r * (1 - 0.95 * w), g * (1 - 0.95 * w), b * (1 - 0.95 * w)
        glint = 1 - _step(0.10, 0.10 + e * 1.1, math.sqrt((gx - 0.15 * look.light_side) ** 2 + (gy - 0.18) ** 2))
        r, g, b = r + glint * 0.9, g + glint * 0.9, b + glint * 0.9
        _blend(c, r, g, b, inside)
    lash = 0.09 + 0.05 * look.makeup
    w = (1 - _step(lash * 0.5, lash * 0.5 + e * 1.2, abs(v - upper - 0.03))) * _step(1.12, 1.0, abs(u)) * 0.92
    _blend(c, 0.035, 0.022, 0.018, w)
    dull = (1 - inside) * (1 - w)
    w = (1 - _step(0.01, 0.02 + e, abs(v - lower + 0.02))) * _step(1.0, 0.8, abs(u)) * 0.35
    c[0] *= 1 - 0.6 * w
    c[1] *= 1 - 0.7 * w
    c[2] *= 1 - 0.7 * w
    return dull


@njit(**JIT)
def _paint_brow(x, y, z, f, look, e, c):
    side = 1.0 if x > 0 else -1.0
    wide = f.eye_r * 1.02
    t = (abs(x) - f.eye_x + wide * 1.05 - f.brow_gap) / (wide * 2.35)
    if z < 0.25 or t < -0.1 or t > 1.1:
        return
    tc = min(max(t, 0.0), 1.0)
    at = f.eye_y + f.brow_y + (f.brow_raise * 0.07 + side * f.skew_brows) + f.brow_arch * (4 * tc * (1 - tc) * 0.055)
    at += f.brow_tilt * (tc - 0.4) - 0.10 * max(tc - 0.6, 0.0) - f.frown * 0.085 * (1 - tc) + 0.01
    thick = f.brow_t * (1.0 - 0.62 * tc)
    w = (1 - _step(thick - e * 0.4, thick + e * 0.9 + 0.008, abs(y - at))) * _step(-0.05, 0.07, t) * _step(1.04, 0.9, t)
    w *= 0.80 + 0.16 * noise(x * 60 + y * 25, y * 18)
    _blend(c, look.brow_r, look.brow_g, look.brow_b, w)
    # frown lines between the brows
    w = (
        0.5
        * f.frown
        * math.exp(-(((abs(x) - 0.05) / 0.012) ** 2))
        * _step(0.12, 0.2, y - f.eye_y)
        * _step(0.36, 0.28, y - f.eye_y)
    )
    for i in range(3):
        c[i] *= 1 - w


@njit(**JIT)
def _paint_growth(x, y, z, nx, f, look, c):
    """Stubble on the jaw and the shade of shaved or receding hair."""
    if look.stubble > 0:
        ax = abs(x)
        line = -0.34 + 0.42 * _step(0.30, 0.66, ax)
        w = _step(line + 0.06, line - 0.06, y) * _step(-0.22, -0.06, z)
        lips = math.sqrt(
            (x / (f.mouth_w * 1.15)) ** 2 + ((y - f.mouth_y + 0.02 + f.open * 0.09) / (0.095 + f.open * 0.10)) ** 2
        )
        above = (
            _step(f.mouth_w * 1.3, f.mouth_w * 1.1, ax)
            * _step(0.20, 0.14, y - f.mouth_y)
            * _step(0.02, 0.05, y - f.mouth_y)
        )
        w = max(w, above * _step(0.3, 0.45, z)) * _step(0.95, 1.15, lips)
        w *= look.stubble * (0.75 + 0.5 * noise(x * 40, y * 40))
        _blend(c, look.hair_r, look.hair_g, look.hair_b, min(w, 1.0))
    if look.shade > 0:
        line = 0.60 - 0.85 * _step(0.42, -0.10, z - 0.15 * (y - 0.5))
        w = _step(line - 0.05, line + 0.07, y) * look.shade
        _blend(c, look.hair_r, look.hair_g, look.hair_b, w)


@njit(**JIT)
def _paint_pattern(pattern, x, y, z, m, e, c):
    """Patterns of cloth and headwear over the main colour `c`; trim colour from the material row `m`."""
    r, g, b = m[R2], m[G2], m[B2]
    ax = abs(x)
    if pattern == STRIPES:
        t = abs((y * 5.2) - math.floor(y * 5.2) - 0.5) * 2
        _blend(c, r, g, b, _step(0.46 - e * 4, 0.46 + e * 4, t))
    elif pattern == BUTTONS:
        w = _step(0.035 + e, 0.035 - e, ax) * _step(-0.1, 0.0, z) * 0.18
        _blend(c, 0.0, 0.0, 0.0, w)
        t = y * 3.2 - math.floor(y * 3.2) - 0.5
        _blend(c, r, g, b, _step(0.030 + e, 0.030 - e, math.sqrt(x * x + (t / 3.2) ** 2)) * _step(-0.1, 0.0, z))
    elif pattern == LAPELS:
        if z > -0.3:
            down = max(-1.12 - y, 0.0)
            chest = _step(0.30 * (1 - down * 0.95) + e, 0.30 * (1 - down * 0.95) - e, ax) * _step(1.0, 0.9, down)
            _blend(c, 0.82, 0.82, 0.84, chest)
            tie = _step(0.055 + 0.05 * down + e, 0.055 + 0.05 * down - e, ax) * _step(0.02, 0.06, down)
            _blend(c, r, g, b, tie)
            edge = abs(ax - (0.46 - 0.40 * down))
            _blend(c, 0.0, 0.0, 0.0, 0.45 * _step(0.012 + e, 0.0, edge) * (1 - chest) * _step(0.05, 0.15, down))
    elif pattern == DOUBLE_BREASTED:
        if z > -0.3:
            _blend(c, 0.25, 0.25, 0.27, 0.35 * _step(0.014 + e, 0.0, abs(x - 0.30)))
            t = y * 3.4 - math.floor(y * 3.4) - 0.5
            _blend(c, r, g, b, _step(0.036 + e, 0.036 - e, math.sqrt((ax - 0.16) ** 2 + (t / 3.4) ** 2)))
    elif pattern == TRIM:
        if z > -0.3:
            edge = abs(ax - 0.20 - 0.25 * max(-1.2 - y, 0.0))
            _blend(c, r, g, b, _step(0.055 + e, 0.055 - e, edge))
    elif pattern == V_NECK:
        if z > -0.3:
            down = max(-1.14 - y, 0.0)
            edge = ax - 0.26 * (1 - down * 2.2)
            _blend(c, r, g, b, _step(0.045 + e, 0.045 - e, abs(edge)) * _step(0.50, 0.42, down))
            pocket = max(abs(x - 0.55) - 0.16, abs(y + 1.78) - 0.13)
            _blend(c, c[0] * 0.7, c[1] * 0.7, c[2] * 0.7, _step(0.016 + e, 0.0, abs(pocket)))
    elif pattern == UNIFORM:
        if z > -0.3:
            _blend(c, 0.0, 0.0, 0.0, 0.5 * _step(0.016 + e, 0.0, ax))
            t = y * 3.2 - math.floor(y * 3.2) - 0.5
            _blend(c, r, g, b, _step(0.032 + e, 0.032 - e, math.sqrt(x * x + (t / 3.2) ** 2)))
            _blend(c, r, g, b, _step(0.10 + e, 0.10 - e, math.sqrt((x - 0.52) ** 2 + (y + 1.66) ** 2)))
        strap = (
            _step(0.07 + e, 0.07 - e, abs(z + 0.22))
            * _step(0.46, 0.50, ax)
            * _step(1.02, 0.98, ax)
            * _step(-1.62, -1.56, y)
        )
        _blend(c, r, g, b, 0.85 * strap)
    elif pattern == REFLECTIVE:
        t = abs(y + 1.66)
        _blend(c, 0.80, 0.72, 0.05, _step(0.10 + e, 0.10 - e, t))
        _blend(c, 0.80, 0.80, 0.78, _step(0.045 + e, 0.045 - e, t))
        s = abs(ax - 0.62)
        _blend(c, 0.80, 0.72, 0.05, _step(0.07 + e, 0.07 - e, s) * _step(-1.7, -1.6, y))
    elif pattern == STARS:
        a = math.atan2(x, z + 0.12)
        cx, cy = a * 2.2, (y - 0.62) * 4.2
        ix, iy = math.floor(cx), math.floor(cy)
        dx, dy = cx - ix - 0.5, cy - iy - 0.5
        if _hash(ix + 3, iy) > 0.30 and y > 0.62:
            angle = math.atan2(dx, dy)
            rr = math.sqrt(dx * dx + dy * dy)
            _blend(c, r, g, b, _step(0.07 + 2 * e, -0.03, rr - 0.21 - 0.12 * math.cos(5 * angle)))
    elif pattern == CROSS:
        arm = max(min(ax, abs(y)) - 0.033, max(ax, abs(y)) - 0.10)
        _blend(c, r, g, b, _step(e, -e, arm) * _step(0.0, 0.05, z))
    elif pattern == BADGE:
        if z > 0.2:
            d = math.sqrt(x * x + (y - 0.84) ** 2)
            _blend(c, r, g, b, _step(0.13 + e, 0.13 - e, d))
            _blend(c, c[0] * 0.5, c[1] * 0.5, c[2] * 0.5, _step(0.02 + e, 0.0, abs(d - 0.075)))
    elif pattern == RIBS:
        a = math.atan2(x, z + 0.12)
        t = abs((a * 9) - math.floor(a * 9) - 0.5) * 2
        k = 0.72 + 0.28 * _step(0.0, 0.7, t)
        c[0] *= k
        c[1] *= k
        c[2] *= k
    elif pattern == WOVEN:
        k = 0.90 + 0.20 * noise(math.atan2(x, z + 0.12) * 40, y * 50)
        c[0] *= k
        c[1] *= k
        c[2] *= k


@njit(**JIT)
def shade(depth, material, buffer, table, moles, f, look, light, sky_map, key_map, frames, scale, out, alpha, aa):
    """Shades the samples of every pixel and averages them (in place).

    Samples of one pixel that show the same material at about the same depth are shaded once, from their mean.

    Args:
        depth, material, buffer: sample buffers, `aa` by `aa` samples a pixel.
        table: (M, MATERIAL_COLUMNS).
        moles: (K, 3); f: Form; look: `Look`; light: (6, 3) rows: direction to the key (camera space), key colour,
            ambient from above, ambient from below, rim colour, up direction.
        sky_map, key_map: light-space depth maps; frames: (2, 4, 3) their axes and offsets, key first.
        scale: head units per sample at unit distance.
        out: (H, W, 3) linear colour premultiplied by coverage; alpha: (H, W) coverage.
    """
    height, width = alpha.shape
    samples = aa * aa
    c = np.empty(3)
    s = np.empty(ATTRIBUTES)
    done = np.empty(samples, np.bool_)
    for y in range(height):
        for x in range(width):
            covered = 0
            for k in range(samples):
                done[k] = material[y * aa + k // aa, x * aa + k % aa] < 0
                covered += not done[k]
            if covered == 0:
                continue
            alpha[y, x] = covered / samples
            for first in range(samples):
                if done[first]:
                    continue
                m = material[y * aa + first // aa, x * aa + first % aa]
                far = depth[y * aa + first // aa, x * aa + first % aa]
                s[:] = 0.0
                count = 0
                for k in range(first, samples):
                    j, i = y * aa + k // aa, x * aa + k % aa
                    if not done[k] and material[j, i] == m and abs(depth[j, i] - far) < 0.2:
                        done[k] = True
                        count += 1
                        for a in range(ATTRIBUTES):
                            s[a] += buffer[j, i, a]
                for a in range(ATTRIBUTES):
                    s[a] /= count
                e = scale * far * math.sqrt(count)
                _shade_sample(m, s, table, moles, f, look, light, sky_map, key_map, frames, e, c)
                for k in range(3):
                    out[y, x, k] += c[k] * count / samples


@njit(**JIT)
def _visibility(px, py, pz, nx, ny, nz, frame, shadow, blur):
    """Share of the light that reaches a point, from a depth map: percentage-closer filtering over `blur` texels."""
    size = shadow.shape[0]
    px += nx * 0.05
    py += ny * 0.05
    pz += nz * 0.05
    u = (px * frame[0, 0] + py * frame[0, 1] + pz * frame[0, 2] - frame[3, 0]) * frame[3, 2]
    v = (px * frame[1, 0] + py * frame[1, 1] + pz * frame[1, 2] - frame[3, 1]) * frame[3, 2]
    w = -(px * frame[2, 0] + py * frame[2, 1] + pz * frame[2, 2])
    seen = 0.0
    count = 0.0
    for j in range(-2, 3):
        for i in range(-2, 3):
            if (i + j) % 2 or abs(i) + abs(j) > 2:
                continue
            a = math.floor(u + i * blur)
            b = math.floor(v + j * blur)
            count += 1.0
            if a < 0 or b < 0 or a >= size or b >= size:
                seen += 1.0
            else:
                seen += 1 - _step(0.03, 0.14, w - shadow[b, a])
    return seen / count


@njit(**JIT)
def _shade_sample(m, s, table, moles, f, look, light, sky_map, key_map, frames, e, c):
    """Colour of one sample. `s`: attributes; `e`: size of the footprint in head units."""
    row = table[m]
    kind = int(row[KIND])
    x, y, z = s[0], s[1], s[2]
    nx, ny, nz = s[3], s[4], s[5]
    length = 1 / math.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    nx, ny, nz = nx * length, ny * length, nz * length
    c[0], c[1], c[2] = row[R1], row[G1], row[B1]
    specular, gloss = row[SPECULAR], row[GLOSS]
    skin = kind in (FACE, SKIN)
    if kind == FACE:
        _paint_skin(x, y, z, f, look, c)
        _paint_moles(x, y, z, moles, e, c)
        _paint_growth(x, y, z, nx, f, look, c)
        specular += _paint_mouth(x, y, z, f, look, e, c)
        specular *= _paint_eye(x, y, z, f, look, e, c)
        _paint_brow(x, y, z, f, look, e, c)
    elif kind == HAIR:
        a = math.atan2(x, z + 0.25)
        t = y + 0.35 * z
        strands = 0.5 * noise(a * 13 + 2 * t, t * 1.6) + 0.32 * noise(a * 34, t * 2.2) + 0.18 * noise(a * 75, t * 3)
        k = 0.52 + 0.96 * strands
        c[0], c[1], c[2] = c[0] * k, c[1] * k, c[2] * k
        specular *= 0.4 + 1.2 * strands
    elif kind == BEARD:
        k = 0.60 + 0.8 * (0.5 * noise(x * 26, y * 11 + z * 6) + 0.5 * noise(x * 55, y * 20))
        c[0], c[1], c[2] = c[0] * k, c[1] * k, c[2] * k
    elif int(row[PATTERN]) != PLAIN:
        _paint_pattern(int(row[PATTERN]), x, y, z, row, e, c)
    px, py, pz = s[7], s[8], s[9]
    key = _visibility(px, py, pz, nx, ny, nz, frames[0], key_map, look.blur)
    sky = _visibility(px, py, pz, nx, ny, nz, frames[1], sky_map, 2.2)
    open_ = s[6]
    dot = nx * light[0, 0] + ny * light[0, 1] + nz * light[0, 2]
    distance = 1 / math.sqrt(px * px + py * py + (look.camera - pz) ** 2)
    vx, vy, vz = -px * distance, -py * distance, (look.camera - pz) * distance
    ndv = max(nx * vx + ny * vy + nz * vz, 0.12)
    hx, hy, hz = light[0, 0] + vx, light[0, 1] + vy, light[0, 2] + vz
    h = 1 / math.sqrt(hx * hx + hy * hy + hz * hz + 1e-9)
    ndh = max((nx * hx + ny * hy + nz * hz) * h, 0.0)
    if kind == HAIR:
        # a band of light across the strands: highlight from the tangent that runs down the head
        tangent = ny * h * hy
        ndh = math.sqrt(max(1 - (h * hy * (1 - ny * ny) - tangent * 0.6) ** 2, 0.0)) * 0.5 + ndh * 0.5
    shine = specular * _power(ndh, 2.5 * gloss) * max(dot, 0.0) * key * 1.3
    up = 0.5 + 0.5 * (nx * light[5, 0] + ny * light[5, 1] + nz * light[5, 2])
    rim = (1 - ndv) ** 3 * up
    soft = look.softness
    for k in range(3):
        wrap = 0.16 + 0.16 * soft
        lost = 0.93
        bounce = open_ * (0.45 + 0.55 * sky)
        if skin:
            wrap += 0.22 if k == 0 else (0.06 if k == 1 else 0.02)
            if k == 0:
                lost = 0.82
                bounce *= 1.2 - 0.2 * bounce
        diffuse = max((dot + wrap) / (1 + wrap), 0.0)
        direct = light[1, k] * diffuse * (1 - (1 - key) * lost) * (0.4 + 0.6 * open_)
        ambient = (light[3, k] + (light[2, k] - light[3, k]) * up) * bounce
        c[k] = c[k] * (direct + ambient) + light[1, k] * shine + rim * light[4, k] * open_ * sky
