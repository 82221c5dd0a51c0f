"""The page's canvas, its models and its scores, without a browser."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio", reason="the page needs gradio (extra serve)")

from serve_models import offer  # noqa: E402

from limner.errors import CorruptData  # noqa: E402
from limner.pipelines.gaze import parse_gaze  # noqa: E402
from limner.provenance import read_provenance  # noqa: E402
from limner.serve.page_actions import Actions, Shown  # noqa: E402
from limner.serve.page_place import (  # noqa: E402
    ANYWHERE,
    SHOWN,
    as_gaze,
    as_place,
    canvas_size,
    clicked,
    draw_canvas,
    inside,
    show_place,
)
from limner.serve.shelf import Offer  # noqa: E402

DIALS: dict[str, Any] = {
    "prompt": "a chef", "negative": "", "strength": 1.0, "number": 1, "seed": "5", "steps": 2, "guidance": 2.0,
    "size": "64x64", "method": "tiny", "embed": True, "watermark": False, "place": None,
}  # fmt: skip


def broken() -> Any:
    raise CorruptData("its file is damaged")


@pytest.fixture
def actions(make_engine: Any, tiny_folder: Path, dream_folder: Path, steered_folder: Path) -> Actions:
    """FaceCLIP with places for the eyes, DreamIdentity without, and a model that cannot be loaded."""
    offers = [
        offer(tiny_folder, "faceclip"),
        offer(dream_folder, "dreamidentity"),
        Offer("broken", broken, "faceclip"),
    ]
    return Actions(make_engine(load=offers, gaze_weights=steered_folder))


@pytest.fixture
def found(actions: Actions, photo: bytes, tmp_path: Path) -> Any:
    (tmp_path / "me.png").write_bytes(photo)
    return actions.find([str(tmp_path / "me.png")])[0]


def last(steps: Any) -> Shown:
    return list(steps)[-1][1]


def test_a_click_is_a_place_on_the_canvas() -> None:
    assert canvas_size("96x128") == (360, 480)
    assert clicked((180, 240), 0.2, "96x128") == pytest.approx((0.5, 0.5, 0.2), abs=0.01)
    assert clicked((0, 479), 0.2, "96x128") == pytest.approx((0.1, 1.0, 0.2), abs=0.01)
    for x, y, apart in ((0, 0, 0.3), (1, 1, 0.5), (0.98, 0.2, 0.04)):
        place = inside(x, y, apart)
        assert as_place(as_gaze(place)) == pytest.approx(place, abs=1e-4)
        parse_gaze(as_gaze(place))
    assert as_gaze(None) == ""
    assert as_place("") is None


def test_the_marker_is_where_the_eyes_are_and_can_be_cleared(tmp_path: Path) -> None:
    blank = np.asarray(draw_canvas(None, "64x64"), int)
    marked = np.asarray(draw_canvas((0.25, 0.5, 0.2), "64x64"), int)
    changed = np.abs(marked - blank).sum(2) > 0
    assert changed.any()
    assert not changed[:, 300:].any()
    for eye in (0.15, 0.35):
        x, y = round(eye * 480), 240
        assert changed[y - 25 : y + 25, x - 25 : x + 25].any()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "square.png")
    assert np.asarray(draw_canvas(None, "64x64", [str(tmp_path / "square.png")])).tolist()[0][0] == [255, 0, 0]
    for size, paths in (("64x96", ["square.png"]), ("64x64", ["gone.png"])):
        image = draw_canvas(None, size, [str(tmp_path / p) for p in paths])
        assert image.getpixel((0, 0)) != (255, 0, 0)
    set_, cleared = (dict(zip(SHOWN, show_place(p, "64x64"), strict=True)) for p in ((0.25, 0.5, 0.2), None))
    assert set_["clear"]["interactive"]
    assert "25 % from the left" in set_["said"]
    assert (set_["across"], set_["down"], set_["apart"]) == (0.25, 0.5, 0.2)
    assert cleared["place"] is None
    assert ANYWHERE in cleared["said"]
    assert not cleared["clear"]["interactive"]


def test_a_place_is_painted_recorded_and_taken_over(actions: Actions, found: Any) -> None:
    shown = last(actions.paint("ann", found, DIALS | {"place": (0.4, 0.5, 0.2)}))
    record = read_provenance(shown.paths[0])
    assert record.portrait.settings["gaze"] == "0.4,0.5,0.2"
    assert list(record.portrait.scores) == ["likeness", "text"]
    assert shown.gallery["value"][0][1].count(" · ") == 2
    assert "pixel for pixel" in last(actions.repaint("ann", shown.paths[0])).notes["value"]
    taken = actions.take(shown.paths[0], "dream")
    assert taken[-len(SHOWN)] == (0.4, 0.5, 0.2)
    assert "tiny" in taken[8]
    assert taken[7]["value"] == "tiny"


def test_models_are_picked_and_said(actions: Actions, found: Any) -> None:
    *own, method, _ = actions.start()
    assert [name for _, name in method["choices"]] == ["tiny", "dream", "broken"]
    assert method["choices"][1][0] == "dream, by dreamidentity"
    assert method["interactive"]
    assert own[4]["visible"]
    line, *_, sized, box, _canvas = list(actions.take_model("dream", None))[-1]
    assert "S* stands for the person" in line
    assert sized["value"] == "32x32"
    assert not box["visible"]
    assert "its file is damaged" in list(actions.take_model("broken", None))[-1][0]
    dream = DIALS | {"method": "dream", "size": "32x32", "prompt": "S* as a chef", "place": (0.4, 0.5, 0.2)}
    shown = last(actions.paint("ann", found, dream))
    record = read_provenance(shown.paths[0])
    assert (record.portrait.model, record.portrait.settings["gaze"]) == ("dream", "")
    assert "no score of the text" in shown.notes["value"]
    assert "No CLIP" in shown.notes["value"]
    assert "pixel for pixel" in last(actions.repaint("ann", shown.paths[0])).notes["value"]
    refused = last(actions.paint("ann", found, dream | {"prompt": "a chef"}))
    assert 'data-code="prompt"' in refused.status
    assert actions.engine.persons("ann") == []


def test_one_model_is_the_only_choice(make_engine: Any) -> None:
    *own, method, _ = Actions(make_engine()).start()
    assert method["choices"] == [("tiny, by faceclip", "tiny")]
    assert not method["interactive"]
    assert not own[4]["visible"]


def test_a_picture_by_the_command_can_be_painted_again(actions: Actions, tiny_folder: Path, tmp_path: Path) -> None:
    """Its record names no ControlNet, though the service has one."""
    from limner.pipelines.loading import load_model
    from limner.pipelines.paint import default_dials, paint
    from limner.provenance import encode_portrait

    model = load_model(str(tiny_folder), device="cpu")
    portrait = next(paint(model, None, ["a chef"], [3], default_dials(model)))
    (tmp_path / "cli.png").write_bytes(encode_portrait(portrait, None, ""))
    assert read_provenance(io.BytesIO((tmp_path / "cli.png").read_bytes())).intact
    assert "pixel for pixel" in last(actions.repaint("ann", str(tmp_path / "cli.png"))).notes["value"]
