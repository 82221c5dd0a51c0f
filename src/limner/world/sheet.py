"""Contact sheets: people by rows, what is shown by columns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limner.config import Config
from limner.world.factors import Expression, View
from limner.world.identity import Sitter, sitter
from limner.world.labels import labels
from limner.world.names import name_of
from limner.world.prompts import view_from_prompt
from limner.world.render import Picture, render
from limner.world.sampling import expression, own_wear, sample_view
from limner.world.seeds import LIMIT, derive, stream

if TYPE_CHECKING:
    from PIL import Image, ImageFont

COLUMNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("neutral", {"scene": "studio", "clothing": "turtleneck"}),
    ("45° left", {"yaw": -45.0, "scene": "mountains"}),
    ("45° right", {"yaw": 45.0, "scene": "street"}),
    ("laughing", {"yaw": 8.0, "scene": "garden"}),
    ("chef, kitchen", {"headwear": "chef", "clothing": "chef", "scene": "kitchen", "yaw": -14.0}),
    ("wizard, forest", {"headwear": "wizard", "clothing": "robe", "scene": "forest", "yaw": 10.0}),
    ("sunglasses, beach", {"eyewear": "sunglasses", "scene": "beach", "yaw": -6.0}),
    ("oil painting", {"style": "oil", "scene": "library", "yaw": 12.0}),
    ("watercolor", {"style": "watercolor", "scene": "snow", "yaw": -10.0}),
    ("pencil", {"style": "pencil", "scene": "street", "yaw": 4.0}),
    ("police, stage", {"headwear": "police", "clothing": "police", "scene": "stage", "yaw": -12.0}),
    ("fauvism", {"style": "fauvism", "scene": "desert", "yaw": 10.0}),
    ("nurse, studio", {"headwear": "nurse", "clothing": "scrubs", "scene": "studio", "yaw": 6.0}),
    ("comic", {"style": "comic", "scene": "space", "yaw": -8.0}),
    ("crown, mountains", {"headwear": "crown", "clothing": "robe", "scene": "mountains", "yaw": 14.0}),
    ("pointillism", {"style": "pointillism", "scene": "garden", "yaw": 0.0}),
)
"""Title and fixed factors of each column; further columns are drawn at random."""
_INK, _PAPER = (70, 72, 78), (255, 255, 255)


@dataclass(frozen=True)
class SheetConfig(Config):
    """What a sheet shows.

    Attributes:
        identities: rows; the people with seeds seed, seed + 1, …
        views: columns.
        seed: first person, and the seed of everything else.
        size: side of each picture in pixels.
        prompt: what every picture shall show instead of `COLUMNS`, or "".
    """

    identities: int = 8
    views: int = 10
    seed: int = 1
    size: int = 128
    prompt: str = ""

    def validate(self) -> None:
        self.check(1 <= self.identities <= 200, "identities", "1 to 200")
        self.check(1 <= self.views <= 50, "views", "1 to 50")
        self.check(0 <= self.seed <= LIMIT - self.identities, "seed", f"0 to {LIMIT - self.identities}")
        self.check(32 <= self.size <= 1024, "size", "32 to 1024 pixels")
        pixels = self.identities * self.views * self.size**2
        self.check(pixels <= 200_000_000, "size", "at most 200 million pixels in all; fewer or smaller pictures")


def sheet(config: SheetConfig, advance: Any = None) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Draws the sheet, or the bare picture when it has one.

    Args:
        config: what to show.
        advance: called with 1 after each picture, or None.

    Returns:
        An RGB picture, and for each picture in reading order its seed, title and labels.

    Raises:
        PromptError: the prompt cannot be fulfilled.
    """
    from PIL import Image

    rows, facts, titles = [], [], [_title(config, j) for j in range(config.views)]
    for k in range(config.identities):
        person = sitter(config.seed + k)
        row = []
        for j in range(config.views):
            picture = _picture(config, person, j)
            row.append(Image.fromarray(picture.image))
            facts.append({"seed": person.seed, "title": titles[j], "labels": labels(person, picture.view)})
            if advance:
                advance(1)
        rows.append(row)
    if config.identities == config.views == 1:
        return rows[0][0], facts
    names = [name_of(config.seed + k) or str(config.seed + k) for k in range(config.identities)]
    return _lay_out(rows, titles, names, config.size), facts


def _title(config: SheetConfig, column: int) -> str:
    if config.prompt:
        return ""
    return COLUMNS[column][0] if column < len(COLUMNS) else "at random"


def _picture(config: SheetConfig, person: Sitter, column: int) -> Picture:
    seed = derive("sheet", config.seed, person.seed, column)
    if config.prompt:
        return render(person, view_from_prompt(config.prompt, person, seed), config.size)
    if column >= len(COLUMNS):
        return render(person, sample_view(person, seed), config.size)
    return render(person, _view(person, column, seed), config.size)


def _view(person: Sitter, column: int, seed: int) -> View:
    """The column's view: as its factors say, calm where they say nothing."""
    title, fixed = COLUMNS[column]
    r = stream("sheet view", seed)
    mood = {"laughing": "laughing", "neutral": "neutral"}.get(title, r.choice(("hint", "smiling")))
    look = Expression() if title == "neutral" else expression(mood, r)
    calm = {
        **own_wear(person), "headwear": "none", "style": "photo", "yaw": r.uniform(-3, 3), "pitch": r.uniform(-3, 3),
        "roll": r.uniform(-2, 2), "expression": look, "focal": 85.0, "center": (0.5, 0.47), "face_height": 0.40,
    }  # fmt: skip
    if fixed.get("headwear"):
        for key in ("center", "face_height"):
            del calm[key]
    view = sample_view(person, seed, "any", **{**calm, **fixed})
    if title == "neutral":
        light = dataclasses.replace(view.light, azimuth=-32.0, elevation=32.0, strength=1.0, softness=0.6, ambient=0.42)
        view = dataclasses.replace(view, light=light)
    return view


def _lay_out(rows: list[list[Image.Image]], titles: list[str], names: list[str], size: int) -> Image.Image:
    """Pictures in a grid with titles above and names at the left."""
    from PIL import Image, ImageDraw, ImageFont

    gap, margin = max(size // 24, 3), max(size // 8, 8)
    font: Any = ImageFont.load_default(max(size // 10, 10))
    head = max(size // 6, 16) if any(titles) else 0
    side = max(_width(font, n) for n in names) + 2 * gap
    width = side + len(rows[0]) * (size + gap) - gap + 2 * margin
    height = head + len(rows) * (size + gap) - gap + 2 * margin
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    for j, title in enumerate(titles):
        x = margin + side + j * (size + gap) + size // 2
        draw.text((x, margin + head // 2 - gap // 2), title, _INK, font, anchor="mm")
    for k, (name, row) in enumerate(zip(names, rows, strict=True)):
        y = margin + head + k * (size + gap)
        draw.text((margin + side - 2 * gap, y + size // 2), name, _INK, font, anchor="rm")
        for j, picture in enumerate(row):
            page.paste(picture, (margin + side + j * (size + gap), y))
    return page


def _width(font: ImageFont.FreeTypeFont, text: str) -> int:
    left, _, right, _ = font.getbbox(text)
    return round(right - left)
