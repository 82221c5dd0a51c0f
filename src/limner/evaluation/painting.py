"""The first half of a benchmark: every method paints everybody for every prompt, and what was painted stays painted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from limner.errors import FaceError, OutputConflict
from limner.evaluation.painters import Painter, Peak, Pictures, Wish
from limner.evaluation.people import Person
from limner.evaluation.recipe import COPY, REAL, Benchmark, MethodSpec
from limner.evaluation.store import MAIN, Cell, Store
from limner.types import Identity
from limner.world.seeds import derive

Report = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Sets = Mapping[str, Sequence[Person]]
"""Reference photos by the name of the set: `main`, and one for each slice."""


@dataclass(frozen=True)
class Job:
    """What one method paints in one group.

    Attributes:
        group: of the cells.
        people: name of the set of reference photos.
        method: name.
        strength, guidance: dials.
        count, prompts, pictures: people and prompts, the first so many, and pictures of each.
    """

    group: str
    people: str
    method: str
    strength: float = 1.0
    guidance: float | None = None
    count: int = 0
    prompts: int = 0
    pictures: int = 1


def jobs_of(benchmark: Benchmark, chosen: Sequence[str] = ()) -> list[Job]:
    """Everything that is to be painted, bounds first. `chosen` names some of the methods; empty takes all.

    Raises:
        ConfigError: a name that the recipe does not have.
    """
    methods = [benchmark.method(n) for n in chosen] if chosen else list(benchmark.methods)
    whole = Job(MAIN, MAIN, REAL, count=benchmark.people.count, prompts=len(benchmark.prompts))
    jobs = [replace(whole, pictures=benchmark.pictures), replace(whole, method=COPY)]
    for spec in methods:
        if spec.images:
            continue
        count = min(spec.people or whole.count, whole.count)
        jobs.append(
            replace(
                whole, method=spec.name, strength=spec.strength, guidance=spec.guidance, count=count,
                pictures=benchmark.pictures,
            )
        )  # fmt: skip
    jobs += _slice_jobs(benchmark, methods)
    jobs += _curve_jobs(benchmark, methods)
    return jobs


def curve_group(strength: float, guidance: float) -> str:
    """The group of a point of the curve."""
    return f"curve-s{strength:g}-g{guidance:g}"


def cells_of(job: Job, people: Sequence[Person]) -> Iterator[tuple[Person, Cell]]:
    """The cells of a job, person by person."""
    for person in people[: job.count]:
        for prompt in range(job.prompts):
            yield person, Cell(job.group, job.method, person.key, prompt)


def seeds_of(benchmark: Benchmark, person: str, prompt: int, pictures: int) -> list[int]:
    """Of a cell's pictures; the same for every method, so that methods can be compared in pairs."""
    return [derive("benchmark", benchmark.people.seed, person, prompt, k) for k in range(pictures)]


def demand_same_weights(
    store: Store, sets: Sets, jobs: Sequence[Job], weights: Mapping[str, Mapping[str, str]]
) -> None:
    """Raises OutputConflict for a cell that was painted with other weights than its method has now.

    Every cell says what painted it, so that this also holds where several machines paint into one folder.

    Args:
        weights: of every method that has a model, sha256 by component.
    """
    for job in jobs:
        now = weights.get(job.method, {})
        for _, cell in cells_of(job, sets[job.people]):
            facts = store.facts(cell)
            before = now if facts is None else facts.get("weights", {})
            if before != now:
                changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
                raise OutputConflict(
                    f"{store.out} holds pictures that {job.method} painted with other weights than it has now "
                    f"({', '.join(changed)}).",
                    f"Choose another folder with --out, or delete pictures/*/{job.method} in it.",
                )


def paint_all(
    benchmark: Benchmark,
    store: Store,
    sets: Sets,
    jobs: Sequence[Job],
    painters: Callable[[str], Painter],
    report: Report,
    part: tuple[int, int] = (1, 1),
) -> int:
    """Paints what is missing.

    Args:
        painters: the painter of a method; called once for each method at a time, so that one model is in memory.
        part: (k, n): only every n-th person, from the k-th on; n processes share the work so.

    Returns:
        how many cells are still missing: those of other parts.
    """
    missing = 0
    for name in dict.fromkeys(j.method for j in jobs):
        todo = []
        for job in (j for j in jobs if j.method == name):
            for place, person in enumerate(sets[job.people][: job.count]):
                cells = [c for _, c in cells_of(replace(job, count=1), [person]) if not store.complete(c, job.pictures)]
                if cells and place % part[1] != part[0] - 1:
                    missing += len(cells)
                elif cells:
                    todo.append((job, person, cells))
        if not todo:
            continue
        painter = painters(name)
        painter.load()
        with report(name, sum(len(c) * j.pictures for j, _, c in todo)) as advance:
            for job, person, cells in todo:
                _paint(benchmark, store, painter, job, person, cells, advance)
    return missing


def _paint(
    benchmark: Benchmark,
    store: Store,
    painter: Painter,
    job: Job,
    person: Person,
    cells: Sequence[Cell],
    advance: Callable[[int], None],
) -> None:
    """The cells of one person; a face that cannot be enrolled makes failures, which count."""
    identity, facts = _enrolled(store, painter, job, person)
    shared: dict[str, Any] = {"wanted": job.pictures, "weights": dict(painter.weights)}
    if "error" in facts:
        for cell in cells:
            store.write(cell, [], {"error": facts["error"], **shared})
            advance(job.pictures)
        return
    at_once = max(1, benchmark.batch // job.pictures)
    for some in (cells[i : i + at_once] for i in range(0, len(cells), at_once)):
        prompts = [benchmark.prompts[cell.prompt] for cell in some]
        seeds = [seeds_of(benchmark, person.key, cell.prompt, job.pictures) for cell in some]
        painted: list[Pictures] = [[] for _ in some]
        peak, start = Peak(), time.perf_counter()
        for at in range(0, job.pictures, benchmark.batch):  # once, unless a single cell is more than a batch
            wish = Wish(prompts, [own[at : at + benchmark.batch] for own in seeds], job.strength, job.guidance)
            for images, more in zip(painted, painter.paint(person, identity, wish), strict=True):
                images += more
        seconds = (time.perf_counter() - start) / (len(some) * job.pictures)
        costs = {"seconds": seconds, "memory_mb": peak()}
        for cell, own, images in zip(some, seeds, painted, strict=True):
            store.write(cell, images, {"seeds": own, **costs, **shared})
            advance(job.pictures)


def _enrolled(store: Store, painter: Painter, job: Job, person: Person) -> tuple[Identity | None, dict[str, Any]]:
    """The person as the method keeps them, from before if these weights enrolled them; facts with an `error` if their
    photos show no face."""
    known = store.identity(job.people, job.method, person.key)
    weights = dict(painter.weights)
    if known is None or known[1].get("weights", {}) != weights:
        peak = Peak()
        try:
            enrolled = painter.enroll(person)
            facts = {"seconds": enrolled.seconds, "memory_mb": peak(), "weights": weights}
            store.write_identity(job.people, job.method, person.key, enrolled.identity, facts)
        except FaceError as e:
            store.write_identity(job.people, job.method, person.key, None, {"error": str(e), "weights": weights})
        known = store.identity(job.people, job.method, person.key)
        assert known is not None
    return known


def _slice_jobs(benchmark: Benchmark, methods: Sequence[MethodSpec]) -> list[Job]:
    from limner.world.slices import SLICES

    spec = benchmark.slices
    if spec is None:
        return []
    jobs = []
    for name in spec.names or tuple(SLICES):
        group = f"slice-{name}"
        base = Job(group, group, REAL, count=spec.people, prompts=spec.prompts, pictures=spec.pictures)
        jobs.append(base)
        for method in _chosen(methods, spec.methods):
            jobs.append(replace(base, method=method.name, strength=method.strength, guidance=method.guidance))
    return [replace(j, prompts=min(j.prompts, len(benchmark.prompts))) for j in jobs]


def _curve_jobs(benchmark: Benchmark, methods: Sequence[MethodSpec]) -> list[Job]:
    spec = benchmark.curve
    if spec is None:
        return []
    prompts, count = min(spec.prompts, len(benchmark.prompts)), min(spec.people, benchmark.people.count)
    return [
        Job(curve_group(s, g), MAIN, method.name, s, g, min(method.people or count, count), prompts, spec.pictures)
        for method in _chosen(methods, spec.methods)
        for s in spec.strengths
        for g in spec.guidances
    ]


def _chosen(methods: Sequence[MethodSpec], names: Sequence[str]) -> list[MethodSpec]:
    """Those named, or all that put a person in and are here to paint."""
    able = [m for m in methods if m.model and m.identity]
    return [m for m in able if not names or m.name in names]
