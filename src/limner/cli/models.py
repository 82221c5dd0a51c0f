"""`limner models`: what can paint, where its weights are, and under which licence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli.output import note, print_json

if TYPE_CHECKING:
    from limner.registry import ModelSpec

HELP = """The models that paint: base, licence, size, where the weights are, and measured scores.

[bold]Examples[/bold]

  limner models                                   list them

  limner models show faceclip-sdxl                files, sizes, how to provide them by hand

  limner models download faceclip-sdxl --accept-license
"""


def register(app: typer.Typer) -> None:
    """Adds the group to the root."""
    group = typer.Typer(help=HELP, invoke_without_command=True, rich_markup_mode="rich")
    group.callback()(list_models)
    group.command("show")(show)
    group.command("download")(download)
    app.add_typer(group, name="models")


def list_models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    from limner.pipelines.catalogue import DEFAULT
    from limner.registry import models

    rows = [facts(spec) | {"default": spec.name == DEFAULT} for spec in models()]
    if as_json:
        print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "base", "size", "weights", "licence", "scores")
    table.columns[0].no_wrap = True  # names are to be typed
    for row in rows:
        scores = ", ".join(f"{k} {v:.3g}" for k, v in row["scores"].items()) or "not measured"
        name = f"{row['name']} (default)" if row["default"] else row["name"]
        table.add_row(name, row["base"], size_text(row["size"]), row["state"], row["license"], scores)
    Console().print(table)
    for row in rows:
        typer.echo(f"{row['name']}: {row['description']}")
        if row["command"]:
            typer.echo(f"  scores come from: {row['command']}")


def show(
    name: Annotated[str, typer.Argument(help="A name from `limner models`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Everything about one model: its files, their licences, and how to provide them by hand."""
    from limner.pipelines import catalogue  # noqa: F401 (registers the models)
    from limner.registry import get_model

    row = facts(get_model(name))
    if as_json:
        print_json(row)
        return
    for key in ("name", "description", "method", "base", "license", "state", "folder", "recipe"):
        if row[key]:
            typer.echo(f"{key:12} {row[key]}")
    typer.echo(f"{'size':12} {size_text(row['size'])}")
    for file in row["files"]:
        typer.echo(
            f"\n{file['component']}: {file['repo']}/{file['filename']}, {size_text(file['size'])}, {file['license']}"
        )
        typer.echo(f"  {'cached at ' + file['path'] if file['path'] else file['by_hand']}")


def download(
    name: Annotated[str, typer.Argument(help="A name from `limner models`.")],
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept weights whose licence forbids commercial use.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Fetches a model's weights and converts them, so that `generate` can use them offline."""
    from limner.pipelines.catalogue import DEFAULT  # noqa: F401 (registers the models)
    from limner.pipelines.loading import spec_folder
    from limner.registry import get_model

    spec = get_model(name)
    if not as_json and spec.files:
        total = sum(f.size for f in spec.files.values())
        note(f"{name} needs {len(spec.files)} files, about {size_text(total)}; what is cached is not fetched again.")
    folder = spec_folder(spec, accept_license=accept_license)
    if as_json:
        print_json({"name": name, "folder": str(folder)})
    else:
        typer.echo(f"{name} is ready in {folder}")


def facts(spec: ModelSpec) -> dict[str, Any]:
    """What a program may want to know about a model; `state` says in a word where its weights are."""
    from limner.pipelines.folders import model_folder

    folder = model_folder(spec)
    ready = (folder / "model_index.json").is_file()
    files: list[dict[str, Any]] = [
        {
            "component": component, "repo": f.repo, "filename": f.filename, "license": f.license,
            "commercial": f.commercial, "size": f.size, "path": str(f.cached() or "") or None, "by_hand": f.by_hand,
        }
        for component, f in spec.files.items()
    ]  # fmt: skip
    if ready:
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        state = f"in the {spec.shipped}" if spec.shipped else "ready"
    else:
        size = sum(f["size"] for f in files)
        cached = sum(f["path"] is not None for f in files)
        absent = "missing" if spec.shipped else "to be trained" if spec.recipe else ""
        state = absent or f"{cached} of {len(files)} files cached"
    return {
        "name": spec.name, "description": spec.description, "method": spec.method, "base": spec.base,
        "license": spec.license, "size": size, "state": state, "ready": ready, "folder": str(folder), "files": files,
        "scores": spec.scores, "command": spec.command,
        "recipe": spec.recipe,
    }  # fmt: skip


def size_text(size: int) -> str:
    """Bytes as people read them; `unknown` for 0."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size else "unknown"
