"""`limner demo`: the main job with nothing at hand but the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import limner
from limner.cli.generate import generate

FACE = Path(limner.__file__).parent / "weights" / "demo.png"
"""A sitter on whom no model was trained, nor measured."""

PROMPTS = (
    "a photo of S*, in a forest",
    "a photo of S* as a wizard, in the snow",
    "an oil painting of S*, on a beach",
    "a photo of S* wearing a red hat, smiling, in a city street",
    "a pencil drawing of S*",
    "a photo of S*, in a library, looking to the left",
)


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("demo")(demo)


def demo(
    number: Annotated[int, typer.Option("--number", "-n", help="Pictures of each scene.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the first picture, the next count up.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and their sheet.")] = Path("out/demo"),
) -> None:
    """Paint somebody whom the mini model has never seen, in six scenes.

    The same as `limner generate --face` with the photo that ships with Limner.
    """
    generate(face=[FACE], prompt=list(PROMPTS), number=number, seed=seed, out=out)
