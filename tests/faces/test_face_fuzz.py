"""Truncated, empty, renamed, hostile and random files: only typed errors, no crash, no hang, bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_hostile_files(yunet: Path) -> None:
    driver = Path(__file__).with_name("fuzz_driver.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(yunet), "500", "1"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["wrong"] == []
    assert result["slowest"][0] < 20, result["slowest"]
    assert result["peak_mb"] < 800, result  # a 50-megapixel picture has 150 MB, and Pillow holds it in 200 more
    outcomes = result["outcomes"]
    assert outcomes["UnreadableImage"] > 250
    assert outcomes["ImageTooLarge"] >= 6
    assert outcomes["read"] > 100
