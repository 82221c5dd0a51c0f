"""Imports point down the layers of the design, and importing does no work."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import limner

PACKAGE = Path(limner.__file__).parent
LAYERS = (
    {"cli", "web", "serve"},
    {"evaluation", "training"},
    {"pipelines"},
    {"methods"},
    {"encoders", "diffusion", "faces", "data", "world"},
    {"types", "config", "registry", "errors", "precision", "provenance", "watermark", "weights"},
)
LEVEL = {room: len(LAYERS) - i for i, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    """First component under `limner` of everything that the file imports, at any depth of its code."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write limner.…"
            names = [node.module or ""]
            if node.module == "limner":
                names = [f"limner.{a.name}" for a in node.names]
        rooms |= {n.split(".")[1] for n in names if n.startswith("limner.")}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for other in imported_rooms(path) - {room, "__version__"}:
        assert LEVEL[other] <= LEVEL[room], f"{path.relative_to(PACKAGE)} ({room}) may not import limner.{other}"


def test_every_room_has_a_layer() -> None:
    rooms = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in FILES} - {"__init__"}
    assert rooms <= set(LEVEL)


def test_importing_the_command_line_loads_no_framework() -> None:
    heavy = ("torch", "diffusers", "cv2", "numba", "fastapi")
    code = f"import sys, limner.cli.main as m; m.build_app(); print([x for x in {heavy} if x in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert out.stderr == ""
