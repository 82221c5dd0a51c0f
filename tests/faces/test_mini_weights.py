"""The file of the mini detector: the packaged one loads, what is saved comes back, what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limner.encoders.checkpoint import PART, save_part
from limner.errors import CorruptData, WeightsMismatch, WeightsUnavailable
from limner.faces.mini import FILE, METADATA, LandmarkNet, MiniDetector, MiniDetectorConfig

TINY = MiniDetectorConfig((8, 8, 8, 8, 8))


def test_the_packaged_weights_load() -> None:
    found = MiniDetector.load()
    assert found.scan(torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()) == []


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    net = LandmarkNet(TINY).to(memory_format=torch.channels_last).half()
    net.save(tmp_path)
    again = LandmarkNet.load(tmp_path)
    assert again.config == TINY
    assert not again.training
    for name, value in again.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, net.state_dict()[name].float())
    assert not any(p.requires_grad for p in again.parameters())


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="does not exist"):
        LandmarkNet.load(tmp_path)
    net, path = LandmarkNet(TINY), tmp_path / FILE
    save_part(path, net, TINY.to_dict(), PART)
    with pytest.raises(CorruptData, match="was not written by Limner"):  # some other part
        LandmarkNet.load(tmp_path)
    save_part(path, net, MiniDetectorConfig((8, 8, 8, 8, 16)).to_dict(), METADATA)
    with pytest.raises(WeightsMismatch, match="does not fit its own config"):
        LandmarkNet.load(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptData, match="is damaged"):
        LandmarkNet.load(tmp_path)
