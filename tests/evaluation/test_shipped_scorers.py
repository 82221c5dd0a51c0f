"""The trained scorers on known extremes; their faces are placed by the world's truth, so that only they are judged."""

from __future__ import annotations

from pathlib import Path

import torch
from truth_judges import Detector, Truth, truth_judges

from limner.evaluation import run as running
from limner.evaluation.metrics import estimates, shuffled
from limner.evaluation.people import gather
from limner.evaluation.recipe import Benchmark
from limner.evaluation.scorers import ConvRecogniser, Judges, MiniClip, NetworkReader
from limner.evaluation.store import MAIN, Store
from limner.faces import FaceFinder
from limner.training.progress import silent

WEIGHTS = Path(__file__).resolve().parents[2] / "benchmarks" / "weights"
FOLDERS = [WEIGHTS / f"scorer-{name}" for name in ("recogniser", "clip", "attributes")]
PROMPTS = ["S* as a wizard, in a forest", "Watercolor style, S* face", "a photo of S* as a chef, on a beach"]


def test_trained_scorers_put_known_extremes_in_order(tmp_path: Path) -> None:
    benchmark = Benchmark.from_dict(
        {
            "name": "scorers",
            "people": {"split": "validation", "count": 12, "gallery": 12},
            "prompts": PROMPTS,
            "pictures": 1,
            "scorers": {"recognisers": ["r"], "clip": "c"},
            "draws": 200,
        }
    )
    knowing, cpu = truth_judges(benchmark), torch.device("cpu")
    assert isinstance(knowing.finder.detector, Detector)
    assert isinstance(knowing.finder.detector.truth, Truth)
    recogniser, clip, reader = FOLDERS
    judges = Judges(
        (ConvRecogniser(recogniser, cpu),), MiniClip(clip, cpu), NetworkReader(reader, cpu), knowing.finder,
        features="attributes", detector="truth",
    )  # fmt: skip
    out = tmp_path / "out"
    report = running.evaluate(benchmark, out, judges, _no_model, silent).report
    assert report is not None
    real, stranger, copy = (report["methods"][n]["estimates"] for n in ("real", "stranger", "copy"))
    same, apart = ("face_similarity/scorer-recogniser", "top1/scorer-recogniser")
    assert real[same]["value"] > stranger[same]["value"] + 0.3
    assert copy[same]["value"] > 0.99
    assert real[apart]["value"] > 0.8
    assert stranger[apart]["value"] < 0.2
    assert real["attributes"]["value"] > 0.7
    assert copy["attributes"]["value"] < real["attributes"]["value"] - 0.2
    assert copy["text_alignment"]["value"] < real["text_alignment"]["value"] - 0.1
    people = gather(benchmark.people, FaceFinder(knowing.finder.detector))
    ground = running._ground(benchmark, judges, people)
    shots = running.shots_of(Store(out), running.jobs_of(benchmark)[0], people)
    verdicts = running.judge(judges, shots, PROMPTS, out / "verdicts" / MAIN / "real.npz", lambda n: None)
    mixed = estimates(shuffled(verdicts, ground, judges.clip.texts(PROMPTS)), ground, None, None, sets=False)
    assert mixed["text_alignment"].value < real["text_alignment"]["value"] - 0.1
    assert mixed["attributes"].value < real["attributes"]["value"] - 0.2


def _no_model(model: str, method: str) -> None:
    raise AssertionError(f"{model} was loaded")
