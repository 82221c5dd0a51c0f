"""The factors of a picture: everything about it that is not the person.

`View` is fully resolved: what hair, beard and glasses are seen is written in it, whether the sitter's own or changed
for this picture. Vocabularies of every categorical factor are the tuples below.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from limner.config import Config

SCENES = (
    "studio", "beach", "forest", "street", "snow", "kitchen", "library", "space", "stage", "desert", "garden",
    "mountains",
)  # fmt: skip
STYLES = ("photo", "oil", "watercolor", "pencil", "fauvism", "comic", "pointillism", "charcoal", "sepia")
HEADWEAR = (
    "none", "chef", "wizard", "nurse", "police", "firefighter", "crown", "cap", "headphones", "beanie", "hat",
)  # fmt: skip
CLOTHING = (
    "tshirt", "striped", "turtleneck", "shirt", "suit", "scoop", "hoodie", "chef", "robe", "scrubs", "police",
    "firefighter",
)  # fmt: skip
EYEWEAR = ("none", "glasses", "sunglasses")
HAIR_STYLES = (
    "shaved", "short", "side", "quiff", "fringe", "curly", "afro", "bob", "bob_fringe", "long", "wavy", "bun",
    "ponytail", "receding",
)  # fmt: skip
FACIAL_HAIR = ("none", "stubble", "moustache", "goatee", "beard", "full_beard")

Color = tuple[float, float, float]
"""Linear RGB in [0, 1]."""


@dataclass(frozen=True)
class Hair(Config):
    """Hair as seen: a style of `HAIR_STYLES`, a linear colour, and its word for captions."""

    style: str = "short"
    color: Color = (0.02, 0.012, 0.008)
    color_name: str = "black"

    def validate(self) -> None:
        self.check(self.style in HAIR_STYLES, "style", ", ".join(HAIR_STYLES))
        self.check(all(0 <= c <= 1 for c in self.color), "color", "linear RGB in [0, 1]")


@dataclass(frozen=True)
class Expression(Config):
    """smile, open, blink in [0, 1]; brow (raised > 0), frown in [-1, 1] and [0, 1]; gaze (x right, y up) in [-1, 1]."""

    smile: float = 0.15
    open: float = 0.0
    brow: float = 0.0
    frown: float = 0.0
    blink: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)

    def validate(self) -> None:
        for name in ("smile", "open", "blink", "frown"):
            self.check(0 <= getattr(self, name) <= 1, name, "0 to 1")
        self.check(-1 <= self.brow <= 1, "brow", "-1 to 1")
        self.check(all(-1 <= g <= 1 for g in self.gaze), "gaze", "two values from -1 to 1")


@dataclass(frozen=True)
class Light(Config):
    """Key light: azimuth (deg, > 0 from the viewer's right), elevation (deg), linear colour, strength, softness [0, 1].

    `ambient` scales the fill light, whose tint comes from the background.
    """

    azimuth: float = -35.0
    elevation: float = 30.0
    color: Color = (1.0, 0.96, 0.9)
    strength: float = 1.0
    softness: float = 0.5
    ambient: float = 0.42

    def validate(self) -> None:
        self.check(-120 <= self.azimuth <= 120, "azimuth", "-120 to 120 degrees")
        self.check(-30 <= self.elevation <= 90, "elevation", "-30 to 90 degrees")
        self.check(0 <= self.strength <= 3, "strength", "0 to 3")
        self.check(0 <= self.softness <= 1, "softness", "0 to 1")
        self.check(0 <= self.ambient <= 2, "ambient", "0 to 2")


@dataclass(frozen=True)
class View(Config):
    """One picture of somebody.

    Attributes:
        yaw, pitch, roll: degrees, signs as in `limner.types.Pose`; ±75, ±35, ±45 at most.
        face_height: chin to brow line in shares of the canvas height; with `focal` it sets the distance.
        center: where the middle between the eyes lies on the canvas, in [0, 1] (x right, y down).
        focal: 35-mm-equivalent focal length in mm.
        scene, scene_seed: background of `SCENES` and its variation.
        clothing, cloth_colors: garment of `CLOTHING`, its main and second colour.
        headwear, headwear_color: headgear of `HEADWEAR` and its main colour.
        eyewear, eyewear_seed: `EYEWEAR` as seen, and the shape and colour of the frame.
        hair, facial_hair: as seen in this picture.
        makeup: 0 to 1.
        style, style_seed: rendering of `STYLES` and its grain.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    face_height: float = 0.42
    center: tuple[float, float] = (0.5, 0.46)
    focal: float = 85.0
    expression: Expression = field(default_factory=Expression)
    light: Light = field(default_factory=Light)
    scene: str = "studio"
    scene_seed: int = 0
    clothing: str = "tshirt"
    cloth_colors: tuple[Color, Color] = ((0.2, 0.3, 0.5), (0.8, 0.8, 0.8))
    headwear: str = "none"
    headwear_color: Color = (0.8, 0.8, 0.8)
    eyewear: str = "none"
    eyewear_seed: int = 0
    hair: Hair = field(default_factory=Hair)
    facial_hair: str = "none"
    makeup: float = 0.0
    style: str = "photo"
    style_seed: int = 0

    def validate(self) -> None:
        self.check(abs(self.yaw) <= 75, "yaw", "-75 to 75 degrees")
        self.check(abs(self.pitch) <= 35, "pitch", "-35 to 35 degrees")
        self.check(abs(self.roll) <= 45, "roll", "-45 to 45 degrees")
        self.check(0.08 <= self.face_height <= 0.9, "face_height", "0.08 to 0.9")
        self.check(all(0 <= c <= 1 for c in self.center), "center", "two values from 0 to 1")
        self.check(20 <= self.focal <= 300, "focal", "20 to 300 mm")
        self.check(0 <= self.makeup <= 1, "makeup", "0 to 1")
        for name, words in (
            ("scene", SCENES), ("clothing", CLOTHING), ("headwear", HEADWEAR), ("eyewear", EYEWEAR),
            ("facial_hair", FACIAL_HAIR), ("style", STYLES),
        ):  # fmt: skip
            self.check(getattr(self, name) in words, name, ", ".join(words))
