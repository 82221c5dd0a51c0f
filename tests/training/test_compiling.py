"""Compiled models train as plain ones do, where there is a compiler."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limner.errors import ConfigError
from limner.training.compiling import COMPILERS
from limner.training.loop import Trainer
from limner.training.tasks import load_training

Write = Callable[..., Path]


@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler here")
def test_compiled_and_plain_losses_agree(write_recipe: Write, tmp_path: Path) -> None:
    losses = []
    for name, compile_ in (("plain", "false"), ("compiled", "true")):
        recipe = write_recipe(loop={"steps": 4}, run={"log_every": 1})
        Trainer(*load_training(recipe, [f"run.compile={compile_}"]), tmp_path / name).run()
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        losses.append([x["train/loss"] for x in lines if "train/loss" in x])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_without_a_compiler_it_says_so(write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"C\+\+ compiler"):
        Trainer(*load_training(write_recipe(), ["run.compile=true"]), tmp_path / "a").run()
