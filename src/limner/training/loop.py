"""The one training loop: any `Task`, on one process or many, stoppable and resumable at any moment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limner.config import Config
from limner.data.loader import Share, batches
from limner.data.order import Order
from limner.errors import ConfigError, OutputConflict, ProcessLost, TrainingDiverged
from limner.precision import affordable
from limner.training.checkpoint import Checkpoints, whole_folder, whole_weights
from limner.training.compiling import compiled
from limner.training.dice import Dice, seed_everything
from limner.training.distributed import company_lost, gather_labels
from limner.training.ema import Ema
from limner.training.folder import claim_folder, locked
from limner.training.optimizer import build_optimizer
from limner.training.progress import Reporter, counting, silent
from limner.training.recipe import Recipe
from limner.training.results import is_finished, write_results
from limner.training.shard import release, shard, whole_value
from limner.training.stop import Stop
from limner.training.task import Task

PLAIN = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")
"""accelerate's names of what the loop can be launched as; it shards by itself."""

ASK_EVERY = 10
"""Steps between two agreements of several processes on whether to stop."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        step: steps done.
        finished: all of them.
        stopped: why not (`signal SIGTERM`, `time limit`), or empty.
        metrics: of the last validation.
        out: the folder.
    """

    step: int
    finished: bool
    stopped: str
    metrics: dict[str, float]
    out: Path


class Trainer:
    """Runs one task in one folder.

    Args:
        recipe: complete (the task's settings written out).
        build: makes the task; called once the global generators are seeded.
        out: folder for recipe.yaml, checkpoints/, weights/, results.json, log.jsonl, tensorboard/ and sheets/.
    """

    def __init__(self, recipe: Recipe, build: Any, out: Path) -> None:
        from accelerate import Accelerator, InitProcessGroupKwargs
        from accelerate.state import AcceleratorState

        self.recipe, self.loop, self.run_config, self.out = recipe, recipe.loop, recipe.run, out
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
        AcceleratorState._reset_state()  # an earlier training of this process may have had another precision
        no_accelerator = not torch.accelerator.is_available()
        self.accelerator = Accelerator(
            mixed_precision=self._precision(), cpu=no_accelerator, kwargs_handlers=[patience]
        )
        if str(self.accelerator.distributed_type.value) not in PLAIN:
            raise ConfigError(
                f"accelerate was told to train by {self.accelerator.distributed_type.value}; allowed: plain processes.",
                "Launch with recipes/full/accelerate/ddp.yaml; --set run.shard=true shards the model (FSDP).",
            )
        self.main = self.accelerator.is_main_process
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes, self.loop.accumulation)
        self.share.positions(self.loop.batch_size, 0)
        with self.accelerator.main_process_first():
            claim_folder(out, recipe)
        seed_everything(self.loop.seed)
        self.task: Task[Config] = build()
        self.task.device = self.accelerator.device
        if self.task.contrasts_rows and self.loop.accumulation > 1:
            raise ConfigError(
                f"Loop.accumulation is {self.loop.accumulation}, but the task {self.task.name!r} contrasts the rows of "
                "a batch; allowed: 1.",
                "Use more processes instead.",
            )
        if self.run_config.shard:
            self._demand_shardable()
        self.build = build
        self.checkpoints = Checkpoints(out / "checkpoints", self.run_config.keep)
        self.metrics: dict[str, float] = {}

    def run(self, minutes: float | None = None, resume: int | None = None) -> Outcome:
        """Trains to the end, a signal or the limit of minutes, from the last checkpoint if there is one.

        Args:
            minutes: wall-clock limit, from now; a checkpoint is written before leaving.
            resume: step of an earlier checkpoint to go back to, for good: later ones go once it is loaded; None takes
                the last.

        Raises:
            TrainingDiverged: the loss is not finite; nothing was saved after it.
            StorageError: the disk is full; earlier checkpoints are intact.
            CorruptData: the checkpoint is damaged.
            ConfigError: no checkpoint of that step, or processes that see different checkpoints.
            OutputConflict: another process trains in this folder.
        """
        stop = Stop(minutes)
        with locked(self.out) if self.main else nullcontext():
            return self._run(stop, resume)

    def export(self, folder: Path, resume: int | None = None) -> int:
        """Writes the averaged weights of the last checkpoint, or of another, and trains nothing; returns its step.

        Raises:
            OutputConflict: the folder is not empty.
            ConfigError: no checkpoint (of that step).
            CorruptData: the checkpoint is damaged.
            StorageError: the disk is full.
        """
        if folder.exists() and any(folder.iterdir()):
            raise OutputConflict(f"{folder} is not empty.", "Name another folder for the weights.")
        if not self.checkpoints.steps():
            raise ConfigError(f"{self.out} holds no checkpoint yet, so there is nothing to export.")
        with self.accelerator.main_process_first():
            self.task.prepare(counting if self.main else silent)
        step = self._set_up(resume)
        with torch.no_grad():
            self._export(folder)
        return step

    def _run(self, stop: Stop, resume: int | None) -> Outcome:
        with self.accelerator.main_process_first():
            self.task.prepare(counting if self.main else silent)
        start = self._set_up(resume)
        if self.main:
            self.checkpoints.discard_after(start)
        if start == self.loop.steps and is_finished(self.out, start):
            return Outcome(start, True, "", self.metrics, self.out)
        reporter = Reporter(self.out, start, self.loop.steps, self.loop.batch_size, quiet=not self.main)
        with stop, reporter as self.reporter:
            if start:
                self.reporter.line(f"resumed from step {start}")
            with self._company():
                step, reason = self._steps(start, stop)
            with reporter.pause():
                self._save(step)
                if step == self.loop.steps:
                    self._validate(step)
            if step == self.loop.steps:
                self._finish(step)
            elif self.main:
                write_results(self, step, reason)
        return Outcome(step, step == self.loop.steps, reason, self.metrics, self.out)

    def _set_up(self, resume: int | None) -> int:
        """Wraps model and optimizer for these processes and loads the checkpoint; returns the step to go on from."""
        loop, task = self.loop, self.task
        source = task.source()
        self.source, self.order = source, Order(len(source), loop.batch_size, loop.seed, source.groups)
        if self.run_config.shard and self.share.world > 1:
            task.model = self.accelerator.prepare_model(task.model, evaluation_mode=True)  # on its device, not wrapped
            shard(task.model, task.shards)
        optimizer = build_optimizer(loop, task)
        for module in task.frozen():
            module.to(task.device).eval().requires_grad_(False)
        if self.run_config.shard and self.share.world > 1:
            self.model, self.optimizer = task.model, self.accelerator.prepare(optimizer)
        else:
            self.model, self.optimizer = self.accelerator.prepare(task.model, optimizer)
            task.model = self.accelerator.unwrap_model(self.model)
        self.quick = compiled(self.model) if self.run_config.compile else self.model
        if self.run_config.compile:
            task.compile()
        self.ema = Ema(task.model, loop.ema, "cpu" if loop.ema_on_cpu else None) if loop.ema else None
        self.saved = -1
        start = self._start(resume)
        if not start:
            return 0
        state = self.checkpoints.load(start, task.model, self.optimizer.optimizer, self.ema)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.metrics, self.saved = state["metrics"], start
        return start

    def _start(self, resume: int | None) -> int:
        """The step of the checkpoint to load, on which all processes agree; 0 where there is none."""
        steps = self.checkpoints.steps()
        found = max(steps, default=0) if resume is None else resume if resume in steps else -1
        everywhere = gather_labels(torch.tensor([found], device=self.accelerator.device)).unique().tolist()
        if len(everywhere) > 1:
            raise ConfigError(
                f"The processes do not see the same checkpoints in {self.checkpoints.folder}.",
                "Give all machines one shared folder with --out, or copy the checkpoints to each.",
            )
        if found < 0:
            raise ConfigError(
                f"There is no checkpoint of step {resume} in {self.checkpoints.folder}.",
                f"There are: {', '.join(map(str, steps)) or 'none'}.",
            )
        return found

    def _steps(self, start: int, stop: Stop) -> tuple[int, str]:
        """Steps until the end or a reason to stop; returns the steps done and that reason."""
        loop, run = self.loop, self.run_config
        stream = batches(self.source, self.order, self.share, start, loop.steps, run.workers)
        self.model.train()
        for step in range(start, loop.steps):
            losses = self._step(step, stream)
            done = step + 1
            self.reporter.stepped(done)
            if _due(done, run.log_every) or done == loop.steps:
                self.reporter.scalars(done, losses(), prefix="train")
            if done < loop.steps:
                with self.reporter.pause():
                    self._intervals(done)
                reason = self._agree(done, stop)
                if reason:
                    return done, reason
        return loop.steps, ""

    @contextmanager
    def _company(self) -> Iterator[None]:
        """Inside, it is a typed error if another process is gone."""
        try:
            yield
        except RuntimeError as e:
            if not (self.share.world > 1 and company_lost(e)):
                raise
            steps = self.checkpoints.steps()
            raise ProcessLost(
                f"{self.share.world} processes train together, and one of them is gone: {str(e).splitlines()[0]}",
                (f"The checkpoint of step {steps[-1]} in {self.checkpoints.folder} is complete. " if steps else "")
                + "See in that one's output why it died; the same command, on as many processes or fewer, goes on.",
            ) from e

    def _step(self, step: int, stream: Any) -> Any:
        """One optimizer step; returns a function that gives the scalars for the log."""
        loop, accelerator = self.loop, self.accelerator
        rate = loop.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        totals: dict[str, torch.Tensor] = {}
        for part in range(loop.accumulation):
            batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in next(stream).items()}
            place = self.share.positions(loop.batch_size, part)
            dice = Dice(loop.seed, step, range(place.start, place.stop), accelerator.device)
            seed_everything(loop.seed, step, part, self.share.rank)
            last = part == loop.accumulation - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                losses = self.task.loss(self.quick, batch, dice)
                accelerator.backward(losses.total / loop.accumulation)
            for name, value in {"loss": losses.total.detach(), **losses.parts}.items():
                totals[name] = totals.get(name, 0) + value.float() / loop.accumulation
        norm = whole_value(accelerator.clip_grad_norm_(self.model.parameters(), loop.clip or math.inf))
        self._demand_finite(step + 1, totals["loss"], norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        totals["gradient"] = norm
        return lambda: {**{k: float(accelerator.reduce(v, "mean")) for k, v in totals.items()}, "lr": rate}

    def _demand_finite(self, step: int, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Raises TrainingDiverged before bad numbers reach the weights. fp16's scaler copes with infinite gradients."""
        gradient_ok = self.accelerator.scaler is not None or bool(torch.isfinite(norm))
        if bool(torch.isfinite(loss)) and gradient_ok:
            return
        steps = self.checkpoints.steps()
        raise TrainingDiverged(
            f"At step {step} the loss is {float(loss):.4g} and its gradient norm {float(norm):.4g}; "
            f"finite numbers are expected.",
            (f"The checkpoint of step {steps[-1]} in {self.checkpoints.folder} is good. " if steps else "")
            + "Lower loop.lr, lengthen loop.warmup or train in float32 (loop.precision=no), in another folder.",
        )

    def _intervals(self, done: int) -> None:
        run = self.run_config
        if _due(done, run.checkpoint_every):
            self._save(done)
        if _due(done, run.validate_every):
            self._validate(done)
        if _due(done, run.sheet_every):
            self._sheet(done)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights, if an average is kept."""
        with self.ema.applied() if self.ema is not None else nullcontext():
            yield
        release(self.task.model)

    @torch.no_grad()
    def _validate(self, done: int) -> None:
        self.task.model.eval()
        with self._averaged():
            self.metrics = self.task.validate()
        self.model.train()
        self.reporter.scalars(done, self.metrics, prefix="validation")
        if self.main and self.saved == done:
            self.checkpoints.note(done, self.metrics)

    @torch.no_grad()
    def _sheet(self, done: int) -> None:
        self.task.model.eval()
        with self._averaged():
            image = self.task.sheet()
        self.model.train()
        if image is not None:
            self.reporter.sheet(done, image)

    def _save(self, done: int) -> None:
        if done == self.saved:
            return
        scaler = self.accelerator.scaler
        state = {
            "metrics": self.metrics,
            "digest": self.recipe.digest(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        model: nn.Module = self.task.model
        self.checkpoints.save(done, model, self.optimizer.optimizer, self.ema, state, write=self.main)
        self.saved = done
        self.accelerator.wait_for_everyone()

    def _agree(self, done: int, stop: Stop) -> str:
        """The reason to stop on which all processes agree, or the empty string."""
        if self.share.world == 1:
            return stop.reason
        if done % ASK_EVERY:
            return ""
        vote = torch.tensor([1.0 if stop.reason else 0.0], device=self.accelerator.device)
        return (stop.reason or "another process stopped") if float(self.accelerator.reduce(vote, "sum")) else ""

    @torch.no_grad()
    def _finish(self, step: int) -> None:
        """Samples and exports the final, averaged weights, and writes results.json."""
        with self.reporter.pause():
            self._sheet(step)
            self._export(self.out / "weights")
            if self.main:
                write_results(self, step, "")
        self.accelerator.wait_for_everyone()

    def _export(self, folder: Path) -> None:
        self.task.model.eval()
        with self._averaged():
            task = self._gathered() if self.run_config.shard and self.share.world > 1 else self.task
            if self.main:
                with whole_folder(folder) as made:
                    task.export(made)

    def _gathered(self) -> Task[Config]:
        """On the first process, the task with the whole of a sharded model, in main memory; every process calls it."""
        state = whole_weights(self.task.model)
        if not self.main:
            return self.task
        task = self.build()
        task.model.load_state_dict(state, strict=False)
        task.model.eval()
        return task

    def _precision(self) -> str:
        """`loop.precision`, or float32 on a machine that only emulates it."""
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        slow = self.loop.precision == "bf16" and affordable(torch.bfloat16, device) == torch.float32
        return "no" if slow else self.loop.precision

    def _demand_shardable(self) -> None:
        """Raises ConfigError where run.shard cannot be had."""
        if not self.task.shards:
            raise ConfigError(
                f"Run.shard is True, but the task {self.task.name!r} cannot be sharded.",
                "Leave it out: it fits one GPU.",
            )
        if self.loop.precision == "fp16":
            raise ConfigError("Run.shard is True; allowed with loop.precision: no, bf16.")
        if self.loop.optimizer != "adamw":
            raise ConfigError("Run.shard is True; allowed with loop.optimizer: adamw. Muon needs whole matrices.")


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
