"""From verdicts to a report: one JSON document that holds every number, who judged, where, and how to get it again."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from limner import __version__
from limner.evaluation.judging import Verdicts
from limner.evaluation.metrics import METRICS, Ground, compare, estimates, strangers
from limner.evaluation.painting import Job
from limner.evaluation.people import Person
from limner.evaluation.recipe import COPY, REAL, STRANGER, Benchmark
from limner.evaluation.scorers import Judges
from limner.evaluation.statistics import Estimate
from limner.evaluation.store import MAIN, Store

FORMAT = 1
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "onnxruntime")
Estimates = Mapping[str, Estimate]


@dataclass(frozen=True)
class Evidence:
    """Everything that a report is made of.

    Attributes:
        benchmark: what was asked.
        store: what was painted.
        judges: who judged.
        sets: reference photos by set.
        grounds: what pictures of each set are measured against.
        verdicts: (group, method) → what was said.
        jobs: what was painted, in order.
        weights: of every method that has a model, sha256 by component.
        command: that makes the report.
        device: where it was painted.
    """

    benchmark: Benchmark
    store: Store
    judges: Judges
    sets: Mapping[str, Sequence[Person]]
    grounds: Mapping[str, Ground]
    verdicts: Mapping[tuple[str, str], Verdicts]
    jobs: Sequence[Job]
    weights: Mapping[str, Mapping[str, str]]
    command: str
    device: str


def build_report(evidence: Evidence) -> dict[str, Any]:
    """The whole report as plain values; see docs/evaluation.md for its fields."""
    benchmark, ground = evidence.benchmark, evidence.grounds[MAIN]
    main = {m: v for (group, m), v in evidence.verdicts.items() if group == MAIN}
    real = main.get(REAL)
    floor = strangers(real, [p.key for p in evidence.sets[MAIN][: benchmark.people.count]]) if real else None
    shown: dict[str, Verdicts] = {}
    for name in (REAL, STRANGER, COPY, *(m.name for m in benchmark.methods)):
        found = floor if name == STRANGER else main.get(name)
        if found is not None and len(found):
            shown[name] = found
    methods = {}
    for name, verdicts in shown.items():
        values = estimates(verdicts, ground, floor, real, sets=name != STRANGER)
        methods[name] = {
            "about": _about(benchmark, name),
            "weights": dict(evidence.weights.get(name, {})),
            "people": len(set(verdicts.persons.tolist())),
            "pictures": len(verdicts),
            "estimates": {k: e.to_dict() for k, e in values.items()} | _costs(evidence, name),
        }
    return {
        "format": FORMAT,
        "name": benchmark.name,
        "command": evidence.command,
        "n": {
            "people": benchmark.people.count,
            "gallery": len(ground.persons),
            "prompts": len(benchmark.prompts),
            "pictures": benchmark.pictures,
            "draws": benchmark.draws,
        },
        "seeds": {"people": benchmark.people.seed, "bootstrap": benchmark.seed},
        "recipe": benchmark.to_dict(),
        "recipe_digest": benchmark.digest(),
        "judges": [vars(a) for a in evidence.judges.abouts],
        "left_out": list(evidence.judges.left_out),
        "detector": evidence.judges.detector,
        "features": evidence.judges.features,
        "machine": machine(evidence.device),
        "versions": {"limner": __version__, **{name: version(name) for name in LIBRARIES}},
        "metrics": {m.name: {k: v for k, v in vars(m).items() if k != "name"} for m in METRICS},
        "recognisers": list(ground.recognisers),
        "methods": methods,
        "by_prompt": _by_prompt(shown, ground, real, floor),
        "by_fact": _by_fact(evidence, shown, ground, real, floor),
        "slices": _slices(evidence),
        "curve": _curve(evidence, ground, real, floor),
        "comparisons": _comparisons(benchmark, shown, ground, real, floor),
        "table1": [n for n in benchmark.table1 if n in shown],
        "faceclip": [n for n in benchmark.faceclip if n in shown],
    }


def machine(device: str) -> dict[str, Any]:
    """Where pictures were painted."""
    return {
        "device": device,
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _about(benchmark: Benchmark, name: str) -> str:
    bounds = {
        REAL: "ceiling: another real picture of the same person, for the same prompt",
        STRANGER: "floor: a real picture of somebody else, for the same prompt",
        COPY: "the reference photo itself: copy-paste",
    }
    if name in bounds:
        return bounds[name]
    spec = benchmark.method(name)
    told = "" if spec.identity else ", prompt alone"
    return (f"pictures in {spec.images}" if spec.images else f"{spec.method or 'model'} {spec.model}") + told


def _costs(evidence: Evidence, name: str) -> dict[str, Any]:
    """Time and memory of a method of ours, over everybody it painted in the main part."""
    specs = {m.name: m for m in evidence.benchmark.methods}
    if name not in specs or specs[name].images:
        return {}
    enrolled = evidence.store.enrolments(MAIN, name)
    seconds = [e["seconds"] for e in enrolled if "seconds" in e]
    job = next((j for j in evidence.jobs if j.group == MAIN and j.method == name), None)
    if job is None:
        return {}
    from limner.evaluation.painting import cells_of

    facts = [evidence.store.facts(c) for _, c in cells_of(job, evidence.sets[MAIN])]
    painted = [f for f in facts if f is not None and "seconds" in f]
    memory = [f["memory_mb"] for f in (*enrolled, *painted) if "memory_mb" in f]

    def plain(value: float, n: int) -> dict[str, Any]:
        return Estimate(value, None, None, n, sum(f["pictures"] for f in painted)).to_dict()

    out = {}
    if seconds and specs[name].identity:
        out["encoding_seconds"] = plain(float(np.median(seconds)), len(seconds))
    if painted:
        out["picture_seconds"] = plain(float(np.mean([f["seconds"] for f in painted])), len(seconds))
    if memory:
        out["memory_mb"] = plain(float(max(memory)), len(seconds))
    return out


SHORT = ("face_similarity", "identity", "top1", "text_alignment", "attributes", "failures")
"""What breakdowns keep of the estimates."""


def _short(values: Estimates) -> dict[str, Any]:
    return {k: e.to_dict() for k, e in values.items() if k.split("/")[0] in SHORT}


def _by_prompt(
    shown: Mapping[str, Verdicts], ground: Ground, real: Verdicts | None, floor: Verdicts | None
) -> list[dict[str, Any]]:
    out = []
    for k, prompt in enumerate(ground.prompts):
        rows = {name: v.rows(v.prompts == k) for name, v in shown.items()}
        found = {name: _short(estimates(v, ground, floor, real, sets=False)) for name, v in rows.items() if len(v)}
        out.append({"prompt": prompt, "methods": found})
    return out


def _by_fact(
    evidence: Evidence,
    shown: Mapping[str, Verdicts],
    ground: Ground,
    real: Verdicts | None,
    floor: Verdicts | None,
) -> dict[str, Any]:
    """By sex, age, skin and glasses of the people, where they are known, with the gap between best and worst."""
    painted = evidence.sets[MAIN][: evidence.benchmark.people.count]
    out: dict[str, Any] = {}
    for fact in dict.fromkeys(name for p in painted for name in p.facts):
        values = sorted({p.facts[fact] for p in painted if fact in p.facts})
        out[fact] = {}
        for name, verdicts in shown.items():
            parts = {}
            for value in values:
                keys = [p.key for p in painted if p.facts.get(fact) == value]
                rows = verdicts.rows(np.isin(verdicts.persons, keys))
                if len(set(rows.persons.tolist())) > 1:
                    parts[value] = _short(estimates(rows, ground, floor, real, sets=False))
            out[fact][name] = {"values": parts, **_gap(parts, ground)}
    return out


def _slices(evidence: Evidence) -> dict[str, Any]:
    found: dict[str, Any] = {}
    groups = [g for g in evidence.grounds if g != MAIN]
    for name in (m.name for m in evidence.benchmark.methods):
        parts = {}
        for group in groups:
            verdicts, real = (evidence.verdicts.get((group, m)) for m in (name, REAL))
            if verdicts is None or real is None or not len(verdicts):
                continue
            floor = strangers(real, evidence.grounds[group].persons)
            parts[group.removeprefix("slice-")] = _short(
                estimates(verdicts, evidence.grounds[group], floor, real, sets=False)
            )
        if parts:
            found[name] = {"values": parts, **_gap(parts, evidence.grounds[MAIN])}
    return found


def _gap(parts: Mapping[str, Any], ground: Ground) -> dict[str, Any]:
    """Best, worst, and how far they are apart, by the normalised identity of the main recogniser."""
    key = f"identity/{ground.recognisers[0]}"
    values = {k: v[key]["value"] for k, v in parts.items() if key in v and v[key]["value"] is not None}
    if len(values) < 2:
        return {}
    best, worst = max(values, key=lambda k: values[k]), min(values, key=lambda k: values[k])
    return {"best": best, "worst": worst, "gap": float(f"{values[best] - values[worst]:.6g}")}


def _curve(evidence: Evidence, ground: Ground, real: Verdicts | None, floor: Verdicts | None) -> list[dict[str, Any]]:
    out = []
    for job in evidence.jobs:
        verdicts = evidence.verdicts.get((job.group, job.method))
        if not job.group.startswith("curve-") or verdicts is None or not len(verdicts):
            continue
        values = _short(estimates(verdicts, ground, floor, real, sets=False))
        out.append({"method": job.method, "strength": job.strength, "guidance": job.guidance, "estimates": values})
    return out


def _comparisons(
    benchmark: Benchmark,
    shown: Mapping[str, Verdicts],
    ground: Ground,
    real: Verdicts | None,
    floor: Verdicts | None,
) -> list[dict[str, Any]]:
    """The pairs that the reports need: FaceCLIP against every rival, and the last of Table 1 against the others."""
    pairs = [(benchmark.faceclip[0], other) for other in benchmark.faceclip[1:]] if benchmark.faceclip else []
    pairs += [(benchmark.table1[-1], other) for other in benchmark.table1[:-1]] if benchmark.table1 else []
    metrics = [f"identity/{ground.recognisers[0]}", f"face_similarity/{ground.recognisers[0]}"]
    metrics += ["text_alignment", "attributes"]
    out = []
    for one, other in dict.fromkeys(pairs):
        if one not in shown or other not in shown:
            continue
        for metric in metrics:
            found = compare(shown[one], shown[other], ground, metric, floor, real)
            if found is not None:
                out.append({"method": one, "other": other, "metric": metric, **found})
    return out
