"""What can be trained: each task by the name that recipes use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limner.errors import ConfigError
from limner.training.recipe import Recipe, read_recipe, with_settings
from limner.training.task import Task

TASKS = {
    "autoencoder": ("limner.training.tasks.autoencoder", "AutoencoderTask"),
    "recogniser": ("limner.training.tasks.recogniser", "RecogniserTask"),
    "detector": ("limner.training.tasks.detector", "DetectorTask"),
    "clip": ("limner.training.tasks.clip", "ClipTask"),
    "attributes": ("limner.training.tasks.attributes", "AttributesTask"),
    "naming": ("limner.training.tasks.naming", "NamingTask"),
    "alignment": ("limner.training.tasks.alignment", "AlignmentTask"),
    "diffusion": ("limner.training.tasks.diffusion", "DiffusionTask"),
    "distillation": ("limner.training.tasks.distillation", "DistillationTask"),
    "gaze": ("limner.training.tasks.gaze", "GazeTask"),
    "dreamidentity": ("limner.training.dreamidentity", "DreamIdentityTask"),
    "adapter": ("limner.training.tasks.adapter", "AdapterTask"),
    "e4t": ("limner.training.tasks.e4t", "E4TTask"),
    "instruct_pix2pix": ("limner.training.tasks.instruct_pix2pix", "InstructPix2PixTask"),
}
"""Name → module and class; modules are imported when asked for, since they load frameworks."""


def task_class(name: str) -> type[Task]:
    """The class of a task; ConfigError lists the known ones."""
    if name not in TASKS:
        raise ConfigError(f"Unknown task {name!r}; known: {', '.join(TASKS)}.")
    module, kind = TASKS[name]
    return getattr(importlib.import_module(module), kind)


def load_training(path: str | Path, overrides: list[str] | None = None) -> tuple[Recipe, Callable[[], Task[Any]]]:
    """A complete recipe, with the task's settings written out, and what builds its task.

    Raises:
        ConfigError: see `read_recipe`; also an unknown task, or settings that do not fit it.
    """
    recipe = read_recipe(path, overrides or ())
    kind = task_class(recipe.task)
    settings = kind.settings_class.from_dict(recipe.settings)
    return with_settings(recipe, settings), lambda: kind(settings)
