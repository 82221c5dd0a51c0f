"""Contact sheets: several pictures on one, so that a person can choose."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from limner.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    from limner.types import Face, Portrait

PAPER, INK, FAINT = (250, 249, 246), (40, 40, 40), (120, 120, 120)


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str],
    notes: Sequence[Sequence[str]] | None = None,
    references: Sequence[Image.Image] = (),
    cell: int = 256,
    gap: int = 12,
) -> Image.Image:
    """Lays pictures out in titled rows, with the person's own photos above.

    Args:
        rows: pictures, row by row; rows may differ in length, pictures in size (they are fitted, not cropped).
        titles: one line of text per row (wrapped), drawn above it.
        notes: a short text under each picture.
        references: photos of the person, drawn small in the top row.
        cell: width and height in pixels of the square each picture is fitted into.
        gap: pixels between cells.

    Raises:
        ConfigError: no picture, or titles and notes that do not fit the rows.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not rows or not all(rows) or len(titles) != len(rows):
        raise ConfigError(f"A sheet needs rows of pictures and a title for each; got {len(rows)} and {len(titles)}.")
    if notes is not None and [len(n) for n in notes] != [len(r) for r in rows]:
        raise ConfigError("A sheet needs one note for each picture.")
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont = ImageFont.load_default(max(12, cell // 16))
    small: ImageFont.FreeTypeFont | ImageFont.ImageFont = ImageFont.load_default(max(11, cell // 20))
    line, note_line = int(_height(font) * 1.3), int(_height(small) * 1.5) if notes else 0
    width = max(len(r) for r in rows) * (cell + gap) + gap
    wrapped = [_wrap(t, font, width - 2 * gap) for t in titles]
    top = gap + (cell // 2 + gap if references else 0)
    height = top + sum(len(w) * line + gap // 2 + cell + note_line + gap for w in wrapped)

    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, photo in enumerate(references[: (width - gap) // (cell // 2 + gap)]):
        _paste(sheet, photo, gap + i * (cell // 2 + gap), gap, cell // 2)
    y = top
    for i, (row, lines) in enumerate(zip(rows, wrapped, strict=True)):
        for text in lines:
            draw.text((gap, y), text, INK, font)
            y += line
        y += gap // 2
        for j, picture in enumerate(row):
            x = gap + j * (cell + gap)
            _paste(sheet, picture, x, y, cell)
            if notes is not None:
                draw.text((x, y + cell + 2), notes[i][j], FAINT, small)
        y += cell + note_line + gap
    return sheet


def portrait_sheet(rows: Sequence[Sequence[Portrait]], faces: Sequence[Face] = (), columns: int = 8) -> bytes:
    """Portraits, one prompt a row, as the bytes of a PNG; the aligned faces they were painted from above.

    Args:
        rows: portraits of one prompt each; long rows are continued below.
        faces: of the person; shown small. They are crops of the user's photos.
        columns: pictures side by side at most.
    """
    from PIL import Image

    from limner.provenance import encode_sheet

    lines = [row[i : i + columns] for row in rows for i in range(0, len(row), columns)]
    notes = [[_note(p) for p in line] for line in lines]
    photos = [Image.fromarray((f.image.transpose(1, 2, 0) * 255).round().astype("uint8")) for f in faces]
    side = max(max(p.image.size) for row in rows for p in row)
    sheet = contact_sheet(
        [[p.image for p in line] for line in lines],
        [line[0].prompt for line in lines],
        notes,
        photos,
        cell=min(384, max(192, side)),
    )
    return encode_sheet(sheet, [p for row in rows for p in row])


def _note(portrait: Portrait) -> str:
    likeness = portrait.scores.get("likeness")
    return f"seed {portrait.seed}" + ("" if likeness is None else f", likeness {likeness:.2f}")


def _paste(sheet: Image.Image, picture: Image.Image, x: int, y: int, cell: int) -> None:
    """Fits a picture into a square cell, centred."""
    from PIL import Image

    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    fitted = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    sheet.paste(fitted, (x + (cell - size[0]) // 2, y + (cell - size[1]) // 2))


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text in lines that fit the width, three at most."""
    per_letter = font.getlength("abcdefghij klmnop") / 17
    return textwrap.wrap(text, max(8, int(width / per_letter)), max_lines=3, placeholder=" …") or [""]


def _height(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> float:
    box = font.getbbox("Ag")
    return box[3]
