"""The folder of a training: whose it is, and that only one process works in it."""

from __future__ import annotations

import dataclasses
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from limner.errors import ConfigError, OutputConflict, StorageError
from limner.training.checkpoint import Checkpoints
from limner.training.recipe import Recipe, first_difference, with_settings
from limner.types import write_atomic


def claim_folder(out: Path, recipe: Recipe) -> None:
    """Makes `out` the folder of this training and writes recipe.yaml into it, or checks that it already is.

    Fields under `run` may differ from what is there, and `loop.steps` as long as no step that was made would have had
    another learning rate (see `Loop.decay`); everything else may not.

    Raises:
        OutputConflict: it belongs to a training with other values, or holds something else.
        StorageError: it cannot be made.
    """
    path = out / "recipe.yaml"
    if path.exists():
        old = _complete(Recipe.load(path))
        free = dataclasses.replace(old, run=recipe.run)
        made = max(Checkpoints(out / "checkpoints", 1).steps(), default=0)
        if made <= recipe.loop.steps and all(old.loop.rate(s) == recipe.loop.rate(s) for s in range(made)):
            free = dataclasses.replace(free, loop=dataclasses.replace(old.loop, steps=recipe.loop.steps))
        found = first_difference(free.to_dict(), recipe.to_dict())
        if found:
            raise OutputConflict(
                f"{out} holds a training whose {found[0]} is {found[1]!r}; this one has {found[2]!r}.",
                "Choose another folder with --out, or give the same values to go on.",
            )
    elif out.exists() and any(out.iterdir()):
        raise OutputConflict(f"{out} is not empty and holds no training.", "Choose another folder with --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StorageError(f"Cannot make {out}: {e.strerror or e}.", "Choose another folder with --out.") from e
    write_atomic(path, yaml.safe_dump(recipe.to_dict(), sort_keys=False).encode())


def _complete(recipe: Recipe) -> Recipe:
    """The recipe as this version would write it: with the settings that it did not know when it was written."""
    from limner.training.tasks import task_class

    try:
        return with_settings(recipe, task_class(recipe.task).settings_class.from_dict(recipe.settings))
    except ConfigError:
        return recipe  # what does not fit any more will be named as a difference


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Inside, no other training works in the folder; the lock goes with the process, however it ends.

    Raises:
        OutputConflict: another one does.
    """
    with (out / ".lock").open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise OutputConflict(
                f"Another process is training in {out}.", "Wait for it, or choose another folder with --out."
            ) from e
        yield
