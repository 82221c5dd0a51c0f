"""`limner models`: what a person and a program learn about the models, without any weights here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from limner.cli.main import main


def run(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as e:
        return int(e.code or 0)


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path))
    for name in ("LIMNER_ACCEPT_LICENSE", "LIMNER_FACECLIP_ENCODER", "LIMNER_FACECLIP_UNET"):
        monkeypatch.delenv(name, raising=False)


def test_list(capsys: Any) -> None:
    assert run("models", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["faceclip-mini"]["default"] is True
    assert rows["faceclip-sdxl"]["license"].startswith("CC-BY-NC-4.0")
    assert rows["faceclip-sdxl"]["size"] > 1e10
    assert rows["faceclip-sdxl"]["ready"] is False
    assert {f["component"] for f in rows["faceclip-sdxl"]["files"]} == {"encoder", "unet", "vae", "tokenizer"}
    assert run("models") == 0
    assert "CC-BY-NC" in capsys.readouterr().out


def test_show(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "unet.pt").write_bytes(b"x")
    monkeypatch.setenv("LIMNER_FACECLIP_UNET", str(tmp_path / "unet.pt"))
    assert run("models", "show", "faceclip-sdxl") == 0
    text = capsys.readouterr().out
    assert "LIMNER_FACECLIP_ENCODER" in text
    assert str(tmp_path / "unet.pt") in text
    assert run("models", "show", "nobody", "--json") == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "config"


def test_download_asks_for_the_licence_and_names_what_is_missing(capsys: Any) -> None:
    assert run("models", "download", "faceclip-sdxl", "--json") == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "license"
    assert run("models", "download", "faceclip-sdxl", "--accept-license", "--json") == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "weights_unavailable"
    for word in ("face_clip_encoder.pt", "unet.pt", "ByteDance/FaceCLIP", "stable-diffusion-xl-base-1.0", "GB"):
        assert word in error["message"]
    for variable in ("LIMNER_FACECLIP_ENCODER", "LIMNER_FACECLIP_UNET", "LIMNER_SDXL_VAE", "LIMNER_CLIP_MERGES"):
        assert variable in error["hint"]


def test_offline_the_answer_comes_in_seconds_without_heavy_libraries() -> None:
    code = (
        "import sys; from limner.cli.main import main\n"
        "status = main(['generate', '--face', sys.executable, '-p', 'x', '--model', 'faceclip-sdxl',"
        " '--accept-license', '--json'])\n"
        "assert status == 2, status\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'cv2') if m in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert json.loads(done.stderr)["error"]["code"] == "weights_unavailable"
    assert seconds < 15  # below 2 on an idle machine; the bound leaves room for a busy one
