"""How a method is made to paint: in batches, on the clock only once it is ready, and by weights that do not change."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limner.errors import ConfigError, OutputConflict
from limner.evaluation.painters import Enrolled, ModelPainter, Pictures, Wish
from limner.evaluation.painting import demand_same_weights, jobs_of, paint_all
from limner.evaluation.people import Person
from limner.evaluation.recipe import COPY, REAL, Benchmark
from limner.evaluation.scorers import ConvRecogniser, Judges
from limner.evaluation.store import MAIN, Store
from limner.evaluation.weights import demand_independent, weights_of
from limner.training.progress import silent
from limner.types import Identity

OLD, NEW = {"unet": "a", "vae": "v"}, {"unet": "b", "vae": "v"}


class Fake:
    """Paints grey pictures, and notes how many at once."""

    def __init__(self, weights: Mapping[str, str], loading: float = 0.0) -> None:
        self.weights, self.loading = weights, loading
        self.loaded, self.enrolled = 0, 0
        self.calls: list[list[int]] = []

    def load(self) -> None:
        self.loaded += 1
        time.sleep(self.loading)

    def enroll(self, person: Person) -> Enrolled:
        assert self.loaded == 1
        self.enrolled += 1
        return Enrolled(None, 0.0)

    def paint(self, person: Person, identity: Identity | None, wish: Wish) -> list[Pictures]:
        assert self.loaded == 1
        self.calls.append([len(seeds) for seeds in wish.seeds])
        return [[np.full((8, 8, 3), seed % 256, np.uint8) for seed in seeds] for seeds in wish.seeds]


def benchmark_of(**changes: Any) -> Benchmark:
    values = {
        "name": "painting",
        "people": {"count": 2, "gallery": 2},
        "prompts": ["S* in a forest", "S* on a beach"],
        "pictures": 4,
        "methods": [{"name": "mine", "model": "models/mine"}],
        "scorers": {"recognisers": ["unused"], "clip": "unused"},
    }
    return Benchmark.from_dict({**values, **changes})


def people_of(benchmark: Benchmark) -> dict[str, Sequence[Person]]:
    return {MAIN: [Person(f"p{k}", (), ()) for k in range(benchmark.people.count)]}


def paint(benchmark: Benchmark, out: Path, fake: Fake, part: tuple[int, int] = (1, 1)) -> int:
    jobs = [j for j in jobs_of(benchmark) if j.method not in (REAL, COPY)]
    return paint_all(benchmark, Store(out), people_of(benchmark), jobs, lambda name: fake, silent, part)


def facts_in(out: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted((out / "pictures" / MAIN / "mine").rglob("*.json"))]


@pytest.mark.parametrize(
    ("batch", "calls"),
    [(1, [[1]] * 16), (3, [[3], [1]] * 4), (4, [[4]] * 4), (7, [[4]] * 4), (8, [[4, 4]] * 2)],
)
def test_no_more_than_a_batch_is_painted_at_once(batch: int, calls: list[list[int]], tmp_path: Path) -> None:
    fake = Fake(OLD)
    paint(benchmark_of(batch=batch), tmp_path, fake)
    assert fake.calls == calls
    assert len(list(tmp_path.rglob("*.png"))) == 16
    assert all(len(set(f["seeds"])) == f["pictures"] == 4 for f in facts_in(tmp_path))


def test_loading_is_no_part_of_the_time_per_picture(tmp_path: Path) -> None:
    benchmark = benchmark_of(pictures=1)
    paint(benchmark, tmp_path, Fake(OLD, loading=0.3))
    for lost in (tmp_path / "pictures").rglob("00.json"):  # as if it had been killed, with everybody enrolled
        lost.unlink()
    again = Fake(OLD, loading=0.3)
    paint(benchmark, tmp_path, again)
    assert (again.loaded, again.enrolled, len(again.calls)) == (1, 0, 2)
    assert all(f["seconds"] < 0.1 for f in facts_in(tmp_path))


def test_other_weights_do_not_go_on_where_these_were(tmp_path: Path) -> None:
    benchmark, store = benchmark_of(), Store(tmp_path)
    jobs, sets = jobs_of(benchmark), people_of(benchmark)
    demand_same_weights(store, sets, jobs, {"mine": OLD})
    assert paint(benchmark, tmp_path, Fake(OLD), part=(1, 2)) == 2
    assert all(f["weights"] == OLD for f in facts_in(tmp_path))
    demand_same_weights(store, sets, jobs, {"mine": OLD})
    with pytest.raises(OutputConflict, match=r"mine painted with other weights than it has now \(unet\)"):
        demand_same_weights(store, sets, jobs, {"mine": NEW})
    paint(benchmark, tmp_path, Fake(NEW), part=(2, 2))  # another machine, that began when nothing was there
    with pytest.raises(OutputConflict, match="mine"):
        demand_same_weights(store, sets, jobs, {"mine": OLD})
    for file in (tmp_path / "pictures").rglob("*.json"):
        file.unlink()
    other = Fake(NEW)
    paint(benchmark, tmp_path, other)
    assert other.enrolled == 1  # whom the old weights had enrolled
    demand_same_weights(store, sets, jobs, {"mine": NEW})


def test_weights_are_known_without_loading_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    from limner.pipelines.loading import load_model

    tuning = tmp_path / "tuning.yaml"
    tuning.write_text("steps: 3")
    spec = {"name": "mine", "model": str(tiny_folder)}
    taught = {**spec, "name": "tuned", "tuning": str(tuning), "teacher": str(tiny_folder)}
    methods = benchmark_of(methods=[spec, taught]).methods
    found = weights_of(methods)
    model = load_model(str(tiny_folder), device="cpu")
    assert found["mine"].digests.items() >= model.weights.items()
    assert set(found["tuned"].digests) == {*model.weights, "dials", "tuning", "teacher"}
    assert found["tuned"].digests["teacher"] == model.weights["unet"]
    before = found["tuned"].digests["tuning"]
    tuning.write_text("steps: 4")
    assert weights_of(methods)["tuned"].digests["tuning"] != before
    ModelPainter(methods[0], lambda name, method: model, found["mine"].digests).load()
    with pytest.raises(OutputConflict, match="other weights"):
        ModelPainter(methods[0], lambda name, method: model, {**model.weights, "unet": "other"}).load()
    tuning.unlink()
    with pytest.raises(ConfigError, match="no file"):
        weights_of(methods)


def test_who_painted_may_not_judge(tmp_path: Path) -> None:
    import shutil
    from types import SimpleNamespace

    import torch
    from tiny_scorers import write_scorers

    folder = Path(write_scorers(tmp_path)["recogniser"])
    judge = ConvRecogniser(folder, torch.device("cpu"))
    judges = Judges((judge,), SimpleNamespace(about=judge.about), None, SimpleNamespace())  # type: ignore[arg-type]
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    (model / "model_index.json").write_text("{}")
    (model / "unet" / "a.safetensors").write_bytes(b"other")
    methods = benchmark_of(methods=[{"name": "mine", "model": str(model)}]).methods
    demand_independent(judges, weights_of(methods))
    shutil.copy(next(folder.glob("*.safetensors")), model / "unet" / "b.safetensors")
    with pytest.raises(ConfigError, match="recogniser would judge what it painted"):
        demand_independent(judges, weights_of(methods))
