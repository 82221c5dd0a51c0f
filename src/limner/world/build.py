"""Building a data set of sitters on disk: webdataset shards and a manifest.

A shard is written under a temporary name and renamed when complete, so that whatever carries its name is whole. The
bytes depend on the config alone: not on the number of workers, nor on how often the build was interrupted.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from limner.data.shards import claimed_folder, drop_partial, finished_shards, write_shard
from limner.errors import ConfigError, CorruptData, LimnerError, OutputConflict, StorageError
from limner.types import write_atomic
from limner.world.dataset import MANIFEST, WorldConfig, WorldDataset

CONFIG = "config.yaml"
SHARD_SIZE = 256
"""Samples in a shard."""
MAX_WORKERS = 256
Advance = Callable[[int], None]


class Stopped(LimnerError):
    """The build was told to stop; its unfinished shards were dropped."""

    code = "stopped"


def build(config: WorldConfig, out: str | Path, workers: int = 1, advance: Advance | None = None) -> dict[str, Any]:
    """Writes the data set of `config` into the folder `out`, or finishes a build that was interrupted there.

    Args:
        config: what to build.
        out: an empty or new folder, or one with an unfinished build of the same config.
        workers: processes that render.
        advance: called with numbers of samples as they are done.

    Returns:
        The manifest: format, config, and for each shard its name, samples, bytes and sha256.

    Raises:
        ConfigError: `workers` out of range.
        OutputConflict: the folder holds something else, or another build is at work in it.
        StorageError: a file cannot be written; finished shards are intact and the same call goes on from them.
    """
    if not isinstance(workers, int) or not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(f"workers is {workers!r}; a whole number from 1 to {MAX_WORKERS} is expected.")
    folder, advance = Path(out), advance or (lambda n: None)
    data = WorldDataset(config)
    with claimed_folder(folder):
        _check(folder, config)
        drop_partial(folder)
        spans = _spans(len(data))
        done = finished_shards(folder, _entries(folder), [_name(k) for k in range(len(spans))])
        for entry in done.values():
            advance(entry["samples"])
        todo = [k for k in range(len(spans)) if k not in done]
        if not todo and (folder / MANIFEST).exists() and json.loads((folder / MANIFEST).read_text())["complete"]:
            return _manifest(config, spans, done)
        write = _here if workers == 1 or len(todo) < 2 else _in_processes
        for entry in write(config, folder, {k: spans[k] for k in todo}, min(workers, max(len(todo), 1)), advance):
            done[entry.pop("index")] = entry
            _save(folder, _manifest(config, spans, done))
        manifest = _manifest(config, spans, done)
        _save(folder, manifest)
        return manifest


def _spans(total: int) -> list[range]:
    return [range(a, min(a + SHARD_SIZE, total)) for a in range(0, total, SHARD_SIZE)]


def _check(folder: Path, config: WorldConfig) -> None:
    """Raises OutputConflict unless the folder is empty or holds a build of this config; writes the config."""
    path = folder / CONFIG
    if not path.exists():
        others = [p.name for p in folder.iterdir() if not p.name.startswith(f".{CONFIG}.")]
        if others:
            raise OutputConflict(
                f"{folder} is not empty and holds no build of sitters (there is {sorted(others)[0]!r} in it).",
                "Choose a new folder.",
            )
        import yaml

        write_atomic(path, yaml.safe_dump(config.to_dict(), sort_keys=False).encode())
        return
    try:
        import yaml

        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise CorruptData(f"{path} cannot be read ({e}).", "Choose a new folder.") from e
    wanted = config.to_dict()
    for key in wanted:
        if not isinstance(held, dict) or held.get(key) != wanted[key]:
            there = held.get(key) if isinstance(held, dict) else held
            raise OutputConflict(
                f"{folder} holds another build: its {key} is {there!r}, here it is {wanted[key]!r}.",
                "Choose a new folder, or repeat the command that began the build.",
            )


def _entries(folder: Path) -> list[dict[str, Any]]:
    """The shards that the manifest names; none where there is no manifest that can be read."""
    try:
        return list(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _manifest(config: WorldConfig, spans: list[range], done: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": "limner world 1",
        "complete": len(done) == len(spans),
        "samples": sum(e["samples"] for e in done.values()),
        "config": config.to_dict(),
        "shards": [done[k] for k in sorted(done)],
    }


def _save(folder: Path, manifest: dict[str, Any]) -> None:
    write_atomic(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _name(index: int) -> str:
    return f"shard-{index:06d}.tar"


def _write(data: WorldDataset, folder: Path, index: int, span: range, tick: Callable[[], None]) -> dict[str, Any]:
    """Renders one shard and puts it in place; `tick` is called after each sample and may raise."""
    from limner.world.truth import encode

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for i in span:
            sample = data[i]
            yield sample["key"], encode(sample)
            tick()

    return {"index": index, **write_shard(folder / _name(index), samples())}


def _here(
    config: WorldConfig, folder: Path, spans: dict[int, range], workers: int, advance: Advance
) -> Iterator[dict[str, Any]]:
    data = WorldDataset(config)
    for k, span in spans.items():
        yield _write(data, folder, k, span, lambda: advance(1))


def _in_processes(
    config: WorldConfig, folder: Path, spans: dict[int, range], workers: int, advance: Advance
) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    count, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (config, str(folder), count, stop))
    seen = 0
    try:
        pending: set[Future[dict[str, Any]]] = {pool.submit(_work, k, span) for k, span in spans.items()}
        while pending:
            finished, pending = wait(pending, timeout=0.2, return_when="FIRST_COMPLETED")
            now = int(count.value)
            if now > seen:
                advance(now - seen)
                seen = now
            for future in finished:
                yield future.result()
    except BrokenProcessPool as e:
        raise StorageError(
            "A worker died, perhaps for lack of memory. Finished shards are intact.",
            "Run the same command again with fewer --workers; it goes on from there.",
        ) from e
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


_WORKER: dict[str, Any] = {}


def _start_worker(config: WorldConfig, folder: str, count: Any, stop: Any) -> None:
    """Prepares a worker process: one thread, deaf to Ctrl-C (the parent decides), gone when the parent is gone."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    _WORKER.update(data=WorldDataset(config), folder=Path(folder), count=count, stop=stop)


def _work(index: int, span: range) -> dict[str, Any]:
    def tick() -> None:
        if _WORKER["stop"].is_set():
            raise Stopped("The build was stopped.")
        with _WORKER["count"].get_lock():
            _WORKER["count"].value += 1

    return _write(_WORKER["data"], _WORKER["folder"], index, span, tick)
