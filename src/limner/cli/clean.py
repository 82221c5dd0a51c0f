"""`limner data clean`: of generated edits, the best quarter of every prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limner.cli.output import note, print_json


def clean(
    folder: Annotated[Path, typer.Argument(help="Folder with the candidates' pictures and candidates.jsonl.")],
    keep: Annotated[float, typer.Option(help="Share of every prompt's edits to keep, more than 0 to 1.")] = 0.25,
    force: Annotated[bool, typer.Option("--force", help="Replace a metadata.jsonl that says something else.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Keep the best edits of every prompt: the last step of DreamIdentity's self-augmented data.

    Edits are ranked by likeness and by how well they fit the prompt; the sum of both ranks decides. metadata.jsonl then
    names what is kept, for training; rejected.jsonl names the rest with scores and reason. No picture is touched.
    """
    from limner.data import cleaning

    counts = cleaning.clean(folder, keep, force)
    if as_json:
        print_json({"folder": str(folder), **counts})
        return
    for prompt, number in counts["prompts"].items():
        typer.echo(f"{number:6,}  {prompt}")
    lost = counts["rejected"]
    note(
        f"{counts['kept']:,} of {counts['candidates']:,} edits of {counts['people']:,} people are kept; "
        f"{lost['rank']:,} ranked too low, {lost['no face']:,} without a face."
    )
