"""Trains a tiny UNet on one process, on two, and sharded between two; test_sharding.py runs it in its own process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from pair_driver import in_processes

from limner.training.loop import Trainer
from limner.training.progress import silent
from limner.training.tasks import load_training, task_class

IMAGE = {"patch_size": 8, "width": 16, "depth": 1, "heads": 2}
TEXT = {"width": 16, "depth": 1, "heads": 2, "context": 20, "projection": 12}
UNET = {"channels": [16, 32], "attention": [0, 1], "head": 8, "time_channels": 8, "groups": 4}


@torch.no_grad()
def untrained(task: str, folder: Path, **settings: Any) -> str:
    """A folder with the result of a training that has not begun."""
    kind = task_class(task)
    part = kind(kind.settings_class.from_dict(settings))
    part.prepare(silent)
    folder.mkdir()
    part.export(folder)
    return str(folder)


def write_recipe(folder: Path, pictures: str) -> Path:
    data = {"kind": "folder", "path": pictures, "size": 32, "workers": 1}
    both = {"data": data, "held_out": data}
    settings = {
        **both, "unet": UNET, "validation": 8, "checkpointing": True,
        "autoencoder": untrained("autoencoder", folder / "vae", **both, widths=[8, 8], decoder_layers=1),
        "clips": [untrained("clip", folder / "clip", **both, text=TEXT, image=IMAGE)],
    }  # fmt: skip
    loop = {"steps": 4, "batch_size": 8, "accumulation": 2, "lr": 1e-3, "warmup": 1, "ema": 0.9, "ema_on_cpu": True}
    run = {"log_every": 1, "checkpoint_every": 2, "validate_every": 2, "sheet_every": 0}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"name": "a", "task": "diffusion", "settings": settings, "loop": loop, "run": run}))
    return path


def train(recipe: Path, out: Path, shard: bool, resume: int | None = None) -> None:
    torch.set_num_threads(1)
    Trainer(*load_training(recipe, [f"run.shard={shard}".lower()]), out).run(resume=resume)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    recipe = write_recipe(folder, sys.argv[2])
    for name, processes, shard in (("one", 1, False), ("two", 2, False), ("sharded", 2, True)):
        in_processes(lambda n=name, s=shard: train(recipe, folder / n, s), processes)
    for name, shard in (("two", False), ("sharded", True)):
        (folder / name).rename(folder / f"{name}-again")
        in_processes(lambda n=name, s=shard: train(recipe, folder / f"{n}-again", s, resume=2), 2)
