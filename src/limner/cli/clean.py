"""`limner data clean`: of generated edits, the best quarter of every prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limner.cli.output import note, print_json


def clean(
    folder: Annotated[Path, typer.Argument(help="What `limner data edits` wrote; or pictures and candidates.jsonl.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the shards of what is kept.")] = None,
    keep: Annotated[float, typer.Option(help="Share of every prompt's edits to keep, more than 0 to 1.")] = 0.25,
    force: Annotated[bool, typer.Option("--force", help="Replace a metadata.jsonl that says something else.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Keep the best edits of every prompt: the last step of DreamIdentity's self-augmented data.

    Edits are ranked by likeness and by how well they fit the prompt; the sum of both ranks decides. Of what
    `limner data edits` wrote, the best go to --out, as shards for training; of other folders, metadata.jsonl names
    them. rejected.jsonl names the rest with scores and reason. No picture is touched.
    """
    from limner.data import cleaning
    from limner.data.shards import MANIFEST
    from limner.errors import ConfigError

    shards = (folder / MANIFEST).is_file()
    if shards != (out is not None):
        raise ConfigError(
            f"{folder} holds {'shards' if shards else 'no shards'}; --out is {out}.",
            "Give --out FOLDER for what `limner data edits` wrote, and only for that.",
        )
    counts = cleaning.clean(folder, keep, force) if out is None else cleaning.clean_shards(folder, out, keep)
    if as_json:
        print_json({"folder": str(out or folder), **counts})
        return
    for prompt, number in counts["prompts"].items():
        typer.echo(f"{number:6,}  {prompt}")
    lost = counts["rejected"]
    note(
        f"{counts['kept']:,} of {counts['candidates']:,} edits of {counts['people']:,} people are kept; "
        f"{lost['rank']:,} ranked too low, {lost['no face']:,} without a face."
    )
