"""Shared by all tests: where the optional shared folder is, and two threads for everything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

pytest_plugins = ["tiny_model"]

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of files that tests may use but the project may not contain; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared (photos, detector and recogniser files), which is not here")
    return SHARED


@pytest.fixture(scope="session")
def yunet(shared: Path) -> Path:
    """YuNet's ONNX file."""
    return shared / "models" / "face_detection_yunet_2023mar.onnx"
