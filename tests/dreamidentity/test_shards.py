"""Builds of shards: killed, resumed, on a cluster that loses a machine; always the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import toy_work

from limner.data.shards import ShardIndex, build_shards, read_manifest
from limner.errors import ConfigError, CorruptData, OutputConflict

HERE = Path(__file__).parent


def build(folder: Path, config: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
    pool, advance = kwargs.pop("pool", None), kwargs.pop("advance", None)
    make = partial(toy_work.make, **kwargs)
    return build_shards(
        folder, "toys", config or {"a": 1}, toy_work.UNITS, make, per_shard=3, pool=pool, advance=advance
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    build(folder)
    return folder


def test_shards_in_order_with_a_manifest(whole: Path) -> None:
    manifest = read_manifest(whole, "toys")
    assert [s["name"] for s in manifest["shards"]] == [f"toys-{k:06d}.tar" for k in range(5)]
    index = ShardIndex(whole)
    assert list(index) == sorted(index)
    assert len(list(index)) == manifest["samples"] == 14 + sum(u["pictures"] for u in toy_work.UNITS)
    assert index.files("005-1") == {"png": b"\1" * 999, "json": json.dumps(toy_work.UNITS[5]).encode()}
    assert index.rows()[0] == {**toy_work.UNITS[0], "key": "000-none"}
    with pytest.raises(CorruptData, match="faces are expected"):
        read_manifest(whole, "faces")


@pytest.mark.parametrize("deadly", [0, 7, 13])
def test_killed_and_gone_on_with(whole: Path, tmp_path: Path, deadly: int) -> None:
    """By SIGKILL, as a machine without memory does it."""
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, str(HERE / "toy_work.py"), str(out), str(deadly)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(CorruptData, match="is not finished"):
        read_manifest(out, "toys")
    before = contents(out)
    assert sum(name.endswith(".tar") for name in before) == deadly // 3
    (out / ".toys-000004.tar.1.partial").write_bytes(b"rest of the dead")
    seen: list[int] = []
    build(out, advance=seen.append)
    assert seen[0] == 3 * (deadly // 3)
    assert sum(seen) == 14
    assert contents(out) == contents(whole)


def test_what_is_damaged_is_built_again_and_what_is_whole_is_not(whole: Path, tmp_path: Path) -> None:
    build(tmp_path)
    shard = tmp_path / "toys-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    build(tmp_path, failing=0)  # of another shard: it is not computed
    assert contents(tmp_path) == contents(whole)


def test_errors_are_told_and_other_builds_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Nothing can be painted"):
        build(tmp_path / "a", failing=4)
    with pytest.raises(OutputConflict, match="its a is 1, here it is 2"):
        build(tmp_path / "a", {"a": 2})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "holiday.jpg").touch()
    with pytest.raises(OutputConflict, match=r"holiday\.jpg"):
        build(tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "manifest.json").write_text("{")
    with pytest.raises(CorruptData, match="cannot be read"):
        build(tmp_path / "c")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two machines of one CPU each, as Ray simulates them: a raylet and worker processes of their own."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        second = nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
        nodes.wait_for_nodes()
        yield nodes, second
        ray.shutdown()
        nodes.shutdown()


def test_a_cluster_builds_the_same_even_when_a_machine_dies(whole: Path, tmp_path: Path, cluster: Any) -> None:
    from limner.data.ray_pool import RayPool

    nodes, second = cluster
    seen: list[int] = []

    def advance(n: int) -> None:
        seen.append(n)
        if sum(seen) == 6:
            nodes.remove_node(second, allow_graceful=False)

    pool = RayPool("local")
    build(tmp_path / "out", pool=pool, pause=0.2, advance=advance)
    assert contents(tmp_path / "out") == contents(whole)
    assert not second.any_processes_alive()
    with pytest.raises(ConfigError, match="Nothing can be painted"):
        build(tmp_path / "failing", pool=pool, failing=2)
    with pytest.raises(ConfigError, match="takes 3 CPUs"):
        build(tmp_path / "large", pool=RayPool("local", cpus=3))
