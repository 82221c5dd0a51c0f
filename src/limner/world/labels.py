"""Labels: what is true of a picture and can be seen in it, as words; captions may say nothing else."""

from __future__ import annotations

from limner.world import colors
from limner.world.factors import Light, View
from limner.world.identity import Sitter
from limner.world.scenes import mood

EYE_TURN = (23.0, 13.0)
"""Degrees that the eyes turn sideways and up at a gaze of 1."""
HAIR_HIDING = ("chef", "wizard", "police", "firefighter", "cap", "beanie", "hat")
"""Headwear under which a hair style cannot be told, unless the hair hangs below it."""
HANGING = ("long", "wavy", "bob", "bob_fringe", "curly", "afro")
_TELLING = ("long", "wavy", "curly", "afro")
FACE_UNITS = 1.2
"""Head units that `View.face_height` measures."""
FIXED_CLOTH = ("chef", "police", "firefighter")
"""Garments whose colours belong to them."""
FIXED_HEADWEAR = ("none", "chef", "nurse", "police", "crown")
_ROLES = ("chef", "wizard", "nurse", "police", "firefighter")


def labels(sitter: Sitter, view: View) -> dict[str, str]:
    """What can truly be said of `sitter` seen as `view`.

    Returns:
        label → word: sex, age (young, adult, middle-aged, old), hair and hair_color ("hidden" where they cannot be
        told), facial_hair, eyewear, headwear, headwear_color ("own" for a uniform's), role ("none" without), clothing,
        cloth_color ("own" for a uniform's; both "hidden" below the lower edge), expression ("other" between the clear
        ones), gaze (where the eyes look; "hidden" behind sunglasses), pose (front, half, left, right), light_side,
        light_quality, light_tone, light_level, scene, time ("day" where nothing is to be said), style, framing,
        makeup, freckles (yes, no).
    """
    e = view.expression
    role = "none"
    if view.headwear in _ROLES:
        role = view.headwear
    elif view.headwear == "crown":
        role = "queen" if sitter.sex == "woman" else "king"
    hair, hair_color = _hair(view)
    dressed = (1 - view.center[1]) * FACE_UNITS / view.face_height >= collar(view.pitch)
    return {
        "sex": sitter.sex,
        "age": _age(sitter.age),
        "hair": hair,
        "hair_color": hair_color,
        "facial_hair": view.facial_hair,
        "eyewear": view.eyewear,
        "headwear": view.headwear,
        "headwear_color": "own" if view.headwear in FIXED_HEADWEAR else colors.word(view.headwear_color),
        "role": role,
        "clothing": view.clothing if dressed else "hidden",
        "cloth_color": _cloth_color(view) if dressed else "hidden",
        "expression": _expression(e.smile, e.open, e.frown, e.brow),
        "gaze": _gaze(view),
        "pose": _side(view.yaw, 12, 20, "front", "half"),
        **_light(view.light),
        "scene": view.scene,
        "time": _time(view),
        "style": view.style,
        "framing": "close-up" if view.face_height >= 0.47 else "far" if view.face_height <= 0.24 else "usual",
        "makeup": "yes" if view.makeup >= 0.5 else "no",
        "freckles": "yes" if sitter.freckles >= 0.4 else "no",
    }


def collar(pitch: float) -> float:
    """Head units below the eyes at which clothes are sure to be seen, whatever hangs over them; more looking up."""
    return 1.45 + 0.014 * max(pitch, 0.0)


def _cloth_color(view: View) -> str:
    return "own" if view.clothing in FIXED_CLOTH else colors.word(view.cloth_colors[0])


def _age(years: float) -> str:
    if years < 32:
        return "young"
    if years >= 63:
        return "old"
    return "middle-aged" if 40 <= years < 58 else "adult"


def _hair(view: View) -> tuple[str, str]:
    """Style and colour as far as they can be told."""
    style, color = view.hair.style, view.hair.color_name
    if style == "shaved":
        return ("hidden" if view.headwear in HAIR_HIDING else "shaved"), "hidden"
    if view.headwear in HAIR_HIDING:
        return (style if style in _TELLING else "hidden"), (color if style in HANGING else "hidden")
    from_behind = style == "ponytail" and abs(view.yaw) < 35
    under_band = style in ("bun", "quiff") and view.headwear in ("crown", "headphones")
    return ("hidden" if from_behind or under_band else style), color


def _expression(smile: float, opened: float, frown: float, brow: float) -> str:
    if frown >= 0.5:
        return "angry" if smile < 0.2 else "other"
    if opened >= 0.4:
        if smile >= 0.5:
            return "laughing"
        return "surprised" if brow >= 0.5 else "open mouth" if smile < 0.3 else "other"
    if opened > 0.15:
        return "smiling" if smile >= 0.6 else "other"
    if smile >= 0.5:
        return "smiling"
    return "neutral" if smile <= 0.25 and frown <= 0.2 and abs(brow) <= 0.3 and opened <= 0.08 else "other"


def _side(value: float, near: float, far: float, middle: str, between: str) -> str:
    """`middle` within ±near, "right" or "left" beyond ±far, else `between`."""
    if abs(value) <= near:
        return middle
    if abs(value) < far:
        return between
    return "right" if value > 0 else "left"


def _gaze(view: View) -> str:
    e = view.expression
    if view.eyewear == "sunglasses":
        return "camera" if abs(view.yaw) <= 12 and abs(view.pitch) <= 10 else "hidden"
    if e.blink >= 0.75:
        return "closed"
    x = view.yaw + EYE_TURN[0] * e.gaze[0]
    y = view.pitch + EYE_TURN[1] * e.gaze[1]
    if e.blink > 0.4 or (abs(x) <= 12 and 12 < abs(y) < 15) or (abs(y) <= 12 and 12 < abs(x) < 18):
        return "other"
    if abs(x) <= 12 and abs(y) <= 12:
        return "camera"
    if abs(y) >= 15 and abs(x) <= 12:
        return "up" if y > 0 else "down"
    return ("right" if x > 0 else "left") if abs(x) >= 18 else "other"


def _light(light: Light) -> dict[str, str]:
    r, _, b = light.color
    tone = "warm" if r > 1.45 * b else "cool" if b > 1.12 * r else "neutral"
    return {
        "light_side": _side(light.azimuth, 12, 25, "front", "half"),
        "light_quality": "soft" if light.softness >= 0.7 else "hard" if light.softness <= 0.3 else "medium",
        "light_tone": tone,
        "light_level": "dim" if light.strength + light.ambient <= 0.75 else "normal",
    }


def _time(view: View) -> str:
    time = mood(view.scene, view.scene_seed)
    return "day" if time == "dark" or view.scene in ("space", "stage") else time
