"""What paints: weights and recommended dials. A report names them, resumed work is held to them, and no file judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.errors import ConfigError
from limner.evaluation.recipe import MethodSpec
from limner.evaluation.scorers import Judges
from limner.registry import file_sha256

DIALS, TUNING, TEACHER = "dials", "tuning", "teacher"


@dataclass(frozen=True)
class Weights:
    """What one method paints with.

    Attributes:
        digests: sha256 by component, as `Model.weights` has them, of the model's recommended dials, of the file with
            the tuning's settings, and of the teacher's UNet.
        files: sha256 of every file of weights.
    """

    digests: dict[str, str]
    files: frozenset[str]


def weights_of(methods: Sequence[MethodSpec]) -> dict[str, Weights]:
    """Of every method that has a model, by name; files are hashed, and no model is loaded.

    Raises:
        ConfigError: an unknown model, or a tuning file that is not there.
        WeightsUnavailable, CorruptData: as `limner.pipelines.loading.locate`.
    """
    from limner.pipelines.loading import INDEX, file_digests, joined_digest, locate, locate_base

    hashed: dict[tuple[str, str], dict[str, list[str]]] = {}
    found = {}
    for spec in methods:
        if not spec.model:
            continue
        key = (spec.model, spec.method)
        folder = locate(spec.model, method=spec.method)[1]
        if key not in hashed:
            hashed[key] = file_digests(folder)
        digests = {component: joined_digest(files) for component, files in hashed[key].items()}
        if (folder / INDEX).is_file():
            digests[DIALS] = file_sha256(folder / INDEX)
        if spec.tuning:
            if not Path(spec.tuning).is_file():
                raise ConfigError(f"The tuning of {spec.name} is {spec.tuning}, which is no file.")
            digests[TUNING] = file_sha256(spec.tuning)
        if spec.teacher:
            digests[TEACHER] = joined_digest(file_digests(locate_base(spec.teacher)).get("unet", []))
        found[spec.name] = Weights(digests, frozenset(d for files in hashed[key].values() for d in files))
    return found


def demand_independent(judges: Judges, weights: Mapping[str, Weights]) -> None:
    """Raises ConfigError for a judge one of whose files is among the weights of a method."""
    for about in judges.abouts:
        for method, painting in weights.items():
            shared = sorted(painting.files.intersection(about.files))
            if shared:
                raise ConfigError(
                    f"The {about.kind} {about.name} would judge what it painted: its file {shared[0][:12]} is one of "
                    f"the weights of {method}.",
                    "Name a judge that conditioned nothing; see docs/evaluation.md.",
                )
