"""Tiny models as a service offers them."""

from __future__ import annotations

import functools
from pathlib import Path

from limner.pipelines.loading import load_model
from limner.serve.shelf import Offer


def offer(folder: Path, method: str, description: str = "") -> Offer:
    """A model in a folder, on the CPU."""
    return Offer(folder.name, functools.partial(load_model, str(folder), device="cpu"), method, description)
