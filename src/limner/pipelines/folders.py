"""Where models lie on this machine; nothing here loads or fetches anything."""

from __future__ import annotations

import os
from pathlib import Path

import limner
from limner.registry import ModelSpec

CACHE_VARIABLE = "LIMNER_CACHE"


def cache_folder() -> Path:
    """Where Limner keeps what it converts: the variable LIMNER_CACHE, or `limner` under the user's cache folder."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limner"


def model_folder(spec: ModelSpec) -> Path:
    """The folder of a registered model in diffusers' layout, whether or not it is there."""
    if spec.packaged:
        return Path(limner.__file__).parent / "weights" / spec.packaged
    return cache_folder() / "models" / spec.name
