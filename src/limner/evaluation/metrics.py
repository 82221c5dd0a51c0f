"""The metrics: for every one its definition, its source, and what it is computed from.

Every metric is first one number for each person (the mean over their pictures), then a mean over people: people are
what a benchmark samples. A face that is not found, and a picture that a method failed to make, count as 0; nothing is
dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limner.encoders.scorer import NUMBERS
from limner.evaluation.judging import Verdicts
from limner.evaluation.statistics import Bootstrap, Estimate, comparable, fid, kid, mean, normalised, ratio, slope
from limner.world.prompts import OF_THE_PERSON, requirements

YAW, EXPRESSION = [NUMBERS.index("yaw")], [NUMBERS.index(n) for n in ("smile", "open", "brow", "frown")]
UNDEFINED = 0.05
"""Share of draws without a relative gain above which none is reported."""
TURNING, MOVING = ("pose", "gaze"), ("expression",)
"""Requirements of a prompt that decide pose, or expression; such prompts say nothing of copying."""


@dataclass(frozen=True)
class Metric:
    """One column of a table.

    Attributes:
        name: key in report.json; a recogniser's name follows after a slash where there are several.
        title: in tables.
        better: `higher`, `lower`, or empty where neither is better in itself.
        definition: what it is.
        source: where it comes from.
    """

    name: str
    title: str
    better: str
    definition: str
    source: str


LIKENESS = "likeness/"
"""Before a recogniser's name: the cosine to the known photos, of which `identity` is made; not shown itself."""
METRICS = (
    Metric(
        "identity", "identity", "higher",
        "Cosine of a recogniser's vectors of the largest face in the picture and of the person (mean of the known "
        "photos), moved and scaled so that 0 is a stranger and 1 another real picture of the same person, both over "
        "the same people and prompts; a picture without a face has cosine 0.",
        "this project",
    ),
    Metric(
        "face_similarity", "face-similarity", "higher",
        "Cosine of a recogniser's vectors of the reference photo and of the largest face in the picture; 0 without a "
        "face.",
        "ArcFace, arXiv 1801.07698; protocol of DreamIdentity, arXiv 2307.00300, Section 4.1",
    ),
    Metric(
        "top1", "found first", "higher",
        "Share of pictures whose face is nearer to the right person (mean of the known photos) than to anybody else in "
        "the gallery.",
        "rank-1 identification, as in MegaFace, arXiv 1512.00596",
    ),
    Metric(
        "text_alignment", "text-alignment", "higher",
        "Cosine of a CLIP's vectors of picture and prompt, S* read as a person.",
        "CLIPScore without its scaling, arXiv 2104.08718; protocol of DreamIdentity, Section 4.1",
    ),
    Metric(
        "attributes", "attributes", "higher",
        "Share of what the prompt asks for (scene, style, headwear, …) that the reader sees in the picture.",
        "this project; ground truth of the world",
    ),
    Metric(
        "attributes_relative", "attributes / real", "higher",
        "Attributes, divided by what real pictures of the same people for the same prompts score.",
        "this project",
    ),
    Metric("failures", "no face", "lower", "Share of pictures without a face, or not made at all.", "this project"),
    Metric(
        "diversity", "diversity", "",
        "1 - cosine of the feature network's vectors of two pictures of one person for one prompt, over all pairs.",
        "as pairwise LPIPS in multimodal synthesis (arXiv 1711.11586, Section 4), with another network",
    ),
    Metric(
        "pose_copied", "pose copied", "lower",
        "Slope of the picture's yaw on the reference's, over people, for prompts that do not ask for a pose: 1 copied, "
        "0 independent.",
        "this project",
    ),
    Metric(
        "expression_copied", "expression copied", "lower",
        "The same for smile, open mouth, brow and frown, for prompts that do not ask for an expression.",
        "this project",
    ),
    Metric(
        "kid", "KID", "lower",
        "Unbiased squared MMD between the features of the pictures and of real ones, cubic kernel; features scaled so "
        "that the real ones have mean square 1.",
        "arXiv 1801.01401",
    ),
    Metric(
        "fid", "FID", "lower", "Fréchet distance of the same features, taken as Gaussian.",
        "arXiv 1706.08500, Equation 6",
    ),
    Metric(
        "encoding_seconds", "encoding time (s)", "lower",
        "Median time from aligned faces to what the method keeps of a person.",
        "DreamIdentity, Table 1",
    ),
    Metric("picture_seconds", "s / picture", "lower", "Mean time to paint one picture.", "this project"),
    Metric(
        "memory_mb", "peak memory (MB)", "lower",
        "Largest memory in use while enrolling or painting: of the accelerator, else of the process.",
        "this project",
    ),
)  # fmt: skip
"""In the order of the tables."""


@dataclass(frozen=True)
class Ground:
    """What verdicts are measured against.

    Attributes:
        persons: keys of everybody in the gallery, those painted first.
        references: recogniser → (G, D), everybody by their reference photos.
        gallery: the same by the known photos.
        prompts: of the recipe.
        numbers: person → (8,), what the reader sees in the reference photo; empty without a reader.
        features: `attributes` or `clip`.
        draws, seed: of the bootstrap.
    """

    persons: tuple[str, ...]
    references: Mapping[str, np.ndarray]
    gallery: Mapping[str, np.ndarray]
    prompts: tuple[str, ...]
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    features: str = "clip"
    draws: int = 1000
    seed: int = 0

    @property
    def recognisers(self) -> tuple[str, ...]:
        """Names, the main one first."""
        return tuple(self.gallery)

    def bootstrap(self, people: int) -> Bootstrap:
        """The one that all estimates over so many people share."""
        return Bootstrap(people, self.draws, self.seed)


def strangers(real: Verdicts, persons: Sequence[str]) -> Verdicts:
    """The floor: everybody gets the real pictures of the next person (in the order of their keys), same prompts."""
    ordered = sorted(set(persons) & set(real.persons.tolist()))
    before = {key: ordered[k - 1] for k, key in enumerate(ordered)}
    kept = real.rows(np.isin(real.persons, ordered))
    import dataclasses

    return dataclasses.replace(kept, persons=np.array([before[p] for p in kept.persons.tolist()]))


def shuffled(verdicts: Verdicts, ground: Ground, said: np.ndarray) -> Verdicts:
    """The pictures as if every one had been asked for by the next prompt: what text-alignment makes of nonsense.

    Args:
        said: (prompts, D) unit vectors of the prompts by the CLIP.
    """
    import dataclasses

    other = (verdicts.prompts + 1) % len(ground.prompts)
    return dataclasses.replace(verdicts, prompts=other, text=(verdicts.clip * said[other]).sum(1))


def per_picture(verdicts: Verdicts, ground: Ground) -> dict[str, np.ndarray]:
    """The metrics that are a number for each picture: (N,) each."""
    place = {key: k for k, key in enumerate(ground.persons)}
    own = np.array([place[p] for p in verdicts.persons.tolist()], int)
    out: dict[str, np.ndarray] = {}
    for name, known in ground.gallery.items():
        faces = verdicts.faces[name]
        if faces.shape[1] != known.shape[1]:  # not one face was found
            faces = np.zeros((len(verdicts), known.shape[1]), np.float32)
        cosines = faces @ known.T
        mine = cosines[np.arange(len(own)), own]
        cosines[np.arange(len(own)), own] = -np.inf
        out[f"{LIKENESS}{name}"] = np.where(verdicts.found, mine, 0.0)
        out[f"face_similarity/{name}"] = np.where(verdicts.found, (faces * ground.references[name][own]).sum(1), 0.0)
        out[f"top1/{name}"] = (verdicts.found & (mine > cosines.max(1))).astype(float)
    out["text_alignment"] = verdicts.text.astype(float)
    if ground.numbers:  # there is a reader
        out["attributes"] = _attributes(verdicts, ground)
    out["failures"] = 1.0 - verdicts.found
    return out


def per_person(values: np.ndarray, persons: np.ndarray, keys: Sequence[str]) -> np.ndarray:
    """Mean of the pictures of every person in `keys`; NaN for those without."""
    return np.array([_mean(values[persons == key]) for key in keys])


def estimates(
    verdicts: Verdicts, ground: Ground, floor: Verdicts | None, ceiling: Verdicts | None, sets: bool = True
) -> dict[str, Estimate]:
    """Every metric of one method.

    Args:
        floor, ceiling: strangers and real pictures; None leaves out what needs them. Only people and prompts that the
            method painted count in them.
        sets: also FID, KID and copying, which need many pictures.
    """
    keys = [p for p in ground.persons if p in set(verdicts.persons.tolist())]
    boot, n = ground.bootstrap(len(keys)), len(verdicts)
    pictures = per_picture(verdicts, ground)
    means = {k: per_person(v, verdicts.persons, keys) for k, v in pictures.items()}
    out = {k: boot.estimate(mean(v), n) for k, v in means.items() if not k.startswith(LIKENESS)}
    if floor is not None and ceiling is not None:
        low, high = (_means(_like(v, verdicts), ground, keys) for v in (floor, ceiling))
        for name in ground.recognisers:
            key = f"{LIKENESS}{name}"
            out[f"identity/{name}"] = boot.estimate(normalised(means[key], low[key], high[key]), n)
        if "attributes" in means and "attributes" in high:
            out["attributes_relative"] = boot.estimate(ratio(means["attributes"], high["attributes"]), n)
    spread = diversity(verdicts, ground, keys)
    if np.isfinite(spread).any():
        out["diversity"] = boot.estimate(mean(spread), n)
    if sets:
        out |= _copying(verdicts, ground, keys, boot)
        if ceiling is not None and ceiling is not verdicts:
            out |= _distances(verdicts, _like(ceiling, verdicts), ground, keys, boot)
    return out


def compare(
    one: Verdicts, other: Verdicts, ground: Ground, metric: str, floor: Verdicts | None, ceiling: Verdicts | None
) -> dict[str, Any] | None:
    """Two methods on the people and prompts that both painted: difference and relative gain (one / other - 1), with
    intervals over the same resampled people, and the share of draws in which the first is ahead; None without data.

    A gain over nothing, or over less than nothing, has no meaning: it is None where the other's value is not above 0,
    on the data or in more than `UNDEFINED` of the draws.
    """
    shared = set(zip(one.persons.tolist(), one.prompts.tolist(), strict=True))
    shared &= set(zip(other.persons.tolist(), other.prompts.tolist(), strict=True))
    if not shared:
        return None
    first, second = (_among(v, shared) for v in (one, other))
    keys = [p for p in ground.persons if p in {person for person, _ in shared}]
    boot, n = ground.bootstrap(len(keys)), len(first)
    if metric.startswith("identity/"):
        if floor is None or ceiling is None:
            return None
        key = metric.replace("identity/", LIKENESS)
        low, high = (_means(_among(v, shared), ground, keys)[key] for v in (floor, ceiling))
        a, b = (normalised(_means(v, ground, keys)[key], low, high) for v in (first, second))
    else:
        found = [_means(v, ground, keys).get(metric) for v in (first, second)]
        if found[0] is None or found[1] is None:
            return None
        a, b = mean(found[0]), mean(found[1])

    def gain(weights: np.ndarray) -> np.ndarray:
        over = b(weights)
        return a(weights) / np.where(over > 0, over, np.nan) - 1

    def difference(weights: np.ndarray) -> np.ndarray:
        return a(weights) - b(weights)

    gained = boot.estimate(gain, n)
    meant = np.isfinite(gained.value) and boot.share_undefined(gain) <= UNDEFINED
    return {
        "difference": boot.estimate(difference, n).to_dict(),
        "gain": gained.to_dict() if meant else None,
        "ahead": boot.share_positive(difference),
    }


def diversity(verdicts: Verdicts, ground: Ground, keys: Sequence[str]) -> np.ndarray:
    """See `METRICS`: (people,), NaN for people with one picture a prompt."""
    features = _features(verdicts, ground)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    out = []
    for key in keys:
        distances: list[float] = []
        for prompt in range(len(ground.prompts)):
            rows = unit[(verdicts.persons == key) & (verdicts.prompts == prompt) & verdicts.painted]
            if len(rows) > 1:
                distances += (1 - rows @ rows.T)[np.triu_indices(len(rows), 1)].tolist()
        out.append(_mean(np.array(distances)))
    return np.array(out)


def _copying(verdicts: Verdicts, ground: Ground, keys: Sequence[str], boot: Bootstrap) -> dict[str, Estimate]:
    if not ground.numbers:
        return {}
    out = {}
    for name, columns, deciding in (("pose_copied", YAW, TURNING), ("expression_copied", EXPRESSION, MOVING)):
        free = [k for k, p in enumerate(ground.prompts) if not set(requirements(p)) & set(deciding)]
        rows = verdicts.rows(np.isin(verdicts.prompts, free) & verdicts.painted)
        if len(rows) < 2:
            continue
        outcome = np.stack([per_person(rows.numbers[:, c], rows.persons, keys) for c in columns], 1)
        missing = np.full(len(NUMBERS), np.nan)
        reference = np.stack([ground.numbers.get(k, missing)[columns] for k in keys])
        out[name] = boot.estimate(slope(reference, outcome), len(rows))
    return out


def _distances(
    verdicts: Verdicts, real: Verdicts, ground: Ground, keys: Sequence[str], boot: Bootstrap
) -> dict[str, Estimate]:
    verdicts, real = verdicts.rows(verdicts.painted), real.rows(real.painted)
    if min(len(verdicts), len(real)) < 2:
        return {}
    one, other = comparable(_features(verdicts, ground), _features(real, ground))
    place = {key: k for k, key in enumerate(keys)}
    people, others = (np.array([place[p] for p in v.persons.tolist()]) for v in (verdicts, real))
    distance = fid(one, other)
    return {
        "kid": boot.estimate(kid(one, people, other, others), len(verdicts)),
        "fid": Estimate(distance, None, None, len(keys), len(verdicts)),
    }


def _features(verdicts: Verdicts, ground: Ground) -> np.ndarray:
    return verdicts.features if ground.features == "attributes" else verdicts.clip


def _attributes(verdicts: Verdicts, ground: Ground) -> np.ndarray:
    """Share of what each picture's prompt asks for that is seen in it; words about the person do not count."""
    wanted = [{k: v for k, v in requirements(p).items() if k not in OF_THE_PERSON} for p in ground.prompts]
    out = []
    for prompt, seen in zip(verdicts.prompts.tolist(), verdicts.words, strict=True):
        asked = wanted[prompt]
        out.append(sum(seen.get(k) == v for k, v in asked.items()) / len(asked))
    return np.array(out)


def _like(verdicts: Verdicts, other: Verdicts) -> Verdicts:
    """The pictures for the people and prompts that the other has."""
    return _among(verdicts, set(zip(other.persons.tolist(), other.prompts.tolist(), strict=True)))


def _among(verdicts: Verdicts, pairs: set[tuple[str, int]]) -> Verdicts:
    rows = zip(verdicts.persons.tolist(), verdicts.prompts.tolist(), strict=True)
    return verdicts.rows(np.array([row in pairs for row in rows], bool))


def _means(verdicts: Verdicts, ground: Ground, keys: Sequence[str]) -> dict[str, np.ndarray]:
    return {k: per_person(v, verdicts.persons, keys) for k, v in per_picture(verdicts, ground).items()}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
