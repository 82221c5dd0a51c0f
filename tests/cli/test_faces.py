"""`limner faces`: what it prints, draws and leaves with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.cli.main import main


@pytest.fixture(scope="module")
def pictures(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `one.png`, `two.jpg` (two people, the right one larger), `none.png` and `broken.jpg`."""
    folder = tmp_path_factory.mktemp("pictures")
    left, right = (Image.open(shared / "photos" / name).convert("RGB") for name in ("0001_female.png", "0005_male.png"))
    left.save(folder / "one.png")
    both = Image.new("RGB", (900, 460), "gray")
    both.paste(left.resize((200, 200)), (50, 100))
    both.paste(right, (400, 5))
    both.save(folder / "two.jpg", quality=95)
    Image.new("RGB", (300, 200), "navy").save(folder / "none.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    return folder


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """Status, standard output and standard error of `limner faces …`."""
    try:
        status = main(["faces", *map(str, arguments)])
    except SystemExit as e:
        status = e.code or 0
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_json_has_one_object_per_image(pictures: Path, yunet: Path, capsys: pytest.CaptureFixture) -> None:
    names = ["two.jpg", "one.png", "none.png", "broken.jpg"]
    status, out, _ = run(capsys, *(pictures / name for name in names), "--json", "--detector-weights", yunet)
    rows = json.loads(out)
    assert status == 2
    assert [Path(row["path"]).name for row in rows] == names
    assert [len(row["faces"]) for row in rows] == [2, 1, 0, 0]
    assert [row["chosen"] for row in rows] == [1, 0, None, None]
    assert [row["error"] and row["error"]["code"] for row in rows] == [None, None, "no_face", "unreadable_image"]
    face = rows[0]["faces"][1]
    assert face["chosen"]
    assert set(face["landmarks"]) == {"left_eye", "right_eye", "nose", "left_mouth", "right_mouth"}
    assert set(face["pose"]) == {"yaw", "pitch", "roll"}
    assert set(face["quality"]) == {"size", "sharpness", "score", "warnings"}
    x0, _, x1, _ = face["box"]
    assert 400 < x0 < face["landmarks"]["nose"][0] < x1 < 900
    assert rows[0]["width"] == 900
    assert rows[0]["height"] == 460


def test_a_choice_is_explained_only_where_none_was_made(
    pictures: Path, yunet: Path, capsys: pytest.CaptureFixture
) -> None:
    status, out, err = run(capsys, pictures / "two.jpg", "--detector-weights", yunet)
    assert status == 0
    assert "1 ← taken" in out
    assert "2 faces; took number 1, the largest one" in err
    assert "--choose" in err
    status, out, err = run(capsys, pictures / "two.jpg", "--choose", "0", "--detector-weights", yunet)
    assert (status, err) == (0, "")
    assert "0 ← taken" in out
    status, _, err = run(capsys, pictures / "two.jpg", "--choose", "only", "--detector-weights", yunet)
    assert status == 2
    assert "there are 2" in err


def test_draw_marks_the_faces(pictures: Path, yunet: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert run(capsys, pictures / "two.jpg", "--draw", out, "--detector-weights", yunet)[0] == 0
    drawn, source = np.asarray(Image.open(out)), np.asarray(Image.open(pictures / "two.jpg"))
    assert drawn.shape == source.shape
    yellow, blue = ((drawn == color).all(-1) for color in ((255, 200, 0), (70, 200, 255)))
    assert np.argwhere(yellow)[:, 1].min() > 400
    assert np.argwhere(blue)[:, 1].max() < 400
    sheet = tmp_path / "sheet.jpg"
    names = ("two.jpg", "one.png", "none.png", "broken.jpg")
    assert run(capsys, *(pictures / n for n in names), "--draw", sheet, "--detector-weights", yunet)[0] == 2
    assert Image.open(sheet).size == (1280, 1280)


def test_a_source_is_never_drawn_over(pictures: Path, yunet: Path, capsys: pytest.CaptureFixture) -> None:
    before = (pictures / "one.png").read_bytes()
    status, _, err = run(capsys, pictures / "one.png", "--draw", pictures / "one.png", "--detector-weights", yunet)
    assert status == 2
    assert "nothing was written" in err
    assert (pictures / "one.png").read_bytes() == before


def test_wrong_flags_are_typed_errors(pictures: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments, word in (
        (["--choose", "biggest"], "largest, center, only"),
        (["--detector", "mtcnn"], "yunet"),
        (["--detector-weights", "/absent"], "LIMNER_YUNET"),
    ):
        status, _, err = run(capsys, pictures / "one.png", *arguments)
        assert status == 2
        assert word in err
    status, _, err = run(capsys, pictures / "one.png", "--json", "--choose", "biggest")
    assert status == 2
    assert json.loads(err)["error"]["code"] == "config"


def test_help_names_every_rule(capsys: pytest.CaptureFixture) -> None:
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for word in ("--choose", "--draw", "--json", "largest", "center", "only", "like:PHOTO", "--detector-weights"):
        assert word in out
