"""The canvas of the page: a click says where the eyes go, sliders do the same for the keyboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from limner.faces.align import template, usual_box
from limner.pipelines.gaze import SIZE, Gaze, parse_gaze

LONG = 480
"""Pixels of the canvas' longer side."""
START = (0.5, 0.4, SIZE)
"""Where the sliders stand while nothing is asked for."""
ANYWHERE = "Anywhere. Click on the canvas, or move a slider, to say where."

Place = tuple[float, float, float]
"""x and y of the middle between the eyes, and their distance; in shares of the picture's width, height and width."""


def build_place() -> dict[str, Any]:
    """The parts, hidden until a model is known that can do it."""
    with gr.Accordion("Where the eyes go", open=False, visible=False, elem_id="place") as box:
        said = gr.HTML(f'<p class="limner-said" role="status">{ANYWHERE}</p>', padding=False, elem_id="place-said")
        canvas = gr.Image(
            label="Click where the eyes go",
            show_label=False,
            type="pil",
            format="png",
            interactive=False,
            buttons=[],
            elem_id="canvas",
            alt_text="The canvas; the sliders below do the same as a click on it",
        )
        with gr.Row():
            across = gr.Slider(0, 1, START[0], step=0.01, label="From the left", min_width=140, elem_id="place-x")
            down = gr.Slider(0, 1, START[1], step=0.01, label="From the top", min_width=140, elem_id="place-y")
            apart = gr.Slider(
                0.04, 0.5, START[2], step=0.01, label="Between the eyes", min_width=140, elem_id="place-d"
            )
        clear = gr.Button("Clear the place", interactive=False, elem_id="place-clear")
    return {
        "box": box, "said": said, "canvas": canvas, "across": across, "down": down, "apart": apart, "clear": clear,
        "place": gr.State(None),
    }  # fmt: skip


def wire_place(parts: dict[str, Any], size: Any, paths: Any) -> None:
    """Has the parts follow clicks, sliders, the chosen size and the pictures that were painted."""
    outputs = [parts[name] for name in SHOWN]
    sliders = [parts["across"], parts["down"], parts["apart"]]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def click(apart: float, size: str, paths: Sequence[str], event: gr.SelectData) -> tuple[Any, ...]:
        return show_place(clicked(event.index, apart, size), size, paths)

    def slide(across: float, down: float, apart: float, size: str, paths: Sequence[str]) -> tuple[Any, ...]:
        return show_place(inside(across, down, apart), size, paths, sliders=False)

    def again(place: Place | None, size: str, paths: Sequence[str]) -> Any:
        return draw_canvas(place, size, paths)

    def clear(size: str, paths: Sequence[str]) -> tuple[Any, ...]:
        return show_place(None, size, paths)

    parts["canvas"].select(click, [parts["apart"], size, paths], outputs, **quiet)
    for slider in sliders:
        slider.input(slide, [*sliders, size, paths], outputs, trigger_mode="always_last", **quiet)
    parts["clear"].click(clear, [size, paths], outputs, **quiet)
    gr.on([size.change, paths.change], again, [parts["place"], size, paths], parts["canvas"], **quiet)


SHOWN = ("place", "canvas", "said", "across", "down", "apart", "clear")
"""What `show_place` gives new values to."""


def show_place(place: Place | None, size: str, paths: Sequence[str] = (), *, sliders: bool = True) -> tuple[Any, ...]:
    """New values of `SHOWN`.

    Args:
        place: None for anywhere.
        size: of the picture to be painted, `WIDTHxHEIGHT`.
        paths: pictures that were painted; the first lies under the marker if it has that shape.
        sliders: whether they are moved; not while the visitor moves them.
    """
    said = ANYWHERE
    if place is not None:
        x, y, apart = (round(100 * v) for v in place)
        said = f"Eyes: {x} % from the left, {y} % from the top, {apart} % of the width apart."
    where = START if place is None else place
    return (
        place,
        draw_canvas(place, size, paths),
        f'<p class="limner-said" role="status">{said}</p>',
        *((round(v, 2) if sliders else gr.skip()) for v in where),
        gr.update(interactive=place is not None),
    )


def clicked(pixel: Sequence[int], apart: float, size: str) -> Place:
    """The place of a click on a pixel (x, y) of the canvas."""
    width, height = canvas_size(size)
    return inside((pixel[0] + 0.5) / width, (pixel[1] + 0.5) / height, apart)


def inside(x: float, y: float, apart: float) -> Place:
    """The nearest place with both eyes on the canvas."""
    apart = min(max(float(apart), 0.01), 1.0)
    return round(min(max(x, apart / 2), 1 - apart / 2), 4), round(min(max(y, 0.0), 1.0), 4), round(apart, 4)


def as_gaze(place: Place | None) -> str:
    """As an order says it; empty for anywhere."""
    return "" if place is None else ",".join(f"{v:.6g}" for v in place)


def as_place(gaze: str) -> Place | None:
    """The place that a record names; None for none. Tilted eyes are levelled."""
    if not gaze:
        return None
    found = parse_gaze(gaze)
    return inside(*found.middle, abs(found.right[0] - found.left[0]))


def canvas_size(size: str) -> tuple[int, int]:
    """Width and height in pixels of the canvas for a picture of `WIDTHxHEIGHT`."""
    width, height = (int(part) for part in size.split("x")) if size else (1, 1)
    factor = LONG / max(width, height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def draw_canvas(place: Place | None, size: str, paths: Sequence[str] = ()) -> Image.Image:
    """The canvas with its marker, if there is a place: both eyes, and the outline of a usual face."""
    width, height = canvas_size(size)
    image = _under(paths, width, height)
    if place is None:
        return image
    draw = ImageDraw.Draw(image)
    x, y, apart = place
    gaze = Gaze((x - apart / 2, y), (x + apart / 2, y))
    eyes = [(ex * width, ey * height) for ex, ey in (gaze.left, gaze.right)]
    between = eyes[1][0] - eyes[0][0]
    x0, y0, x1, y1 = usual_box(112)
    (left, top), (right, _) = template(112)[:2]
    scale = between / (right - left)
    corner = eyes[0][0] - (left - x0) * scale, eyes[0][1] - (top - y0) * scale
    face = [*corner, corner[0] + (x1 - x0) * scale, corner[1] + (y1 - y0) * scale]
    for color, thick in (("black", 5), ("white", 2)):
        draw.ellipse(face, outline=color, width=thick)
        for ex, ey in eyes:
            r = max(between * 0.16, 4) + (thick == 5)
            draw.ellipse([ex - r, ey - r, ex + r, ey + r], outline=color, width=thick)
    return image


def _under(paths: Sequence[str], width: int, height: int) -> Image.Image:
    """The first picture, if it is there and has this shape; else a sheet divided into thirds."""
    try:
        picture = Image.open(Path(paths[0])).convert("RGB") if paths else None
    except OSError:  # deleted since
        picture = None
    if picture is not None and abs(picture.width / picture.height - width / height) < 0.02:
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    image = Image.new("RGB", (width, height), "#e7e5e4")
    draw = ImageDraw.Draw(image)
    for third in (1 / 3, 2 / 3):
        draw.line([third * width, 0, third * width, height], fill="#c9c5c1")
        draw.line([0, third * height, width, third * height], fill="#c9c5c1")
    return image
