"""Synthetic weights that depend on nothing but a parameter's name and shape, so that two programs can be compared.

The rule is the one behind the stored numbers in `tests/data/parity`: a Philox stream seeded by the CRC-32 of the name
gives float32 normal values n. Matrices are n / √(values per output); vectors 0.1 n, around 1 if they are called
`weight`; running variances 1 + 0.1 |n|; counters 0.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

PARITY = Path(__file__).resolve().parents[1] / "data" / "parity"

PROMPTS = (
    "A woman wearing a blue denim shirt and khaki pants, on a rocky desert plateau.",
    "portrait of a chef, Rembrandt lighting, 85mm f/1.4, it's raining in Zürich at 7:30",
    "nude, worst quality, low quality, blurry, bad anatomy",
)
"""Behind the stored outputs; the first two have a face."""


def synthetic_value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor called `name`."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    stream = np.random.Generator(np.random.Philox(zlib.crc32(name.encode("ascii"))))
    normal = stream.standard_normal(shape, dtype=np.float32)
    if name.endswith("running_var"):
        value = np.float32(1) + np.float32(0.1) * np.abs(normal)
    elif len(shape) > 1:
        value = normal / np.float32(math.sqrt(math.prod(shape[1:])))
    else:
        value = np.float32(0.1) * normal + np.float32(len(shape) == 1 and name.endswith("weight"))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def synthetic_state(shapes: Mapping[str, list[int] | tuple[int, ...]], prefix: str = "") -> dict[str, torch.Tensor]:
    """A state dict; `prefix` goes in front of the names that seed the values, not of the keys."""
    return {key: synthetic_value(prefix + key, tuple(shape)) for key, shape in shapes.items()}
