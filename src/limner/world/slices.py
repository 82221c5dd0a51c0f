"""Slices of the world: pictures that are hard in one way each, and with few exceptions easy in every other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import cv2
import numpy as np

from limner.errors import ConfigError
from limner.world import colors
from limner.world.factors import Light
from limner.world.identity import Sitter
from limner.world.labels import FACE_UNITS
from limner.world.render import Picture
from limner.world.sampling import BUST

Fixed = Callable[[Random], dict[str, Any]]


@dataclass(frozen=True)
class Slice:
    """One way of being hard.

    Attributes:
        about: what is hard.
        fixed: draws the fields of `View` that make it so.
        spoil: changes the rendered picture, or None.
        tones: range of skin tones that sitters must have.
        combinations: as in `sample_view`; None = the split's own.
    """

    about: str
    fixed: Fixed
    spoil: Callable[[Picture, Random], Picture] | None = None
    tones: tuple[float, float] = (0.0, 1.0)
    combinations: str | None = None

    def accepts(self, sitter: Sitter) -> bool:
        """Whether this person belongs to the slice."""
        return self.tones[0] <= sitter.skin <= self.tones[1]


def _easy(r: Random) -> dict[str, Any]:
    return {
        "style": "photo", "headwear": "none", "eyewear": "none", "yaw": r.uniform(-12, 12), "pitch": r.uniform(-6, 6),
        "roll": r.uniform(-4, 4),
    }  # fmt: skip


def _turned(low: float, high: float) -> Fixed:
    return lambda r: {**_easy(r), "yaw": r.uniform(low, high) * r.choice((-1, 1))}


def _dark(r: Random) -> dict[str, Any]:
    light = Light(r.uniform(-70, 70), r.uniform(0, 40), (1.0, 0.9, 0.75), r.uniform(0.12, 0.25), 0.5, 0.05)
    return {**_easy(r), "light": light, "scene": r.choice(("stage", "space", "studio"))}


def _close(r: Random) -> dict[str, Any]:
    """As a head that was cropped upright: see `limner.pipelines.rescue`."""
    center = (r.uniform(0.47, 0.53), r.uniform(0.45, 0.55))
    return {"face_height": r.uniform(0.62, 0.88), "center": center, "roll": r.uniform(-6, 6)}


def _anywhere(r: Random) -> dict[str, Any]:
    """Wherever the whole face has room, as long as the lower edge hides where the body ends."""
    height = r.uniform(0.24, 0.5)
    x = r.uniform(0.37 * height, 1 - 0.37 * height)
    return {"face_height": height, "center": (x, r.uniform(max(0.28, 1 - BUST * height / FACE_UNITS), 0.62))}


def _noise(picture: Picture, r: Random) -> Picture:
    grain = np.random.default_rng(r.getrandbits(31)).standard_normal(picture.image.shape, np.float32)
    image = picture.image * np.float32(r.uniform(0.4, 0.7)) + grain * np.float32(r.uniform(3, 6))
    return dataclasses.replace(picture, image=np.clip(image, 0, 255).astype(np.uint8))


def _blur(picture: Picture, r: Random) -> Picture:
    sigma = r.uniform(1.2, 2.4) * picture.image.shape[0] / 128
    return dataclasses.replace(picture, image=cv2.GaussianBlur(picture.image, (0, 0), sigma))


def _occlude(picture: Picture, r: Random) -> Picture:
    """Something flat before a part of the face: below the eyes, or beside the nose."""
    x0, y0, x1, y1 = picture.box
    w, h = x1 - x0, y1 - y0
    below = r.random() < 0.5
    x = x0 + w * (0.5 if below else r.choice((0.08, 0.92)))
    y = y0 + h * (r.uniform(0.8, 0.9) if below else 0.55)
    size = (w * (1.1 if below else 0.55), h * (0.5 if below else 1.1))
    corners = np.asarray(cv2.boxPoints(((x, y), size, r.uniform(-14, 14))))
    cover = np.zeros(picture.mask.shape, np.uint8)
    cv2.fillConvexPoly(cover, np.round(corners * 16).astype(np.int32), (255,), cv2.LINE_AA, 4)
    height, width = picture.mask.shape
    ink = np.asarray(colors.sample(r.choice(colors.COLORS), r), np.float32) ** np.float32(1 / 2.2) * np.float32(255)
    fold = np.linspace(0.8, 1.1, height, dtype=np.float32).reshape(-1, 1, 1)
    alpha = cover.reshape(height, width, 1).astype(np.float32) / 255
    image = picture.image + (ink * fold - picture.image) * alpha
    at = np.clip(np.floor(picture.landmarks).astype(int), 0, (width - 1, height - 1))
    return dataclasses.replace(
        picture,
        image=np.clip(image, 0, 255).astype(np.uint8),
        mask=np.where(cover > 127, 0, picture.mask).astype(np.uint8),
        visible=picture.visible & (cover[at[:, 1], at[:, 0]] <= 127),
    )


SLICES = {
    "yaw_0_15": Slice("nearly frontal", _turned(0, 15)),
    "yaw_15_30": Slice("turned by 15 to 30 degrees", _turned(15, 30)),
    "yaw_30_45": Slice("turned by 30 to 45 degrees", _turned(30, 45)),
    "yaw_45_60": Slice("turned by 45 to 60 degrees", _turned(45, 60)),
    "tone_1": Slice("lightest quarter of skin tones", _easy, tones=(0.0, 0.25)),
    "tone_2": Slice("second quarter of skin tones", _easy, tones=(0.25, 0.5)),
    "tone_3": Slice("third quarter of skin tones", _easy, tones=(0.5, 0.75)),
    "tone_4": Slice("darkest quarter of skin tones", _easy, tones=(0.75, 1.0)),
    "occluded": Slice("a part of the face is covered; mask 0 there", _easy, _occlude),
    "low_light": Slice("little light, sensor noise", _dark, _noise),
    "small": Slice("a face of a tenth of the canvas", lambda r: {**_easy(r), "face_height": r.uniform(0.09, 0.13)}),
    "blurred": Slice("out of focus", _easy, _blur),
    "anywhere": Slice("a face at any place of the picture; nothing else is eased", _anywhere),
    "close": Slice("a face that fills the picture; nothing else is eased", _close),
    "unseen_pairs": Slice("pairs held out of training", lambda r: {}, combinations="unseen"),
}


def slice_of(name: str) -> Slice:
    """The slice of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SLICES:
        raise ConfigError(f"Unknown slice {name!r}; known: {', '.join(SLICES)}.")
    return SLICES[name]
