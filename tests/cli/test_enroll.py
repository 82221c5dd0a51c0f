"""`limner enroll`: what it refuses before anything is loaded or written (what it writes: test_generate)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limner.cli import method
from limner.cli.main import main
from limner.cli.painting import Place


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("config", ()),
        ("unreadable_image", ("--face", "absent.png")),
        ("output_conflict", ("--face", "absent.png", "--out", ".")),
        ("weights_unavailable", ("--face", "a.png", "--model", "./nowhere")),
        ("config", ("--face", "a.png", "--model", "nobody")),
        ("config", ("--face", "a.png", "--detector", "eyes")),
        ("config", ("--face", "a.png", "--memory", "tiny")),
        ("license", ("--face", "a.png", "--model", "faceclip-sdxl")),
    ],
    ids=str,
)
def test_refusals(
    code: str, arguments: tuple[str, ...], capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path))
    monkeypatch.delenv("LIMNER_ACCEPT_LICENSE", raising=False)
    (tmp_path / "a.png").write_bytes(b"")
    assert main(["enroll", *arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == code
    assert not (tmp_path / "identity.safetensors").exists()


def test_the_folder_is_tried_before_anybody_is_learnt(
    capsys: Any, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn(*given: Any, **named: Any) -> Any:
        raise AssertionError("somebody was learnt")

    monkeypatch.setattr("limner.cli.painting.enroll_photos", learn)
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    what = ["--face", str(tmp_path / "a.png"), "--model", str(tiny_folder), "--out", str(tmp_path / "file" / "me")]
    assert main(["enroll", *what, "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "storage"


@pytest.mark.parametrize(("given", "used"), [("auto", "plain"), ("freed", "freed")])
def test_whoever_tunes_does_so_in_the_plain_mode(given: str, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(method, "open_model", lambda name, place: seen.append(place))
    monkeypatch.setattr("limner.pipelines.loading.locate", lambda *given, **named: (None, Path("nowhere")))
    for name, learns in (("dreambooth", True), ("dreambooth", False), ("faceclip", True)):
        method.open_model_for(name, "base", Place(memory=given), learns=learns)
    assert [place.memory for place in seen] == [used, given, given]
