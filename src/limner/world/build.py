"""Building a data set of sitters on disk: webdataset shards and a manifest.

A shard is written under a temporary name and renamed when complete, so that whatever carries its name is whole. The
bytes depend on the config alone: not on the number of workers, nor on how often the build was interrupted.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import signal
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limner.errors import ConfigError, CorruptData, LimnerError, OutputConflict, StorageError
from limner.types import write_atomic
from limner.world.dataset import MANIFEST, WorldConfig, WorldDataset

CONFIG = "config.yaml"
SHARD_SIZE = 256
"""Samples in a shard."""
MAX_WORKERS = 256
Advance = Callable[[int], None]
_TEMPORARY = ".partial"


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
    with _claimed(folder, config):
        for path in folder.glob(f"*{_TEMPORARY}"):
            path.unlink()
        spans = _spans(len(data))
        done = _finished(folder, spans)
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


@contextmanager
def _claimed(folder: Path, config: WorldConfig) -> Iterator[None]:
    """The folder with this config in it, locked against other builds."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileExistsError, NotADirectoryError) as e:
        raise OutputConflict(f"{folder} is a file; a folder is expected.", "Choose another --out.") from e
    except OSError as e:
        raise StorageError(f"Cannot make the folder {folder}: {e.strerror}.", "Choose another --out.") from e
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise OutputConflict(
                f"Another build is writing into {folder}.", "Wait for it, or choose another --out."
            ) from e
        _check(folder, config)
        yield
    finally:
        os.close(handle)


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


def _finished(folder: Path, spans: list[range]) -> dict[int, dict[str, Any]]:
    """Shards that the manifest names and whose bytes are as it says."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["shards"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    done = {}
    for k in range(len(spans)):
        entry = next((e for e in entries if e["name"] == _name(k)), None)
        path = folder / _name(k)
        if entry and path.is_file() and path.stat().st_size == entry["bytes"] and _digest(path) == entry["sha256"]:
            done[k] = entry
    return done


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


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _write(data: WorldDataset, folder: Path, index: int, span: range, tick: Callable[[], None]) -> dict[str, Any]:
    """Renders one shard and puts it in place; `tick` is called after each sample and may raise."""
    from limner.world.truth import encode

    path, temporary = folder / _name(index), folder / f".{_name(index)}.{os.getpid()}{_TEMPORARY}"
    try:
        with temporary.open("wb") as f:
            with tarfile.open(fileobj=f, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for i in span:
                    sample = data[i]
                    for extension, content in encode(sample).items():
                        info = tarfile.TarInfo(f"{sample['key']}.{extension}")
                        info.size, info.mode = len(content), 0o644
                        tar.addfile(info, io.BytesIO(content))
                    tick()
            f.flush()
            os.fsync(f.fileno())
        digest, size = _digest(temporary), temporary.stat().st_size
        temporary.replace(path)
    except OSError as e:
        raise StorageError(
            f"Cannot write {path}: {e.strerror or e}. Finished shards are intact.",
            "Free some space and run the same command again; it goes on from there.",
        ) from e
    finally:
        temporary.unlink(missing_ok=True)
    return {"index": index, "name": path.name, "samples": len(span), "bytes": size, "sha256": digest}


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
