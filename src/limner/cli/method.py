"""`--method`: which way to put the person into the picture, apart from which model's weights do it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.painting import Place, open_model
from limner.errors import ConfigError

if TYPE_CHECKING:
    from limner.pipelines.loading import Model

MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="faceclip, facet5, dreamidentity (prompts then say S*), or a rival (docs/rivals.md); default: the model's "
        "own.",
    ),
]
METHODS = {
    "faceclip": "FaceCLIPPipeline",
    "facet5": "FaceT5FluxPipeline",
    "dreamidentity": "DreamIdentityPipeline",
    "ip-adapter": "IPAdapterPipeline",
    "elite": "ElitePipeline",
    "e4t": "E4TPipeline",
    "instruct-pix2pix": "InstructPix2PixPipeline",
    "textual-inversion": "TextualInversionPipeline",
    "dreambooth": "DreamBoothPipeline",
    "dreambooth-lora": "DreamBoothLoraPipeline",
}
"""Method → pipeline class that a model's folder names."""


def open_model_for(method: str | None, name: str | None, place: Place, *, learns: bool = False) -> Model:
    """The model of that name, if it paints by that method; without a name, the method's own model.

    Args:
        learns: people are to be enrolled. A method that tunes does that in the memory mode `plain`, unless the place
            names another.

    Raises:
        ConfigError: an unknown method, or a model of another one.
        WeightsUnavailable, CorruptData, …: see `limner.pipelines.loading.load_model`.
    """
    from limner.pipelines.catalogue import DEFAULT
    from limner.pipelines.loading import INDEX, TUNED, locate

    if method is not None and method not in METHODS:
        raise ConfigError(f"--method is {method!r}; allowed: {', '.join(METHODS)}.")
    name = name or (default_model(method) if method else DEFAULT)
    place = dataclasses.replace(place, method=method or "")
    _, folder = locate(name, accept_license=place.accept_license, method=place.method)
    try:
        kind = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        kind = None  # loading says what is wrong with it
    # Methods that tune also take a model of DreamIdentity: its base is untouched.
    fitting = [METHODS.get(method or "", kind), *([METHODS["dreamidentity"]] if method in TUNED else [])]
    if kind in METHODS.values() and kind not in fitting:
        own = next(m for m, k in METHODS.items() if k == kind)
        raise ConfigError(f"The model {name} paints by {own}, not by {method}.", "Leave --method out, or change one.")
    if learns and place.memory == "auto" and (method in TUNED or kind == METHODS["e4t"]):
        place = dataclasses.replace(place, memory="plain")
    return open_model(name, place)


def default_model(method: str) -> str:
    """The first registered model of a method; for those that tune, one whose base is untouched.

    Raises:
        ConfigError: none is registered.
    """
    from limner.pipelines import catalogue  # noqa: F401 (registers the models)
    from limner.pipelines.loading import TUNED
    from limner.registry import models

    wanted = "dreamidentity" if method in TUNED else method
    found = next((spec.name for spec in models() if spec.method == wanted), None)
    if found is None:
        raise ConfigError(f"No model of {method} ships with Limner.", "Train one, and give its folder with --model.")
    return found


def set_tuning(model: Model, recipe: Path | None, teacher: str) -> None:
    """Has a method that tunes learn people as a recipe says, and over another base than it paints with.

    Raises:
        ConfigError: a model whose method does not tune, or a recipe that does not fit.
        WeightsUnavailable, WeightsMismatch, CorruptData: no such teacher, or not this model's.
    """
    from limner.methods.tuning import TuningSettings

    if not hasattr(model.pipe, "tuning"):
        raise ConfigError(
            f"--recipe and --teacher say how a person is learnt; {model.pipe.method.name} enrols without learning."
        )
    if recipe is not None:
        model.pipe.tuning = TuningSettings.load(recipe)
    if teacher:
        model.pipe.learn_over(teacher)
