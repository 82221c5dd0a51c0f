"""Building: the same bytes however it is done, and nothing broken by kills, full disks and wrong folders."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from limner.cli.main import main
from limner.errors import ConfigError, CorruptData, OutputConflict, StorageError
from limner.world import build as builder
from limner.world.build import build
from limner.world.dataset import WorldConfig, WorldDataset, read_manifest, read_shards

CONFIG = WorldConfig(identities=8, views=2, seed=4, size=64)


def tree(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def run(code: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **kwargs)


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    """Four shards instead of one, so that there is something to interrupt."""
    old, builder.SHARD_SIZE = builder.SHARD_SIZE, 4
    yield
    builder.SHARD_SIZE = old


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, small_shards) -> Path:
    folder = tmp_path_factory.mktemp("built") / "data"
    ticks = []
    manifest = build(CONFIG, folder, 1, ticks.append)
    assert sum(ticks) == 16
    assert manifest["complete"]
    assert manifest["samples"] == 16
    return folder


def test_what_is_read_back_is_what_is_rendered(built: Path, same) -> None:
    samples = list(read_shards(built, verify=True))
    assert len(samples) == 16
    assert all(same(a, b) for a, b in zip(samples, WorldDataset(CONFIG), strict=True))


def test_webdataset_reads_the_shards(built: Path) -> None:
    import webdataset as wds

    urls = [str(p) for p in sorted(built.glob("*.tar"))]
    rows = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8"))
    assert len(rows) == 16
    assert rows[0]["png"].shape == (64, 64, 3)
    assert rows[0]["json"]["labels"]["style"]
    assert np.array_equal(rows[5]["png"], WorldDataset(CONFIG)[5]["image"])


def test_tar_headers_hold_no_time_and_no_user(built: Path) -> None:
    with tarfile.open(built / "shard-000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar} == {(0, 0, 0, "")}


def test_any_number_of_workers_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    build(CONFIG, tmp_path / "two", 2)
    assert tree(tmp_path / "two") == tree(built)


def test_a_finished_build_is_left_alone(built: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in built.iterdir()}
    ticks = []
    build(CONFIG, built, 1, ticks.append)
    assert {p.name: p.stat().st_mtime_ns for p in built.iterdir()} == before
    assert sum(ticks) == 16


def test_a_damaged_shard_is_made_again(built: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(built, folder)
    victim = folder / "shard-000002.tar"
    data = bytearray(victim.read_bytes())
    data[5000] ^= 255
    victim.write_bytes(data)
    with pytest.raises(CorruptData, match="shard-000002"):
        list(read_shards(folder, verify=True))
    build(CONFIG, folder, 1)
    assert tree(folder) == tree(built)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_goes_on_to_the_same_bytes(built: Path, tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "killed"
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom limner.world import build as b\nfrom limner.world.dataset import WorldConfig\n"
        "if __name__ == '__main__':\n"
        "    b.SHARD_SIZE = 4\n"
        f"    b.build(WorldConfig.from_dict({CONFIG.to_dict()}), sys.argv[1], {workers})\n"
    )
    process = subprocess.Popen([sys.executable, str(script), str(folder)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(folder.glob(".shard-*")) and not list(folder.glob("shard-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.random() * 0.4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if workers == 2:
        time.sleep(0.5)
    for path in folder.glob("shard-*.tar"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == tree(built)[path.name]
    if not (folder / "manifest.json").exists() or not json.loads((folder / "manifest.json").read_text())["complete"]:
        with pytest.raises(CorruptData):
            read_manifest(folder)
    build(CONFIG, folder, 1)
    assert tree(folder) == tree(built)


def test_a_full_disk_is_said_and_breaks_nothing(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    limit = (built / "shard-000000.tar").stat().st_size // 2
    code = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from limner.world import build as b\nfrom limner.world.dataset import WorldConfig\n"
        "from limner.errors import StorageError\n"
        "b.SHARD_SIZE = 4\n"
        "try:\n"
        f"    b.build(WorldConfig.from_dict({CONFIG.to_dict()}), {str(folder)!r})\n"
        "except StorageError as e:\n"
        "    print('refused', e)\n"
    )
    out = run(code)
    assert out.stdout.startswith("refused Cannot write"), out.stderr
    assert not list(folder.glob("shard-*"))
    assert not list(folder.glob(".*partial"))
    build(CONFIG, folder, 1)
    assert tree(folder) == tree(built)


def test_folders_with_something_else_are_refused(built: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("hello")
    with pytest.raises(OutputConflict, match=r"dear\.txt"):
        build(CONFIG, tmp_path / "letters")
    with pytest.raises(OutputConflict, match="seed"):
        build(WorldConfig(identities=8, views=2, seed=5, size=64), built)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputConflict, match="file"):
        build(CONFIG, tmp_path / "file")
    assert (tmp_path / "letters" / "dear.txt").read_text() == "hello"
    with pytest.raises(ConfigError, match="workers"):
        build(CONFIG, tmp_path / "new", 0)
    with pytest.raises(CorruptData, match="manifest"):
        read_manifest(tmp_path / "letters")


def test_two_builds_do_not_share_a_folder(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "data").mkdir()
    handle = os.open(tmp_path / "data", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(OutputConflict, match="Another build"):
            build(CONFIG, tmp_path / "data")
    finally:
        os.close(handle)


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StorageError):
        build(CONFIG, tmp_path / "locked" / "data")


def test_the_command_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    arguments = ["world", "build", "--out", str(folder), "--identities", "2", "--views", "2", "--size", "64", "--json"]
    with pytest.raises(SystemExit) as e:
        main(arguments)
    assert e.value.code in (0, None)
    printed = json.loads(capsys.readouterr().out)
    assert printed["samples"] == 4
    assert printed["shards"] == read_manifest(folder)["shards"]
    assert main([*arguments[:-1], "--seed", "9"]) == 2
    assert "another build" in capsys.readouterr().err
