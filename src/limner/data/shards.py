"""Building webdataset shards unit by unit, here or on a cluster, so that a killed build goes on and ends with the same.

A unit of work (a person) becomes samples; a shard holds the samples of some units in order. Only the caller writes:
whoever computes needs no folder in common with it. A shard is written under a temporary name and renamed when it is
complete, and the manifest names the sha256 of each.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from limner.errors import CorruptData, OutputConflict, StorageError
from limner.types import write_atomic

MANIFEST, FORMAT = "manifest.json", "limner shards 1"
PARTIAL = ".partial"
"""How the name of what is not complete ends."""
Samples = list[tuple[str, dict[str, bytes]]]
"""Keys (no dots) and their files by extension."""
Work = Callable[[Any], Samples]
"""A unit → its samples; the same for the same unit."""
Advance = Callable[[int], None]


class Pool(Protocol):
    """Where units are computed."""

    def run(self, make: Callable[[], Work], units: Sequence[Any]) -> Iterator[tuple[int, Samples]]:
        """Position and samples of every unit, in any order. `make` is picklable, and costly: it loads models."""


class Here:
    """This process, one unit after the other."""

    def run(self, make: Callable[[], Work], units: Sequence[Any]) -> Iterator[tuple[int, Samples]]:
        work = make()
        for i, unit in enumerate(units):
            yield i, work(unit)


def build_shards(
    folder: str | Path,
    kind: str,
    config: dict[str, Any],
    units: Sequence[Any],
    make: Callable[[], Work],
    *,
    per_shard: int = 16,
    pool: Pool | None = None,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Builds the shards of all units into a folder, or finishes a build that was interrupted there.

    Args:
        folder: new, empty, or with an unfinished build of the same.
        kind: what is built; also begins the shards' names.
        config: JSON-able values that decide the content.
        units: what is computed; picklable.
        make: makes the function that computes one.
        per_shard: units in a shard; what is lost by a kill is less than that.
        pool: where; None is here.
        advance: called with numbers of units as they are done.

    Returns:
        The manifest: format, kind, complete, config, samples, and for each shard name, samples, bytes, sha256.

    Raises:
        OutputConflict: the folder holds something else, or another build is at work in it.
        StorageError: a file cannot be written; finished shards are intact.
        Whatever the work raises.
    """
    folder, advance = Path(folder), advance or (lambda n: None)
    spans = [range(a, min(a + per_shard, len(units))) for a in range(0, len(units), per_shard)]
    facts = {"format": FORMAT, "kind": kind, "config": config, "units": len(units), "per_shard": per_shard}
    with claimed_folder(folder):
        held = _check(folder, facts)
        drop_partial(folder)
        done = finished_shards(folder, held, [shard_name(kind, k) for k in range(len(spans))])
        advance(sum(len(spans[k]) for k in done))
        wanted = [i for k, span in enumerate(spans) if k not in done for i in span]
        waiting: dict[int, dict[int, Samples]] = {}
        if wanted:
            for at, samples in (pool or Here()).run(make, [units[i] for i in wanted]):
                shard = wanted[at] // per_shard
                waiting.setdefault(shard, {})[wanted[at]] = samples
                advance(1)
                if len(waiting[shard]) == len(spans[shard]):
                    parts = waiting.pop(shard)
                    done[shard] = write_shard(
                        folder / shard_name(kind, shard), (s for i in sorted(parts) for s in parts[i])
                    )
                    _save(folder, facts, done, len(spans))
        return _save(folder, facts, done, len(spans))


def read_manifest(folder: str | Path, kind: str) -> dict[str, Any]:
    """The manifest of a finished build.

    Raises:
        CorruptData: none there, damaged, of another kind, or unfinished.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, complete = manifest["kind"], manifest["complete"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CorruptData(f"{path} is no manifest of a build ({e}).", f"Build it: limner data {kind}.") from e
    if found != kind:
        raise CorruptData(f"{folder} holds {found}; {kind} are expected.")
    if not complete:
        raise CorruptData(f"The build in {folder} is not finished.", "Repeat the command that began it.")
    return manifest


class ShardIndex:
    """The samples of a build by key, in order; nothing is read before it is asked for.

    Raises:
        CorruptData: a shard is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self._at: dict[str, dict[str, tuple[Path, int, int]]] = {}
        for path in sorted(Path(folder).glob("*.tar")):
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        key, _, extension = member.name.partition(".")
                        self._at.setdefault(key, {})[extension] = (path, member.offset_data, member.size)
            except (tarfile.TarError, OSError) as e:
                raise CorruptData(f"The shard {path} cannot be read ({e}).", "Remove it and build again.") from e

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def files(self, key: str) -> dict[str, bytes]:
        """The files of a sample by extension."""
        return {extension: self._read(*at) for extension, at in self._at[key].items()}

    def rows(self) -> list[dict[str, Any]]:
        """What the .json of every sample says, with its `key`."""
        found = []
        for key, files in self._at.items():
            try:
                found.append({**json.loads(self._read(*files["json"])), "key": key})
            except (KeyError, ValueError) as e:
                raise CorruptData(f"The sample {key} has no .json that can be read.", "Build it again.") from e
        return found

    @staticmethod
    def _read(path: Path, offset: int, size: int) -> bytes:
        with path.open("rb") as f:
            f.seek(offset)
            return f.read(size)


def shard_name(kind: str, index: int) -> str:
    """File name of a shard."""
    return f"{kind}-{index:06d}.tar"


def lines(rows: Iterable[Any]) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@contextmanager
def claimed_folder(folder: Path) -> Iterator[None]:
    """The folder, made if need be, and locked against other builds.

    Raises:
        OutputConflict: a file is in the way, or another build is at work there.
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileExistsError, NotADirectoryError) as e:
        raise OutputConflict(f"{folder} is a file; a folder is expected.", "Choose another --out.") from e
    except OSError as e:
        raise StorageError(f"Cannot make the folder {folder}: {e.strerror or e}.", "Choose another --out.") from e
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise OutputConflict(
                f"Another build is writing into {folder}.", "Wait for it, or choose another --out."
            ) from e
        yield
    finally:
        os.close(handle)


def write_shard(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> dict[str, Any]:
    """Writes a shard under a temporary name and renames it when it is complete; samples may be made on the way.

    Returns:
        Its entry in a manifest: name, samples, bytes, sha256.

    Raises:
        StorageError: it cannot be written.
        Whatever making the samples raises; nothing is left of the shard then.
    """
    temporary, count = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}"), 0
    try:
        with temporary.open("wb") as f:
            with tarfile.open(fileobj=f, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for key, files in samples:
                    for extension, content in files.items():
                        info = tarfile.TarInfo(f"{key}.{extension}")
                        info.size, info.mode = len(content), 0o644
                        tar.addfile(info, io.BytesIO(content))
                    count += 1
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
    return {"name": path.name, "samples": count, "bytes": size, "sha256": digest}


def finished_shards(folder: Path, entries: Iterable[dict[str, Any]], names: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Of the shards with these names, by position, the entries of those whose bytes are as an entry says."""
    known, done = {e["name"]: e for e in entries}, {}
    for k, name in enumerate(names):
        entry, path = known.get(name), folder / name
        if entry and path.is_file() and path.stat().st_size == entry["bytes"] and _digest(path) == entry["sha256"]:
            done[k] = entry
    return done


def drop_partial(folder: Path) -> None:
    """Removes what a killed build left half-written."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink()


def _check(folder: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the shards there; OutputConflict unless the folder is empty or holds a build with these facts."""
    path = folder / MANIFEST
    if not path.exists():
        others = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if others:
            raise OutputConflict(
                f"{folder} is not empty and holds no build ({others[0]!r} is in it).", "Choose a new folder."
            )
        _save(folder, facts, {}, -1)
        return []
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise CorruptData(f"{path} cannot be read ({e}).", "Choose a new folder.") from e
    different = [k for k in facts if held.get(k) != facts[k]]
    if "config" in different and isinstance(held.get("config"), dict):
        ours, theirs = facts["config"], held["config"]
        name = next(k for k in (*ours, *theirs) if ours.get(k) != theirs.get(k))
        raise OutputConflict(
            f"{folder} holds another build: its {name} is {theirs.get(name)!r}, here it is {ours.get(name)!r}.",
            "Choose a new folder, or repeat the command that began the build.",
        )
    if different:
        raise OutputConflict(
            f"{folder} holds another build: its {different[0]} is {held.get(different[0])!r}, here it is "
            f"{facts[different[0]]!r}.",
            "Choose a new folder, or repeat the command that began the build.",
        )
    return list(held["shards"])


def _save(folder: Path, facts: dict[str, Any], done: dict[int, dict[str, Any]], shards: int) -> dict[str, Any]:
    manifest = {
        **facts,
        "complete": len(done) == shards,
        "samples": sum(e["samples"] for e in done.values()),
        "shards": [done[k] for k in sorted(done)],
    }
    write_atomic(folder / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return manifest


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
