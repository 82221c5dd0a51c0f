"""Backgrounds: twelve scenes, each with its moods and the light that belongs to them.

A scene is drawn from its seed alone and looks the same at every size; it is out of focus as behind a portrait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import cv2
import numpy as np

from limner.errors import ConfigError
from limner.world import scenes_nature as nature
from limner.world import scenes_places as places
from limner.world.canvas import Canvas
from limner.world.factors import SCENES, Color, Light
from limner.world.seeds import stream


@dataclass(frozen=True)
class LightPreset:
    """Ranges of a key light; angles in degrees, colour linear RGB."""

    elevation: tuple[float, float]
    strength: tuple[float, float]
    softness: tuple[float, float]
    ambient: tuple[float, float]
    color: Color


_FLASH = LightPreset((15, 45), (0.9, 1.15), (0.5, 0.9), (0.34, 0.5), (1.0, 0.97, 0.93))
_LOW_KEY = LightPreset((5, 40), (0.8, 1.1), (0.2, 0.5), (0.14, 0.24), (1.0, 0.95, 0.88))
_SUN = LightPreset((30, 60), (1.05, 1.3), (0.15, 0.4), (0.36, 0.5), (1.0, 0.96, 0.86))
_SHADE = LightPreset((25, 60), (0.75, 1.0), (0.5, 0.9), (0.36, 0.5), (0.95, 1.0, 0.88))
_OVERCAST = LightPreset((30, 65), (0.8, 1.0), (0.7, 1.0), (0.45, 0.58), (0.95, 0.98, 1.04))
_GOLDEN = LightPreset((4, 22), (1.0, 1.3), (0.25, 0.6), (0.22, 0.36), (1.25, 0.78, 0.48))
_DUSK = LightPreset((8, 35), (0.7, 0.95), (0.4, 0.8), (0.3, 0.42), (0.8, 0.82, 1.15))
_LAMP = LightPreset((15, 45), (0.8, 1.1), (0.3, 0.7), (0.18, 0.3), (1.2, 0.86, 0.58))
_ROOM = LightPreset((15, 45), (0.85, 1.05), (0.5, 0.9), (0.36, 0.48), (1.0, 0.96, 0.9))
_STARS = LightPreset((0, 40), (0.85, 1.15), (0.05, 0.3), (0.12, 0.24), (0.9, 0.96, 1.12))
_SPOT = LightPreset((30, 60), (1.1, 1.35), (0.1, 0.35), (0.14, 0.26), (1.08, 0.97, 0.86))

_Draw = Callable[[Canvas, Random, str], None]
_TABLE: dict[str, tuple[_Draw, dict[str, LightPreset]]] = {
    "studio": (places.studio, {"day": _FLASH, "dark": _LOW_KEY}),
    "beach": (nature.beach, {"day": _SUN, "sunset": _GOLDEN}),
    "forest": (nature.forest, {"day": _SHADE, "autumn": _GOLDEN}),
    "street": (places.street, {"day": _OVERCAST, "sunset": _GOLDEN, "night": _LAMP}),
    "snow": (nature.snow, {"day": _OVERCAST, "dusk": _DUSK}),
    "kitchen": (places.kitchen, {"day": _ROOM, "evening": _LAMP}),
    "library": (places.library, {"day": _ROOM, "evening": _LAMP}),
    "space": (nature.space, {"night": _STARS}),
    "stage": (places.stage, {"night": _SPOT}),
    "desert": (nature.desert, {"day": _SUN, "sunset": _GOLDEN}),
    "garden": (nature.garden, {"day": _SUN, "evening": _GOLDEN}),
    "mountains": (nature.mountains, {"day": _SUN, "dawn": _GOLDEN}),
}
MOODS = tuple(dict.fromkeys(m for _, moods in _TABLE.values() for m in moods))
_LINEAR = np.array([((i / 255 + 0.055) / 1.055) ** 2.4 if i > 10 else i / 255 / 12.92 for i in range(256)], np.float32)
_FINEST, _COARSEST = 256, 128


def mood(scene: str, seed: int) -> str:
    """The time of day (or season) that `background(scene, seed)` shows; one of `MOODS`. The first is the commonest."""
    moods = list(_table(scene)[1])
    return moods[max(stream("mood", scene, seed).randrange(len(moods) + 1) - 1, 0)]


def background(scene: str, seed: int, size: int) -> np.ndarray:
    """The scene without anybody.

    Args:
        scene: one of `SCENES`.
        seed: its variation (layout, colours, time of day), 0 or more.
        size: side in pixels.

    Returns:
        (size, size, 3) float32 linear RGB in [0, 1].

    Raises:
        ConfigError: no such scene.
    """
    draw = _table(scene)[0]
    canvas = Canvas(min(max(size, _COARSEST), _FINEST))
    draw(canvas, stream("scene", scene, seed), mood(scene, seed))
    if size == canvas.n:
        return cv2.LUT(canvas.px, _LINEAR)
    how = cv2.INTER_AREA if size < canvas.n else cv2.INTER_LINEAR
    return cv2.resize(cv2.LUT(canvas.px, _LINEAR), (size, size), interpolation=how)


def light(scene: str, seed: int, random: Random) -> Light:
    """A key light that suits the scene at the mood of its seed, from either side, drawn from `random`."""
    preset = _table(scene)[1][mood(scene, seed)]
    side = random.choice((-1, 1))
    tint = [c * random.uniform(0.95, 1.05) for c in preset.color]
    bright = max(*tint, 1.0)
    return Light(
        azimuth=side * random.triangular(0, 80, 35),
        elevation=random.uniform(*preset.elevation),
        color=(tint[0] / bright, tint[1] / bright, tint[2] / bright),
        strength=random.uniform(*preset.strength) * bright,
        softness=random.uniform(*preset.softness),
        ambient=random.uniform(*preset.ambient),
    )


def _table(scene: str) -> tuple[_Draw, dict[str, LightPreset]]:
    if scene not in _TABLE:
        raise ConfigError(f"Unknown scene {scene!r}; known: {', '.join(SCENES)}.")
    return _TABLE[scene]
