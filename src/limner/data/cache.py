"""Tables of memory-mapped arrays on disk (rendered pictures, latents, features): built once, resumably, read by row."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limner.errors import CorruptData, StorageError
from limner.types import write_atomic

VARIABLE = "LIMNER_CACHE"
FORMAT = 1

Columns = dict[str, np.ndarray]
"""Named arrays with one first dimension."""


def cache_root() -> Path:
    """Where caches lie: the folder named by LIMNER_CACHE, else ~/.cache/limner."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "limner").expanduser()


@dataclass(frozen=True)
class Column:
    """Type of one column: a numpy dtype and the shape of a row. Text is kept as UTF-8 in an `S` dtype."""

    dtype: str
    shape: tuple[int, ...] = ()


class Table:
    """N rows of named arrays in a folder, filled in blocks; what is filled stays filled when the filling is killed.

    The folder's name carries a digest of `spec`, so tables of different content never meet.

    Args:
        root: folder of all caches.
        name: readable part of the folder's name.
        spec: JSON-able values on which the content depends.
        rows: N.
        columns: their types.
        block: rows that are filled, and marked as filled, together.

    Raises:
        StorageError: the disk cannot hold the whole table; nothing is left behind.
        CorruptData: the folder was changed by hand.
    """

    def __init__(
        self, root: Path, name: str, spec: dict[str, Any], rows: int, columns: dict[str, Column], block: int = 64
    ) -> None:
        self.rows, self.columns, self.block = rows, columns, block
        types = {k: [c.dtype, list(c.shape)] for k, c in columns.items()}
        facts = {"format": FORMAT, "spec": spec, "rows": rows, "columns": types, "block": block}
        text = json.dumps(facts, sort_keys=True, default=str)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.folder = root / f"{name}-{self.digest[:12]}"
        if not (self.folder / "table.json").exists():
            self._create(text)
        try:
            self._arrays = {k: np.load(self.folder / f"{k}.npy", mmap_mode="r+") for k in columns}
            self._done = np.load(self.folder / "done.npy", mmap_mode="r+")
        except (OSError, ValueError) as e:
            raise CorruptData(f"The cache {self.folder} is damaged ({e}).", "Delete it; it is built again.") from e

    @property
    def bytes(self) -> int:
        """Size on disk, about."""
        return self.rows * sum(_row_bytes(c) for c in self.columns.values())

    @property
    def complete(self) -> bool:
        """Whether every row is filled."""
        return bool(self._done.all())

    def missing(self) -> list[range]:
        """The blocks of rows that are not filled yet."""
        starts = np.flatnonzero(self._done == 0) * self.block
        return [range(int(s), min(int(s) + self.block, self.rows)) for s in starts]

    def write(self, rows: range, values: Columns) -> None:
        """Fills one block, as `missing` named it."""
        for name, array in self._arrays.items():
            array[rows.start : rows.stop] = values[name]
        self._done[rows.start // self.block] = 1

    def fill(self, compute: Iterable[tuple[range, Columns]] | Callable[[range], Columns], advance: Any) -> None:
        """Fills what is missing from a function of a block, or from an iterator over (block, values)."""
        pairs = ((b, compute(b)) for b in self.missing()) if callable(compute) else compute
        for rows, values in pairs:
            self.write(rows, values)
            advance(len(rows))
        self.flush()

    def flush(self) -> None:
        """Hands everything to the disk."""
        for array in (*self._arrays.values(), self._done):
            array.flush()

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, name: str) -> np.ndarray:
        """A column, memory-mapped: (N, …)."""
        return self._arrays[name]

    def _create(self, text: str) -> None:
        temporary = self.folder.with_name(self.folder.name + f".{os.getpid()}.part")
        try:
            temporary.mkdir(parents=True)
            for name, column in self.columns.items():
                _reserve(temporary / f"{name}.npy", np.dtype(column.dtype), (self.rows, *column.shape))
            _reserve(temporary / "done.npy", np.dtype("u1"), (-(-self.rows // self.block),))
            write_atomic(temporary / "table.json", text.encode())
            if not self.folder.exists():
                temporary.rename(self.folder)
        except OSError as e:
            raise StorageError(
                f"Cannot make the cache {self.folder} of {self.bytes / 1e9:.2f} GB: {e.strerror or e}.",
                f"Free some space, or set {VARIABLE} to a folder with more.",
            ) from e
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def texts(column: np.ndarray) -> list[str]:
    """A column of UTF-8 bytes as strings."""
    return [bytes(t).decode() for t in column]


def _row_bytes(column: Column) -> int:
    return int(np.dtype(column.dtype).itemsize * np.prod(column.shape, initial=1))


def _reserve(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """An array file of zeros whose space is really taken: a memory map of a file with holes dies on a full disk."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    size = path.stat().st_size
    del array
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as f:
            os.posix_fallocate(f.fileno(), 0, size)


def in_processes(
    function: Callable[[range], Columns], blocks: Iterable[range], workers: int
) -> Iterator[tuple[range, Columns]]:
    """Computes blocks in `workers` fresh processes (in this one for 0 or 1); results come as they are done.

    `function` must be picklable. Processes are spawned, not forked: compiled thread pools do not survive a fork.
    """
    blocks = list(blocks)
    if workers <= 1 or len(blocks) <= 1:
        for block in blocks:
            yield block, function(block)
        return
    import multiprocessing
    from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

    waiting = iter(blocks)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_the_parent)
    try:
        running = {pool.submit(function, b): b for b in itertools.islice(waiting, 2 * workers)}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
                for b in itertools.islice(waiting, 1):
                    running[pool.submit(function, b)] = b
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
