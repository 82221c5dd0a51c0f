"""Where models and their files lie on this machine; heavy libraries are not needed for that."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import limner
from limner.data.cache import cache_root
from limner.errors import WeightsUnavailable
from limner.registry import ModelSpec


def model_folder(spec: ModelSpec) -> Path:
    """The folder of a registered model in diffusers' layout, whether or not it is there."""
    if spec.packaged:
        return Path(limner.__file__).parent / "weights" / spec.packaged
    if spec.cloned:
        return cloned_weights(spec.cloned)
    if spec.recipe:
        return Path(os.environ.get(spec.variable) or Path("runs") / spec.name / "weights")
    return cache_root() / "models" / spec.name


def cloned_weights(name: str) -> Path:
    """The folder of weights that ship with a clone of the repository only, whether or not it is there."""
    return Path(limner.__file__).parents[2] / "benchmarks" / "weights" / name


def resolve_files(
    spec: ModelSpec, paths: Mapping[str, Path | None] | None = None, *, accept_license: bool = False
) -> dict[str, Path]:
    """The files of a model by component: those of `paths`, and for the others what `WeightFile.resolve` finds.

    Raises:
        LicenseNotAccepted: one that is not given has a licence that was not accepted.
        WeightsUnavailable: one is not there, or all that are missing and cannot be fetched.
        WeightsMismatch: a checksum differs.
    """
    given = paths or {}
    for name, file in spec.files.items():
        if given.get(name) is None:
            file.demand_license(accept_license)
    found = {name: f.resolve(given[name]) for name, f in spec.files.items() if given.get(name) is not None}
    try:
        found |= {n: f.resolve(accept_license=accept_license) for n, f in spec.files.items() if n not in found}
    except WeightsUnavailable as e:
        raise WeightsUnavailable(*_how_to_provide(spec, given, e)) from e
    return {name: found[name] for name in spec.files}


def _how_to_provide(spec: ModelSpec, paths: Mapping[str, Path | None], error: WeightsUnavailable) -> tuple[str, str]:
    """Message and hint that name every file a model lacks, its size and its source."""
    missing = [f for name, f in spec.files.items() if paths.get(name) is None and f.cached() is None]
    listed = "; ".join(f"{f.filename} of {f.repo} ({_size(f.size)})" for f in missing)
    return (
        f"{spec.name} needs {len(missing)} files, {_size(sum(f.size for f in missing))} in all, that are not on this "
        f"machine and cannot be fetched now ({type(error.__cause__).__name__}): {listed}.",
        "Download them from huggingface.co on another machine, and set "
        f"{', '.join(f.variable for f in missing)} to their paths.",
    )


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
