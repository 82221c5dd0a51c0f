"""Captions: a grammar that says a random part of what is true of a picture, in many ways.

`labels` is what may be said, `caption` says it, `requirements` reads it back from any prompt, `view_from_prompt` makes
a view that fulfils a prompt, `vocabulary` is every word the grammar knows.
"""

from __future__ import annotations

from functools import cache
from random import Random

from limner.world import words
from limner.world.colors import COLORS
from limner.world.factors import View
from limner.world.identity import Sitter
from limner.world.labels import FIXED_CLOTH, labels
from limner.world.names import names
from limner.world.prompts import requirements, view_from_prompt
from limner.world.seeds import stream
from limner.world.words import EDIT_PROMPTS, NAME_PROMPT, fill, tokens

__all__ = ["EDIT_PROMPTS", "NAME_PROMPT", "caption", "labels", "requirements", "view_from_prompt", "vocabulary"]

_GLUE = (
    "of with and wearing in as dressed face portrait image head photo person someone a an the s* showing it is at by "
    "on art style looking camera"
)


def caption(sitter: Sitter, view: View, seed: int, name: str | None = None) -> str:
    """A true sentence about the picture.

    Args:
        sitter, view: what was rendered.
        seed: chooses the phrasing and what is mentioned.
        name: what the person is called ("S*", a name); None describes them ("a young woman").
    """
    r = stream("caption", seed)
    said = labels(sitter, view)
    if name is not None and r.random() < 0.3:
        short = _short(said, name, r)
        if short:
            return short
    if r.random() < 0.12:
        return _list(said, name, r)
    return _sentence(said, name, r)


def _short(said: dict[str, str], name: str, r: Random) -> str:
    """A prompt in the manner of DreamIdentity, or "" where none fits."""
    at_camera = said["gaze"] == "camera"
    plain = (said["headwear"] == "none" and said["eyewear"] == "none") or r.random() < 0.2
    options = []
    if said["style"] != "photo":
        if said["role"] != "none":
            options.append(f"{words.STYLE_PREFIX[said['style']]}, {name} as a {_role(said, r)}")
        elif plain:
            options.append(f"{words.STYLE_PREFIX[said['style']]}, {name} face")
    elif said["role"] != "none" and at_camera:
        options.append(f"{name} as a {_role(said, r)}, looking at the camera")
    elif said["headwear"] != "none" and at_camera:
        options.append(f"{name} wearing {_headwear(said, r, 0.3)}, looking at the camera")
    elif at_camera and plain:
        options.append(f"{name} face, looking at the camera")
    return r.choice(options) if options else ""


def _sentence(said: dict[str, str], name: str | None, r: Random) -> str:
    """ "a photo of a young woman with long black hair wearing glasses, smiling, on a beach"."""
    opening = _opening(said, r)
    subject = name or _person(said, r)
    role = said["role"] != "none" and r.random() < 0.7
    parts = [_as_role(subject, said, name is None, r) if role else subject]
    having = _having(said, r, 0.5 if name is None else 0.25)
    wearing = _wearing(said, role, r)
    if having and r.random() < 0.5:
        parts.append("with " + _joined(having))
        parts += [r.choice(("wearing ", "in ")) + _joined(wearing)] if wearing else []
    else:
        parts += [r.choice(("wearing ", "in ")) + _joined(wearing)] if wearing else []
        parts += ["with " + _joined(having)] if having else []
    head = f"{opening} {' '.join(parts)}".strip()
    clauses = _manner(said, r, 0.45)
    scene = _scene(said, r) if r.random() < 0.75 else ""
    if scene and r.random() < 0.35:
        return ", ".join([f"{head} {scene}", *clauses])
    return ", ".join([head, *clauses, *([scene] if scene else [])])


def _list(said: dict[str, str], name: str | None, r: Random) -> str:
    """ "S*, curly red hair, glasses, smiling, forest, watercolor": how people type prompts."""
    parts = _having(said, r, 0.4) + _wearing(said, False, r) + _manner(said, r, 0.35)
    if r.random() < 0.75:
        parts.append(words.SCENE[said["scene"]][-1])
    r.shuffle(parts)
    parts = [p.removeprefix("a ").removeprefix("an ") for p in parts]
    subject = name or _person(said, r)
    style = r.choice(words.STYLE[said["style"]]) if said["style"] != "photo" or r.random() < 0.4 else ""
    if style and r.random() < 0.5:
        return ", ".join([style, subject, *parts])
    return ", ".join([subject, *parts, *([style] if style else [])])


def _opening(said: dict[str, str], r: Random) -> str:
    style, framing = said["style"], said["framing"]
    if style == "photo" and r.random() < 0.25:
        return r.choice(("a portrait of", "an image of", "", ""))
    if style in words.STYLE_PREFIX and r.random() < 0.25:
        return words.STYLE_PREFIX[style] + ","
    text = r.choice(words.STYLE[style])
    if framing == "far" and style == "photo" and r.random() < 0.5:
        return "a wide shot of"
    if framing == "close-up" and r.random() < 0.5:
        text = f"close-up {text}"
    return fill(f"a {text} of")


def _person(said: dict[str, str], r: Random) -> str:
    if r.random() < 0.1:
        return r.choice(("a person", "someone"))
    sex = words.SEX[said["sex"]][0 if r.random() < 0.85 else 1]
    age = words.AGE.get(said["age"])
    if age and r.random() < 0.45:
        return fill(f"a {r.choice(age)} {sex}")
    return f"a {sex}"


def _role(said: dict[str, str], r: Random) -> str:
    return r.choice(words.ROLE[said["role"]])


def _as_role(subject: str, said: dict[str, str], described: bool, r: Random) -> str:
    role = _role(said, r)
    if described and r.random() < 0.3:
        return f"a {role}"
    return f"{subject} {r.choice(('as a', 'as a', 'dressed as a'))} {role}"


def _having(said: dict[str, str], r: Random, share: float) -> list[str]:
    """Hair, beard, freckles, makeup: what comes after "with"."""
    out = []
    style, color = said["hair"], said["hair_color"]
    if r.random() < share and (style, color) != ("hidden", "hidden"):
        colored = r.random() < 0.7 and color != "hidden"
        tint = r.choice(words.HAIR_COLOR[color]) if colored else ""
        if style == "hidden":
            out.append(fill(words.HAIR_PLAIN, tint or r.choice(words.HAIR_COLOR[color])))
        else:
            out.append(fill(r.choice(words.HAIR[style]), tint))
    beard = said["facial_hair"]
    if r.random() < (0.15 if beard == "none" else share + 0.15) and said["sex"] == "man":
        out.append(r.choice(words.FACIAL_HAIR[beard]))
    if said["freckles"] == "yes" and said["style"] == "photo" and r.random() < 0.3:
        out.append(r.choice(words.FRECKLES["yes"]))
    if said["makeup"] == "yes" and said["style"] == "photo" and r.random() < 0.3:
        out.append(r.choice(words.MAKEUP["yes"]))
    return out


def _wearing(said: dict[str, str], role_said: bool, r: Random) -> list[str]:
    """Headwear, glasses, clothes: what comes after "wearing"."""
    out = []
    if said["headwear"] != "none" and r.random() < (0.2 if role_said else 0.92):
        out.append(_headwear(said, r, 0.6))
    if said["eyewear"] != "none" and r.random() < (0.6 if said["eyewear"] == "glasses" else 0.85):
        out.append(r.choice(words.EYEWEAR[said["eyewear"]]))
    if said["clothing"] != "hidden" and r.random() < (0.15 if role_said else 0.4):
        color = said["cloth_color"] if said["clothing"] not in FIXED_CLOTH and r.random() < 0.75 else ""
        out.append(fill(r.choice(words.CLOTHING[said["clothing"]]), "" if said["style"] in _COLORLESS else color))
    r.shuffle(out)
    return out


_COLORLESS = ("pencil", "charcoal", "sepia", "fauvism")
"""Styles in which colours cannot be seen as they are."""


def _headwear(said: dict[str, str], r: Random, share: float) -> str:
    tinted = said["headwear_color"] != "own" and said["style"] not in _COLORLESS and r.random() < share
    return fill(r.choice(words.HEADWEAR[said["headwear"]]), said["headwear_color"] if tinted else "")


def _manner(said: dict[str, str], r: Random, share: float) -> list[str]:
    """Expression, gaze, pose, light: clauses of their own."""
    out = []
    for key, table, weight in (
        ("expression", words.EXPRESSION, 1.0),
        ("gaze", words.GAZE, 0.8),
        ("pose", words.POSE, 0.5),
        ("light_side", words.LIGHT_SIDE, 0.25),
        ("light_quality", words.LIGHT_QUALITY, 0.25),
        ("light_tone", words.LIGHT_TONE, 0.3),
        ("light_level", words.LIGHT_LEVEL, 0.6),
    ):
        if key.startswith("light") and said["style"] != "photo":
            continue
        if said[key] in table and r.random() < share * weight:
            out.append(r.choice(table[said[key]]))
    if out and r.random() < 0.3:
        r.shuffle(out)
    return out


def _scene(said: dict[str, str], r: Random) -> str:
    text = r.choice(words.SCENE[said["scene"]][:-1])
    time = words.TIME.get(said["time"])
    if time and (said["style"] not in _COLORLESS or said["time"] == "night") and r.random() < 0.6:
        text += " " + r.choice(time)
    return text


def _joined(parts: list[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


@cache
def vocabulary() -> tuple[str, ...]:
    """Every lower-case word that captions can contain, names included, sorted."""
    known = set(_GLUE.split())
    for table in words.tables():
        for texts in table.values():
            for text in texts:
                known |= set(tokens(fill(text)))
    for text in (*words.STYLE_PREFIX.values(), *COLORS, *words.EDIT_PROMPTS, words.HAIR_PLAIN.format(c="")):
        known |= set(tokens(text))
    for name in names():
        known |= set(tokens(name))
    return tuple(sorted(known))
