"""The commands that README and docs show exist, with the options they are shown with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from limner.cli.main import build_app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def shown(page: Path) -> list[str]:
    """Every `$ limner …` line of a page's console blocks, continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.strip()[2:] for line in text.splitlines() if line.strip().startswith("$ limner ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_shown_commands_parse(page: Path) -> None:
    for line in shown(page):
        words = shlex.split(line.split("  #")[0])[1:]
        words = words[: next((i for i, w in enumerate(words) if w in ("|", ">", "&&")), len(words))]
        command: Any = typer.main.get_command(build_app())
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
        used = {w.split("=")[0] for w in words if w.startswith("-") and not w.lstrip("-")[:1].isdigit()}
        assert used <= known, f"{page.name}: `{line}` uses {sorted(used - known)}"
        assert used or not hasattr(command, "commands"), f"{page.name}: `{line}` names no command"


def test_the_readme_shows_both_commands_and_its_picture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (ROOT / line.split("(")[1].split(")")[0]).is_file(), line
