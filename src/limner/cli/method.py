"""`--method`: which way to put the person into the picture, apart from which model's weights do it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.painting import Place, open_model
from limner.errors import ConfigError

if TYPE_CHECKING:
    from limner.pipelines.loading import Model

MethodName = Annotated[
    str | None,
    typer.Option("--method", help="faceclip or dreamidentity (prompts then say S*); default: the model's own."),
]
METHODS = {"faceclip": "FaceCLIPPipeline", "dreamidentity": "DreamIdentityPipeline"}
"""Method → pipeline class that a model's folder names."""


def open_model_for(method: str | None, name: str | None, place: Place) -> Model:
    """The model of that name, if it paints by that method; without a name, the method's own model.

    Raises:
        ConfigError: an unknown method, or a model of another one.
        WeightsUnavailable, CorruptData, …: see `limner.pipelines.loading.load_model`.
    """
    if method is None:
        return open_model(name, place)
    from limner.pipelines.loading import INDEX, locate

    if method not in METHODS:
        raise ConfigError(f"--method is {method!r}; allowed: {', '.join(METHODS)}.")
    name = name or default_model(method)
    _, folder = locate(name, accept_license=place.accept_license)
    try:
        kind = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        kind = None  # loading says what is wrong with it
    if kind in METHODS.values() and kind != METHODS[method]:
        own = next(m for m, k in METHODS.items() if k == kind)
        raise ConfigError(f"The model {name} paints by {own}, not by {method}.", "Leave --method out, or change one.")
    return open_model(name, place)


def default_model(method: str) -> str:
    """The first registered model of a method."""
    from limner.pipelines import catalogue  # noqa: F401 (registers the models)
    from limner.registry import models

    return next(spec.name for spec in models() if spec.method == method)
