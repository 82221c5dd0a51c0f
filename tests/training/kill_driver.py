"""Trains once without interruption and once killed again and again; run by test_resume.py in a process of its own.

Every attempt is a fork of this process, which has loaded the libraries but has not computed anything, so that an
attempt costs no start-up time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import accelerate  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import limner.training.tasks.autoencoder  # noqa: F401
from limner.training.loop import Trainer
from limner.training.tasks import load_training

KILLS = 5


def attempt(recipe: Path, out: Path) -> int:
    """Starts a training in a fork; returns its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            Trainer(*load_training(recipe), out).run()
            status = 0
        finally:
            os._exit(status)
    return child


def logged(out: Path) -> int:
    """The last step in the log; 0 before the first."""
    path = out / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max([json.loads(line)["step"] for line in lines if line.endswith("\n")], default=0)


def main() -> None:
    recipe, smooth, broken = map(Path, sys.argv[1:])
    assert os.waitpid(attempt(recipe, smooth), 0)[1] == 0
    steps = logged(smooth)
    dice = random.Random(0)
    resumable = []
    for target in sorted(dice.sample(range(3, steps - 5), KILLS)):
        child = attempt(recipe, broken)
        while logged(broken) < target:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), "the training ended before it was killed"
        resumable.append(max([int(p.name[5:]) for p in (broken / "checkpoints").glob("step-*")], default=0))
    assert os.waitpid(attempt(recipe, broken), 0)[1] == 0
    sys.stdout.write(json.dumps({"checkpoints": resumable}) + "\n")


if __name__ == "__main__":
    main()
