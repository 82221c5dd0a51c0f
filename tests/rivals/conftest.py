"""A tiny base with what the rivals need, and one thread for all of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dreamidentity"))

from rival_models import write_parts


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `rival_models.write_parts`."""
    return write_parts(tmp_path_factory.mktemp("rivals"))


@pytest.fixture(scope="session")
def rival_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for caches."""
    return tmp_path_factory.mktemp("rival-cache")


@pytest.fixture(autouse=True)
def _quiet_corner(rival_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LIMNER_CACHE", str(rival_cache))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
