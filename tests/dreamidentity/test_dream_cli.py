"""`limner generate --method dreamidentity` and `limner enroll`, from a folder of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dream_models import encoder, save_base

from limner.cli.main import main
from limner.pipelines.dreamidentity import assemble


def run(*arguments: str | Path) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = save_base("mini", tmp_path_factory.mktemp("base"))
    folder = tmp_path_factory.mktemp("models") / "dream"
    assemble(base, encoder("mini"), default_steps=2, world="sitters").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faces") / "sitter.png"
    assert (
        run("world", "sample", "--identities", "1", "--views", "1", "--seed", "7", "--size", "320", "--out", path) == 0
    )
    return path


def refused(capsys: Any, *arguments: str | Path) -> dict[str, str]:
    capsys.readouterr()
    assert run(*arguments, "--json") == 2
    return json.loads(capsys.readouterr().err.strip().splitlines()[-1])["error"]


def test_paint_from_a_photo_and_from_an_identity(model: Path, photo: Path, tmp_path: Path, capsys: Any) -> None:
    painting = ("generate", "--method", "dreamidentity", "--model", model, "--seed", "3", "--steps", "2", "--json")
    capsys.readouterr()
    assert run(*painting, "--face", photo, "-p", "S* as a wizard, in snow", "-n", "2", "--out", tmp_path / "a") == 0
    report = json.loads(capsys.readouterr().out)
    assert [p["settings"]["method"] for p in report["pictures"]] == ["dreamidentity"] * 2
    assert not any("does not know" in r for r in report["remarks"])  # the placeholder is no unknown word
    me = tmp_path / "me.safetensors"
    assert run("enroll", "--method", "dreamidentity", "--model", model, "--face", photo, "--out", me) == 0
    capsys.readouterr()
    assert run(*painting, "--identity", me, "-p", "S* as a wizard, in snow", "--out", tmp_path / "b") == 0
    again = json.loads(capsys.readouterr().out)["pictures"][0]
    assert again["identity"] == report["pictures"][0]["identity"]
    assert run("generate", "--from", report["pictures"][1]["path"], "--model", model, "--out", tmp_path / "c") == 0


def test_best_of_is_chosen_by_the_backbone(model: Path, photo: Path, tmp_path: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert run("generate", "--model", model, "--face", photo, "-p", "S* in snow", "--best-of", "2", "--steps", "1",
               "--out", tmp_path, "--json") == 0  # fmt: skip
    assert len(json.loads(capsys.readouterr().out)["pictures"]) == 1


def test_what_cannot_be_painted(
    model: Path, photo: Path, tiny_folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint = ("generate", "--face", photo, "--out", tmp_path, "--method", "dreamidentity")
    with monkeypatch.context() as patch:
        patch.setattr("limner.pipelines.loading.model_folder", lambda spec: tmp_path / "absent")
        absent = refused(capsys, *paint, "-p", "S* in snow")
    assert absent["code"] == "weights_unavailable"
    assert "--model" in absent["hint"]
    assert refused(capsys, *paint, "-p", "a wizard", "--model", model)["code"] == "prompt"
    assert "T*" in refused(capsys, *paint, "-p", "T* in snow", "--model", model)["message"]
    other = refused(capsys, *paint, "-p", "S* in snow", "--model", tiny_folder)
    assert "paints by faceclip, not by dreamidentity" in other["message"]
    unknown = refused(capsys, *paint[:-1], "magic", "-p", "S* in snow")
    assert "allowed: faceclip, facet5, dreamidentity" in unknown["message"]
    assert not list(tmp_path.iterdir())
