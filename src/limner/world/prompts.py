"""Prompts read back: which labels a sentence asks for, and a view that has them."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

from limner.errors import PromptError
from limner.world import colors, scenes, words
from limner.world.factors import Hair, Light, View
from limner.world.identity import HAIR_COLORS, Sitter
from limner.world.labels import EYE_TURN, HAIR_HIDING, labels
from limner.world.sampling import UNIFORMS, expression, own_wear, sample_view
from limner.world.seeds import derive, stream

OF_THE_PERSON = ("sex", "age", "freckles")
"""Labels that a view cannot change."""
_TRIES = 64


@cache
def _table() -> tuple[dict[tuple[str, ...], dict[str, str]], int]:
    table = words.phrases()
    return table, max(len(k) for k in table)


def requirements(prompt: str) -> dict[str, str]:
    """The labels that `prompt` asks for; words it does not know ask for nothing. See `limner.world.labels.labels`.

    Where a prompt contradicts itself, what comes first counts. A prompt without a style asks for a photo.

    Raises:
        PromptError: the prompt has no words.
    """
    text = words.bare(words.tokens(prompt))
    if not text:
        raise PromptError("The prompt is empty; a sentence is expected.", 'For instance "S* as a chef, in a kitchen".')
    table, longest = _table()
    wanted: dict[str, str] = {}
    k = 0
    while k < len(text):
        for n in range(min(longest, len(text) - k), 0, -1):
            claims = table.get(text[k : k + n])
            if claims is not None:
                for key, value in claims.items():
                    wanted.setdefault(key, value)
                k += n
                break
        else:
            k += 1
    wanted.setdefault("style", "photo")
    return wanted


def view_from_prompt(prompt: str, sitter: Sitter, seed: int) -> View:
    """A view of `sitter` that fulfils the prompt; what it leaves open is plain, as people expect.

    Words about the person (sex, age, freckles) are not looked at: the sitter is who they are.

    Raises:
        PromptError: the prompt is empty or asks for things that exclude each other.
    """
    wanted = requirements(prompt)
    for key in OF_THE_PERSON:
        wanted.pop(key, None)
    for k in range(_TRIES):
        view = _attempt(wanted, sitter, derive("prompt", seed, k))
        truth = labels(sitter, view)
        missed = [key for key, value in wanted.items() if truth[key] != value]
        if not missed:
            return view
    raise PromptError(
        f"No picture fulfils {prompt!r}: {missed[0].replace('_', ' ')} {wanted[missed[0]]!r} is excluded by the rest.",
        "Ask for less, or for things that go together.",
    )


def _attempt(wanted: dict[str, str], sitter: Sitter, seed: int) -> View:
    r = stream("attempt", seed)
    fixed: dict[str, Any] = {**own_wear(sitter), "headwear": "none", "style": "photo", "makeup": 0.0}
    fixed |= {k: wanted[k] for k in ("style", "headwear", "eyewear", "facial_hair", "clothing", "scene") if k in wanted}
    if "clothing" not in wanted and fixed["headwear"] in UNIFORMS:
        fixed["clothing"] = UNIFORMS[fixed["headwear"]]
    fixed["hair"] = _hair(wanted, sitter, fixed["headwear"], seed)
    if "cloth_color" in wanted:
        second = r.choice([c for c in colors.COLORS if c != wanted["cloth_color"]])
        fixed["cloth_colors"] = (colors.sample(wanted["cloth_color"], r), colors.sample(second, r))
    if "headwear_color" in wanted:
        fixed["headwear_color"] = colors.sample(wanted["headwear_color"], r)
    turned = wanted.get("pose")
    yaw = r.gauss(0, 5) if turned not in ("left", "right") else r.uniform(24, 50) * (1 if turned == "right" else -1)
    if turned is None and wanted.get("hair") == "ponytail":
        yaw = r.uniform(38, 50) * r.choice((-1, 1))
    nod = {"up": 1, "down": -1}.get(wanted.get("gaze", ""), 0) * r.uniform(8, 14)
    fixed |= {"yaw": yaw, "pitch": nod or r.gauss(0, 3), "roll": r.gauss(0, 2)}
    fixed["expression"] = _expression(wanted, yaw, fixed["pitch"], seed)
    if wanted.get("makeup") == "yes":
        fixed["makeup"] = 0.8
    if "framing" in wanted:
        near = wanted["framing"] == "close-up"
        fixed |= {"face_height": 0.48, "center": (0.5, 0.41)} if near else {"face_height": 0.2}
    elif fixed["headwear"] == "none":
        fixed |= {"face_height": r.uniform(0.34, 0.44), "center": (r.uniform(0.46, 0.54), r.uniform(0.42, 0.46))}
    view = sample_view(sitter, seed, "any", **fixed)
    if "time" in wanted:
        seeds = (derive("time", seed, k) for k in range(_TRIES))
        fits = (s for s in seeds if scenes.mood(view.scene, s) == wanted["time"])
        view = dataclasses.replace(view, scene_seed=next(fits, view.scene_seed))
        view = dataclasses.replace(view, light=scenes.light(view.scene, view.scene_seed, r))
    return dataclasses.replace(view, light=_light(view.light, wanted, seed))


def _hair(wanted: dict[str, str], sitter: Sitter, headwear: str, seed: int) -> Hair:
    r = stream("prompt hair", seed)
    own = sitter.hair
    style, color, name = wanted.get("hair", own.style), own.color, own.color_name
    if "hair_color" in wanted:
        name = wanted["hair_color"]
        color = colors.linear({**colors.DYES, **HAIR_COLORS}[name])
        if "hair" not in wanted and (style == "shaved" or headwear in HAIR_HIDING):
            style = r.choice(("long", "wavy") if sitter.sex == "woman" else ("curly", "short", "wavy"))
    return Hair(style, color, name)


def _expression(wanted: dict[str, str], yaw: float, pitch: float, seed: int) -> Any:
    r = stream("prompt expression", seed)
    kind = wanted.get("expression", r.choice(("neutral", "hint", "smiling")))
    gaze = wanted.get("gaze")
    x, y = -yaw / EYE_TURN[0], -pitch / EYE_TURN[1]
    if gaze in ("left", "right"):
        x = 1.0 if gaze == "right" else -1.0
    if gaze in ("up", "down"):
        y = 1.0 if gaze == "up" else -1.0
    look = (min(max(x, -1.0), 1.0), min(max(y, -1.0), 1.0))
    return expression(kind, r, look, r.uniform(0.9, 1.0) if gaze == "closed" else 0.0)


def _light(light: Light, wanted: dict[str, str], seed: int) -> Light:
    r = stream("prompt light", seed)
    change: dict[str, Any] = {}
    side = wanted.get("light_side")
    if side:
        change["azimuth"] = {"left": -1, "right": 1, "front": 0}[side] * r.uniform(32, 65)
    if "light_quality" in wanted:
        change["softness"] = r.uniform(0.75, 1) if wanted["light_quality"] == "soft" else r.uniform(0.05, 0.25)
    tone = wanted.get("light_tone")
    if tone:
        change["color"] = (1.0, 0.72, 0.45) if tone == "warm" else (0.72, 0.82, 1.0)
    if wanted.get("light_level") == "dim":
        change |= {"strength": r.uniform(0.4, 0.5), "ambient": r.uniform(0.12, 0.22)}
    elif light.strength + light.ambient <= 0.75:
        change |= {"strength": 0.9, "ambient": 0.4}
    return dataclasses.replace(light, **change)
