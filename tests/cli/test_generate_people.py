"""`limner generate --person … --rescue …`: several people in one picture, small faces, and both painted again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from limner.cli.main import main
from limner.provenance import read_provenance
from limner.world.sheet import SheetConfig, sheet


def run(*arguments: str | Path) -> int:
    """The exit status, wherever it comes from."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two sitters, and both in one photo."""
    folder = tmp_path_factory.mktemp("photos")
    for name, seed in (("me", 7), ("you", 11)):
        sheet(SheetConfig(identities=1, views=1, seed=seed, size=320))[0].save(folder / f"{name}.png")
    both = Image.new("RGB", (640, 320))
    both.paste(Image.open(folder / "me.png"), (0, 0))
    both.paste(Image.open(folder / "you.png"), (320, 0))
    both.save(folder / "both.png")
    return {p.stem: p for p in folder.iterdir()}


@pytest.fixture
def paint(tiny_folder: Path, tmp_path: Path, capsys: Any) -> Any:
    """Runs the command; returns its document, or its error."""

    def paint(*arguments: str | Path) -> dict[str, Any]:
        capsys.readouterr()
        status = run("generate", "--model", tiny_folder, "--out", tmp_path / "out", "--json", *arguments)
        captured = capsys.readouterr()
        if status == 0:
            return json.loads(captured.out)
        return json.loads(captured.err.strip().splitlines()[-1])["error"]

    return paint


def test_two_people_and_their_picture_again(paint: Any, photos: dict[str, Path]) -> None:
    report = paint(
        "--person", f"{photos['me']}@left", "--person", f"{photos['you']}@0.5,0,1,1", "-p", "a chef", "-n", "2",
        "--seed", "3",
    )  # fmt: skip
    path = report["pictures"][1]["path"]
    people = read_provenance(path).portrait.settings["people"]
    assert [p["box"] for p in people] == [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    assert people[0]["identity"] != people[1]["identity"]
    assert Path(report["sheet"]).is_file()
    assert paint("--from", path)["identical"] is True
    swapped = paint(
        "--person", f"{photos['you']}@left", "--person", f"{photos['me']}@right", "-p", "a chef", "--seed", "4"
    )
    assert swapped["pictures"][0]["identity"] != report["pictures"][1]["identity"]


def test_enrolled_people_paint_what_their_photos_paint(
    paint: Any, photos: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    me = tmp_path / "me@home.safetensors"
    assert run("enroll", "--face", photos["me"], "--model", tiny_folder, "--out", me) == 0
    by_file, by_photo = (
        paint("--person", f"{source}@left-third", "-p", "a chef", "--seed", "3") for source in (me, photos["me"])
    )
    assert by_file["pictures"][0]["identity"] == by_photo["pictures"][0]["identity"]


def test_without_the_embedded_people_it_is_refused(paint: Any, photos: dict[str, Path]) -> None:
    report = paint("--person", f"{photos['me']}@left", "-p", "a chef", "--seed", "3", "--no-embed-identity")
    error = paint("--from", report["pictures"][0]["path"])
    assert error["code"] == "weights_mismatch"
    assert "group of 1 people" in error["message"]


def test_what_the_rescue_did_is_said_and_done_again(paint: Any, photos: dict[str, Path]) -> None:
    report = paint(
        "--face", photos["me"], "-p", "a chef", "--seed", "3", "--rescue", "auto", "--rescue-strength", "0.4"
    )
    (picture,) = report["pictures"]
    assert picture["settings"]["rescued"]["faces"] == []
    assert picture["settings"]["rescue_strength"] == 0.4
    assert any("No face was found" in remark and "a-chef-3.png" in remark for remark in report["remarks"])
    assert paint("--from", picture["path"])["identical"] is True
    assert paint("--from", picture["path"], "--rescue", "never")["code"] == "config"


@pytest.mark.parametrize(
    ("code", "message", "arguments"),
    [
        ("several_faces", "Exactly one face", ("--person", "BOTH@left")),
        ("config", "empty", ("--person", "ME@0.5,0,0.5,1")),
        ("config", "outside", ("--person", "ME@0.5,0,1.5,1")),
        ("config", "left-third", ("--person", "ME@somewhere")),
        ("config", "FILE@REGION", ("--person", "left")),
        ("config", "FILE@REGION", ("--person", "@left")),
        ("config", "hidden behind", ("--person", "ME@left", "--person", "YOU@all")),
        ("config", "too small", ("--person", "ME@0,0,0.1,0.1")),
        ("config", "--person", ("--person", "ME@left", "--face", "ME")),
        ("config", "--best-of", ("--person", "ME@left", "--best-of", "2")),
        ("unreadable_image", "no file", ("--person", "absent.png@left")),
        ("config", "auto, always, never", ("--face", "ME", "--rescue", "sometimes")),
        ("config", "rescue_strength", ("--face", "ME", "--rescue", "auto", "--rescue-strength", "0")),
    ],
    ids=str,
)
def test_errors_are_typed(
    paint: Any, photos: dict[str, Path], code: str, message: str, arguments: tuple[str, ...]
) -> None:
    for name, path in photos.items():
        arguments = tuple(a.replace(name.upper(), str(path)) for a in arguments)
    error = paint("-p", "a chef", *arguments)
    assert error["code"] == code
    assert message in error["message"]


def test_a_group_photo_serves_where_the_choice_is_said(paint: Any, photos: dict[str, Path]) -> None:
    report = paint("--person", f"{photos['both']}@left", "--choose", "0", "-p", "a chef", "--seed", "3")
    assert len(report["pictures"]) == 1
