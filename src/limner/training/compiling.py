"""Models compiled for training."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import nn

from limner.errors import ConfigError

COMPILERS = ("g++", "c++", "clang++")


def compiled(model: nn.Module) -> Any:
    """The model, to be called like it and with the same weights, compiled at its first call for each shape of batch.

    Raises:
        ConfigError: on a CPU without a C++ compiler.
    """
    names = (os.environ.get("CXX", ""), *COMPILERS)
    if not torch.accelerator.is_available() and not any(n and shutil.which(n) for n in names):
        raise ConfigError(
            "Run.compile is True, but there is no C++ compiler, which torch.compile needs on a CPU.",
            "Install g++, name another one in CXX, or --set run.compile=false.",
        )
    return torch.compile(model, dynamic=False)
