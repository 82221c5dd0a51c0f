"""Root of `limner …`: assembles the groups, and turns typed errors into messages and exit codes."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Annotated

import typer

from limner import __version__
from limner.cli.output import console_error
from limner.errors import LimnerError, OutOfMemory

GROUPS = (
    "limner.cli.demo",
    "limner.cli.generate",
    "limner.cli.enroll",
    "limner.cli.faces",
    "limner.cli.world",
    "limner.cli.train",
    "limner.cli.evaluate",
    "limner.cli.data",
    "limner.cli.import_",
    "limner.cli.inspect",
    "limner.cli.serve",
    "limner.cli.models",
    "limner.cli.doctor",
)
"""Modules with `register(app)`; each imports what is heavy inside its commands, so that `--help` stays quick."""

HELP = """Paint a person, from a photo and a sentence.

Every command explains itself: try [bold]limner COMMAND --help[/bold]. Commands that a program may read take
[bold]--json[/bold]; errors then come as JSON on standard error. Set LIMNER_DEBUG=1 to see tracebacks.
"""


def build_app() -> typer.Typer:
    """The whole command line as a Typer app."""
    app = typer.Typer(
        name="limner",
        help=HELP,
        no_args_is_help=True,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
        ] = False,
    ) -> None:
        pass

    for module in GROUPS:
        importlib.import_module(module).register(app)
    return app


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; the entry point of the `limner` script. Returns (and exits with) the status."""
    arguments = sys.argv[1:] if argv is None else argv
    status: int = 0
    try:
        build_app()(args=arguments, standalone_mode=True)
    except (LimnerError, RuntimeError) as e:
        error = e if isinstance(e, LimnerError) else _out_of_memory(e)
        if error is None or os.environ.get("LIMNER_DEBUG"):
            raise
        if "--json" in arguments:
            sys.stderr.write(json.dumps({"error": error.as_dict()}) + "\n")
        else:
            console_error(error)
        status = error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if argv is None:
        sys.exit(status)
    return status


def _out_of_memory(error: RuntimeError) -> OutOfMemory | None:
    """What torch says of a device that has no memory left, typed; None for any other error. torch itself is not
    imported for that: it may not be in use."""
    if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
        return None
    return OutOfMemory(
        f"The device has too little memory for this ({str(error).partition(chr(10))[0]}).",
        "Where the command has them: --batch 1, a smaller --size, or another --memory (`limner doctor` says which).",
    )


def _version(value: bool) -> None:
    if value:
        typer.echo(f"limner {__version__}")
        raise typer.Exit


if __name__ == "__main__":
    main()
