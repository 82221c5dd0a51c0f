"""`limner data names`: lists of famous people → one list without duplicates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limner.cli.output import note, print_json


def names(
    lists: Annotated[
        list[Path] | None, typer.Argument(help="One list per field: a name a line, other names of the person behind |.")
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write: a line of JSON for each person.")] = Path("names.jsonl"),
    aliases: Annotated[
        Path | None, typer.Option(help="More names of the same people: a line for each, parted by |.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Take so many of every list, the most famous first.")] = None,
    world: Annotated[bool, typer.Option("--world", help="Add the named sitters, the celebrities of mini.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Merge lists of famous people: the first step of DreamIdentity's self-augmented data.

    A person who is in several lists, or written in several ways (case, accents, punctuation, an alias), is kept once.
    The paper takes the 400 most famous of four fields and keeps 1,015.
    """
    from limner.data.names import Entry, merge_names, read_names, to_jsonl
    from limner.errors import ConfigError, OutputConflict
    from limner.types import write_atomic

    stems = [path.stem for path in lists or []] + ["sitters"] * world
    twice = next((s for s in stems if stems.count(s) > 1), None)
    if twice is not None:
        raise ConfigError(f"Two lists are called {twice!r}; a list's name is its field.", "Rename one of the files.")
    if out.exists() and not (force and out.is_file()):
        raise OutputConflict(f"{out} is there already.", "Choose another --out, or replace it with --force.")
    read = {path.stem: read_names(path) for path in lists or []}
    if world:
        from limner.world.names import names as sitters

        read["sitters"] = [Entry(name) for name in sitters()]
    merged = merge_names(read, read_names(aliases) if aliases else (), top)
    write_atomic(out, to_jsonl(merged.people).encode())
    counts = merged.counts()
    if as_json:
        dropped = [d.__dict__ for d in merged.duplicates]
        print_json({"out": str(out), **counts, "duplicates": dropped})
        return
    for of, number in counts["lists"].items():
        typer.echo(f"{of:16} {number:6,} names")
    for why, number in counts["reasons"].items():
        typer.echo(f"{'- ' + why:16} {number:6,} dropped")
    note(f"{counts['kept']:,} people of {counts['read']:,} names are in {out}.")
