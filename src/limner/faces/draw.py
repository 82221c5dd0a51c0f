"""Shows what was found: boxes with their numbers, landmarks, where the head looks, and which face was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from limner.faces.finder import Found
from limner.faces.images import ImageSource, load_image
from limner.types import Face, Pose

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

CHOSEN: Final = (255, 200, 0)
OTHER: Final = (70, 200, 255)


def draw_found(found: Found, faces: Sequence[Face], longest: int = 1600) -> Image.Image:
    """The picture with every face marked; the chosen one in yellow.

    Args:
        found: what `FaceFinder.find` gave.
        faces: all of `found.detected` as faces, in order.
        longest: larger pictures are shrunk to this longest side in pixels.
    """
    from PIL import ImageDraw

    picture, scale = _fitted(found.image, longest)
    pen = ImageDraw.Draw(picture)
    for index, face in enumerate(faces):
        _mark(pen, index, face, scale, index == found.chosen, picture.size)
    return picture


def draw_failed(source: ImageSource, text: str, longest: int = 1600) -> Image.Image:
    """The picture, or where it cannot be read a grey sheet, with a line of text on it."""
    from PIL import Image, ImageDraw

    from limner.errors import ImageError

    try:
        picture, _ = _fitted(load_image(source), longest)
    except ImageError:
        picture = Image.new("RGB", (longest // 2, longest // 4), (90, 90, 90))
    _label(ImageDraw.Draw(picture), (4, 4), text, (255, 90, 90), max(12, picture.width // 40))
    return picture


def contact_sheet(pictures: Sequence[Image.Image], cell: int = 640) -> Image.Image:
    """One picture as it is; several in a grid of square cells, as near to a square as they fill."""
    from PIL import Image

    if len(pictures) == 1:
        return pictures[0]
    columns = int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell), (30, 30, 30))
    for i, picture in enumerate(pictures):
        small = picture.copy()
        small.thumbnail((cell, cell))
        left, top = i % columns * cell, i // columns * cell
        sheet.paste(small, (left + (cell - small.width) // 2, top + (cell - small.height) // 2))
    return sheet


def _fitted(image: np.ndarray, longest: int) -> tuple[Image.Image, float]:
    from PIL import Image

    picture = Image.fromarray(image)
    scale = min(1.0, longest / max(picture.size))
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return picture, scale


def _mark(pen: ImageDraw.ImageDraw, index: int, face: Face, scale: float, chosen: bool, size: tuple[int, int]) -> None:
    color = CHOSEN if chosen else OTHER
    x0, y0, x1, y1 = (v * scale for v in face.box)
    line = max(1, round((x1 - x0) / 80)) + chosen
    pen.rectangle((x0, y0, x1, y1), outline=color, width=line)
    dot = max(1.0, (x1 - x0) / 45)
    if face.landmarks is not None:
        for x, y in face.landmarks * scale:
            pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=color, outline=(0, 0, 0))
        if face.pose is not None:
            x, y = face.landmarks[2] * scale
            dx, dy = _direction(face.pose)
            reach = 0.6 * (x1 - x0)
            pen.line((x, y, x + reach * dx, y + reach * dy), fill=(255, 60, 60), width=line)
    text = f"{index}{' chosen' if chosen else ''}"
    if x1 - x0 > 60:
        text += f"  {face.score:.2f}" + (f"  quality {face.quality.score:.2f}" if face.quality else "")
    height = int(np.clip((x1 - x0) / 12, 11, 28))
    _label(pen, (max(0.0, x0), max(0.0, min(y0 - 1.4 * height, size[1] - 1.4 * height))), text, color, height)


def _direction(pose: Pose) -> tuple[float, float]:
    """Where the nose points in the picture: (0, 0) is at the viewer."""
    yaw, pitch, roll = (float(np.radians(angle)) for angle in (pose.yaw, pose.pitch, pose.roll))
    x, y = np.sin(yaw) * np.cos(pitch), -np.sin(pitch)
    return float(x * np.cos(roll) - y * np.sin(roll)), float(x * np.sin(roll) + y * np.cos(roll))


def _label(
    pen: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, color: tuple[int, int, int], height: int
) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(height)
    pen.rectangle(pen.textbbox(corner, text, font=font), fill=(0, 0, 0))
    pen.text(corner, text, fill=color, font=font)
