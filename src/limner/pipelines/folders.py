"""Where models lie on this machine; nothing here loads or fetches anything."""

from __future__ import annotations

from pathlib import Path

import limner
from limner.data.cache import cache_root
from limner.registry import ModelSpec


def model_folder(spec: ModelSpec) -> Path:
    """The folder of a registered model in diffusers' layout, whether or not it is there."""
    if spec.packaged:
        return Path(limner.__file__).parent / "weights" / spec.packaged
    if spec.cloned:
        return Path(limner.__file__).parents[2] / "benchmarks" / "weights" / spec.cloned
    return cache_root() / "models" / spec.name
