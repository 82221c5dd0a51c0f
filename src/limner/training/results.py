"""results.json: what a training gave, with all that is needed to give it again."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import __version__
from limner.registry import file_sha256
from limner.types import write_atomic

if TYPE_CHECKING:
    from limner.training.loop import Trainer

LIBRARIES = ("torch", "accelerate", "diffusers", "transformers", "numpy")


def is_finished(out: Path, steps: int) -> bool:
    """Whether the training in this folder has been carried to its end, after `steps`, and its weights are there."""
    try:
        results = json.loads((out / "results.json").read_text(encoding="utf-8"))
        done = bool(results["finished"]) and results["step"] == steps
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return done and (out / "weights").is_dir()


def write_results(trainer: Trainer, step: int, stopped: str) -> None:
    """Writes results.json beside the weights.

    Raises:
        StorageError: no space.
    """
    recipe, out = trainer.recipe, trainer.out
    weights = out / "weights"
    files = sorted(p for p in weights.rglob("*") if p.is_file()) if weights.is_dir() else []
    values: dict[str, Any] = {
        "name": recipe.name,
        "task": recipe.task,
        "digest": recipe.digest(),
        "command": f"limner train {out / 'recipe.yaml'} --out {out}",
        "step": step,
        "steps": recipe.loop.steps,
        "finished": step == recipe.loop.steps,
        "stopped": stopped,
        "images": step * recipe.loop.batch_size,
        "images_per_second": round(trainer.reporter.images_per_second, 2),
        "processes": trainer.share.world,
        "metrics": trainer.metrics,
        "parameters": sum(p.numel() for p in trainer.task.model.parameters() if p.requires_grad),
        "weights": {str(p.relative_to(out)): file_sha256(p) for p in files},
        "machine": {
            "device": str(trainer.accelerator.device),
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "system": platform.platform(),
        },
        "versions": {"limner": __version__, **{name: version(name) for name in LIBRARIES}},
    }
    write_atomic(out / "results.json", json.dumps(values, indent=2).encode())
