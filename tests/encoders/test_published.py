"""Reading `.pt` files: what is damaged or dangerous is refused, and nothing in it is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from limner.encoders.checkpoint import read_checkpoint, write_safetensors
from limner.encoders.published import read_key_list, strip_prefix
from limner.errors import CorruptData, StorageError, UnsafeCheckpoint, WeightsMismatch, WeightsUnavailable


class Attack:
    """Creates a file when unpickled by a reader that trusts its input."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({"a": torch.arange(5000.0), "b": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "good.pt")
    return tmp_path / "good.pt"


def test_tensors_come_back(checkpoint: Path, tmp_path: Path) -> None:
    state = read_checkpoint(checkpoint)
    assert torch.equal(state["a"], torch.arange(5000.0))
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pt")["b"].dtype == torch.bfloat16


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    file, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save({"a": torch.ones(2), "b": Attack(trace)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpoint, match="not executed"):
        read_checkpoint(file)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_with_code_is_refused(tmp_path: Path) -> None:
    file, trace = tmp_path / "evil.pt", tmp_path / "trace"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        file.write_bytes(pickle.dumps({"a": Attack(trace)}, protocol=protocol))
        with pytest.raises(UnsafeCheckpoint, match="pathlib"):
            read_checkpoint(file)
        assert not trace.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_module_that_pytorch_blocks_outright_is_named(tmp_path: Path) -> None:
    for protocol in (2, 4):
        file = tmp_path / "evil.pt"
        file.write_bytes(pickle.dumps(os.system, protocol=protocol))
        with pytest.raises(UnsafeCheckpoint, match="system"):
            read_checkpoint(file)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_truncated_files_are_refused(checkpoint: Path, share: float) -> None:
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(share * len(data))])
    with pytest.raises(WeightsMismatch, match="truncated") as caught:
        read_checkpoint(checkpoint)
    assert not isinstance(caught.value, UnsafeCheckpoint)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable):
        read_checkpoint(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("hello")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    torch.save({"a": torch.ones(1), "epoch": 3}, tmp_path / "run.pt")
    for name, words in (("text.pt", "truncated"), ("list.pt", "list"), ("run.pt", "epoch")):
        with pytest.raises(WeightsMismatch, match=words):
            read_checkpoint(tmp_path / name)


def test_prefixes_are_taken_off_only_where_all_keys_carry_them() -> None:
    assert strip_prefix({"model.a": 1, "model.b": 2}) == {"a": 1, "b": 2}
    assert strip_prefix({"model.a": 1, "b": 2}) == {"model.a": 1, "b": 2}


def test_key_lists_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    for text in ("", "[1]", '{"a": 3}', '{"a": ["x"]}'):
        file.write_text(text)
        with pytest.raises(CorruptData):
            read_key_list(file)


def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_safetensors(tmp_path / "deep" / "a.safetensors", {"a": torch.ones(2, 3).T}, {"k": "v"})
    assert (tmp_path / "deep" / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_failed_writes_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        write_safetensors(tmp_path / "file" / "model.safetensors", {"a": torch.ones(1)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
