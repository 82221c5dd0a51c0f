"""The notebook's code cells run one after another, against a tiny model."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from PIL import Image

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "limner.ipynb"


def test_every_cell_runs(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_NOTEBOOK_MODEL", str(tiny_folder))
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    scope: dict[str, object] = {}
    shown = [show("".join(c["source"]), scope) for c in cells if c["cell_type"] == "code"]
    assert sum(isinstance(value, Image.Image) for value in shown) == 5
    assert any("pixel for pixel" in str(value) for value in shown)
    assert (tmp_path / "portrait.png").is_file()


def test_it_is_stored_without_outputs() -> None:
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def show(source: str, scope: dict[str, object]) -> object:
    """Runs a cell; the value of its last line, which a notebook would show."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), scope)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), scope) if last is not None else None
