"""The page without a browser: what it says of every error, and what its buttons make the engine do."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio", reason="the page needs gradio (extra serve)")

from limner import errors  # noqa: E402
from limner.provenance import encode_portrait, read_portrait, read_provenance  # noqa: E402
from limner.serve import errors as service_errors  # noqa: E402
from limner.serve import page_parts as parts  # noqa: E402
from limner.serve.jobs import Limits  # noqa: E402
from limner.serve.page_actions import Actions, Shown, as_recorded, sizes  # noqa: E402

DIALS: dict[str, Any] = {
    "prompt": "a chef", "negative": "hat", "strength": 0.9, "number": 2, "seed": "5", "steps": 2, "guidance": 2.0,
    "size": "64x64", "method": "tiny", "embed": True, "watermark": False, "place": None,
}  # fmt: skip
OWNER = "visitor"


def all_errors() -> list[type[errors.LimnerError]]:
    """Every typed error that there is."""
    found = [errors.LimnerError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ in (errors.__name__, service_errors.__name__)]


@pytest.fixture
def actions(make_engine: Any) -> Actions:
    return Actions(make_engine())


@pytest.fixture
def files(tmp_path: Path, photo: bytes, wall: bytes) -> dict[str, str]:
    """One person, two (of whom the larger stands right), nobody, and no picture."""
    one = Image.open(io.BytesIO(photo)).convert("RGB")
    two = Image.new("RGB", (640, 340), "gray")
    two.paste(one.resize((240, 240)), (20, 50))
    two.paste(one, (300, 10))
    two.save(tmp_path / "two.png")
    (tmp_path / "one.png").write_bytes(photo)
    (tmp_path / "wall.png").write_bytes(wall)
    (tmp_path / "text.png").write_bytes(b"no picture")
    return {p.stem: str(p) for p in tmp_path.glob("*.png")}


def last(steps: Any) -> Shown:
    """What is shown in the end; before it the page was never said to be done."""
    overs, shown = zip(*steps, strict=True)
    assert list(overs) == [False] * (len(overs) - 1) + [True]
    return shown[-1]


def paint(actions: Actions, found: Any, **changes: Any) -> Shown:
    return last(actions.paint(OWNER, found, {**DIALS, **changes}))


def code_of(html: str) -> str:
    return html.split('data-code="')[1].split('"')[0]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_is_said_and_escaped(kind: type[errors.LimnerError]) -> None:
    said = parts.alert(kind("Got <script> & more.", "Do <b>this</b>."), "<i>.png")
    assert 'role="alert"' in said
    assert code_of(said) == kind.code
    assert "&lt;script&gt; &amp; more." in said
    assert "&lt;i&gt;.png" in said
    assert "<script>" not in said
    assert "<b>" not in said
    assert "--" not in parts.HINTS.get(kind.code, "")


def test_portraits_are_painted_and_nothing_stays(actions: Actions, files: dict[str, str]) -> None:
    found, gallery, said = actions.find([files["one"]])
    assert len(gallery["value"]) == 1
    assert not said["visible"]
    shown = paint(actions, found)
    records = [read_provenance(path) for path in shown.paths]
    assert [r.portrait.seed for r in records] == [5, 6]
    for record in records:
        assert record.intact
        assert record.identity is not None
        assert record.portrait.prompt == "a chef"
        assert record.portrait.negative_prompt == "hat"
        assert record.portrait.settings["strength"] == 0.9
    assert [caption.split(" · ")[0] for _, caption in shown.gallery["value"]] == ["seed 5", "seed 6"]
    assert shown.files["value"] == shown.paths
    assert "a chef" in actions.details(shown.paths, 1)["value"]
    assert actions.engine.jobs(OWNER) == []
    assert actions.engine.persons(OWNER) == []
    without = read_provenance(paint(actions, found, embed=False, number=1).paths[0])
    assert without.identity is None


def test_the_face_that_was_picked_is_painted(actions: Actions, files: dict[str, str]) -> None:
    found, gallery, _ = actions.find([files["two"], files["one"]])
    captions = [caption for _, caption in gallery["value"]]
    assert captions == ["Photo 1", "✓ Photo 1", "✓ Photo 2"]
    picked, gallery, _ = actions.choose(found, 0)
    assert [caption for _, caption in gallery["value"]] == ["✓ Photo 1", "Photo 1", "✓ Photo 2"]
    identities = {read_provenance(paint(actions, f[:1], number=1).paths[0]).portrait.identity for f in (found, picked)}
    assert len(identities) == 2
    assert "`choose`" not in str(paint(actions, picked[:1], number=1, seed="").notes)


def test_what_is_wrong_with_photos_is_said_at_once(actions: Actions, files: dict[str, str]) -> None:
    found, gallery, said = actions.find([files["wall"], files["text"], files["one"]])
    assert said["value"].count('role="alert"') == 2
    assert 'data-code="no_face"' in said["value"]
    assert 'data-code="unreadable_image"' in said["value"]
    assert "Photo 1 (wall.png)" in said["value"]
    assert "<bytes>" not in said["value"]
    assert len(gallery["value"]) == 1
    assert len(paint(actions, found, number=1).paths) == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"size": "63x64"}, "config"),
        ({"steps": 101}, "config"),
        ({"number": 17}, "config"),
        ({"seed": "-1"}, "config"),
        ({"seed": "9" * 19}, "config"),
    ],
)
def test_wrong_settings_are_said(actions: Actions, files: dict[str, str], changes: Any, code: str) -> None:
    found, _, _ = actions.find([files["one"]])
    assert code_of(paint(actions, found, **changes).status) == code
    assert actions.engine.persons(OWNER) == []


def test_without_a_photo_and_when_the_service_stops(actions: Actions, files: dict[str, str]) -> None:
    found, _, _ = actions.find([files["one"]])
    assert code_of(paint(actions, []).status) == "no_face"
    actions.engine.drain(1)
    assert code_of(paint(actions, found).status) == "draining"


def test_a_picture_is_painted_again_pixel_for_pixel(actions: Actions, files: dict[str, str]) -> None:
    found, _, _ = actions.find([files["one"]])
    path = paint(actions, found).paths[1]
    said, run, take = actions.read(path)
    assert run["interactive"]
    assert take["interactive"]
    assert "a chef" in said["value"]
    shown = last(actions.repaint(OWNER, path))
    assert "pixel for pixel" in shown.notes["value"]
    (again,) = shown.paths
    assert np.array_equal(np.asarray(Image.open(again)), np.asarray(Image.open(path)))
    prompt, negative, strength, seed, *_ = actions.take(path)
    assert (prompt, negative, strength, seed) == ("a chef", "hat", 0.9, "6")


def test_what_cannot_be_painted_again_says_why(actions: Actions, files: dict[str, str], tmp_path: Path) -> None:
    found, _, _ = actions.find([files["one"]])
    path = Path(paint(actions, found, embed=False, number=1).paths[0])
    said, run, take = actions.read(str(path))
    assert code_of(said["value"]) == "weights_mismatch"
    assert not run["interactive"]
    assert take["interactive"]
    assert code_of(last(actions.repaint(OWNER, str(path))).status) == "weights_mismatch"
    assert code_of(actions.read(files["one"])[0]["value"]) == "no_provenance"
    cut = tmp_path / "cut.png"
    cut.write_bytes(path.read_bytes().replace(b'"seed"', b'"sead"'))
    assert code_of(last(actions.repaint(OWNER, str(cut))).status) in ("corrupt_data", "unreadable_image")
    assert code_of(last(actions.repaint(OWNER, None)).status) == "config"


def test_rescued_faces_are_left_to_the_command(actions: Actions, files: dict[str, str], tmp_path: Path) -> None:
    found, _, _ = actions.find([files["one"]])
    path = paint(actions, found, number=1).paths[0]
    old = read_portrait(path)
    rescued = tmp_path / "rescued.png"
    settings = {**old.settings, "rescue": "auto"}
    rescued.write_bytes(encode_portrait(replace(old, settings=settings), read_provenance(path).identity))
    said, run, take = actions.read(str(rescued))
    assert (run["interactive"], take["interactive"]) == (False, True)
    assert code_of(said["value"]) == "unsupported"
    assert "limner generate --from FILE" in said["value"]
    assert code_of(last(actions.repaint(OWNER, str(rescued))).status) == "unsupported"


def test_a_picture_of_a_larger_batch_is_painted_again_alone(
    actions: Actions, make_engine: Any, files: dict[str, str]
) -> None:
    found, _, _ = actions.find([files["one"]])
    path = paint(actions, found).paths[1]
    shown = last(Actions(make_engine(Limits(number=1))).repaint(OWNER, path))
    assert [read_provenance(p).portrait.seed for p in shown.paths] == [6]
    assert "Painted again" in shown.notes["value"]
    assert "another processor" not in shown.notes["value"]


def test_a_visitor_who_leaves_takes_everything_along(make_engine: Any, files: dict[str, str]) -> None:
    actions = Actions(make_engine(Limits(batch=1)))
    found, _, _ = actions.find([files["one"]])
    steps = actions.paint(OWNER, found, {**DIALS, "number": 16, "steps": 100})
    while not actions.engine.jobs(OWNER):
        next(steps)
    actions.leave(OWNER)
    assert actions.engine.jobs(OWNER) == []
    assert actions.engine.persons(OWNER) == []
    assert code_of(last([(True, shown) for over, shown in steps if over]).status) == "not_found"


def test_a_record_with_foreign_company_is_painted_alone(actions: Actions, files: dict[str, str]) -> None:
    found, _, _ = actions.find([files["one"]])
    record = read_provenance(paint(actions, found).paths[1])
    request, index = as_recorded(record, None, 2)
    assert (request.seed, request.number, index) == (5, 2, 1)
    request, index = as_recorded(record, None, 1)
    assert (request.seed, request.number, index) == (6, 1, 0)
    for company in ([6, 900], ["x"], [6, 5], None, []):
        record.portrait.settings["batch_seeds"] = company
        request, index = as_recorded(record, None, 16)
        assert (request.seed, request.number, index) == (6, 1, 0)


def test_a_photo_that_was_deleted_meanwhile_is_asked_for_again(actions: Actions, files: dict[str, str]) -> None:
    found, _, _ = actions.find([files["one"]])
    Path(files["one"]).unlink()
    assert code_of(paint(actions, found).status) == "not_found"
    assert code_of(actions.find([files["one"]])[2]["value"]) == "not_found"


def test_with_tokens_visitors_sign_in() -> None:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from limner.serve.engine import Engine
    from limner.serve.page import mount_page

    def no_model() -> Any:
        raise AssertionError("The engine is not started here.")

    client = TestClient(mount_page(FastAPI(), Engine(no_model), tokens=("first-secret", "second-secret")))
    assert client.get("/", follow_redirects=False).headers["location"] == "/page"
    assert client.get("/page/config").status_code == 401
    assert client.post("/page/login", data={"username": "me", "password": "wrong"}).status_code == 400
    assert client.get("/page/config").status_code == 401
    assert client.post("/page/login", data={"username": "me", "password": "second-secret"}).status_code == 200
    assert client.get("/page/config").status_code == 200


def test_sizes_are_multiples_that_keep_the_area() -> None:
    for width, height, unit in ((128, 128, 8), (1024, 1024, 8), (64, 64, 64)):
        for label, value in sizes(width, height, unit):
            w, h = map(int, value.split("x"))
            assert w % unit == h % unit == 0
            assert f"{w} × {h}" in label
            assert unit == 64 or 0.9 < w * h / (width * height) < 1.1
