"""The Dockerfile names files that are there and a command that exists; building it needs a network, and is not done."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import typer

from limner.cli.main import build_app

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()


def of(word: str) -> list[str]:
    """What follows a Dockerfile's instruction, each time that it stands there."""
    return [line.removeprefix(word).strip() for line in LINES if line.startswith(word + " ")]


def test_the_command_exists_with_its_options() -> None:
    assert json.loads(of("ENTRYPOINT")[0]) == ["limner"]
    name, *words = json.loads(of("CMD")[0])
    command: Any = typer.main.get_command(build_app())
    known = {option for p in command.commands[name].params for option in p.opts}
    assert {w for w in words if w.startswith("--")} <= known
    port = words[words.index("--port") + 1]
    assert of("EXPOSE") == [port]
    assert f":{port}/healthz" in of("HEALTHCHECK")[0]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in of("COPY") for source in line.split()[:-1]}
    assert copied == kept
    assert all((ROOT / source).exists() for source in copied)


def test_the_extras_that_are_installed_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = set(re.findall(r'"\.\[(\w+)\]"', "\n".join(of("RUN"))))
    assert named == {"serve"}
    assert named <= set(extras)
