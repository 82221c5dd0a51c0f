"""`limner import …`: published checkpoints → safetensors that Limner reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limner.cli.output import note, print_json


def register(app: typer.Typer) -> None:
    """Adds the group to the root."""
    group = typer.Typer(help="Published checkpoints, checked and converted to safetensors.", no_args_is_help=True)

    group.command("faceclip")(faceclip)
    group.command("facet5")(facet5)
    group.command("clip")(clip)
    app.add_typer(group, name="import")


def clip(
    source: Annotated[str, typer.Argument(help="Folder, or repository on the hub: facebook/metaclip-l14-fullcc2.5b.")],
    out: Annotated[Path, typer.Option(help="New folder, as in weights/clip-l.")],
    merges: Annotated[Path | None, typer.Option(help="CLIP's merges.txt; by default the source's own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A summary for programs.")] = False,
) -> None:
    """Converts a published CLIP to the text and picture towers that `limner train` aligns FaceCLIP with."""
    from limner.encoders.importing_clip import import_clip

    found = import_clip(source, out, merges)
    if as_json:
        print_json(found)
    else:
        sizes = ", ".join(f"{part} tower {found[part]['values']:,} values" for part in ("text", "image"))
        typer.echo(f"{out}: {sizes}.")


def facet5(
    out: Annotated[Path, typer.Option(help="New folder, for --model.")],
    encoder: Annotated[Path | None, typer.Option(help="face_t5_encoder.pt; without it, from the hub.")] = None,
    transformer: Annotated[
        Path | None, typer.Option(help="dit.pt, fine-tuned under it; without it, from the hub.")
    ] = None,
    vae: Annotated[
        Path | None, typer.Option(help="FLUX.1-dev's autoencoder, safetensors; without it, from the hub.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="T5's tokenizer.json, or its folder; without it, from the hub.")
    ] = None,
    merges: Annotated[Path | None, typer.Option(help="CLIP's merges.txt; without it, from the hub.")] = None,
    accept_license: Annotated[bool, typer.Option(help="Accept the licence of weights that are fetched.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A summary for programs.")] = False,
) -> None:
    """Makes a model to paint with of FaceT5-FLUX's published files, in bfloat16.

    Code inside a pickle is never run. Every key must fit; otherwise all that differ are named, and nothing is written.
    """
    from limner.errors import OutputConflict
    from limner.pipelines.catalogue import FACET5_FLUX
    from limner.pipelines.folders import resolve_files

    if out.exists():
        raise OutputConflict(f"{out} is already there; nothing was overwritten.", "Choose another folder for --out.")
    if tokenizer is not None and tokenizer.is_dir():
        tokenizer = tokenizer / "tokenizer.json"
    given = {
        "encoder": encoder, "transformer": transformer, "vae": vae, "tokenizer": tokenizer, "clip_tokenizer": merges
    }  # fmt: skip
    files = resolve_files(FACET5_FLUX, given, accept_license=accept_license)
    from limner.pipelines.convert import convert

    convert(FACET5_FLUX.name, files, out)
    parts = {
        p.name: sum(f.stat().st_size for f in p.rglob("*.safetensors")) for p in sorted(out.iterdir()) if p.is_dir()
    }
    if as_json:
        print_json({"out": str(out), "bytes": parts})
    else:
        sizes = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts.items() if size)
        typer.echo(f"{out}: {sizes}. Paint with it: limner generate --model {out} …")


def faceclip(
    encoder: Annotated[Path | None, typer.Option(help="face_clip_encoder.pt; without it, from the hub.")] = None,
    unet: Annotated[Path | None, typer.Option(help="unet.pt, fine-tuned under it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    merges: Annotated[Path | None, typer.Option(help="CLIP's merges.txt; without it, from the hub.")] = None,
    check_keys: Annotated[
        Path | None, typer.Option(help="Only compare this JSON object of keys and shapes; nothing is allocated.")
    ] = None,
    accept_license: Annotated[bool, typer.Option(help="Accept the licence of weights that are fetched.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A summary for programs.")] = False,
) -> None:
    """Converts FaceCLIP's published files, or checks a list of their keys.

    Code inside a pickle is never run. Every key must fit; otherwise all that differ are named, and nothing is written.
    """
    from limner.encoders import importing
    from limner.encoders.published import FACECLIP_ENCODER, FACECLIP_UNET
    from limner.errors import ConfigError

    if check_keys is not None:
        found = importing.check_keys(check_keys)
        if as_json:
            print_json(found)
        else:
            typer.echo(f"{check_keys}: {found['keys']} keys, {found['values']:,} values: as expected.")
        return
    if out is None:
        raise ConfigError("--out is missing.", "Name the folder to write, or a list to compare with --check-keys.")
    source = FACECLIP_ENCODER.resolve(encoder, accept_license=accept_license)
    summary = {"encoder": importing.import_encoder(source, out, merges)}
    if unet is not None:
        summary["unet"] = importing.import_unet(FACECLIP_UNET.resolve(unet), out)
    if as_json:
        print_json(summary)
        return
    for part in summary.values():
        typer.echo(importing.describe(part))
    if not summary["encoder"]["tokenizer"]:
        note("No tokenizer was saved: give CLIP's merges with --merges; they are not cached, nor is the hub in reach.")
