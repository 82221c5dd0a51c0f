"""`limner world …`: the synthetic sitters, as a sheet, a picture or a data set."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Adds the group to the root."""
    group = typer.Typer(help="The synthetic sitters: people that Limner makes itself.", no_args_is_help=True)

    @group.callback()
    def world() -> None:
        pass

    app.add_typer(group, name="world")
