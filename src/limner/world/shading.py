"""Light: how much of a painted point is seen, and the mean of the samples of a pixel."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from limner.world.paint import (
    B1,
    BEARD,
    FACE,
    G1,
    GLOSS,
    HAIR,
    KIND,
    PATTERN,
    PLAIN,
    R1,
    SKIN,
    SPECULAR,
    noise,
    paint_brow,
    paint_eye,
    paint_growth,
    paint_moles,
    paint_mouth,
    paint_pattern,
    paint_skin,
    step,
)
from limner.world.raster import ATTRIBUTES
from limner.world.shape import INLINE, JIT


@njit(**INLINE)
def _power(x, n):
    """x ** n on [0, 1] as a highlight needs it (Schlick, A fast alternative to Phong's specular model, 1994)."""
    return x / (n - n * x + x)


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
                seen += 1 - step(0.03, 0.14, w - shadow[b, a])
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
        paint_skin(x, y, z, f, look, c)
        paint_moles(x, y, z, moles, e, c)
        paint_growth(x, y, z, nx, f, look, c)
        specular += paint_mouth(x, y, z, f, look, e, c)
        specular *= paint_eye(x, y, z, f, look, e, c)
        paint_brow(x, y, z, f, look, e, c)
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
        paint_pattern(int(row[PATTERN]), x, y, z, row, e, c)
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
