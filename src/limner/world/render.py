"""A sitter and a view → a picture with its exact truth.

The head is cut from a solid (`shape`), dressed with patches (`hair`, `wear`, `body`), rasterised with two samples a
pixel each way (`raster`), painted and lit (`shading`), set before a scene (`scenes`) and given a style (`styles`).
Deterministic: the same sitter, view and size give the same bytes in any process.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit

from limner.errors import ConfigError
from limner.world import body, hair, paint, raster, shading, shape, wear
from limner.world.factors import View
from limner.world.identity import Sitter, linear
from limner.world.patches import Array, Patch, smoothstep

SAMPLES = 2
MASKS = ("background", "skin", "clothes", "hair", "headwear", "eyewear", "facial_hair")
"""Names of the mask values, 0 first."""
MIN_SIZE, MAX_SIZE = 16, 2048
FACE_UNITS = 1.2
"""Chin to brow line in head units; what `View.face_height` measures."""
EMPTY = 1e9
PIVOT = np.asarray((0.0, -0.60, -0.20))

_FACE, _SKIN, _CLOTH, _CLOTH2, _HAIR, _BEARD, _HAT, _HAT2, _FRAME, _LENS = range(10)
_LAYERS = np.asarray((1, 1, 2, 2, 3, 6, 4, 4, 5, 5), np.uint8)


class Look(NamedTuple):
    """What the shader knows beyond geometry: colours of the features and a few dials."""

    lip_r: float
    lip_g: float
    lip_b: float
    iris_r: float
    iris_g: float
    iris_b: float
    brow_r: float
    brow_g: float
    brow_b: float
    hair_r: float
    hair_g: float
    hair_b: float
    freckles: float
    texture: float
    makeup: float
    lines: float
    stubble: float
    shade: float
    blur: float
    softness: float
    camera: float
    light_side: float


@dataclass(frozen=True)
class Picture:
    """A rendered picture and its truth. Pixel coordinates as in `limner.types`.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8, indices into `MASKS`.
        depth: (H, W) float32 distance from the camera in head units (about 12 cm), inf for the background.
        landmarks: (5, 2) float64 in the order of `limner.types.LANDMARKS`, on the surface of the skin.
        visible: (5,) bool, whether each landmark is seen: no hair, frame, lens or other part of the face before it.
        box: (x0, y0, x1, y1) of the face, forehead to chin.
    """

    image: Array
    mask: Array
    depth: Array
    landmarks: Array
    visible: Array
    box: tuple[float, float, float, float]
    sitter: Sitter
    view: View


def render(sitter: Sitter, view: View, size: int = 128) -> Picture:
    """Paints `sitter` as `view` says, on a square canvas of `size` pixels.

    Raises:
        ConfigError: `size` is no integer from 16 to 2048.
    """
    if not isinstance(size, (int, np.integer)) or isinstance(size, bool) or not MIN_SIZE <= size <= MAX_SIZE:
        raise ConfigError(f"The size is {size!r}; an integer from {MIN_SIZE} to {MAX_SIZE} is expected.")
    from limner.world.scenes import background
    from limner.world.styles import stylise

    form = _form(sitter, view)
    camera = _Camera(view, form, int(size))
    skin = shape.surface_radius(form)
    points = shape.star_points(skin)
    patches = _patches(sitter, view, form, skin, points)
    scene = background(view.scene, view.scene_seed, int(size))
    samples = _Samples(patches, camera)
    color, alpha = _shade(sitter, view, form, camera, samples, scene)
    image = _develop(color, alpha, scene, _CURVE)
    material = samples.material[::SAMPLES, ::SAMPLES]
    layers = np.where(material >= 0, _LAYERS[material], 0).astype(np.uint8)
    depth = samples.depth[::SAMPLES, ::SAMPLES]
    landmarks, distance = camera.project(_landmarks(form))
    box_points, _ = camera.project(_face_points(points))
    return Picture(
        image=stylise(image, layers, view.style, view.style_seed),
        mask=layers,
        depth=np.where(depth >= EMPTY, np.inf, depth).astype(np.float32),
        landmarks=landmarks,
        visible=_visible(landmarks, distance, samples),
        box=(*map(float, box_points.min(0)), *map(float, box_points.max(0))),  # type: ignore[arg-type]
        sitter=sitter,
        view=view,
    )


def _form(sitter: Sitter, view: View) -> shape.Form:
    """The sitter's geometry wearing the view's expression."""
    e = view.expression
    return sitter.form._replace(
        smile=e.smile, open=e.open, brow_raise=e.brow, frown=e.frown, blink=e.blink, gaze_x=e.gaze[0], gaze_y=e.gaze[1],
        mouth_w=sitter.form.mouth_w * (1 + 0.07 * e.smile),
    )  # fmt: skip


class _Camera:
    """Rotations of head and torso, perspective, and the shift that puts the eyes where the view wants them."""

    def __init__(self, view: View, form: shape.Form, size: int) -> None:
        self.size = size
        self.head = _rotation(view.yaw, view.pitch, view.roll)
        self.torso = _rotation(0.42 * view.yaw, 0.0, 0.12 * view.roll)
        half = 12.0 / view.focal
        self.distance = FACE_UNITS / (2 * view.face_height * half)
        self.zoom = size / 2 / half
        self.offset = np.zeros(2)
        eyes, _ = self.project(np.asarray([[0.0, form.eye_y, 0.62]]))
        self.offset = np.asarray(view.center) * size - eyes[0]

    def project(self, points: Array) -> tuple[Array, Array]:
        """Head-space points (N, 3) of the head → pixels (N, 2) and distances (N,)."""
        placed = (points - PIVOT) @ self.head.T + PIVOT
        far = np.maximum(self.distance - placed[:, 2], 0.05)
        across = self.zoom * placed[:, :2] / far[:, None] * (1, -1)
        return self.size / 2 + across + self.offset, far


def _rotation(yaw: float, pitch: float, roll: float) -> Array:
    """Head → camera: roll after yaw after pitch, signs as in `limner.types.Pose`."""
    y, p, r = np.deg2rad((yaw, pitch, roll))
    turn = np.asarray([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    nod = np.asarray([[1, 0, 0], [0, math.cos(p), math.sin(p)], [0, -math.sin(p), math.cos(p)]])
    lean = np.asarray([[math.cos(r), math.sin(r), 0], [-math.sin(r), math.cos(r), 0], [0, 0, 1]])
    return lean @ turn @ nod


def _patches(sitter: Sitter, view: View, form: shape.Form, skin: Array, points: Array) -> list[Patch]:
    """Everything that stands before the scene; `skin`, `points`: the head's radii and points."""
    normals = raster.normals_of(points)
    openness = shape.occlusion(points, normals, form)
    out = [Patch(points, _FACE, openness=openness, two_sided=False, normals=normals)]
    out.append(body.neck(form, sitter.sex, _SKIN))
    out += body.clothes(view.clothing, sitter.sex, form, _CLOTH, _CLOTH2, _SKIN)
    cut = hair.CUTS.get(view.hair.style)
    if cut is None or not cut.length:  # long hair falls over the ears
        out += body.ears(form, _SKIN)
    top = 1.02 * form.cranium_h
    rim = wear.RIM[view.headwear] if view.headwear != "none" else None
    if cut is not None:
        skull = shape.surface_radius(form, smooth=True)
        layer, cover = hair.hair_layer(skin, skull, cut, sitter.seed & 0xFFFF, rim)
        top = float(layer[..., 1].max())
        shade = 0.62 + 0.38 * smoothstep(0.2, 1.0, cover)
        out.append(Patch(layer, _HAIR, openness=shade, two_sided=False))
        hatted = rim is not None
        if cut.length:
            out.append(hair.curtain(cut, form, sitter.seed & 0xFFFF, _HAIR, hatted))
        out += hair.extras(cut, _HAIR, hatted, sitter.seed & 0xFFFF)
    if view.facial_hair not in ("none", "stubble"):
        layer = hair.beard_layer(points, skin, form, view.facial_hair, sitter.seed & 0xFFFF)
        out.append(Patch(layer, _BEARD, openness=0.3 + 0.7 * hair.thin(openness), two_sided=False))
    if view.headwear != "none":
        out += wear.headwear(view.headwear, form, _HAT, _HAT2, top)
    if view.eyewear != "none":
        out += wear.eyewear(view.eyewear == "sunglasses", view.eyewear_seed, form, _FRAME, _LENS)
    return out


class _Workspace(threading.local):
    """Buffers kept between pictures, one set a thread: fresh memory costs more than filling it."""

    def __init__(self) -> None:
        self.held: dict[str, Array] = {}

    def get(self, name: str, shape_: tuple[int, ...], dtype: type = np.float32, fill: float | None = None) -> Array:
        """A buffer with at least `shape_` rows; `fill` sets it."""
        held = self.held.get(name)
        if held is None or held.shape[1:] != shape_[1:] or held.shape[0] < shape_[0]:
            held = self.held[name] = np.empty(shape_, dtype)
        out = held[: shape_[0]]
        if fill is not None:
            out.fill(fill)
        return out


_WORKSPACE = _Workspace()
_NONE = np.empty((0, 0, 3))
_OPEN = np.ones((1, 1))


class _Samples:
    """The rasterised patches: sample buffers, and the vertices kept for the shadow maps."""

    def __init__(self, patches: list[Patch], camera: _Camera) -> None:
        sizes = [p.points.shape[0] * p.points.shape[1] for p in patches]
        first = np.r_[0, np.cumsum(sizes)]
        self.count = int(first[-1])
        self.shapes = np.asarray([(f, *p.points.shape[:2]) for f, p in zip(first, patches, strict=False)], np.int64)
        self.attributes = _WORKSPACE.get("attributes", (self.count, raster.ATTRIBUTES))
        screen = _WORKSPACE.get("screen", (self.count, 3))
        view = np.asarray((camera.distance, camera.zoom, *camera.offset, camera.size / 2)) * (1, *[SAMPLES] * 4)
        for patch, at in zip(patches, first, strict=False):
            raster.emit(
                patch.points, patch.points if patch.rest is None else patch.rest,
                _NONE if patch.normals is None else patch.normals,
                _OPEN if patch.openness is None else np.asarray(patch.openness, float),
                np.atleast_1d(np.asarray(patch.sway, float)), camera.head, camera.torso, PIVOT, view, at, screen,
                self.attributes,
            )  # fmt: skip
        n = camera.size * SAMPLES
        self.depth = _WORKSPACE.get("depth", (n, n), fill=EMPTY)
        self.material = _WORKSPACE.get("material", (n, n), np.int16, fill=-1)
        self.buffer = _WORKSPACE.get("buffer", (n, n, raster.ATTRIBUTES))
        materials = np.asarray([p.material for p in patches], np.int16)
        two_sided = np.asarray([p.two_sided for p in patches])
        raster.rasterise(
            screen, self.attributes, self.shapes, materials, two_sided, self.depth, self.material, self.buffer
        )

    def light_map(self, towards: Array, texels: int, name: str) -> tuple[Array, Array]:
        """Depth map seen from `towards` the light, and its (4, 3) frame: axes, offsets and texels a unit."""
        w = towards / np.linalg.norm(towards)
        u = np.cross((0, 1, 0) if abs(w[1]) < 0.9 else (0, 0, 1), w)
        u /= np.linalg.norm(u)
        flat = _WORKSPACE.get("flat", (self.count, 3))
        frame = np.empty((4, 3))
        raster.light_view(self.attributes, self.count, np.stack([u, np.cross(w, u), w]), texels, flat, frame)
        depth = _WORKSPACE.get(name, (texels, texels), fill=EMPTY)
        raster.depth_map(flat, self.shapes, 3, depth)
        return depth, frame


def _shade(
    sitter: Sitter, view: View, form: shape.Form, camera: _Camera, samples: _Samples, scene: Array
) -> tuple[Array, Array]:
    """Linear colour (H, W, 3) premultiplied by coverage (H, W)."""
    light = _light(view, scene)
    key_map, key_frame = samples.light_map(light[0], 96, "key")
    sky_map, sky_frame = samples.light_map(np.asarray((0.0, 0.85, 0.55)), 56, "sky")
    color = np.zeros((camera.size, camera.size, 3))
    alpha = np.zeros((camera.size, camera.size))
    shading.shade(
        samples.depth, samples.material, samples.buffer, _materials(sitter, view),
        np.asarray(sitter.moles, float).reshape(-1, 3), form, _look(sitter, view, camera, light), light,
        sky_map, key_map, np.stack([key_frame, sky_frame]), 0.5 / camera.zoom / SAMPLES, color, alpha, SAMPLES,
    )  # fmt: skip
    return color, alpha


def _light(view: View, scene: Array) -> Array:
    """(6, 3): direction to the key, key colour, ambient from above and below, rim, up."""
    a, e = np.deg2rad((view.light.azimuth, view.light.elevation))
    towards = (math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e))
    few = scene[:: max(scene.shape[0] // 32, 1), :: max(scene.shape[1] // 32, 1)].astype(float)
    half = few.shape[0] // 2
    sky, ground = few[:half].mean((0, 1)), few[half:].mean((0, 1))

    def tint(c: Array) -> Array:
        return 0.45 + 0.55 * c / max(float(c.mean()), 0.02)

    ambient = view.light.ambient
    return np.stack(
        [
            np.asarray(towards),
            np.asarray(view.light.color) * view.light.strength,
            ambient * np.clip(tint(sky), 0.3, 1.9) * (0.96, 1.0, 1.06),
            0.42 * ambient * np.clip(tint(ground), 0.3, 1.9) * (1.05, 0.95, 0.88),
            0.25 * sky + 0.06,
            np.asarray((0.0, 1.0, 0.0)),
        ]
    )


def _look(sitter: Sitter, view: View, camera: _Camera, light: Array) -> Look:
    lipstick = np.asarray((0.42, 0.03, 0.06)) * (0.5 + 0.5 * sitter.skin_color[0])
    lip = np.asarray(sitter.lip_color) * (1 - 0.75 * view.makeup) + 0.75 * view.makeup * lipstick
    lip_r, lip_g, lip_b = (float(v) for v in lip)
    iris_r, iris_g, iris_b = sitter.iris_color
    brow_r, brow_g, brow_b = sitter.brow_color
    hair_r, hair_g, hair_b = view.hair.color
    return Look(
        lip_r, lip_g, lip_b, iris_r, iris_g, iris_b, brow_r, brow_g, brow_b, hair_r, hair_g, hair_b,
        freckles=sitter.freckles,
        texture=sitter.texture_seed,
        makeup=view.makeup,
        lines=max(0.0, (sitter.age - 38) / 40),
        stubble=0.55 if view.facial_hair == "stubble" else 0.0,
        shade=0.55 if view.hair.style == "shaved" else 0.0,
        blur=0.5 + 1.6 * view.light.softness,
        softness=view.light.softness,
        camera=camera.distance,
        light_side=1.0 if light[0, 0] >= 0 else -1.0,
    )  # fmt: skip


_HAT_COLORS = {
    "chef": ("f6f4ee", "f6f4ee"), "nurse": ("f7f7f7", "c81e2b"), "police": ("1b2a52", "0b0e18"),
    "crown": ("e2ad2f", "b8162c"), "wizard": (None, "e0b23a"), "firefighter": (None, "e8e0c8"), "cap": (None, None),
    "headphones": (None, "2a2c30"), "beanie": (None, None), "hat": (None, "241a14"),
}  # fmt: skip
_HAT_PATTERNS = {
    "wizard": paint.STARS, "nurse": paint.CROSS, "police": paint.BADGE, "beanie": paint.RIBS,
    "hat": paint.WOVEN,
}  # fmt: skip
_CLOTH_PATTERNS = {
    "striped": paint.STRIPES, "shirt": paint.BUTTONS, "suit": paint.LAPELS, "chef": paint.DOUBLE_BREASTED,
    "robe": paint.TRIM, "scrubs": paint.V_NECK, "police": paint.UNIFORM, "firefighter": paint.REFLECTIVE,
}  # fmt: skip
_CLOTH_COLORS = {
    "chef": ("f4f2ec", "30323a"), "police": ("24365f", "e0b23a"), "firefighter": ("33302b", "4a4640"),
    "robe": (None, "e0b23a"),
}  # fmt: skip


def _materials(sitter: Sitter, view: View) -> Array:
    """(10, MATERIAL_COLUMNS) table in the order of the material indices above."""
    cloth, cloth2 = _colors(_CLOTH_COLORS.get(view.clothing, (None, None)), view.cloth_colors)
    if view.clothing in ("tshirt", "hoodie", "turtleneck", "shirt"):
        cloth2 = cloth if view.clothing != "shirt" else np.asarray((0.8, 0.8, 0.78))
    dim = np.asarray(view.headwear_color) * 0.55
    hat, hat2 = _colors(_HAT_COLORS.get(view.headwear, (None, None)), (view.headwear_color, tuple(dim)))
    collar = np.asarray((0.82, 0.82, 0.84)) if view.clothing == "suit" else cloth2
    rng = np.random.Generator(np.random.Philox(key=[view.eyewear_seed, 0x6C]))
    frame = np.asarray(linear(str(rng.choice(("101012", "101012", "3a2114", "6e1f22", "8a8c90", "b08a3c", "20304f")))))
    shiny = 0.5 if view.headwear in ("crown", "firefighter", "headphones") else 0.05
    hat_pattern = _HAT_PATTERNS.get(view.headwear, paint.PLAIN)
    hat2_pattern = paint.RIBS if view.headwear == "beanie" else paint.PLAIN
    cloth_pattern = _CLOTH_PATTERNS.get(view.clothing, paint.PLAIN)
    rows = (
        (paint.FACE, sitter.skin_color, (0, 0, 0), paint.PLAIN, 0.15, 14.0),
        (paint.SKIN, sitter.skin_color, (0, 0, 0), paint.PLAIN, 0.08, 12.0),
        (paint.CLOTH, cloth, cloth2, cloth_pattern, 0.03, 8.0),
        (paint.CLOTH, collar, cloth, paint.PLAIN, 0.03, 8.0),
        (paint.HAIR, view.hair.color, (0, 0, 0), paint.PLAIN, 0.16, 14.0),
        (paint.BEARD, np.asarray(view.hair.color) * 0.9, (0, 0, 0), paint.PLAIN, 0.05, 8.0),
        (paint.SOLID, hat, hat2, hat_pattern, shiny, 24.0 if shiny > 0.1 else 9.0),
        (paint.SOLID, hat2, hat, hat2_pattern, max(shiny, 0.10), 20.0),
        (paint.SOLID, frame, frame, paint.PLAIN, 0.6, 40.0),
        (paint.LENS, (0.010, 0.010, 0.013), (0, 0, 0), paint.PLAIN, 0.5, 120.0),
    )
    table = np.asarray([(kind, *a, *b, pattern, s, g) for kind, a, b, pattern, s, g in rows], float)
    if view.headwear == "police":
        table[_HAT, paint.R2 : paint.B2 + 1] = linear("e0b23a")  # the badge, not the visor
    return table


def _colors(fixed: tuple[str | None, str | None], free: tuple) -> tuple[Array, Array]:
    """Main and second colour: what the kind fixes, else what the view says."""
    main, second = (np.asarray(linear(c) if c else f, float) for c, f in zip(fixed, free, strict=True))
    return main, second


_LINEAR = 1.05 * np.linspace(0, 3, 4096) ** 2
_CURVE = np.clip(255 * (_LINEAR / (1 + 0.18 * _LINEAR**2)) ** 0.4545 + 0.5, 0, 255)
"""sRGB with a soft shoulder, by square root of linear light over [0, 3]."""


@njit(**shape.JIT)
def _develop(color, alpha, scene, curve):
    """Linear light over the scene → (H, W, 3) uint8 sRGB."""
    out = np.empty(color.shape, np.uint8)
    for y in range(color.shape[0]):
        for x in range(color.shape[1]):
            for k in range(3):
                v = color[y, x, k] + (1 - alpha[y, x]) * scene[y, x, k]
                at = math.sqrt(min(max(v, 0.0), 9.0)) * (4095 / 3)
                out[y, x, k] = np.uint8(curve[int(at)])
    return out


@njit(**shape.JIT)
def _front(x, y, f):
    """Height z of the skin above (x, y), from the front."""
    z = 1.3
    for _ in range(60):
        d = shape.skin_distance(x, y, z, f)
        if d < 1e-3:
            break
        z -= 0.9 * d
    return z


def _landmarks(f: shape.Form) -> Array:
    """(5, 3) head-space landmarks on the skin."""
    lift = f.mouth_y + shape.SMILE_LIFT * f.smile - 0.02 * f.smile
    flat = np.asarray(
        [
            (-f.eye_x, f.eye_y - f.skew_eyes),
            (f.eye_x, f.eye_y + f.skew_eyes),
            (f.skew_nose, f.nose_tip_y),
            (-0.97 * f.mouth_w, lift - f.skew_mouth),
            (0.97 * f.mouth_w, lift + f.skew_mouth),
        ]
    )
    return np.asarray([(x, y, _front(x, y, f)) for x, y in flat])


def _face_points(points: Array) -> Array:
    """(N, 3) skin points that span the face: forehead to chin, cheek to cheek."""
    p = points[::3, ::3].reshape(-1, 3)
    return p[(p[:, 2] > 0.12) & (p[:, 1] < 0.60) & (np.abs(p[:, 0]) < 0.62)]


def _visible(landmarks: Array, distance: Array, samples: _Samples) -> Array:
    """(5,) whether each landmark lies on the canvas, on skin, and on the skin that is seen there."""
    at = np.floor(landmarks * SAMPLES).astype(int)
    n = samples.depth.shape[0]
    inside = ((at >= 0) & (at < n)).all(1)
    x, y = np.clip(at, 0, n - 1).T
    return inside & (samples.material[y, x] == _FACE) & (samples.depth[y, x] > distance - 0.08)
