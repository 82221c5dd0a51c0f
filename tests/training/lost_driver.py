"""Trains a recipe on two processes, the second of which is killed after its third step, then again as if nothing had
happened; run by test_processes.py. What the first process says goes into said.json."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from pair_driver import in_processes

from limner.errors import LimnerError
from limner.training.loop import Trainer
from limner.training.tasks import load_training


class Doomed(Trainer):
    """Is killed in the second process, as a machine without memory kills it."""

    def _intervals(self, done: int) -> None:
        super()._intervals(done)
        if done == 3 and self.share.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def doomed(recipe: str, out: Path) -> None:
    try:
        Doomed(*load_training(recipe, ["run.checkpoint_every=2"]), out).run()
    except LimnerError as e:
        (out / "said.json").write_text(json.dumps(e.as_dict()))
        raise


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    try:
        in_processes(lambda: doomed(name, folder), 2)
    except SystemExit:
        in_processes(lambda: Trainer(*load_training(name, ["run.checkpoint_every=2"]), folder).run(), 2)
