"""`limner world …`: the synthetic sitters, as a sheet, a picture or a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JSON = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def register(app: typer.Typer) -> None:
    """Adds the group to the root."""
    group = typer.Typer(
        help="The synthetic sitters: people that Limner makes itself, with exact truth.", no_args_is_help=True
    )
    group.command()(sample)
    group.command()(build)
    app.add_typer(group, name="world")


def sample(
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .jpg or .webp.")],
    identities: Annotated[int, typer.Option(help="People, one a row: the seeds SEED, SEED + 1, …")] = 8,
    views: Annotated[int, typer.Option(help="Pictures of each, one a column.")] = 10,
    seed: Annotated[int, typer.Option(help="First person; a seed is a person for ever.")] = 1,
    size: Annotated[int, typer.Option(help="Side of each picture in pixels.")] = 128,
    prompt: Annotated[str, typer.Option(help='What every picture shall show, as "S* as a wizard, in a forest".')] = "",
    json: JSON = False,
) -> None:
    """Shows sitters: a labelled sheet, or the bare picture of one person in one view.

    [bold]limner world sample --identities 8 --views 10 --seed 1 --out sitters.png[/bold]
    [bold]limner world sample --identities 1 --views 1 --seed 7 --size 512 --out face.png[/bold]
    """
    import io

    from limner.cli.output import note, print_json, progress
    from limner.errors import ConfigError, OutputConflict
    from limner.provenance import render_info
    from limner.types import write_atomic
    from limner.world.sheet import SheetConfig, sheet

    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    kind = kinds.get(out.suffix.lower())
    if kind is None:
        raise ConfigError(f"--out is {str(out)!r}; a name that ends in {', '.join(kinds)} is expected.")
    if out.is_dir():
        raise OutputConflict(f"{out} is a folder; a file is expected.", "Add a file name.")
    config = SheetConfig(identities, views, seed, size, prompt)
    with progress("Rendering", identities * views, shown=not json) as advance:
        picture, facts = sheet(config, advance)
    data = io.BytesIO()
    mark = {"pnginfo": render_info("sitters")} if kind == "PNG" else {}
    picture.save(data, kind, quality=95, **mark)
    write_atomic(out, data.getvalue())
    if json:
        print_json({"out": str(out), "width": picture.width, "height": picture.height, "pictures": facts})
    else:
        note(f"Wrote {out} ({picture.width}×{picture.height}).")


def build(
    out: Annotated[Path, typer.Option(help="Folder to write: new, empty, or with an unfinished build of the same.")],
    identities: Annotated[int, typer.Option(help="People: the first so many of the split.")] = 100,
    views: Annotated[int, typer.Option(help="Pictures of each.")] = 8,
    seed: Annotated[int, typer.Option(help="Of views and captions.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes; the bytes do not depend on it.")] = 1,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels, 64 to 512.")] = 128,
    split: Annotated[str, typer.Option(help="train, named, validation, test or hard.")] = "train",
    slice: Annotated[str, typer.Option(help="A robustness slice, such as yaw_30_45, low_light or small.")] = "",
    json: JSON = False,
) -> None:
    """Builds a data set: webdataset shards with pictures, masks, depth and truth, and a manifest with checksums.

    Stopped at any moment, the same command goes on from there and ends with the same bytes.

    [bold]limner world build --out data/train --identities 2000 --views 8 --workers 2[/bold]
    """
    from limner.cli.output import note, print_json, progress
    from limner.world.build import build as make
    from limner.world.dataset import WorldConfig

    config = WorldConfig(identities, views, seed, size, split, slice)
    with progress("Building", identities * views, shown=not json) as advance:
        manifest = make(config, out, workers, advance)
    total = sum(s["bytes"] for s in manifest["shards"])
    if json:
        print_json({"out": str(out), "bytes": total, **manifest})
    else:
        note(f"{out} holds {manifest['samples']} samples in {len(manifest['shards'])} shards, {total / 1e6:.1f} MB.")
