"""`limner inspect`: pictures of Limner's, of others, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_model import noise_face

from limner.cli.main import main
from limner.provenance import encode_sheet, render_info
from limner.types import Identity, Portrait


def run(*arguments: str | Path) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)


@pytest.fixture(scope="module")
def painted(tiny: Any, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same portrait with and without the mark, painted by the command."""
    folder = tmp_path_factory.mktemp("painted")
    identity: Identity = tiny.method.enroll([noise_face(1)])
    identity.save(folder / "me.safetensors")
    for name in ("watermark", "no-watermark"):
        options = ("-p", "a chef", "--seed", "5", "--steps", "2", f"--{name}", "--out", folder / name)
        assert run("generate", "--model", tiny_folder, "--identity", folder / "me.safetensors", *options) == 0
    return {name: folder / name / "a-chef-5.png" for name in ("watermark", "no-watermark")}


def inspected(path: Path, capsys: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert run("inspect", path, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_a_marked_portrait_says_everything(painted: dict[str, Path], capsys: Any) -> None:
    report = inspected(painted["watermark"], capsys)
    assert report["watermark"]["detected"]
    assert report["declared_ai_generated"]
    facts = report["provenance"]
    assert (facts["prompt"], facts["seed"], facts["intact"], facts["identity_embedded"]) == ("a chef", 5, True, True)
    assert facts["weights"]
    assert facts["settings"]["watermark"] is True
    assert run("inspect", painted["watermark"]) == 0
    printed = capsys.readouterr().out
    assert "a chef" in printed
    assert "Watermark: found" in printed


def test_without_the_mark_none_is_found_and_the_rest_is_the_same(painted: dict[str, Path], capsys: Any) -> None:
    report = inspected(painted["no-watermark"], capsys)
    assert not report["watermark"]["detected"]
    assert report["provenance"]["settings"]["watermark"] is False
    plain, marked = (np.asarray(Image.open(painted[k]), float) for k in ("no-watermark", "watermark"))
    assert 0 < np.mean((plain - marked) ** 2) < 255**2 / 10**4


def test_the_mark_outlives_the_record(painted: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    with Image.open(painted["watermark"]) as image:
        image.save(tmp_path / "shared.jpg", quality=90)
    report = inspected(tmp_path / "shared.jpg", capsys)
    assert report["provenance"] is None
    assert not report["declared_ai_generated"]
    assert report["watermark"]["detected"]


def test_painting_a_marked_picture_again_marks_it_again(
    painted: dict[str, Path], tiny_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    capsys.readouterr()
    assert run("generate", "--model", tiny_folder, "--from", painted["watermark"], "--out", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["identical"]


def test_sheets_and_renders_say_what_they_are(tmp_path: Path, capsys: Any) -> None:
    portrait = Portrait(Image.new("RGB", (64, 64)), seed=5, prompt="a chef", model="tiny")
    (tmp_path / "sheet.png").write_bytes(encode_sheet(Image.new("RGB", (200, 90)), [portrait] * 2))
    Image.new("RGB", (64, 64)).save(tmp_path / "render.png", pnginfo=render_info("sitters", seed=3))
    report = inspected(tmp_path / "sheet.png", capsys)
    assert (report["kind"], report["provenance"], report["declared_ai_generated"]) == ("sheet", None, True)
    assert [p["seed"] for p in report["record"]["portraits"]] == [5, 5]
    report = inspected(tmp_path / "render.png", capsys)
    assert (report["kind"], report["record"]["world"]) == ("render", "sitters")
    for name, said in (("sheet", "A contact sheet of 2 portraits\n  a chef, seed 5"), ("render", "world (sitters)")):
        assert run("inspect", tmp_path / f"{name}.png") == 0
        printed = capsys.readouterr().out
        assert said in printed
        assert "no record" not in printed


def test_foreign_small_and_missing_pictures(tmp_path: Path, capsys: Any) -> None:
    Image.new("RGB", (20, 30)).save(tmp_path / "icon.png")
    report = inspected(tmp_path / "icon.png", capsys)
    assert (report["provenance"], report["watermark"], report["size"]) == (None, None, [20, 30])
    assert (report["kind"], report["record"]) == ("", None)
    assert run("inspect", tmp_path / "absent.png", "--json") == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "unreadable_image"
