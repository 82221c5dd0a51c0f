"""Checkpoint files: reading `.pt` without running what is in it, writing safetensors without copies, and modules in
safetensors with their config inside."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limner.encoders.published import shapes_of
from limner.errors import CorruptData, StorageError, UnsafeCheckpoint, WeightsMismatch, WeightsUnavailable

PART = "limner.part"
"""Where the metadata of a module's file holds its config."""
LEGACY_PICKLES = 5
"""Pickles one after the other in PyTorch's old format: magic number, version, system, the object, storage keys."""

M = TypeVar("M", bound=nn.Module)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pt` file, mapped from the disk where its format allows it; code in it is never run.

    Raises:
        WeightsUnavailable: no such file.
        UnsafeCheckpoint: the pickle wants to call or build something else than tensors.
        WeightsMismatch: truncated, or no checkpoint of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsUnavailable(f"{path} does not exist or is no file.")
    try:
        # Only the archive format of PyTorch ≥ 1.6 can be mapped; mapping is what keeps a second copy out of memory.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as e:  # damaged files surface as RuntimeError, EOFError, UnpicklingError, KeyError, …
        strangers = sorted(set(_foreign_names(path)))
        if strangers:
            raise UnsafeCheckpoint(
                f"{path} holds more than tensors: its pickle refers to {', '.join(strangers)}. It was not executed.",
                "Do not open it with anything else; ask for a safetensors file.",
            ) from e
        raise WeightsMismatch(
            f"{path} is truncated or no checkpoint ({type(e).__name__}).",
            "Compare its size with that of the source, and fetch it again.",
        ) from e
    if not isinstance(state, dict):
        raise WeightsMismatch(f"{path}: a dictionary of tensors is expected; got {type(state).__name__}.")
    shapes_of(state)
    return state


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes one safetensors file straight from where the tensors lie; atomic.

    Raises:
        StorageError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # as the user's mask asks; safetensors would let nobody else read the file
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, temporary, dict(metadata))
            temporary.chmod(mode)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as e:
        raise StorageError(f"Cannot write {path}: {e}", "Free some space or choose another folder.") from e


def halve(folder: Path) -> None:
    """Rewrites every safetensors file under a folder with its matrices and kernels in half precision.

    Vectors (biases, norms, statistics) are few and stay as they are.

    Raises:
        StorageError: a file cannot be written; it is then as it was.
    """
    from safetensors import safe_open

    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            metadata = file.metadata() or {}
        write_safetensors(
            path, {n: t.half() if t.dtype == torch.float32 and t.ndim > 1 else t for n, t in tensors.items()}, metadata
        )


def save_part(path: Path, module: nn.Module, values: dict[str, Any], key: str = PART) -> None:
    """Writes a module's weights, with the values of its config under `key` of the metadata.

    Raises:
        StorageError: it cannot be written.
    """
    write_safetensors(path, module.state_dict(), {key: json.dumps(values)})


def load_part(path: Path, key: str = PART) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The values and the weights that `save_part` wrote.

    Raises:
        WeightsUnavailable: not there.
        CorruptData: damaged, or written by something else.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsUnavailable(f"{path} does not exist.", "Train it first; recipes/ has a recipe for it.")
    try:
        with safe_open(str(path), framework="pt") as f:
            values = json.loads((f.metadata() or {})[key])
        return values, load_file(path)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as e:
        raise CorruptData(
            f"{path} is damaged or was not written by Limner ({e!r}).",
            "Train it again, or install Limner again where it came with that.",
        ) from e


def fill_part(module: M, state: dict[str, Tensor], path: Path) -> M:
    """The module with these weights, in evaluation mode.

    Raises:
        WeightsMismatch: they are another module's.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as e:
        raise WeightsMismatch(f"{path} does not fit its own config: {e}.") from e
    return module.eval()


def _foreign_names(path: Path) -> Iterator[str]:
    """What the pickles of a file refer to beyond PyTorch's own tensors; read, not run."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [n for n in archive.namelist() if n.endswith("data.pkl")]
                streams = [io.BytesIO(archive.read(n)) for n in names]
        else:
            streams = [io.BytesIO(path.read_bytes())] * LEGACY_PICKLES
        for stream in streams:
            strings: list[str] = []
            for code, argument, _ in pickletools.genops(stream):
                if code.name in ("GLOBAL", "INST"):
                    yield from _foreign(str(argument).replace(" ", ".", 1))
                elif code.name == "STACK_GLOBAL":
                    yield from _foreign(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError):
        return  # the pickle ends here; what was found so far stands


def _foreign(name: str) -> list[str]:
    ours = name.startswith("torch.") or name in ("collections.OrderedDict", "_codecs.encode")
    return [] if ours else [name]
