"""The ruler measures what it says: known extremes get known scores, and nothing that should not matter does."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from truth_judges import truth_judges

from limner.errors import ConfigError, CorruptData, OutputConflict, PromptError, UnreadableImage
from limner.evaluation import run as running
from limner.evaluation.judging import Shot, Verdicts, judge, manifest_shots
from limner.evaluation.metrics import Ground, compare, estimates, per_picture, shuffled, strangers
from limner.evaluation.painting import paint_all
from limner.evaluation.people import gather
from limner.evaluation.plots import pareto, write_plots
from limner.evaluation.recipe import Benchmark, read_benchmark
from limner.evaluation.scorers import Judges
from limner.evaluation.statistics import Bootstrap, fid, kid, mean
from limner.evaluation.store import MAIN, Cell, Store, encode_png
from limner.evaluation.tables import _gain, cell, markdown
from limner.training.progress import silent

PROMPTS = ["S* as a wizard, in a forest", "a watercolor of S* on a beach", "S* as a chef, in a kitchen"]


def benchmark_of(**changes: Any) -> Benchmark:
    values = {
        "name": "ruler",
        "people": {"count": 6, "gallery": 8, "size": 64},
        "prompts": PROMPTS,
        "pictures": 2,
        "scorers": {"recognisers": ["unused"], "clip": "unused"},
        "draws": 200,
    }
    return Benchmark.from_dict({**values, **changes})


@pytest.fixture(scope="module")
def benchmark_() -> Benchmark:
    return benchmark_of()


@pytest.fixture(scope="module")
def judges(benchmark_: Benchmark) -> Judges:
    return truth_judges(benchmark_)


def no_model(model: str, method: str) -> Any:
    raise AssertionError(f"{model} was loaded")


@pytest.fixture(scope="module")
def noise_folder(benchmark_: Benchmark, judges: Judges, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another system: it made half of the pictures, all of them noise, and says that it failed once."""
    folder = tmp_path_factory.mktemp("other") / "noise"
    folder.mkdir()
    rows = []
    for p, person in enumerate(gather(benchmark_.people, judges.finder)[: benchmark_.people.count]):
        for k, prompt in enumerate(PROMPTS):
            image = np.random.default_rng([p, k]).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            (folder / f"{p}{k}.png").write_bytes(encode_png(image))
            rows.append({"file_name": f"{p}{k}.png", "person": person.key, "prompt": k if p % 2 else prompt})
    rows[0]["file_name"] = None  # type: ignore[assignment]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def finished(
    benchmark_: Benchmark, judges: Judges, noise_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("ruler") / "out"
    whole = running.with_images(benchmark_, [noise_folder])
    outcome = running.evaluate(whole, out, judges, no_model, silent, command="limner evaluate x")
    assert outcome.report is not None
    return out, outcome.report


def value(report: dict[str, Any], method: str, metric: str) -> float:
    return float(report["methods"][method]["estimates"][metric]["value"])


def test_known_extremes_get_known_scores(finished: tuple[Path, dict[str, Any]]) -> None:
    _, report = finished
    assert value(report, "real", "identity/knower") == pytest.approx(1)
    assert value(report, "stranger", "identity/knower") == pytest.approx(0)
    assert value(report, "copy", "face_similarity/knower") == pytest.approx(1, abs=1e-6)
    assert value(report, "copy", "identity/knower") > 1.05
    assert value(report, "real", "top1/knower") > 0.9
    assert value(report, "stranger", "top1/knower") == 0
    assert value(report, "real", "attributes") == 1
    assert value(report, "copy", "attributes_relative") < 0.6
    assert value(report, "copy", "text_alignment") < value(report, "real", "text_alignment") - 0.1
    assert value(report, "stranger", "text_alignment") == pytest.approx(value(report, "real", "text_alignment"))
    assert value(report, "copy", "pose_copied") == pytest.approx(1, abs=1e-6)
    assert value(report, "copy", "expression_copied") == pytest.approx(1, abs=1e-6)
    assert abs(value(report, "real", "pose_copied")) < 0.5
    assert value(report, "real", "failures") == 0
    assert value(report, "real", "diversity") > 0


def test_known_photos_are_others_than_the_references_and_judge_identity(judges: Judges) -> None:
    spec = dataclasses.replace(benchmark_of().people, known=2)
    people = gather(spec, judges.finder)
    assert [len(p.known) for p in people] == [2] * 8
    assert not any(np.array_equal(k.image, f.image) for p in people for k in p.known for f in p.faces)
    assert [p.photos[0].tobytes() for p in people] == [
        p.photos[0].tobytes() for p in gather(benchmark_of().people, judges.finder)
    ]


def test_identity_is_judged_by_the_known_photos_and_similarity_by_the_references() -> None:
    ground, verdicts = _ground(3), _verdicts(3)
    other = np.roll(ground.gallery["r"], 1, axis=0)
    found = per_picture(verdicts, dataclasses.replace(ground, gallery={"r": other}))
    assert found["face_similarity/r"].tolist() == [1] * 6
    assert found["top1/r"].tolist() == [0] * 6
    found = per_picture(verdicts, dataclasses.replace(ground, references={"r": other}))
    assert found["face_similarity/r"].tolist() == [0] * 6
    assert found["top1/r"].tolist() == [1] * 6


def test_noise_and_failures_count_as_zero(finished: tuple[Path, dict[str, Any]]) -> None:
    _, report = finished
    noise = report["methods"]["noise"]["estimates"]
    assert report["methods"]["noise"]["pictures"] == 36
    assert noise["failures"]["value"] == 1
    assert noise["face_similarity/knower"]["value"] == 0
    assert noise["top1/knower"]["value"] == 0
    assert noise["attributes"]["value"] == 0
    assert noise["kid"]["value"] > 0.05
    assert noise["kid"]["low"] > 0
    assert noise["fid"]["value"] > report["methods"]["copy"]["estimates"]["fid"]["value"]


def test_one_face_that_is_not_found_lowers_the_mean_by_its_share(judges: Judges, benchmark_: Benchmark) -> None:
    verdicts, ground = _verdicts(4), _ground(4)
    whole = estimates(verdicts, ground, None, None, sets=False)["face_similarity/r"]
    lost = dataclasses.replace(verdicts, found=np.arange(8) != 0)
    less = estimates(lost, ground, None, None, sets=False)["face_similarity/r"]
    assert whole.value == pytest.approx(1)
    assert less.value == pytest.approx(7 / 8)
    assert (less.people, less.pictures) == (4, 8)


def test_shuffled_prompts_lower_the_text_and_leave_the_person(
    finished: tuple[Path, dict[str, Any]], benchmark_: Benchmark, judges: Judges
) -> None:
    out, _ = finished
    people = gather(benchmark_.people, judges.finder)
    ground = running._ground(benchmark_, judges, people)
    jobs = running.jobs_of(benchmark_)
    shots = running.shots_of(Store(out), jobs[0], people)
    real = judge(judges, shots, benchmark_.prompts, out / "verdicts" / MAIN / "real.npz", lambda n: None)
    wrong = shuffled(real, ground, judges.clip.texts(benchmark_.prompts))
    told, mixed = (per_picture(v, ground) for v in (real, wrong))
    assert mixed["text_alignment"].mean() < told["text_alignment"].mean() - 0.15
    assert mixed["attributes"].mean() < 0.5
    np.testing.assert_array_equal(mixed["face_similarity/knower"], told["face_similarity/knower"])


def test_names_and_order_of_files_change_nothing(
    finished: tuple[Path, dict[str, Any]], noise_folder: Path, tmp_path: Path, judges: Judges, benchmark_: Benchmark
) -> None:
    _, report = finished
    other = tmp_path / "noise"
    other.mkdir()
    rows = [json.loads(line) for line in (noise_folder / "manifest.jsonl").read_text().splitlines()]
    random.Random(1).shuffle(rows)
    for k, row in enumerate(rows):
        if row["file_name"]:
            (other / f"renamed-{k}.png").write_bytes((noise_folder / row["file_name"]).read_bytes())
            row["file_name"] = f"renamed-{k}.png"
    (other / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = running.with_images(benchmark_, [other])
    again = running.evaluate(whole, tmp_path / "out", judges, no_model, silent, command="limner evaluate x").report
    assert again is not None
    without = [{k: v for k, v in r.items() if k not in ("recipe", "recipe_digest", "methods")} for r in (report, again)]
    assert without[0] == without[1]
    assert again["methods"]["noise"]["estimates"] == report["methods"]["noise"]["estimates"]


def test_a_killed_run_goes_on_to_the_same_report(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, judges: Judges, benchmark_: Benchmark, noise_folder: Path
) -> None:
    whole, done = running.with_images(benchmark_, [noise_folder]), [0]

    class Killed(Exception):
        pass

    @contextmanager
    def killer(title: str, total: int) -> Iterator[Any]:
        def advance(n: int) -> None:
            done[0] += n
            if done[0] > 17:
                raise Killed

        yield advance

    with pytest.raises(Killed):
        running.evaluate(whole, tmp_path / "out", judges, no_model, killer, command="limner evaluate x")
    begun = len(list((tmp_path / "out" / "pictures").rglob("*.json")))
    assert 0 < begun < 6 * 3 * 2
    outcome = running.evaluate(whole, tmp_path / "out", judges, no_model, silent, command="limner evaluate x")
    assert outcome.report == finished[1]


def test_parts_paint_everything_once_and_only_the_last_reports(
    tmp_path: Path, judges: Judges, benchmark_: Benchmark, finished: tuple[Path, dict[str, Any]]
) -> None:
    first = running.evaluate(benchmark_, tmp_path / "out", judges, no_model, silent, part=(1, 2))
    assert first.report is None
    assert first.missing == 3 * 3 * 2
    last = running.evaluate(benchmark_, tmp_path / "out", judges, no_model, silent, part=(2, 2))
    assert last.report is not None
    assert last.report["methods"]["real"] == finished[1]["methods"]["real"]


def test_another_benchmark_in_the_folder_is_refused(
    finished: tuple[Path, dict[str, Any]], judges: Judges, tmp_path: Path
) -> None:
    with pytest.raises(OutputConflict, match="other prompts"):
        running.evaluate(benchmark_of(prompts=PROMPTS[:2]), finished[0], judges, no_model, silent)
    changed = benchmark_of(methods=[{"name": "noise", "model": "faceclip-mini"}])
    with pytest.raises(OutputConflict, match="another method called 'noise'"):
        running.evaluate(changed, finished[0], judges, no_model, silent)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputConflict, match="holds no benchmark"):
        running.evaluate(benchmark_of(), tmp_path, judges, no_model, silent)


def test_a_folder_from_before_a_dial_existed_goes_on(benchmark_: Benchmark, tmp_path: Path) -> None:
    Store(tmp_path / "out").claim(benchmark_)
    path = tmp_path / "out" / "methods.json"
    known = json.loads(path.read_text())
    for method in known.values():
        del method["face_detail"]
    path.write_text(json.dumps(known))
    Store(tmp_path / "out").claim(benchmark_)
    assert all("face_detail" in m for m in json.loads(path.read_text()).values())


def test_the_report_prints_from_its_document_alone(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, report = finished
    document = running.read_report(out / "report.json")
    assert document == json.loads(json.dumps(report))
    names = write_plots(document, tmp_path)
    text = markdown(document, names)
    assert names == ["methods.png"]
    assert (out / "sheet-1.png").is_file()
    for said in ("limner evaluate x", "| real | 6 | 36 | 1.000", "S* as a wizard", "gallery", "arXiv 1801.01401"):
        assert said in text
    assert (out / "report.json").read_text().count("/work") == 0


def test_tasks_for_another_system_come_back_as_a_manifest(
    tmp_path: Path, judges: Judges, benchmark_: Benchmark
) -> None:
    assert running.write_tasks(benchmark_, judges, tmp_path / "tasks", silent) == 18
    tasks = [json.loads(line) for line in (tmp_path / "tasks" / "tasks.jsonl").read_text().splitlines()]
    rows = [{"file_name": t["photos"][0], "person": t["person"], "prompt": t["prompt"]} for t in tasks]
    (tmp_path / "tasks" / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    people = gather(benchmark_.people, judges.finder)
    painted = people[: benchmark_.people.count]
    shots = manifest_shots(tmp_path / "tasks", PROMPTS, painted, benchmark_.pictures)
    asked = sum(t["pictures"] for t in tasks)
    assert (len(shots), sum(s.path is None for s in shots)) == (asked, asked - 18)
    (tmp_path / "tasks" / "manifest.jsonl").write_text(json.dumps(rows[0]))
    shots = manifest_shots(tmp_path / "tasks", PROMPTS, painted, benchmark_.pictures)
    assert (len(shots), sum(s.path is None for s in shots)) == (asked, asked - 1)
    (tmp_path / "tasks" / "manifest.jsonl").write_text("\n".join(map(json.dumps, [rows[0]] * 3)))
    with pytest.raises(CorruptData, match=r"line 3.*more than 2 pictures"):
        manifest_shots(tmp_path / "tasks", PROMPTS, painted, benchmark_.pictures)
    rows[3]["person"] = "nobody"
    (tmp_path / "tasks" / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(CorruptData, match=r"line 4.*nobody"):
        manifest_shots(tmp_path / "tasks", PROMPTS, painted, benchmark_.pictures)


def test_what_cannot_be_measured_is_refused_before_anything_is_painted(judges: Judges, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"S\*"):
        benchmark_of(prompts=["a wizard"])
    with pytest.raises(ConfigError, match="built in"):
        benchmark_of(methods=[{"name": "real", "model": "faceclip-mini"}])
    with pytest.raises(ConfigError, match="Unknown method 'x'"):
        running.evaluate(benchmark_of(), tmp_path / "a", judges, no_model, silent, chosen=["x"])
    impossible = benchmark_of(prompts=["S* in a garden at night"])
    with pytest.raises(PromptError, match="no real picture"):
        running.evaluate(impossible, tmp_path / "b", judges, no_model, silent)
    assert not list(tmp_path.rglob("*.png"))


def test_pairs_see_the_same_people() -> None:
    one, ground = _verdicts(12), _ground(12)
    noise = np.random.default_rng(0).normal(0, 0.3, 24)
    first = dataclasses.replace(one, text=0.5 + noise)
    second = dataclasses.replace(one, text=0.4 + noise)
    found = compare(first, second, ground, "text_alignment", None, None)
    assert found is not None
    assert found["ahead"] == 1
    assert found["difference"]["low"] == pytest.approx(0.1)
    assert found["difference"]["high"] == pytest.approx(0.1)
    fewer = compare(first.rows(first.persons < "p05"), second, ground, "text_alignment", None, None)
    assert fewer is not None
    assert fewer["difference"]["people"] == 5


def test_a_gain_over_nothing_is_not_reported() -> None:
    one, ground = _verdicts(12), _ground(12)

    def gain(text: np.ndarray) -> Any:
        first, other = (dataclasses.replace(one, text=v) for v in (np.full(24, 0.6), text))
        found = compare(first, other, ground, "text_alignment", None, None)
        assert found is not None
        assert _gain(found) == "–" or found["gain"] is not None
        return found["gain"]

    assert gain(np.full(24, 0.5))["value"] == pytest.approx(0.2)
    assert gain(np.zeros(24)) is None
    assert gain(np.full(24, -0.1)) is None
    barely = np.where(np.arange(24) < 14, 0.3, -0.3)  # above 0, but not in every sixth resampling or so
    assert barely.mean() > 0
    assert gain(barely) is None


def test_intervals_hold_what_they_promise() -> None:
    random_ = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        estimate = Bootstrap(40, 300, trial).estimate(mean(random_.normal(0, 1, 40)), 40)
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= 0 <= estimate.high
    assert 0.88 <= hits / 200 <= 0.99


def test_distances_are_zero_for_one_distribution_and_grow() -> None:
    random_ = np.random.default_rng(0)
    one, same, other = random_.normal(size=(300, 6)), random_.normal(size=(300, 6)), random_.normal(0.7, 1, (300, 6))
    people = np.arange(300) % 20
    boot = Bootstrap(20, 200, 0)
    near, far = (boot.estimate(kid(x, people, one, people), 300) for x in (same, other))
    assert near.low is not None
    assert near.low < 0.05
    assert abs(near.value) < 0.1 < far.value
    assert far.low is not None
    assert far.low > 0.1
    # by definition: two Gaussians of equal covariance are as far apart as their means, squared
    assert fid(one + 0.7, one) == pytest.approx(6 * 0.7**2)
    assert fid(one, one) == pytest.approx(0, abs=1e-6)


def test_what_is_undefined_is_said_to_be_nothing() -> None:
    """Where neither real people nor strangers are found, there is no scale to normalise by."""
    lost, ground = dataclasses.replace(_verdicts(4), found=np.zeros(8, bool)), _ground(4)
    identity = estimates(lost, ground, lost, lost, sets=False)["identity/r"].to_dict()
    assert (identity["value"], identity["low"], identity["high"]) == (None, None, None)
    assert cell(identity) == "–"


def test_the_floor_never_gives_anybody_their_own_pictures() -> None:
    real = _verdicts(5)
    moved = strangers(real, [f"p{k:02d}" for k in range(5)])
    assert sorted(moved.persons) == sorted(real.persons)
    assert not (moved.persons == real.persons).any()


def test_a_pareto_front_has_no_point_below_another() -> None:
    assert pareto([(0, 1), (1, 0), (0.5, 0.5), (0.4, 0.4), (0.5, 0.5)]) == [(0, 1), (0.5, 0.5), (1, 0)]


def test_a_shared_recipe_reads(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    for name in ("benchmark-mini", "benchmark-short", "benchmark-faceclip", "smoke-benchmark"):
        found = read_benchmark(root / "recipes" / f"{name}.yaml")
        assert found.name == name
        assert {*found.table1, *found.faceclip} <= {m.name for m in found.methods}


def test_a_cell_is_there_whole_or_not_at_all(tmp_path: Path, benchmark_: Benchmark, judges: Judges) -> None:
    store = Store(tmp_path)
    people = gather(benchmark_.people, judges.finder)[:2]
    jobs = [j for j in running.jobs_of(benchmark_) if j.method == "real"]
    sets = {MAIN: people}
    paint_all(benchmark_, store, sets, jobs, running._painters(benchmark_, no_model, {}), silent)
    assert store.facts(Cell(MAIN, "m", "p", 0)) is None
    place = store.picture(Cell(MAIN, "real", people[0].key, 0), 0)
    place.with_name("00.json").unlink()
    place.write_bytes(b"half a picture")
    paint_all(benchmark_, store, sets, jobs, running._painters(benchmark_, no_model, {}), silent)
    assert place.read_bytes()[:4] == b"\x89PNG"
    place.unlink()
    paint_all(benchmark_, store, sets, jobs, running._painters(benchmark_, no_model, {}), silent)
    assert place.read_bytes()[:4] == b"\x89PNG"


def test_a_picture_that_is_gone_is_named(tmp_path: Path, judges: Judges) -> None:
    shot = Shot("p", 0, tmp_path / "gone.png")
    with pytest.raises(UnreadableImage, match=r"gone\.png"):
        judge(judges, [shot], PROMPTS, tmp_path / "kept.npz", lambda n: None)


def _ground(people: int) -> Ground:
    vectors = np.eye(people, 16, dtype=np.float32)
    return Ground(
        tuple(f"p{k:02d}" for k in range(people)), {"r": vectors}, {"r": vectors}, ("S* in a forest",), draws=200
    )


def _verdicts(people: int) -> Verdicts:
    """Two perfect pictures of everybody."""
    own = np.repeat(np.arange(people), 2)
    n = len(own)
    return Verdicts(
        persons=np.array([f"p{k:02d}" for k in own]),
        prompts=np.zeros(n, int),
        painted=np.ones(n, bool),
        found=np.ones(n, bool),
        faces={"r": np.eye(people, 16, dtype=np.float32)[own]},
        clip=np.ones((n, 1), np.float32),
        text=np.ones(n),
        words=[{} for _ in own],
        numbers=np.zeros((n, 8)),
        features=np.ones((n, 1)),
    )
