"""Work for builds of shards that needs no model; importable by the processes of a cluster."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from limner.data.shards import Samples, Work, build_shards
from limner.errors import ConfigError

UNITS = [{"person": i, "pictures": i % 3} for i in range(14)]


def make(pause: float = 0.0, deadly: int = -1, failing: int = -1) -> Work:
    """Work that takes `pause` seconds a unit, kills its process at unit `deadly`, and raises at `failing`."""

    def work(unit: dict) -> Samples:
        time.sleep(pause)
        if unit["person"] == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if unit["person"] == failing:
            raise ConfigError("Nothing can be painted.", "Try another base.")
        facts = json.dumps(unit).encode()
        rows = [
            (f"{unit['person']:03d}-{i}", {"png": bytes([i]) * 999, "json": facts}) for i in range(unit["pictures"])
        ]
        return [*rows, (f"{unit['person']:03d}-none", {"json": facts})]

    return work


if __name__ == "__main__":
    build_shards(Path(sys.argv[1]), "toys", {"a": 1}, UNITS, partial(make, deadly=int(sys.argv[2])), per_shard=3)
