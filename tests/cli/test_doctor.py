"""`limner doctor`: true statements about this machine."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from limner.cli import doctor
from limner.cli.main import main
from limner.pipelines.catalogue import FULL, MINI


def run(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as e:
        return int(e.code or 0)


def test_report(capsys: Any) -> None:
    assert run("doctor", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["python"] == platform.python_version()
    assert report["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert report["devices"][-1]["kind"] == "cpu"
    assert report["devices"][-1]["cores"] == os.cpu_count()
    assert 0 < report["memory"]["available"] <= report["memory"]["total"]
    assert {"dev", "insightface"} <= set(report["extras"])
    assert {m["name"] for m in report["models"]} >= {"faceclip-mini", "faceclip-sdxl"}
    weights = {w["name"]: w for w in report["weights"]}
    assert weights["yunet"]["license"] == "MIT"
    assert weights["faceclip-unet"]["commercial"] is False
    assert weights["faceclip-unet"]["accepted"] is False
    assert run("doctor") == 0
    assert "faceclip-sdxl" in capsys.readouterr().out


def test_accepted_licences_are_seen(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_ACCEPT_LICENSE", "CC-BY-NC-4.0")
    assert run("doctor", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert {w["name"]: w["accepted"] for w in report["weights"]}["faceclip-unet"] is True
    assert report["environment"]["LIMNER_ACCEPT_LICENSE"] == "CC-BY-NC-4.0"


@pytest.mark.parametrize(
    ("gpu", "main_memory", "runs", "why"),
    [
        (24, 32, True, "on the GPU;"),
        (10, 32, True, "--memory freed"),
        (8, 32, True, "--memory offload"),
        (4, 64, True, "--memory sequential, slowly"),
        (2, 64, True, "on the CPU"),
        (0, 8, False, "it needs a GPU with 3.6 GB free"),
    ],
)
def test_verdicts_follow_the_memory(
    gpu: int, main_memory: int, runs: bool, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "memory", lambda: {"total": main_memory * 2**30, "available": main_memory * 2**30})
    devices = [{"kind": "cuda", "memory": gpu * 2**30}] if gpu else []
    found = doctor.verdict(FULL, [*devices, {"kind": "cpu"}])
    assert found["runs"] is runs
    assert why in found["why"]


def test_the_packaged_model_runs_anywhere_if_it_is_there(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("limner.pipelines.folders.model_folder", lambda spec: tiny_folder)
    assert doctor.verdict(MINI, [{"kind": "cpu"}])["runs"] is True
    monkeypatch.setattr("limner.pipelines.folders.model_folder", lambda spec: tmp_path)
    assert "missing" in doctor.verdict(MINI, [{"kind": "cpu"}])["why"]
