"""Views drawn at random: what a photographer, a wardrobe and the weather decide.

A view depends on its seed alone, not on the sitter, except for what a person carries: hair, beard and glasses. Each
aspect has its own random stream, so that fixing one leaves the others as they were.
"""

from __future__ import annotations

import dataclasses
import math
from random import Random
from typing import Any

from limner.errors import ConfigError
from limner.world import colors, scenes
from limner.world.factors import (
    EYEWEAR,
    FACIAL_HAIR,
    SCENES,
    STYLES,
    Expression,
    Hair,
    Light,
    View,
)
from limner.world.identity import HAIR_COLORS, MEN_HAIR, WOMEN_HAIR, Sitter
from limner.world.labels import EYE_TURN, FACE_UNITS, collar
from limner.world.seeds import stream

HELD_OUT = (
    ("chef", "beach"), ("wizard", "kitchen"), ("nurse", "space"), ("police", "library"), ("firefighter", "snow"),
    ("crown", "desert"), ("hat", "stage"), ("beanie", "garden"),
    ("oil", "kitchen"), ("watercolor", "space"), ("pencil", "beach"), ("fauvism", "library"), ("comic", "forest"),
    ("pointillism", "street"), ("charcoal", "garden"), ("sepia", "desert"),
)  # fmt: skip
"""(headwear or style, scene) pairs that training never shows, though it shows both halves with other partners."""
COMBINATIONS = ("seen", "unseen", "any")
UNIFORMS = {
    "chef": "chef", "wizard": "robe", "nurse": "scrubs", "police": "police", "firefighter": "firefighter",
    "crown": "robe",
}  # fmt: skip
"""Clothing that belongs to a headwear."""
OWN_HAIR, OWN_BEARD, OWN_GLASSES = 0.7, 0.7, 0.75
"""Shares of pictures in which a person wears what they usually wear."""
FRAME_ABOVE = {
    "none": 0.85, "chef": 1.72, "wizard": 2.1, "nurse": 1.5, "police": 1.2, "firefighter": 1.35, "crown": 1.3,
    "cap": 1.2, "headphones": 1.15, "beanie": 1.5, "hat": 1.35,
}  # fmt: skip
"""Head units that must fit between the eyes and the upper edge."""
FRAME_BELOW = 1.0
"""Head units between the eyes and the lower edge of a close-up, down to the chin; others show the collar."""
BUST = 2.45
"""Head units below the eyes where the body ends, which the lower edge must hide."""
_HEADWEAR = {
    "chef": 5, "wizard": 5, "nurse": 4, "police": 4, "firefighter": 4, "crown": 3, "cap": 3, "headphones": 3,
    "beanie": 3, "hat": 5,
}  # fmt: skip
_EVERYDAY = {"tshirt": 4, "striped": 3, "turtleneck": 3, "shirt": 3, "suit": 3, "scoop": 1, "hoodie": 3}
_GARMENT_COLORS = {
    "suit": ("black", "grey", "navy", "brown", "blue", "beige", "green", "white"),
    "robe": ("purple", "blue", "navy", "black", "red", "green", "brown"),
    "scrubs": ("blue", "green", "pink", "white", "navy", "purple"),
    "chef": ("white",),
    "police": ("navy",),
    "firefighter": ("black",),
}
_HEADWEAR_COLORS = {
    "wizard": ("purple", "blue", "navy", "black", "red", "green"),
    "firefighter": ("red", "yellow", "black", "white"),
    "chef": ("white",),
    "nurse": ("white",),
    "police": ("navy",),
    "crown": ("yellow",),
}
_FIELDS = {f.name for f in dataclasses.fields(View)}


def sample_view(sitter: Sitter, seed: int, combinations: str = "seen", **fixed: Any) -> View:
    """A view of `sitter`.

    Args:
        sitter: whose hair, beard and glasses may appear.
        seed: decides everything else.
        combinations: "seen" avoids the pairs of `HELD_OUT`, "unseen" always shows one of them, "any" does not care.
        fixed: fields of `View` with given values; what is fixed is kept even if it makes a held-out pair.

    Raises:
        ConfigError: unknown field or `combinations`, or a value out of range.
    """
    if combinations not in COMBINATIONS:
        raise ConfigError(f"combinations is {combinations!r}; allowed: {', '.join(COMBINATIONS)}.")
    unknown = sorted(set(fixed) - _FIELDS)
    if unknown:
        raise ConfigError(f"View has no field {unknown[0]!r}; it has: {', '.join(sorted(_FIELDS))}.")

    def random(aspect: str) -> Random:
        return stream("view", seed, aspect)

    v: dict[str, Any] = dict(fixed)
    _wear(v, random, sitter.sex)
    _place(v, random("scene"), combinations)
    v.setdefault("scene_seed", random("background").getrandbits(31))
    v.setdefault("style_seed", random("grain").getrandbits(31))
    v.setdefault("light", _light(v["scene"], v["scene_seed"], random("light")))
    v.setdefault("facial_hair", _facial_hair(sitter, random("beard")))
    v.setdefault("hair", _hair(sitter, v["facial_hair"] in ("none", "stubble"), random("hair")))
    _eyewear(v, sitter, random("eyewear"))
    _pose(v, random("pose"))
    v.setdefault("expression", _expression(v["yaw"], v["pitch"], random("expression")))
    _frame(v, random("frame"))
    r = random("makeup")
    chance, amount = r.random(), r.random()
    share = 0.25 if sitter.sex == "woman" else 0.02
    v.setdefault("makeup", 0.5 + 0.5 * amount if chance < share else 0.3 * amount if chance < 2 * share else 0.0)
    return View(**v)


def own_wear(sitter: Sitter) -> dict[str, Any]:
    """The fields of a view in which the sitter looks as usual: own hair, beard, glasses."""
    return {
        "hair": sitter.hair,
        "facial_hair": sitter.facial_hair,
        "eyewear": "glasses" if sitter.glasses else "none",
        "eyewear_seed": sitter.glasses_seed,
    }


def _wear(v: dict[str, Any], random: Any, sex: str) -> None:
    """Style, headwear and clothing with their colours."""
    r = random("style")
    styled, style = r.random() < 0.35, r.choice(STYLES[1:])
    v.setdefault("style", style if styled else "photo")
    r = random("headwear")
    covered, headwear = r.random() < 0.35, _weighted(r, _HEADWEAR)
    match, in_uniform = r.random() < 0.7, r.random()
    if "headwear" not in v:
        uniform = [h for h, c in UNIFORMS.items() if c == v.get("clothing")]
        v["headwear"] = r.choice(uniform) if uniform and in_uniform < 0.75 else headwear if covered else "none"
    r = random("clothing")
    everyday = _weighted(r, _EVERYDAY if sex == "man" else {**_EVERYDAY, "scoop": 5})
    stray, garment = r.random() < 0.04, r.choice(sorted(set(UNIFORMS.values())))
    own = UNIFORMS.get(v["headwear"])
    v.setdefault("clothing", own if own and in_uniform < 0.8 else garment if stray else everyday)
    first = r.choice(_GARMENT_COLORS.get(v["clothing"], colors.COLORS))
    second = r.choice([c for c in colors.COLORS if c != first])
    v.setdefault("cloth_colors", (colors.sample(first, r), colors.sample(second, r)))
    r = random("hat color")
    hue = r.choice(_HEADWEAR_COLORS.get(v["headwear"], colors.COLORS))
    alike = match and v["headwear"] == "wizard" and v["clothing"] == "robe"
    v.setdefault("headwear_color", v["cloth_colors"][0] if alike else colors.sample(hue, r))


def _place(v: dict[str, Any], r: Random, combinations: str) -> None:
    """The scene, by the rule for held-out pairs."""
    if "scene" in v:
        return
    worn = {v["headwear"], v["style"]}
    apart = [s for s in SCENES if any((w, s) in HELD_OUT for w in worn)]
    if combinations == "unseen" and not apart:
        free = [p for p in HELD_OUT if p[0] in STYLES]
        v["style"], v["scene"] = r.choice(free)
        return
    allowed = {"seen": [s for s in SCENES if s not in apart], "unseen": apart, "any": SCENES}[combinations]
    v["scene"] = r.choice(allowed)


def _light(scene: str, scene_seed: int, r: Random) -> Light:
    light = scenes.light(scene, scene_seed, r)
    if r.random() < 0.06:
        return dataclasses.replace(light, strength=light.strength * 0.45, ambient=light.ambient * 0.45)
    return light


def _hair(sitter: Sitter, may_dye: bool, r: Random) -> Hair:
    if r.random() < OWN_HAIR:
        return sitter.hair
    own, change = sitter.hair, r.choice(("color", "style", "both"))
    style = r.choice(WOMEN_HAIR if sitter.sex == "woman" else MEN_HAIR)
    color, name = own.color, own.color_name
    if change != "style":
        dyed = r.random() < 0.12 and may_dye
        table = colors.DYES if dyed else HAIR_COLORS
        name = r.choice(list(table))
        r0, g0, b0 = (min(c * math.exp(r.gauss(0, 0.1)), 1.0) for c in colors.linear(table[name]))
        color = (r0, g0, b0)
    return Hair(own.style if change == "color" else style, color, name)


def _facial_hair(sitter: Sitter, r: Random) -> str:
    if sitter.sex != "man" or r.random() < OWN_BEARD:
        return sitter.facial_hair
    return r.choice(FACIAL_HAIR)


def _eyewear(v: dict[str, Any], sitter: Sitter, r: Random) -> None:
    chance, frame = r.random(), r.getrandbits(16)
    sunny = 0.16 if v["scene"] in ("beach", "desert", "snow") else 0.06
    sunny *= 1.0 if v["style"] == "photo" else 0.25  # a painted face behind dark lenses is hard to make out
    glasses = OWN_GLASSES if sitter.glasses else 0.09
    if "eyewear" not in v:
        v["eyewear"] = EYEWEAR[2] if chance < sunny else EYEWEAR[1] if chance < sunny + glasses else EYEWEAR[0]
    v.setdefault("eyewear_seed", sitter.glasses_seed if sitter.glasses and v["eyewear"] == "glasses" else frame)


def _pose(v: dict[str, Any], r: Random) -> None:
    kind = r.random()
    yaw = r.gauss(0, 8) if kind < 0.45 else r.gauss(0, 25) if kind < 0.85 else r.uniform(-60, 60)
    v.setdefault("yaw", min(max(yaw, -60.0), 60.0))
    v.setdefault("pitch", min(max(r.gauss(0, 7), -20.0), 20.0))
    v.setdefault("roll", min(max(r.gauss(0, 5), -20.0), 20.0))
    v.setdefault("focal", math.exp(r.triangular(math.log(35), math.log(135), math.log(85))))


MOODS = {"neutral": 27, "hint": 20, "smiling": 22, "laughing": 12, "surprised": 6, "open mouth": 5, "angry": 8}


def _expression(yaw: float, pitch: float, r: Random) -> Expression:
    kind = _weighted(r, MOODS)
    looks, closed = r.random(), r.random() < 0.04
    if looks < 0.6:
        gaze = (-yaw / EYE_TURN[0] + r.gauss(0, 0.1), -pitch / EYE_TURN[1] + r.gauss(0, 0.1))
    elif looks < 0.82:
        gaze = (r.gauss(0, 0.15), r.gauss(0, 0.1))
    else:
        gaze = (r.uniform(-1, 1), r.uniform(-1, 1))
    x, y = (min(max(g, -1.0), 1.0) for g in gaze)
    return expression(kind, r, gaze=(x, y), blink=r.uniform(0.85, 1) if closed else r.uniform(0, 0.12))


def expression(kind: str, r: Random, gaze: tuple[float, float] = (0.0, 0.0), blink: float = 0.0) -> Expression:
    """An expression of one of `MOODS`, varied."""
    smile, opened, brow, frown = {
        "neutral": ((0.0, 0.2), (0.0, 0.06), (-0.2, 0.2), (0.0, 0.12)),
        "hint": ((0.2, 0.5), (0.0, 0.1), (-0.2, 0.4), (0.0, 0.1)),
        "smiling": ((0.6, 1.0), (0.0, 0.25), (-0.1, 0.4), (0.0, 0.0)),
        "laughing": ((0.6, 1.0), (0.45, 0.8), (0.0, 0.5), (0.0, 0.0)),
        "surprised": ((0.0, 0.2), (0.45, 0.9), (0.6, 1.0), (0.0, 0.0)),
        "open mouth": ((0.0, 0.2), (0.45, 0.8), (-0.1, 0.3), (0.0, 0.1)),
        "angry": ((0.0, 0.12), (0.0, 0.12), (-0.8, -0.2), (0.6, 1.0)),
    }[kind]
    return Expression(
        smile=r.uniform(*smile), open=r.uniform(*opened), brow=r.uniform(*brow), frown=r.uniform(*frown),
        blink=blink, gaze=gaze,
    )  # fmt: skip


def _frame(v: dict[str, Any], r: Random) -> None:
    """Size and place of the face, so that a hat and the collar (in a close-up: the chin) are on the canvas."""
    above = FRAME_ABOVE[v["headwear"]]
    below = FRAME_BELOW if r.random() < 0.15 else collar(v["pitch"]) + 0.02
    height = min(r.triangular(0.28, 0.58, 0.42), 0.96 * FACE_UNITS / (above + below))
    x, y = r.gauss(0.5, 0.045), r.gauss(0.45, 0.035)
    v.setdefault("face_height", height)
    unit = v["face_height"] / FACE_UNITS
    low, high = max(above * unit + 0.02, 1 - BUST * unit), 0.99 - below * unit
    place = min(max(y, low), high) if low <= high else (low + high) / 2
    v.setdefault("center", (min(max(x, 0.38), 0.62), min(max(place, 0.0), 1.0)))


def _weighted(r: Random, weights: dict[str, int]) -> str:
    return r.choices(list(weights), list(weights.values()))[0]
