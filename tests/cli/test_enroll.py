"""`limner enroll`: what it refuses before anything is loaded or written (what it writes: test_generate)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limner.cli.main import main


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("config", ()),
        ("unreadable_image", ("--face", "absent.png")),
        ("output_conflict", ("--face", "absent.png", "--out", ".")),
        ("weights_unavailable", ("--face", "a.png", "--model", "./nowhere")),
        ("config", ("--face", "a.png", "--model", "nobody")),
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
