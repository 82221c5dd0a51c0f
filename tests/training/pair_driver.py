"""Trains recipes on one process and on two; run by test_processes.py in a process of its own, from which it forks."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import accelerate  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import limner.training.tasks.autoencoder
import limner.training.tasks.clip  # noqa: F401
from limner.training.loop import Trainer
from limner.training.tasks import load_training


def in_processes(work: Callable[[], None], processes: int) -> None:
    """Does the work in `processes` forks that know of each other, and waits for them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            if processes > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
                os.environ.update({"MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in place.items()}})
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if [os.waitpid(child, 0)[1] for child in children] != [0] * processes:
        raise SystemExit(f"the work failed on {processes} processes")


if __name__ == "__main__":
    for name in sys.argv[2:]:
        for count in (1, 2):
            out = Path(sys.argv[1]) / f"{Path(name).stem}-{count}"
            in_processes(lambda n=name, o=out: Trainer(*load_training(n), o).run(), count)
