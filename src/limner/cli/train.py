"""`limner train RECIPE`: runs a recipe, resumes it, or says what it would need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli.output import note, print_json
from limner.errors import ConfigError

if TYPE_CHECKING:
    from limner.training.recipe import Recipe


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("train")(train)


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file; see recipes/.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the training; default runs/NAME.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Changes a field, as in loop.steps=100.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, memory and steps; train nothing.")
    ] = False,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=1, help="With --dry-run: count for so many GPUs, from sizes alone."),
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", min=0.01, help="With --gpus: how fast they must be to be done in time.")
    ] = None,
    resume: Annotated[
        int | None,
        typer.Option("--resume", metavar="STEP", help="Go back to this checkpoint; a training throws later ones away."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="FOLDER", help="Write the weights of the last checkpoint there; train nothing."
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="With --export: in half precision, as models ship.")] = False,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0, help="Stop after so long, with a checkpoint.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train what a recipe says.

    The same command goes on where it was stopped, bit for bit. On several processes or machines:
    accelerate launch -m limner.cli.main train RECIPE.
    """
    from limner.training.tasks import load_training

    complete, build = load_training(recipe, overrides)
    folder = out or Path("runs") / complete.name
    if gpus is not None:
        if not dry_run:
            raise ConfigError("--gpus counts what a training would need.", "Give --dry-run with it.")
        from limner.training.plan import plan

        _tell(plan(complete, build, recipe.parent, gpus, hours), as_json)
        return
    if hours is not None:
        raise ConfigError("--hours needs --gpus: it says how fast so many must be.")
    if dry_run:
        from limner.training.estimate import estimate

        _tell(estimate(complete, build), as_json)
        return
    if export is not None:
        from limner.training.loop import Trainer

        step = Trainer(complete, build, folder).export(export, resume)
        if half:
            from limner.encoders.checkpoint import halve

            halve(export)
        _tell({"step": step, "weights": str(export)}, as_json)
        return
    if half:
        raise ConfigError("--half is for the weights that --export writes.", "Give --export FOLDER with it.")
    _train(complete, build, folder, minutes, resume, as_json)


def _train(recipe: Recipe, build: Any, folder: Path, minutes: float | None, resume: int | None, as_json: bool) -> None:
    from limner.training.loop import Trainer

    trainer = Trainer(recipe, build, folder)
    outcome = trainer.run(minutes, resume)
    if not trainer.main:
        return
    if as_json:
        print_json({**outcome.__dict__, "out": str(outcome.out)})
    elif outcome.finished:
        note(
            f"Done: {outcome.step} steps. Weights in {outcome.out / 'weights'}, figures in {outcome.out}/results.json."
        )
    else:
        note(
            f"Stopped at step {outcome.step} of {recipe.loop.steps} ({outcome.stopped}). "
            "The same command goes on from there."
        )
    if outcome.stopped.startswith("signal"):
        raise typer.Exit(143 if outcome.stopped.endswith("SIGTERM") else 130)


def _tell(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(values)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v:g}" for k, v in value.items())
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    Console().print(table)
