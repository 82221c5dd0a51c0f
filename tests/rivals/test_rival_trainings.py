"""The rivals' recipes through the one training loop: trained, killed, resumed, exported, painted from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rival_models import data

from limner.cli.main import main


def run(*arguments: str | Path) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faces") / "sitter.png"
    where = ("--identities", "1", "--views", "1", "--seed", "7", "--size", "320", "--out", path)
    assert run("world", "sample", *where) == 0
    return path


@pytest.mark.parametrize(
    ("task", "method", "settings"),
    [
        ("adapter", "ip-adapter", {"recogniser": "face"}),
        ("e4t", "e4t", {"recogniser": "clip", "encoder": {"words": 1, "hidden": 16}}),
        ("instruct_pix2pix", "instruct-pix2pix", {}),
    ],
)
def test_train_stop_go_on_enrol_and_paint(
    task: str, method: str, settings: dict[str, Any], parts: Path, photo: Path, tmp_path: Path, capsys: Any
) -> None:
    places = {"base": str(parts / "base"), "data": data(parts), "held_out": data(parts)}
    own = {k: str(parts / v) if k == "recogniser" else v for k, v in settings.items()}
    recipe = {
        "name": "tiny", "task": task, "settings": {**places, **own, "steps": 2, "validation": 4},
        "loop": {"steps": 4, "batch_size": 4, "warmup": 1, "ema": 0.9, "precision": "bf16"},
        "run": {"log_every": 1, "checkpoint_every": 2, "validate_every": 0, "sheet_every": 0},
    }  # fmt: skip
    path, out = tmp_path / "tiny.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(recipe))
    assert run("train", path, "--out", out, "--minutes", "0") == 0
    assert not (out / "weights").exists()
    assert run("train", path, "--out", out) == 0
    model, me = out / "weights", tmp_path / "me.safetensors"
    who = ("--method", method, "--model", model)
    assert run("enroll", *who, "--face", photo, "--out", me) == 0
    capsys.readouterr()
    paint = ("generate", *who, "--identity", me, "-p", "S* as a wizard", "--seed", "1", "--steps", "2")
    assert run(*paint, "--out", tmp_path / "pictures", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pictures"][0]["settings"]["method"] == method
    assert run("train", path, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["trained_parameters"] > 0
