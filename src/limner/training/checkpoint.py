"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from limner.errors import CorruptData, StorageError
from limner.training.ema import Ema
from limner.training.shard import local
from limner.types import write_atomic

FORMAT = 1
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
_OWN = StateDictOptions(ignore_frozen_params=True)
_SPREAD = StateDictOptions(full_state_dict=True, strict=False)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new, empty folder to write into that becomes `path` at the end, or vanishes on any error.

    Raises:
        StorageError: no space, no permission.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in [p for p in temporary.rglob("*") if p.is_file()]:
            with file.open("rb") as f:
                os.fsync(f.fileno())
        discard(path)
        temporary.rename(path)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"Cannot write {path}: {e}.", "Free some space; what was written before is intact, and the run resumes."
        ) from e
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def discard(path: Path) -> None:
    """Removes a folder, if it is there, so that no half of it is ever seen under its name."""
    trash = path.with_name(f".{path.name}.old")
    shutil.rmtree(trash, ignore_errors=True)
    if path.exists():
        path.rename(trash)
        shutil.rmtree(trash)


class Checkpoints:
    """The checkpoints of one training, `step-NNNNNNNN` in a folder.

    Each holds model.safetensors, optimizer.safetensors, ema.safetensors (where an average is kept) and state.json.
    Frozen parameters are left out: the task has them from where it got them the first time.

    Args:
        folder: where they lie.
        keep: how many stay; older ones go after a newer one is complete.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, rising."""
        return sorted(int(p.name.removeprefix("step-")) for p in self.folder.glob("step-*"))

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step:08d}"

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: Ema | None,
        state: dict[str, Any],
        write: bool = True,
    ) -> None:
        """Writes a checkpoint, then removes the oldest ones.

        Every process calls it, since sharded weights must be gathered; only those with `write` touch the disk.

        Raises:
            StorageError: no space; earlier checkpoints are intact.
        """
        weights = whole_weights(model)
        average = ema.gather(keep=write) if ema is not None else {}
        optimizing: Any = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
        if not write:
            return
        moments = {f"{n}/{k}": v for n, s in optimizing["state"].items() for k, v in s.items()}
        with whole_folder(self.path(step)) as folder:
            _write(weights, folder / "model.safetensors")
            _write(moments, folder / "optimizer.safetensors")
            if ema is not None:
                _write(average, folder / "ema.safetensors")
                state = {**state, "ema_updates": ema.updates}
            state = {"format": FORMAT, "step": step, **state, "param_groups": optimizing["param_groups"]}
            text = json.dumps(state, indent=1)
            (folder / "state.json").write_text(text, encoding="utf-8")
        for old in self.steps()[: -self.keep]:
            discard(self.path(old))

    def note(self, step: int, metrics: dict[str, float]) -> None:
        """Puts metrics that were measured after a checkpoint was written into its state.

        Raises:
            StorageError: no space; the checkpoint is as it was.
        """
        path = self.path(step) / "state.json"
        state = json.loads(path.read_text(encoding="utf-8"))
        write_atomic(path, json.dumps({**state, "metrics": metrics}, indent=1).encode())

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, the last one first."""
        for later in reversed(self.steps()):
            if later > step:
                discard(self.path(later))

    def load(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None) -> dict[str, Any]:
        """Puts a checkpoint into model, optimizer and average; returns the state that was saved with it.

        Raises:
            CorruptData: absent, damaged, or of another model.
        """
        folder = self.path(step)
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            weights: Any = load_file(folder / "model.safetensors")
            flat = load_file(folder / "optimizer.safetensors")
            average = load_file(folder / "ema.safetensors") if ema is not None else {}
            if state["format"] != FORMAT:
                raise KeyError(f"format {state['format']}, not {FORMAT}")
            moments: dict[str, dict[str, torch.Tensor]] = {}
            for name, value in flat.items():
                parameter, _, kind = name.rpartition("/")
                moments.setdefault(parameter, {})[kind] = value
            optimizing = {"state": moments, "param_groups": state["param_groups"]}
            own = _names(model)
            if own != weights.keys():
                raise KeyError(f"other weights: {sorted(own ^ weights.keys())[0]}")
            set_optimizer_state_dict(model, optimizer, optimizing, options=_SPREAD)
            set_model_state_dict(model, weights, options=_SPREAD)
            if ema is not None:
                ema.updates = state["ema_updates"]
                ema.fill(average)
        except (OSError, SafetensorError, json.JSONDecodeError, KeyError, RuntimeError, TypeError) as e:
            raise CorruptData(
                f"The checkpoint {folder} cannot be read ({e}).",
                "Delete that folder; the same command then goes on from the one before it, or from the start.",
            ) from e
        return state


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trained parameters and buffers by name, whole; what several modules share, under the first name only.

    Every process must call it; only the first gets them.
    """
    state: Any = get_model_state_dict(model, options=_WHOLE)
    names = _names(model)
    return {name: value for name, value in state.items() if name in names}


def _names(model: nn.Module) -> set[str]:
    """Names of what `whole_weights` holds, known to every process."""
    state: Any = get_model_state_dict(model, options=_OWN)
    seen: set[tuple[int, torch.Size]] = set()
    found = set()
    for name, value in state.items():
        part = local(value)
        place = (part.data_ptr(), value.shape)
        if part.numel() == 0 or place not in seen:
            found.add(name)
        seen.add(place)
    return found


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path)
