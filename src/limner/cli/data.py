"""`limner data …`: what trainings read from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limner.cli.clean import clean
from limner.cli.names import names
from limner.cli.output import note, print_json
from limner.cli.self_augment import edits, faces


def register(app: typer.Typer) -> None:
    """Adds the group to the root."""
    group = typer.Typer(help="Pictures and features that trainings read.", no_args_is_help=True)
    group.command("cache")(cache)
    group.command("names")(names)
    group.command("faces")(faces)
    group.command("edits")(edits)
    group.command("clean")(clean)

    @group.callback()
    def data() -> None:
        pass

    app.add_typer(group, name="data")


def cache(
    recipe: Annotated[Path, typer.Argument(help="YAML file; see recipes/.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Changes a field, as `limner train` does.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Build what a recipe's training reads: pictures rendered or decoded, latents, features of frozen towers.

    `limner train` does the same before its first step; here it can be done ahead. Interrupted, the same command goes
    on. Caches lie in the folder named by LIMNER_CACHE, by default ~/.cache/limner, and can be deleted at any time.
    """
    from limner.data.cache import cache_root
    from limner.training.progress import counting, silent
    from limner.training.tasks import load_training

    _, build = load_training(recipe, overrides)
    task = build()
    task.prepare(silent if as_json else counting)
    rows = len(task.source())
    if as_json:
        print_json({"folder": str(cache_root()), "rows": rows})
    else:
        note(f"{rows} training rows are ready in {cache_root()}.")
