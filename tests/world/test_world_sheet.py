"""The sheet and its command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.cli.main import main
from limner.errors import ConfigError
from limner.world.sheet import SheetConfig, sheet


def run(*arguments: str) -> int:
    try:
        return main(["world", "sample", *arguments])
    except SystemExit as e:
        return int(e.code or 0)


def test_a_sheet_has_rows_columns_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "sheet.png"
    assert run("--identities", "2", "--views", "3", "--seed", "5", "--size", "48", "--out", str(out), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    with Image.open(out) as picture:
        assert picture.size == (facts["width"], facts["height"])
        assert picture.width > 3 * 48
        assert np.asarray(picture)[0, 0].tolist() == [255, 255, 255]
    assert [f["seed"] for f in facts["pictures"]] == [5, 5, 5, 6, 6, 6]
    assert facts["pictures"][1]["labels"]["pose"] == "left"
    assert facts["pictures"][2]["labels"]["pose"] == "right"


def test_one_picture_is_bare_and_for_ever_the_same(tmp_path: Path) -> None:
    out = [tmp_path / f"{k}.png" for k in range(2)]
    for path in out:
        assert run("--identities", "1", "--views", "1", "--seed", "7", "--size", "64", "--out", str(path)) == 0
    assert out[0].read_bytes() == out[1].read_bytes()
    with Image.open(out[0]) as picture:
        assert picture.size == (64, 64)


def test_a_prompt_is_shown() -> None:
    _, facts = sheet(SheetConfig(1, 2, 3, 48, "S* as a wizard, in a forest"))
    assert all((f["labels"]["role"], f["labels"]["scene"]) == ("wizard", "forest") for f in facts)


@pytest.mark.parametrize(
    "arguments",
    [["--seed", "-1"], ["--seed", "2147483647"], ["--size", "8"], ["--identities", "0"], ["--views", "1000"],
     ["--identities", "200", "--views", "50", "--size", "1024"], ["--prompt", "  ", "--views", "1"]],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(arguments: list[str], tmp_path: Path, capsys) -> None:
    out = tmp_path / "x.png"
    assert run(*arguments, "--out", str(out), "--json") == 2
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["error"]["code"] in ("config", "prompt")
    assert not out.exists()


def test_where_to_write(tmp_path: Path, capsys) -> None:
    assert run("--out", str(tmp_path)) == 2
    assert run("--out", str(tmp_path / "x.bmp")) == 2
    (tmp_path / "file").write_text("")
    assert run("--views", "1", "--identities", "1", "--out", str(tmp_path / "file" / "x.png")) == 2
    with pytest.raises(ConfigError, match="identities"):
        SheetConfig(identities=0)
