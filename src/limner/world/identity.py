"""A sitter: one synthetic person, made from a seed and for ever the same.

Everything a person carries is drawn here: bone and flesh (`Form`), skin, eyes, lips, moles and freckles, the hair and
beard they usually wear, whether they wear glasses. Nothing here knows of pictures.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from limner.errors import ConfigError
from limner.world.factors import Color, Hair
from limner.world.shape import Form

MAX_SEED = 2**31
WORLD_VERSION = 1
"""Raised whenever the same seed would give another picture; part of every manifest and identity."""

SKIN_TONES = ("f7dccb", "f0c6a8", "e2ae86", "cd9468", "ad7248", "865437", "5f3a26", "41281b")
"""sRGB anchors of the tone axis, lightest first; tones between them are interpolated."""
HAIR_COLORS = {
    "black": "17120f", "dark brown": "2c1c13", "brown": "4d2f1b", "light brown": "7c5330", "auburn": "6b2a16",
    "red": "a4431a", "blond": "c79a55", "platinum": "e3cf9e", "grey": "8b8885", "white": "dcdad6",
}  # fmt: skip
IRIS_COLORS = {
    "dark brown": "35200f", "brown": "5d3c1e", "hazel": "70652f", "green": "44763f", "blue": "3d74ab",
    "light blue": "7fa5c0", "grey": "5c656d",
}  # fmt: skip
WOMEN_HAIR = ("bob", "bob_fringe", "long", "wavy", "bun", "ponytail", "curly", "fringe", "short")
MEN_HAIR = ("short", "side", "quiff", "fringe", "shaved", "receding", "curly", "wavy", "short", "side")
MEN_BEARDS = ("none", "stubble", "moustache", "goatee", "beard", "full_beard")
PERSONAL = Form._fields[: Form._fields.index("smile")]
"""The fields of `Form` that belong to the person."""


def linear(code: str) -> Color:
    """sRGB hex code → linear RGB."""
    r, g, b = (((int(code[i : i + 2], 16) / 255) + 0.0) ** 2.2 for i in (0, 2, 4))
    return (r, g, b)


@dataclass(frozen=True)
class Sitter:
    """One person. Colours are linear RGB.

    Attributes:
        seed: the person's number.
        sex: "woman" or "man"; a factor of the geometry, not more.
        age: years, 18 to 85.
        form: geometry with a neutral expression.
        skin: tone in [0, 1], 0 lightest; `skin_color` its colour with undertone.
        iris_name, iris_color, lip_color, brow_color: colours of the features.
        hair, facial_hair, glasses: what the person usually wears; `glasses_seed` gives the frame.
        moles: (x, y, radius) in head space, seen from the front.
        freckles: strength in [0, 1], 0 for most.
        texture_seed: pattern of freckles and skin mottling.
    """

    seed: int
    sex: str
    age: float
    form: Form
    skin: float
    skin_color: Color
    iris_name: str
    iris_color: Color
    lip_color: Color
    brow_color: Color
    hair: Hair
    facial_hair: str
    glasses: bool
    glasses_seed: int
    moles: tuple[tuple[float, float, float], ...]
    freckles: float
    texture_seed: float

    @cached_property
    def vector(self) -> np.ndarray:
        """(D,) float32 identity vector: geometry in units of its spread, then albedo. For truth, not for training."""
        geometry = [(getattr(self.form, k) - getattr(_MEAN, k)) / _SPREAD[k] for k in PERSONAL]
        albedo = [self.skin, *self.skin_color, *self.iris_color, *self.lip_color, self.freckles, (self.age - 45) / 20]
        moles = [v for m in (*self.moles, *[(0.0, 0.0, 0.0)] * 4)[:4] for v in m]
        return np.asarray(geometry + albedo + moles, np.float32)

    def digest(self) -> str:
        """sha256 (hex) of the identity vector and world version."""
        return hashlib.sha256(self.vector.tobytes() + bytes([WORLD_VERSION])).hexdigest()


_MEAN = Form()
_SPREAD = {
    "cranium_w": 0.045, "cranium_h": 0.04, "cranium_d": 0.035, "forehead_z": 0.035, "face_w": 0.06, "face_h": 0.045,
    "jaw_w": 0.18, "jaw_y": 0.045, "jaw_d": 0.07, "chin_w": 0.20, "chin_y": 0.055, "chin_z": 0.045, "chin_cleft": 0.008,
    "cheek_w": 0.08, "cheek_z": 0.16, "fullness": 0.45, "brow_ridge": 0.015, "eye_x": 0.016, "eye_y": 0.015,
    "eye_r": 0.015, "eye_depth": 0.012, "eye_open": 0.12, "eye_tilt": 0.12, "eye_hood": 0.3, "iris_r": 0.03,
    "nose_len": 0.032, "nose_w": 0.23, "nose_bridge": 0.03, "nose_bridge_w": 0.18, "nose_tip_y": 0.022,
    "nose_tip_r": 0.14, "nose_hook": 0.018, "mouth_w": 0.019, "mouth_y": 0.015, "mouth_z": 0.022, "lip_upper": 0.014,
    "lip_lower": 0.014, "ear_r": 0.12, "ear_out": 0.4, "ear_y": 0.03, "neck_r": 0.07, "brow_y": 0.022, "brow_t": 0.011,
    "brow_arch": 0.6, "brow_tilt": 0.06, "brow_gap": 0.03, "skew_eyes": 0.008, "skew_brows": 0.012, "skew_nose": 0.012,
    "skew_mouth": 0.006, "skew_jaw": 0.025, "sag": 0.15,
}  # fmt: skip
_WOMAN = {
    "face_w": -0.02, "jaw_w": -0.12, "jaw_d": -0.02, "chin_w": -0.11, "chin_y": -0.025, "chin_z": -0.012,
    "cheek_z": 0.05, "brow_ridge": -0.016, "eye_r": 0.009, "eye_open": 0.05, "nose_w": -0.11, "nose_len": -0.006,
    "lip_upper": 0.006, "lip_lower": 0.006, "ear_r": -0.04, "neck_r": -0.10, "brow_y": 0.012, "brow_t": -0.007,
    "brow_arch": 0.45,
}  # fmt: skip
"""Mean shift of a woman from the midpoint; a man's is the opposite."""


@lru_cache(maxsize=4096)
def sitter(seed: int) -> Sitter:
    """The person of this seed.

    Raises:
        ConfigError: the seed is negative, 2**31 or more, or no integer.
    """
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < MAX_SEED:
        raise ConfigError(f"A sitter's seed is {seed!r}; an integer from 0 to {MAX_SEED - 1} is expected.")
    rng = np.random.Generator(np.random.Philox(key=[int(seed), 0x51D]))
    sex = "woman" if rng.random() < 0.5 else "man"
    age = float(np.clip(18 + 67 * rng.beta(1.3, 1.9), 18, 85))
    skin = float(rng.random())
    iris_name = _pick(rng, _iris_weights(skin))
    hair = Hair(_hair_style(rng, sex, age, skin), *_hair_color(rng, age, skin))
    form = _form(rng, sex, age, skin)
    skin_color = _skin_color(rng, skin)
    iris = np.asarray(linear(IRIS_COLORS[iris_name])) * 1.3 * np.exp(rng.normal(0, 0.12, 3))
    return Sitter(
        seed=int(seed),
        sex=sex,
        age=age,
        form=form,
        skin=skin,
        skin_color=skin_color,
        iris_name=iris_name,
        iris_color=_color(iris),
        lip_color=_lip_color(rng, skin_color, sex),
        brow_color=_color(np.asarray(hair.color) * (0.5 if age < 60 else 0.75) * float(rng.uniform(0.8, 1.1))),
        hair=hair,
        facial_hair=str(rng.choice(MEN_BEARDS, p=(0.36, 0.2, 0.08, 0.1, 0.14, 0.12))) if sex == "man" else "none",
        glasses=bool(rng.random() < 0.15 + 0.2 * (age > 50)),
        glasses_seed=int(rng.integers(1 << 16)),
        moles=_moles(rng),
        freckles=float(rng.uniform(0.4, 1.0)) if rng.random() < 0.28 * (1 - skin) + 0.03 else 0.0,
        texture_seed=float(rng.uniform(0, 97)),
    )


def lookalike(person: Sitter, seed: int) -> Sitter:
    """Somebody with the same colouring, hair, age and glasses as `person`, but other bones, moles and freckles.

    The hard set of the benchmark: only the face itself tells the two apart.
    """
    other = sitter(seed)
    rng = np.random.Generator(np.random.Philox(key=[int(seed), 0x2B]))
    form = _form(rng, person.sex, person.age, person.skin)
    return replace(person, seed=other.seed, form=form, moles=other.moles, texture_seed=other.texture_seed)


def _form(rng: np.random.Generator, sex: str, age: float, skin: float) -> Form:
    """Geometry: a wide normal around the mean of sex, age and ancestry-like tone, cut at 2.3 spreads."""
    side = 1.0 if sex == "woman" else -1.0
    old = max(age - 45, 0) / 40
    z = {k: float(np.clip(rng.normal(), -2.3, 2.3)) for k in PERSONAL}
    v = {k: getattr(_MEAN, k) + side * _WOMAN.get(k, 0.0) + _SPREAD[k] * z[k] for k in PERSONAL}
    v["nose_w"] += 0.22 * (skin - 0.4)
    v["lip_upper"] += 0.011 * (skin - 0.4) - 0.010 * old
    v["lip_lower"] += 0.011 * (skin - 0.4) - 0.008 * old
    v["ear_r"] += 0.12 * old
    v["nose_tip_y"] -= 0.02 * old
    v["brow_y"] -= 0.01 * old
    v["eye_open"] -= 0.10 * old
    v["sag"] = max(0.0, v["sag"] + 0.9 * old)
    v["fullness"] = float(np.clip(v["fullness"], -0.5, 1.2))
    v["neck_r"] += 0.05 * v["fullness"]
    v["eye_hood"] = float(np.clip(v["eye_hood"] + 0.4 * old, 0, 1))
    v["chin_cleft"] = max(0.0, v["chin_cleft"] - 0.006) if sex == "man" else 0.0
    v["nose_hook"] = float(np.clip(v["nose_hook"], -0.022, 0.04))
    v["ear_out"] = float(np.clip(v["ear_out"], 0.05, 1.3))
    v["lip_upper"] = max(v["lip_upper"], 0.016)
    v["lip_lower"] = max(v["lip_lower"], 0.022)
    v["brow_t"] = max(v["brow_t"], 0.013)
    v["eye_open"] = float(np.clip(v["eye_open"], 0.55, 1.06))
    v["nose_len"] = float(np.clip(v["nose_len"], 0.05, 0.19))
    v["nose_w"] = float(np.clip(v["nose_w"], 0.62, 1.6))
    return Form(**v)


def _skin_color(rng: np.random.Generator, tone: float) -> Color:
    anchors = np.asarray([linear(c) for c in SKIN_TONES])
    at = tone * (len(anchors) - 1)
    base = np.asarray([np.interp(at, range(len(anchors)), anchors[:, c]) for c in range(3)])
    warmth, blood = rng.normal(0, 0.045), rng.normal(0, 0.04)
    return _color(base * (1 + np.asarray([0.3 * blood, -blood, -warmth - 0.5 * blood])))


def _lip_color(rng: np.random.Generator, skin: Color, sex: str) -> Color:
    base = np.asarray(skin) * (0.86, 0.54, 0.52)
    deep = np.asarray([0.50, 0.09, 0.10]) * (0.4 + 0.7 * skin[0])
    amount = rng.uniform(0.05, 0.5) if sex == "woman" else rng.uniform(0, 0.25)
    return _color(base + (deep - base) * amount)


def _iris_weights(skin: float) -> dict[str, float]:
    light = max(0.0, 1 - 1.9 * skin)
    return {
        "dark brown": 0.25 + 0.7 * skin, "brown": 0.45, "hazel": 0.05 + 0.2 * light, "green": 0.22 * light,
        "blue": 0.45 * light, "light blue": 0.25 * light, "grey": 0.15 * light,
    }  # fmt: skip


def _hair_color(rng: np.random.Generator, age: float, skin: float) -> tuple[Color, str]:
    light = max(0.0, 1 - 1.8 * skin)
    weights = {
        "black": 0.3 + 0.9 * skin, "dark brown": 0.5, "brown": 0.15 + 0.4 * light, "light brown": 0.4 * light,
        "auburn": 0.05 + 0.15 * light, "red": 0.22 * light, "blond": 0.4 * light, "platinum": 0.1 * light,
        "grey": 4.0 * max(0.0, (age - 48) / 37), "white": 3.0 * max(0.0, (age - 60) / 25),
    }  # fmt: skip
    name = _pick(rng, weights)
    return _color(np.asarray(linear(HAIR_COLORS[name])) * np.exp(rng.normal(0, 0.10, 3))), name


def _hair_style(rng: np.random.Generator, sex: str, age: float, skin: float) -> str:
    styles = WOMEN_HAIR if sex == "woman" else MEN_HAIR
    if skin > 0.55 and rng.random() < 0.4:
        return str(rng.choice(("afro", "curly", "shaved") if sex == "man" else ("afro", "curly", "bun")))
    if sex == "man" and age > 50 and rng.random() < 0.45:
        return str(rng.choice(("receding", "shaved")))
    return str(rng.choice(styles))


def _moles(rng: np.random.Generator) -> tuple[tuple[float, float, float], ...]:
    moles = []
    for _ in range(int(rng.choice(5, p=(0.3, 0.3, 0.2, 0.12, 0.08)))):
        x = float(rng.uniform(-0.45, 0.45))
        y = float(rng.choice((rng.uniform(-0.34, -0.10), rng.uniform(-0.68, -0.55), rng.uniform(0.36, 0.52))))
        if abs(x) > 0.12 or y < -0.5 or y > 0.3:
            moles.append((x, y, float(rng.uniform(0.016, 0.032))))
    return tuple(moles)


def _pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
    p = np.asarray(list(weights.values()))
    return str(rng.choice(list(weights), p=p / p.sum()))


def _color(values: np.ndarray) -> Color:
    r, g, b = (float(v) for v in np.clip(values, 0, 1))
    return (r, g, b)
