"""Paint: what colour a point of a material has.

Materials are rows of a float64 table with the columns `KIND` … `GLOSS`; the painted features of the face (eyes, brows,
lips, nostrils, moles, freckles, stubble, lines of age) are laid on in head space.
"""

from __future__ import annotations

import math

from numba import njit

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
def lattice(a, b):
    """Value in [0, 1) of a lattice point; integer arithmetic, so that it is the same on every machine."""
    h = (int(a) * 374761393 + int(b) * 668265263) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF) * (1.0 / 65536)


@njit(**INLINE)
def step(a, b, x):
    """0 below a, 1 above b, smooth between; also for a > b, falling."""
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
    a = lattice(ix, iy)
    b = lattice(ix + 1, iy)
    c = lattice(ix, iy + 1)
    d = lattice(ix + 1, iy + 1)
    return a + (b - a) * fx + (c - a) * fy + (a - b - c + d) * fx * fy


@njit(**INLINE)
def _spot(q):
    """Soft spot: close to exp(-q), zero from q = 4 on, and cheap."""
    t = max(1 - 0.25 * q, 0.0)
    t *= t
    return t * t


@njit(**INLINE)
def _blend(c, r, g, b, w):
    c[0] += (r - c[0]) * w
    c[1] += (g - c[1]) * w
    c[2] += (b - c[2]) * w


@njit(**JIT)
def paint_skin(x, y, z, f, look, c):
    """Base tone, blush, mottling, freckles, moles, stubble and lines of age."""
    ax = abs(x)
    front = step(0.1, 0.35, z)
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
        du = u - iu - 0.34 - 0.32 * lattice(iu, iv)
        dv = v - iv - 0.34 - 0.32 * lattice(iu + 17, iv)
        size = 0.10 + 0.24 * lattice(iu, iv + 31)
        w = step(size + 0.16, size - 0.10, math.sqrt(du * du + dv * dv)) * look.freckles
        w *= step(0.35, 0.5, lattice(iu + 5, iv + 3))
        w *= min(1.0, 1.3 * math.exp(-((ax - 0.22) ** 2 / 0.06 + (y + 0.10) ** 2 / 0.03))) * front
        c[0] *= 1 - 0.35 * w
        c[1] *= 1 - 0.52 * w
        c[2] *= 1 - 0.58 * w
    # lines of age: forehead, crow's feet, nose to mouth, under the eyes
    if look.lines > 0:
        w = look.lines * front
        s = 0.14 * w * math.exp(-((((y - 0.47 + 0.03 * math.sin(5 * x)) * 17) % 1.0 - 0.5) ** 2) / 0.02)
        s *= step(0.34, 0.39, y) * step(0.62, 0.56, y) * step(0.36, 0.25, ax)
        fold = (ax - 0.085 - f.mouth_w * (1 + 0.1 * f.smile)) + 0.60 * (y - f.mouth_y - 0.02)
        s += (
            0.30
            * w
            * math.exp(-((fold / 0.022) ** 2))
            * step(f.mouth_y - 0.06, f.mouth_y + 0.03, y)
            * step(f.nose_tip_y + 0.06, f.nose_tip_y - 0.03, y)
        )
        bag = math.sqrt(((ax - f.eye_x) / 0.15) ** 2 + ((y - f.eye_y + 0.05) / 0.14) ** 2)
        s += 0.22 * w * math.exp(-(((bag - 1.0) / 0.12) ** 2)) * step(f.eye_y - 0.04, f.eye_y - 0.10, y)
        c[0] *= 1 - 0.75 * s
        c[1] *= 1 - 0.95 * s
        c[2] *= 1 - 0.95 * s


@njit(**JIT)
def paint_moles(x, y, z, moles, e, c):
    front = step(0.1, 0.3, z)
    for j in range(moles.shape[0]):
        r = moles[j, 2]
        w = 1 - step(r - e, r + e, math.sqrt((x - moles[j, 0]) ** 2 + (y - moles[j, 1]) ** 2))
        w *= front * min(1.0, r / (0.7 * e))
        c[0] *= 1 - 0.72 * w
        c[1] *= 1 - 0.82 * w
        c[2] *= 1 - 0.84 * w


@njit(**JIT)
def paint_mouth(x, y, z, f, look, e, c):
    """Nostrils, lips, teeth and the dark between them. Returns the specular factor and extra shine."""
    if z < 0.3 or abs(x) > f.mouth_w * 1.3 or y > f.nose_tip_y + 0.1 or y < f.mouth_y - 0.42:
        return 0.0
    an = abs(x - f.skew_nose)
    w = 1 - step(0.020, 0.046, math.sqrt((an - 0.060 * f.nose_w) ** 2 + ((y - f.nose_tip_y + 0.062) * 1.7) ** 2))
    w *= step(0.62, 0.70, z) * 0.72
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
        w = step(upper + e, upper - e, my) * step(lower - e, lower + e, my)
        _blend(c, look.lip_r, look.lip_g, look.lip_b, w)
        shine = 0.22 * w + 0.08 * w * (1.0 if my < 0 else 0.0)
        top = 0.012 * f.open
        bottom = -0.024 - f.open * 0.155 * full
        inside = step(top + e * 0.7, top - e * 0.7, my) * step(bottom - e * 0.7, bottom + e * 0.7, my)
        inside *= step(1.0, 0.93, abs(q))
        gum = -0.105 * (0.55 + 0.45 * full)
        teeth = step(gum - e * 0.5, gum + e * 0.5, my) * step(0.10, 0.28, f.open) * step(0.94, 0.78, abs(q))
        tongue = step(bottom + 0.055, bottom + 0.02, my) * step(0.3, 0.6, f.open) * step(0.7, 0.4, abs(q))
        r, g, b = 0.11 + 0.28 * tongue, 0.035 + 0.06 * tongue, 0.035 + 0.07 * tongue
        r, g, b = r + (0.82 - r) * teeth, g + (0.78 - g) * teeth, b + (0.70 - b) * teeth
        amount = inside * (0.62 if f.open < 0.05 else 1.0)
        _blend(c, r, g, b, amount)
        shine *= 1 - inside
    return shine


@njit(**JIT)
def paint_eye(x, y, z, f, look, e, c):
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
    crease = math.exp(-(((v - upper - lid) / 0.085) ** 2)) * step(1.15, 0.8, abs(u)) * (1 - 0.35 * f.eye_hood)
    c[0] *= 1 - 0.30 * crease
    c[1] *= 1 - 0.38 * crease
    c[2] *= 1 - 0.38 * crease
    shadow = (
        look.makeup
        * step(upper + 0.42, upper + 0.05, v)
        * step(upper - 0.05, upper + 0.02, v)
        * step(1.2, 0.85, abs(u))
    )
    _blend(c, 0.30 * c[0], 0.20 * c[1] + 0.02, 0.35 * c[2] + 0.03, 0.45 * shadow)
    hollow = math.exp(-(((v + 0.75) / 0.25) ** 2)) * step(1.1, 0.5, abs(u))
    c[0] *= 1 - 0.06 * hollow
    c[1] *= 1 - 0.10 * hollow
    c[2] *= 1 - 0.07 * hollow
    inside = (
        step(upper + e * 0.8, upper - e * 0.8, v) * step(lower - e * 0.8, lower + e * 0.8, v) * step(1.0, 0.97, abs(u))
    )
    if inside > 0:
        gx = u * side - 0.42 * f.gaze_x
        gy = v + f.eye_tilt * u - 0.24 * f.gaze_y - 0.09
        rr = math.sqrt(gx * gx + gy * gy)
        lit = 0.78 + 0.22 * step(upper, upper - 0.45, v)
        r, g, b = 0.80 * lit, 0.78 * lit, 0.76 * lit
        corner = step(0.62, 1.0, -u) * 0.5
        r, g, b = r, g * (1 - 0.35 * corner), b * (1 - 0.35 * corner)
        w = step(f.iris_r + e * 0.8, f.iris_r - e * 0.8, rr)
        rim = 1.0 - 0.60 * step(f.iris_r * 0.66, f.iris_r, rr)
        lift = (1.0 + 0.55 * step(0.15, -0.45, gy)) * lit
        r += (look.iris_r * rim * lift - r) * w
        g += (look.iris_g * rim * lift - g) * w
        b += (look.iris_b * rim * lift - b) * w
        w = step(f.iris_r * 0.44 + e * 0.7, f.iris_r * 0.44 - e * 0.7, rr)
        r, g, b = r * (1 - 0.95 * w), g * (1 - 0.95 * w), b * (1 - 0.95 * w)
        glint = 1 - step(0.10, 0.10 + e * 1.1, math.sqrt((gx - 0.15 * look.light_side) ** 2 + (gy - 0.18) ** 2))
        r, g, b = r + glint * 0.9, g + glint * 0.9, b + glint * 0.9
        _blend(c, r, g, b, inside)
    lash = 0.09 + 0.05 * look.makeup
    w = (1 - step(lash * 0.5, lash * 0.5 + e * 1.2, abs(v - upper - 0.03))) * step(1.12, 1.0, abs(u)) * 0.92
    _blend(c, 0.035, 0.022, 0.018, w)
    dull = (1 - inside) * (1 - w)
    w = (1 - step(0.01, 0.02 + e, abs(v - lower + 0.02))) * step(1.0, 0.8, abs(u)) * 0.35
    c[0] *= 1 - 0.6 * w
    c[1] *= 1 - 0.7 * w
    c[2] *= 1 - 0.7 * w
    return dull


@njit(**JIT)
def paint_brow(x, y, z, f, look, e, c):
    side = 1.0 if x > 0 else -1.0
    wide = f.eye_r * 1.02
    t = (abs(x) - f.eye_x + wide * 1.05 - f.brow_gap) / (wide * 2.35)
    if z < 0.25 or t < -0.1 or t > 1.1:
        return
    tc = min(max(t, 0.0), 1.0)
    at = f.eye_y + f.brow_y + (f.brow_raise * 0.07 + side * f.skew_brows) + f.brow_arch * (4 * tc * (1 - tc) * 0.055)
    at += f.brow_tilt * (tc - 0.4) - 0.10 * max(tc - 0.6, 0.0) - f.frown * 0.085 * (1 - tc) + 0.01
    thick = f.brow_t * (1.0 - 0.62 * tc)
    w = (1 - step(thick - e * 0.4, thick + e * 0.9 + 0.008, abs(y - at))) * step(-0.05, 0.07, t) * step(1.04, 0.9, t)
    w *= 0.80 + 0.16 * noise(x * 60 + y * 25, y * 18)
    _blend(c, look.brow_r, look.brow_g, look.brow_b, w)
    # frown lines between the brows
    w = (
        0.5
        * f.frown
        * math.exp(-(((abs(x) - 0.05) / 0.012) ** 2))
        * step(0.12, 0.2, y - f.eye_y)
        * step(0.36, 0.28, y - f.eye_y)
    )
    for i in range(3):
        c[i] *= 1 - w


@njit(**JIT)
def paint_growth(x, y, z, nx, f, look, c):
    """Stubble on the jaw and the shade of shaved or receding hair."""
    if look.stubble > 0:
        ax = abs(x)
        line = -0.34 + 0.42 * step(0.30, 0.66, ax)
        w = step(line + 0.06, line - 0.06, y) * step(-0.22, -0.06, z)
        lips = math.sqrt(
            (x / (f.mouth_w * 1.15)) ** 2 + ((y - f.mouth_y + 0.02 + f.open * 0.09) / (0.095 + f.open * 0.10)) ** 2
        )
        above = (
            step(f.mouth_w * 1.3, f.mouth_w * 1.1, ax)
            * step(0.20, 0.14, y - f.mouth_y)
            * step(0.02, 0.05, y - f.mouth_y)
        )
        w = max(w, above * step(0.3, 0.45, z)) * step(0.95, 1.15, lips)
        w *= look.stubble * (0.75 + 0.5 * noise(x * 40, y * 40))
        _blend(c, look.hair_r, look.hair_g, look.hair_b, min(w, 1.0))
    if look.shade > 0:
        line = 0.60 - 0.85 * step(0.42, -0.10, z - 0.15 * (y - 0.5))
        w = step(line - 0.05, line + 0.07, y) * look.shade
        _blend(c, look.hair_r, look.hair_g, look.hair_b, w)


@njit(**JIT)
def paint_pattern(pattern, x, y, z, m, e, c):
    """Patterns of cloth and headwear over the main colour `c`; trim colour from the material row `m`."""
    r, g, b = m[R2], m[G2], m[B2]
    ax = abs(x)
    if pattern == STRIPES:
        t = abs((y * 5.2) - math.floor(y * 5.2) - 0.5) * 2
        _blend(c, r, g, b, step(0.46 - e * 4, 0.46 + e * 4, t))
    elif pattern == BUTTONS:
        w = step(0.035 + e, 0.035 - e, ax) * step(-0.1, 0.0, z) * 0.18
        _blend(c, 0.0, 0.0, 0.0, w)
        t = y * 3.2 - math.floor(y * 3.2) - 0.5
        _blend(c, r, g, b, step(0.030 + e, 0.030 - e, math.sqrt(x * x + (t / 3.2) ** 2)) * step(-0.1, 0.0, z))
    elif pattern == LAPELS:
        if z > -0.3:
            down = max(-1.12 - y, 0.0)
            chest = step(0.30 * (1 - down * 0.95) + e, 0.30 * (1 - down * 0.95) - e, ax) * step(1.0, 0.9, down)
            _blend(c, 0.82, 0.82, 0.84, chest)
            tie = step(0.055 + 0.05 * down + e, 0.055 + 0.05 * down - e, ax) * step(0.02, 0.06, down)
            _blend(c, r, g, b, tie)
            edge = abs(ax - (0.46 - 0.40 * down))
            _blend(c, 0.0, 0.0, 0.0, 0.45 * step(0.012 + e, 0.0, edge) * (1 - chest) * step(0.05, 0.15, down))
    elif pattern == DOUBLE_BREASTED:
        if z > -0.3:
            _blend(c, 0.25, 0.25, 0.27, 0.35 * step(0.014 + e, 0.0, abs(x - 0.30)))
            t = y * 3.4 - math.floor(y * 3.4) - 0.5
            _blend(c, r, g, b, step(0.036 + e, 0.036 - e, math.sqrt((ax - 0.16) ** 2 + (t / 3.4) ** 2)))
    elif pattern == TRIM:
        if z > -0.3:
            edge = abs(ax - 0.20 - 0.25 * max(-1.2 - y, 0.0))
            _blend(c, r, g, b, step(0.055 + e, 0.055 - e, edge))
    elif pattern == V_NECK:
        if z > -0.3:
            down = max(-1.14 - y, 0.0)
            edge = ax - 0.26 * (1 - down * 2.2)
            _blend(c, r, g, b, step(0.045 + e, 0.045 - e, abs(edge)) * step(0.50, 0.42, down))
            pocket = max(abs(x - 0.55) - 0.16, abs(y + 1.78) - 0.13)
            _blend(c, c[0] * 0.7, c[1] * 0.7, c[2] * 0.7, step(0.016 + e, 0.0, abs(pocket)))
    elif pattern == UNIFORM:
        if z > -0.3:
            _blend(c, 0.0, 0.0, 0.0, 0.5 * step(0.016 + e, 0.0, ax))
            t = y * 3.2 - math.floor(y * 3.2) - 0.5
            _blend(c, r, g, b, step(0.032 + e, 0.032 - e, math.sqrt(x * x + (t / 3.2) ** 2)))
            _blend(c, r, g, b, step(0.10 + e, 0.10 - e, math.sqrt((x - 0.52) ** 2 + (y + 1.66) ** 2)))
        strap = (
            step(0.07 + e, 0.07 - e, abs(z + 0.22))
            * step(0.46, 0.50, ax)
            * step(1.02, 0.98, ax)
            * step(-1.62, -1.56, y)
        )
        _blend(c, r, g, b, 0.85 * strap)
    elif pattern == REFLECTIVE:
        t = abs(y + 1.66)
        _blend(c, 0.80, 0.72, 0.05, step(0.10 + e, 0.10 - e, t))
        _blend(c, 0.80, 0.80, 0.78, step(0.045 + e, 0.045 - e, t))
        s = abs(ax - 0.62)
        _blend(c, 0.80, 0.72, 0.05, step(0.07 + e, 0.07 - e, s) * step(-1.7, -1.6, y))
    elif pattern == STARS:
        a = math.atan2(x, z + 0.12)
        cx, cy = a * 2.2, (y - 0.62) * 4.2
        ix, iy = math.floor(cx), math.floor(cy)
        dx, dy = cx - ix - 0.5, cy - iy - 0.5
        if lattice(ix + 3, iy) > 0.30 and y > 0.62:
            angle = math.atan2(dx, dy)
            rr = math.sqrt(dx * dx + dy * dy)
            _blend(c, r, g, b, step(0.07 + 2 * e, -0.03, rr - 0.21 - 0.12 * math.cos(5 * angle)))
    elif pattern == CROSS:
        arm = max(min(ax, abs(y)) - 0.033, max(ax, abs(y)) - 0.10)
        _blend(c, r, g, b, step(e, -e, arm) * step(0.0, 0.05, z))
    elif pattern == BADGE:
        if z > 0.2:
            d = math.sqrt(x * x + (y - 0.84) ** 2)
            _blend(c, r, g, b, step(0.13 + e, 0.13 - e, d))
            _blend(c, c[0] * 0.5, c[1] * 0.5, c[2] * 0.5, step(0.02 + e, 0.0, abs(d - 0.075)))
    elif pattern == RIBS:
        a = math.atan2(x, z + 0.12)
        t = abs((a * 9) - math.floor(a * 9) - 0.5) * 2
        k = 0.72 + 0.28 * step(0.0, 0.7, t)
        c[0] *= k
        c[1] *= k
        c[2] *= k
    elif pattern == WOVEN:
        k = 0.90 + 0.20 * noise(math.atan2(x, z + 0.12) * 40, y * 50)
        c[0] *= k
        c[1] *= k
        c[2] *= k
