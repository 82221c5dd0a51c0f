"""`limner evaluate` as a function: people, painting, judging, report. Killed at any moment, it goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.errors import ConfigError, OutputConflict
from limner.evaluation.judging import Verdicts, gallery, judge, manifest_shots, shots_of
from limner.evaluation.metrics import Ground
from limner.evaluation.painters import CopyPainter, ModelPainter, Painter, RealPainter, check_prompts
from limner.evaluation.painting import Job, Report, demand_same_weights, jobs_of, paint_all
from limner.evaluation.people import Person, gather, gather_slice
from limner.evaluation.plots import write_sheets
from limner.evaluation.recipe import COPY, REAL, Benchmark, MethodSpec
from limner.evaluation.report import Evidence, build_report
from limner.evaluation.scorers import Judges
from limner.evaluation.store import MAIN, Store, encode_png, make_folder
from limner.evaluation.weights import demand_independent, weights_of
from limner.types import write_atomic

if TYPE_CHECKING:
    from limner.pipelines.loading import Model

REPORT = "report.json"


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        report: the document, or None where other parts must paint first.
        missing: cells that other parts are to paint.
    """

    report: dict[str, Any] | None
    missing: int


def evaluate(
    benchmark: Benchmark,
    out: Path,
    judges: Judges,
    open_model: Callable[[str, str], Model],
    report: Report,
    *,
    chosen: Sequence[str] = (),
    part: tuple[int, int] = (1, 1),
    command: str = "",
    device: str = "cpu",
) -> Outcome:
    """Paints what is missing, judges what is there, and writes report.json and sheets into `out`.

    Args:
        out: folder of the benchmark; see `Store`.
        judges: from `load_judges`.
        open_model: name or folder, and method → a model.
        report: opens progress bars.
        chosen: names of the methods to paint and show; empty for all.
        part: (k, n), see `paint_all`.
        command, device: written into the report.

    Raises:
        ConfigError: an unknown method, or a judge who is among the weights of one.
        OutputConflict: the folder holds another benchmark, or pictures painted with other weights.
        PromptError: a prompt of which there can be no real picture.
        LimnerError: whatever a model or picture is wrong with; what was painted before is kept.
    """
    store = Store(out)
    jobs = jobs_of(benchmark, chosen)
    store.claim(benchmark)
    if chosen:
        benchmark = replace(benchmark, methods=tuple(benchmark.method(n) for n in chosen))
    found = weights_of(benchmark.methods)
    demand_independent(judges, found)
    weights = {name: painting.digests for name, painting in found.items()}
    sets = _sets(benchmark, judges, jobs, report)
    check_prompts(benchmark.prompts, sets[MAIN])
    demand_same_weights(store, sets, jobs, weights)
    missing = paint_all(benchmark, store, sets, jobs, _painters(benchmark, open_model, weights), report, part)
    if missing:
        return Outcome(None, missing)
    demand_same_weights(store, sets, jobs, weights)  # other machines painted meanwhile
    grounds = {name: _ground(benchmark, judges, people) for name, people in sets.items()}
    verdicts = _judged(benchmark, store, judges, sets, jobs, report)
    evidence = Evidence(benchmark, store, judges, sets, grounds, verdicts, jobs, weights, command, device)
    document = build_report(evidence)
    shown = [n for n in document["methods"] if (out / "pictures" / MAIN / n).is_dir()]
    write_sheets(store, sets[MAIN][: benchmark.people.count], shown, benchmark.prompts)
    write_atomic(out / REPORT, json.dumps(document, indent=1, allow_nan=False).encode())
    return Outcome(document, 0)


def with_images(benchmark: Benchmark, folders: Sequence[Path]) -> Benchmark:
    """The benchmark with folders of pictures made elsewhere as further methods, called like the folders.

    Raises:
        ConfigError: a name that cannot be one, or that is taken.
    """
    added = tuple(MethodSpec(name=f.resolve().name, images=str(f)) for f in folders)
    return replace(benchmark, methods=benchmark.methods + added)


def write_tasks(benchmark: Benchmark, judges: Judges, folder: Path, report: Report) -> int:
    """Reference photos, and tasks.jsonl with who is to be painted how: what another system needs to take part.

    Returns:
        the number of tasks.

    Raises:
        OutputConflict: the folder is not empty.
        StorageError: it cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise OutputConflict(f"{folder} is not empty.", "Choose another folder.")
    make_folder(folder)
    people = _sets(benchmark, judges, (), report)[MAIN][: benchmark.people.count]
    lines = []
    for person in people:
        photos = [f"{person.key}-{k}.png" for k in range(len(person.photos))]
        for name, photo in zip(photos, person.photos, strict=True):
            write_atomic(folder / name, encode_png(photo))
        for k, prompt in enumerate(benchmark.prompts):
            row = {"person": person.key, "photos": photos, "prompt": k, "text": prompt, "pictures": benchmark.pictures}
            lines.append(json.dumps(row))
    write_atomic(folder / "tasks.jsonl", ("\n".join(lines) + "\n").encode())
    return len(lines)


def read_report(path: Path) -> dict[str, Any]:
    """A report that `evaluate` wrote; ConfigError for anything else."""
    from limner.evaluation.report import FORMAT

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        fits = document["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{path} is no report of `limner evaluate` ({e}).", "Give a report.json.") from e
    if not fits:
        raise ConfigError(f"{path} has format {document['format']}; this Limner reads {FORMAT}.")
    return dict(document)


def _sets(benchmark: Benchmark, judges: Judges, jobs: Sequence[Job], report: Report) -> dict[str, Sequence[Person]]:
    """Reference photos of the main part and of every slice that a job needs."""
    slices = {j.people: j.count for j in jobs if j.people != MAIN}
    with report("people", 1 + len(slices)) as advance:
        sets: dict[str, Sequence[Person]] = {MAIN: gather(benchmark.people, judges.finder)}
        advance(1)
        for name, count in slices.items():
            sets[name] = gather_slice(benchmark.people, name.removeprefix("slice-"), count, judges.finder)
            advance(1)
    return sets


def _painters(
    benchmark: Benchmark, open_model: Callable[[str, str], Model], weights: Mapping[str, Mapping[str, str]]
) -> Callable[[str], Painter]:
    def painter(name: str) -> Painter:
        if name == REAL:
            return RealPainter(benchmark.people.size)
        return CopyPainter() if name == COPY else ModelPainter(benchmark.method(name), open_model, weights[name])

    return painter


def _ground(benchmark: Benchmark, judges: Judges, people: Sequence[Person]) -> Ground:
    numbers = {}
    if judges.reader is not None:
        read = judges.reader.read([p.photos[0] for p in people])
        numbers = {p.key: row for p, row in zip(people, read.numbers, strict=True)}
    return Ground(
        tuple(p.key for p in people),
        gallery(judges, [p.faces for p in people]),
        gallery(judges, [p.known or p.faces for p in people]),
        benchmark.prompts,
        numbers,
        judges.features,
        benchmark.draws,
        benchmark.seed,
    )


def _judged(
    benchmark: Benchmark,
    store: Store,
    judges: Judges,
    sets: Mapping[str, Sequence[Person]],
    jobs: Sequence[Job],
    report: Report,
) -> dict[tuple[str, str], Verdicts]:
    work = {(j.group, j.method): shots_of(store, j, sets[j.people]) for j in jobs}
    for spec in benchmark.methods:
        if spec.images:
            people = sets[MAIN][: benchmark.people.count]
            shots = manifest_shots(Path(spec.images), benchmark.prompts, people, benchmark.pictures)
            first = {p.key for p in people[: spec.people or None]}
            work[MAIN, spec.name] = [shot for shot in shots if shot.person in first]
    verdicts = {}
    with report("judging", sum(map(len, work.values()))) as advance:
        for (group, method), shots in work.items():
            if shots:
                keep = store.out / "verdicts" / group / f"{method}.npz"
                verdicts[group, method] = judge(judges, shots, benchmark.prompts, keep, advance)
    return verdicts
