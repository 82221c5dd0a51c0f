"""Painting a recorded picture again: with which model, where, and whether it came out the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limner.errors import ConfigError, CorruptData, WeightsMismatch, WeightsUnavailable
from limner.pipelines.memory import encode_then_free, memory_mode
from limner.pipelines.paint import Dials, OnStep, paint
from limner.pipelines.rescue import Plan
from limner.provenance import Provenance, versions
from limner.registry import get_model
from limner.types import Identity, Portrait

if TYPE_CHECKING:
    from limner.pipelines.loading import Model


def recorded_model(record: Provenance, source: Path) -> str:
    """The name of the model that painted the picture, if it is one that Limner knows by name.

    Raises:
        WeightsUnavailable: it was a model of somebody's own; its folder must be given.
    """
    from limner.pipelines import catalogue  # noqa: F401 (registers the models)

    name = record.portrait.model
    try:
        return get_model(name).name
    except ConfigError as e:
        raise WeightsUnavailable(
            f"{source} was painted by {name!r}, which is no model that Limner knows by name.",
            "Give the folder of that model with --model.",
        ) from e


def repaint(model: Model, record: Provenance, identity: Identity | None, on_step: OnStep | None = None) -> Portrait:
    """Paints a recorded portrait again: the batch it was in, of which it keeps the one, with as many threads.

    Both only matter for the last bits: sums are grouped differently in another batch or on other threads, and about one
    value in 40,000 then comes out one level higher or lower. Small faces are rescued where they were found then.
    A model that was loaded in a memory mode that frees the encoder has none afterwards.

    Args:
        model: the one that painted it.
        record: what `read_provenance` returned.
        identity: needed when the record has none embedded and the portrait was painted from one.

    Raises:
        WeightsMismatch: other weights than the recorded ones, or another identity.
        CorruptData: the record's dials are damaged.
    """
    portrait, settings = record.portrait, record.portrait.settings
    if model.weights != portrait.weights:
        raise WeightsMismatch(
            f"The picture was painted by {portrait.model} with other weights than those of {model.name}.",
            "Give the model that painted it with --model.",
        )
    identity = record.identity if identity is None else identity
    if (identity.digest() if identity is not None else "") != portrait.identity:
        raise WeightsMismatch(
            "The picture was painted from another identity than the one given."
            if identity is not None
            else f"The picture was painted from {_who(settings)} not embedded in it.",
            "Give the identity it was painted from with --identity.",
        )
    names = Dials.__dataclass_fields__
    dials = Dials.from_dict({k: v for k, v in settings.items() if k in names})
    batch = settings.get("batch_seeds")
    if not isinstance(batch, list) or portrait.seed not in batch or len(batch) > dials.batch:
        raise CorruptData("The picture's record does not say which seeds were painted together.")
    plans = {}
    if dials.rescue != "never":
        plans[portrait.seed] = Plan.from_facts(settings.get("rescued"))
    with _threads(settings.get("threads")):
        ready, negative = None, portrait.negative_prompt
        if memory_mode(model.memory).free_encoders:
            ready = encode_then_free(model.pipe, identity, [portrait.prompt], negative, dials.strength)
        painted = paint(
            model, identity, [portrait.prompt], batch, dials,
            negative_prompt=negative, on_step=on_step, ready=ready, plans=plans,
        )  # fmt: skip
        return list(painted)[batch.index(portrait.seed)]


def _who(settings: dict[str, Any]) -> str:
    people = settings.get("people")
    return f"a group of {len(people)} people that is" if isinstance(people, list) else "an identity that is"


@contextlib.contextmanager
def _threads(count: Any) -> Iterator[None]:
    """Computes on `count` threads, if it is a sensible number."""
    import torch

    before = torch.get_num_threads()
    try:
        if isinstance(count, int) and 1 <= count <= 1024:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def compare(record: Provenance, portrait: Portrait) -> dict[str, Any]:
    """How the new picture differs from the recorded one.

    Returns:
        `identical`; `changed`, the share of pixel values that differ; `largest`, by how many of 255 levels; `summary`,
        a sentence that also names what is different about the machine.
    """
    old, new = (np.asarray(p.image, dtype=np.int16) for p in (record.portrait, portrait))
    if old.shape != new.shape:
        return {"identical": False, "changed": 1.0, "largest": 255, "summary": "Painted again; the size differs."}
    difference = np.abs(old - new)
    facts = {
        "identical": not difference.any(),
        "changed": float((difference > 0).mean()),
        "largest": int(difference.max()),
    }
    if facts["identical"]:
        return facts | {"summary": "Painted again: the same picture, pixel for pixel."}
    reasons = [f"{k} {v} then, {versions()[k]} now" for k, v in record.versions.items() if versions().get(k, v) != v]
    for key in ("device", "dtype", "threads", "memory"):
        then, now = record.portrait.settings.get(key), portrait.settings.get(key)
        reasons += [f"{key} {then} then, {now} now"] if then not in (None, now) else []
    then, now = (p.settings.get("batch_seeds") for p in (record.portrait, portrait))
    if isinstance(then, list) and isinstance(now, list) and len(then) != len(now):
        reasons.append(f"{len(then)} painted together then, {len(now)} now")
    because = f" ({'; '.join(reasons)})" if reasons else " (another processor rounds differently)"
    share, most = facts["changed"], facts["largest"]
    return facts | {"summary": f"Painted again: {share:.2%} of the values differ, by {most} of 255 at most{because}."}
