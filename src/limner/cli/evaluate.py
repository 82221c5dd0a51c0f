"""`limner evaluate RECIPE`: measures methods against each other, or pictures that another system made."""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli.output import note, print_json, progress
from limner.cli.painting import AcceptLicense, Device, DType, Json, Memory, Place, open_model
from limner.errors import ConfigError

if TYPE_CHECKING:
    from limner.evaluation.recipe import Benchmark

HELP = """Measure how well methods put a person into a picture, or print a report again.

The same command goes on where it was stopped: what was painted stays painted, per method, person and prompt. The report
is report.json, report.md and pictures beside them, in the folder of the benchmark.

[bold]Examples[/bold]

  limner evaluate recipes/benchmark-mini.yaml --methods faceclip,dreamidentity

  limner evaluate recipes/benchmark-mini.yaml --images pictures/of/another/system

  limner evaluate --reprint docs/results/benchmark-mini/report.json
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("evaluate", help=HELP)(evaluate)


def evaluate(
    recipe: Annotated[Path | None, typer.Argument(help="YAML file; see recipes/benchmark-mini.yaml.")] = None,
    methods: Annotated[str | None, typer.Option(help="Only these, with commas between them; bounds are added.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the benchmark; default runs/evaluate/NAME.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Only go on: it is an error if nothing was begun in the folder.")
    ] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", help="Folder with pictures made elsewhere and a manifest.jsonl; may be repeated."),
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(help="Write reference photos and prompts for another system there, and stop.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(metavar="K/N", help="Paint only the K-th of N parts, to share work among processes.")
    ] = None,
    reprint: Annotated[
        Path | None, typer.Option(help="Print this report.json again, as Markdown and plots, beside it or in --out.")
    ] = None,
    device: Device = "auto",
    dtype: DType = "auto",
    memory: Memory = "plain",
    accept_license: AcceptLicense = False,
    as_json: Json = False,
) -> None:
    if reprint is not None:
        if recipe is not None or methods or images or tasks or part or resume:
            raise ConfigError("--reprint prints a finished report; of the other options it takes only --out.")
        _print_again(reprint, out or reprint.parent, as_json)
        return
    if recipe is None:
        raise ConfigError("A recipe is expected, or --reprint REPORT.", "See recipes/benchmark-mini.yaml.")
    from limner.evaluation.recipe import read_benchmark
    from limner.evaluation.run import with_images

    benchmark = with_images(read_benchmark(recipe), images or [])
    chosen = [n.strip() for n in (methods or "").split(",") if n.strip()]
    if chosen:
        chosen += [m.name for m in benchmark.methods if m.images and m.name not in chosen and images]
    folder = out or Path("runs") / "evaluate" / benchmark.name
    if resume and not (folder / "recipe.yaml").is_file():
        raise ConfigError(f"--resume: nothing was begun in {folder}.", "Leave it out to begin.")
    place = Place(device, dtype, accept_license, memory)
    _demand_models(benchmark, chosen, place)
    _run(benchmark, folder, chosen, _part(part), tasks, place, as_json)


def _run(
    benchmark: Benchmark,
    folder: Path,
    chosen: list[str],
    part: tuple[int, int],
    tasks: Path | None,
    place: Place,
    as_json: bool,
) -> None:
    from transformers.utils import logging

    from limner.evaluation.run import evaluate as run
    from limner.evaluation.run import write_tasks
    from limner.evaluation.scorers import load_judges
    from limner.pipelines.loading import choose_device

    logging.disable_progress_bar()
    where = choose_device(place.device)
    judges = load_judges(benchmark.scorers, where, place.accept_license)
    for said in judges.left_out:
        note(f"Left out: {said}")
    if tasks is not None:
        count = write_tasks(benchmark, judges, tasks, functools.partial(progress, shown=not as_json))
        note(
            f"{count} tasks in {tasks / 'tasks.jsonl'}; see docs/evaluation.md for the manifest that is expected back."
        )
        return
    outcome = run(
        benchmark,
        folder,
        judges,
        lambda model, method: open_model(model, dataclasses.replace(place, method=method)),
        functools.partial(progress, shown=not as_json),
        chosen=chosen,
        part=part,
        command=shlex.join(["limner", *sys.argv[1:]]),
        device=str(where),
    )
    if outcome.report is None:
        note(f"This part is done; {outcome.missing} cells are left to others. The report comes when none is.")
        return
    _write(outcome.report, folder, as_json)


def _print_again(source: Path, folder: Path, as_json: bool) -> None:
    import shutil

    from limner.cli.painting import make_folder
    from limner.evaluation.run import read_report

    document = read_report(source)
    make_folder(folder)
    if folder.resolve() != source.parent.resolve():
        for file in [source, *source.parent.glob("sheet-*.png")]:
            shutil.copy(file, folder / file.name)
    _write(document, folder, as_json)


def _write(document: dict[str, Any], folder: Path, as_json: bool) -> None:
    """report.md and plots, from the document alone."""
    from limner.evaluation.plots import write_plots
    from limner.evaluation.tables import markdown
    from limner.types import write_atomic

    pictures = write_plots(document, folder)
    pictures += sorted(p.name for p in folder.glob("sheet-*.png"))
    text = markdown(document, pictures)
    write_atomic(folder / "report.md", text.encode())
    if as_json:
        print_json(document)
    else:
        from rich.console import Console
        from rich.markdown import Markdown

        console = Console()
        if console.is_terminal:
            console.print(Markdown(text))
        else:
            typer.echo(text)
        note(f"The report is in {folder}.")


def _demand_models(benchmark: Benchmark, chosen: list[str], place: Place) -> None:
    """WeightsUnavailable for the first model that is not here, before anything is painted."""
    from limner.pipelines.loading import locate

    for spec in [benchmark.method(n) for n in chosen] or benchmark.methods:
        if spec.model:
            locate(spec.model, accept_license=place.accept_license, method=spec.method)


def _part(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--part is {text!r}; K/N is expected, as in 1/4.")
    return int(found[1]), int(found[2])
