"""A recipe: one YAML file that says everything about a training, and the config classes behind it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from limner.config import Config
from limner.errors import ConfigError

PRECISIONS = ("no", "bf16", "fp16")
OPTIMIZERS = ("adamw", "muon")
_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


@dataclass(frozen=True)
class Loop(Config):
    """What the loop does to the weights.

    Attributes:
        steps: optimizer steps.
        batch_size: rows of one step, over all processes and accumulation steps.
        accumulation: micro-batches per step and process.
        lr: peak learning rate; rises linearly over `warmup` steps, then falls as a cosine to `lr * final_lr`.
        decay: share of the steps, at the end, over which it falls; until then it stays at its peak, and `steps` of a
            training that has begun may still be changed (Hägele et al., arXiv 2405.18392).
        optimizer: adamw (Loshchilov and Hutter, arXiv 1711.05101), or muon, which is AdamW for vectors and embeddings
            alone and makes the updates of matrices orthogonal.
        betas, eps: of AdamW.
        weight_decay: of matrices and kernels.
        clip: largest gradient norm; 0 does not clip.
        ema: decay of the moving average of the weights; 0 keeps none.
        ema_on_cpu: keeps the average in main memory.
        precision: no (float32), bf16 or fp16 (mixed precision; weights and optimizer stay float32).
        seed: of the initial weights, the order of the data and all noise.
    """

    steps: int
    batch_size: int
    accumulation: int = 1
    lr: float = 1e-3
    warmup: int = 100
    final_lr: float = 0.0
    decay: float = 1.0
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.0
    ema_on_cpu: bool = False
    precision: str = "no"
    seed: int = 0

    def validate(self) -> None:
        for name in ("steps", "batch_size", "accumulation"):
            self.check(getattr(self, name) >= 1, name, "1 or more")
        self.check(self.batch_size % self.accumulation == 0, "accumulation", "a divisor of batch_size")
        for name in ("warmup", "seed", "weight_decay", "clip"):
            self.check(getattr(self, name) >= 0, name, "0 or more")
        self.check(self.lr > 0, "lr", "more than 0")
        self.check(self.eps > 0, "eps", "more than 0")
        self.check(0 <= self.final_lr <= 1, "final_lr", "0 to 1 (a share of lr)")
        self.check(0 <= self.decay <= 1, "decay", "0 to 1 (a share of steps)")
        self.check(all(0 <= b < 1 for b in self.betas), "betas", "two values in [0, 1)")
        self.check(0 <= self.ema < 1, "ema", "0 up to but not including 1")
        self.check(self.precision in PRECISIONS, "precision", ", ".join(PRECISIONS))
        self.check(self.optimizer in OPTIMIZERS, "optimizer", ", ".join(OPTIMIZERS))

    def rate(self, step: int) -> float:
        """Learning rate of a step (from 0): linear warm-up, peak, cosine (arXiv 1608.03983, Equation 5)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        falls = max(self.warmup, round(self.steps * (1 - self.decay)))
        progress = min(1.0, max(0, step - falls) / max(1, self.steps - falls))
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Run(Config):
    """How the loop works; nothing here changes the weights (`compile` their rounding), so all of it may differ when a
    training is resumed.

    Attributes:
        workers: processes that fetch batches ahead; 0 fetches in the training process.
        checkpoint_every, validate_every, sheet_every, log_every: in steps; 0 means only at the end.
        keep: how many checkpoints stay on disk.
        shard: divides weights, gradients and moments among the processes (FSDP), where the task can.
        compile: the model, and a frozen base beside it, run compiled (torch.compile) while it is trained: quicker,
            after some minutes of compiling. On a CPU it needs a C++ compiler.
    """

    workers: int = 0
    checkpoint_every: int = 1000
    validate_every: int = 1000
    sheet_every: int = 1000
    log_every: int = 50
    keep: int = 2
    shard: bool = False
    compile: bool = False

    def validate(self) -> None:
        for name in ("workers", "checkpoint_every", "validate_every", "sheet_every", "log_every"):
            self.check(getattr(self, name) >= 0, name, "0 or more")
        self.check(self.keep >= 1, "keep", "1 or more")


@dataclass(frozen=True)
class Recipe(Config):
    """A whole training.

    Attributes:
        name: of the training; the default output folder is runs/NAME.
        task: key of `limner.training.tasks`.
        settings: the task's own config, as plain values; `limner.training.tasks` knows its class.
        loop, run: see there.
    """

    name: str
    task: str
    loop: Loop
    settings: dict[str, Any] = field(default_factory=dict)
    run: Run = field(default_factory=Run)


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies overrides of the form `loop.steps=100`.

    Raises:
        ConfigError: not readable, an unknown or missing field, a value out of range, an override without `=`.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"Cannot read a recipe from {path}: {e}") from e
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is no recipe: a mapping with name, task, settings and loop is expected.")
    for override in overrides:
        _override(values, override)
    for name in ("name", "task", "loop"):
        if name not in values:
            raise ConfigError(f"{path} lacks the field {name!r}.", "See recipes/ for complete examples.")
    return Recipe.from_dict(_numbers(values))


def first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    """The first field, as a dotted name, in which two nested dicts differ, with both values; None if they agree."""
    for key in dict.fromkeys((*old, *new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found = first_difference(a, b, f"{prefix}{key}.")
            if found:
                return found
        elif a != b:
            return f"{prefix}{key}", a, b
    return None


def with_settings(recipe: Recipe, settings: Config) -> Recipe:
    """The recipe with every field of the task's settings written out."""
    return dataclasses.replace(recipe, settings=settings.to_dict())


def _numbers(value: Any) -> Any:
    """YAML 1.1 takes 1e-4 for text (it wants 1.0e-4); nobody who writes it means text."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"Override {override!r} has no '='.", "Write it as loop.steps=100.")
    *path, last = name.strip().split(".")
    place = values
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"Override {override!r}: {part!r} has no fields.")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"Override {override!r} has no readable value: {e}") from e
