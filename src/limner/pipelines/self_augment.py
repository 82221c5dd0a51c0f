"""Painters of self-augmented data: a base paints people whom it knows by name (arXiv 2307.00300, section 3.3)."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from limner.data.self_augment import (
    EDITS,
    FACES,
    PER_SHARD,
    Brush,
    EditsPlan,
    FacesPlan,
    demand_other_scorer,
    digest_of,
    in_words,
    read_faces,
)
from limner.data.shards import Advance, Pool, Samples, ShardIndex, build_shards, lines, read_manifest
from limner.encoders.clip_scorer import ClipScorer
from limner.encoders.scales import load_backbone
from limner.encoders.tokenizer import unknown_words
from limner.errors import ConfigError
from limner.faces import DetectedFace, align_face, make_detector
from limner.pipelines.loading import choose_device, choose_dtype, weight_digests
from limner.pipelines.schedulers import make_scheduler
from limner.pipelines.text import open_base
from limner.registry import file_sha256
from limner.types import write_atomic
from limner.world.seeds import derive


def build_faces(
    names: Sequence[str],
    base: str | Path,
    out: str | Path,
    plan: FacesPlan,
    brush: Brush,
    pool: Pool | None = None,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Paints everybody's face, finds it, and keeps it where it is large enough; resumable.

    Writes shards of kind `faces` and rejected.jsonl into `out`. A sample's .json has `identity` (the name), `person`
    (its number), `landmarks` and `box` in pixels, `seed`; one that was rejected has no picture, and says why.

    Returns:
        The manifest, with `people` (who have a face), `kept` and `rejected` (by reason).

    Raises:
        ConfigError: a detector without landmarks.
        WeightsUnavailable: base or detector.
        OutputConflict, StorageError: see `limner.data.shards.build_shards`.
    """
    brush = _resolved(brush)
    config = {"weights": weight_digests(Path(base)), "names": digest_of(names), **_facts(plan, brush)}
    make = partial(FacePainter, str(base), plan, brush)
    manifest = build_shards(
        out, FACES, config, list(enumerate(names)), make, per_shard=PER_SHARD[FACES], pool=pool, advance=advance
    )
    rows = ShardIndex(out).rows()
    rejected = [row for row in rows if "rejected" in row]
    write_atomic(Path(out) / "rejected.jsonl", lines(rejected))
    why = [row["rejected"] for row in rejected]
    return {
        **manifest,
        "kept": len(rows) - len(rejected),
        "people": len({row["identity"] for row in rows if "rejected" not in row}),
        "rejected": {reason: why.count(reason) for reason in dict.fromkeys(why)},
    }


def build_edits(
    faces: str | Path,
    base: str | Path,
    recogniser: str | Path,
    clip: str | Path,
    out: str | Path,
    plan: EditsPlan,
    brush: Brush,
    pool: Pool | None = None,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Paints the edits of everybody in a build of faces, and scores them; resumable.

    Writes shards of kind `edits` into `out`: the identity faces (`reference: true`), and for each edit its `prompt`
    (with S*), `identity_score` (cosine to the person's mean identity vector; null without a face) and `text_score`
    (cosine of the CLIP to the prompt with "person" for S*).

    Args:
        recogniser, clip: folders of what selects; see `load_backbone`, `ClipScorer.load`.

    Returns:
        The manifest; its config names the sha256 of both scorers.

    Raises:
        ConfigError: a scorer of the benchmark; a detector without landmarks; nobody with a face.
        CorruptData: `faces` is no finished build.
        OutputConflict, StorageError: see `limner.data.shards.build_shards`.
    """
    for folder in (recogniser, clip):
        demand_other_scorer(folder)
    people = read_faces(faces)
    brush = _resolved(brush)
    config = {
        "weights": weight_digests(Path(base)),
        "faces": [shard["sha256"] for shard in read_manifest(faces, FACES)["shards"]],
        "scorers": {"recogniser": _digests(recogniser), "clip": _digests(clip)},
        **_facts(plan, brush),
    }
    make = partial(EditPainter, str(base), str(recogniser), str(clip), plan, brush)
    return build_shards(out, EDITS, config, people, make, per_shard=PER_SHARD[EDITS], pool=pool, advance=advance)


@dataclass(frozen=True)
class Painted:
    """One picture and the largest face in it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        seed: of its noise.
        face: None where there is none.
    """

    image: np.ndarray
    seed: int
    face: DetectedFace | None


class Painter:
    """A base on its device, with a detector.

    Raises:
        ConfigError: the detector gives no landmarks, by which trainings align faces.
        WeightsUnavailable: it is not there.
    """

    def __init__(self, base: str, brush: Brush) -> None:
        import cv2

        torch.set_num_threads(brush.threads)
        cv2.setNumThreads(1)
        self.detector = make_detector(brush.detector)
        if not self.detector.landmarks:
            raise ConfigError(
                f"The detector at hand ({self.detector.name}) gives boxes without landmarks, by which trainings align.",
                "Set LIMNER_YUNET to the file of YuNet (see docs/faces.md); for sitters there is --detector mini.",
            )
        self.brush, self.device = brush, choose_device(brush.device)
        self.pipe = open_base(base, choose_dtype(brush.dtype, brush.device)).to(self.device)
        self.pipe.scheduler = make_scheduler(brush.scheduler, self.pipe.scheduler)
        self.tokenizer = self.pipe.tokenizer

    def paint(self, sentences: Sequence[str], seeds: Sequence[int]) -> list[Painted]:
        """One picture for each sentence with its seed, several at once."""
        brush, images = self.brush, []
        for start in range(0, len(seeds), brush.batch):
            some = slice(start, start + brush.batch)
            found: Any = self.pipe(
                list(sentences[some]),
                generator=[torch.Generator("cpu").manual_seed(s) for s in seeds[some]],
                num_inference_steps=brush.steps,
                guidance_scale=brush.guidance,
                pag_scale=brush.pag,
                height=brush.size or None,
                width=brush.size or None,
            )
            images += [np.asarray(image.convert("RGB")) for image in found.images]
        return [Painted(image, seed, self._largest(image)) for image, seed in zip(images, seeds, strict=True)]

    def _largest(self, image: np.ndarray) -> DetectedFace | None:
        faces = [f for f in self.detector.detect(image) if f.landmarks is not None]
        return max(faces, key=lambda f: f.area, default=None)


class FacePainter(Painter):
    """(number, name) → samples of that person's faces."""

    def __init__(self, base: str, plan: FacesPlan, brush: Brush) -> None:
        super().__init__(base, brush)
        self.plan = plan

    def __call__(self, unit: tuple[int, str]) -> Samples:
        person, name = unit
        unknown = unknown_words(self.tokenizer, name)
        if unknown:  # a base that reads whole words would paint anybody
            return [_sample(f"{person:06d}-face-0", person, name, {"rejected": "unknown name"})]
        samples: Samples = []
        seeds = [derive("face", self.brush.seed, name, i) for i in range(self.plan.number)]
        for i, painted in enumerate(self.paint([self.plan.prompt.format(name=name)] * len(seeds), seeds)):
            key, facts = f"{person:06d}-face-{i}", {"seed": painted.seed}
            if painted.face is None or min(painted.face.size) < self.plan.min_side:
                why = "no face" if painted.face is None else "small"
                samples.append(_sample(key, person, name, {**facts, "rejected": why}))
            else:
                samples.append(_sample(key, person, name, {**facts, "reference": True, **_place(painted)}, painted))
        return samples


class EditPainter(Painter):
    """A person with their faces → samples: the faces, and scored edits for every prompt."""

    def __init__(self, base: str, recogniser: str, clip: str, plan: EditsPlan, brush: Brush) -> None:
        super().__init__(base, brush)
        self.plan = plan
        self.recogniser = load_backbone(recogniser).eval().to(self.device)
        self.clip = ClipScorer.load(clip).to(self.device)

    def __call__(self, unit: dict[str, Any]) -> Samples:
        person, name = unit["index"], unit["name"]
        samples: Samples = []
        vectors = []
        for i, face in enumerate(unit["faces"]):
            image = np.asarray(Image.open(io.BytesIO(face["png"])).convert("RGB"))
            marks = np.asarray(face["landmarks"], np.float64)
            (x0, y0), (x1, y1) = marks.min(0).tolist(), marks.max(0).tolist()
            vectors.append(self._vector(image, DetectedFace((x0, y0, x1, y1), 1.0, marks)))
            facts = {"reference": True, "landmarks": face["landmarks"]}
            samples.append((f"{person:06d}-face-{i}", {"png": face["png"], "json": _json(person, name, facts)}))
        known = F.normalize(torch.stack(vectors).mean(0), dim=0)
        prompts, number = self.plan.prompts, self.plan.number
        seeds = [derive("edit", self.brush.seed, name, prompt, i) for prompt in prompts for i in range(number)]
        every = self.paint([in_words(prompt, name) for prompt in prompts for _ in range(number)], seeds)
        for p, prompt in enumerate(prompts):
            pictures = every[p * number : (p + 1) * number]
            batch = torch.from_numpy(np.stack([x.image for x in pictures])).permute(0, 3, 1, 2).float() / 255
            fits = self.clip(batch.to(self.device), [in_words(prompt)] * len(pictures))
            for i, painted in enumerate(pictures):
                like = None if painted.face is None else float(known @ self._vector(painted.image, painted.face))
                facts = {
                    "reference": False, "prompt": prompt, "seed": painted.seed, "text_score": round(float(fits[i]), 6),
                    "identity_score": None if like is None else round(like, 6), **_place(painted),
                }  # fmt: skip
                samples.append(_sample(f"{person:06d}-{p:02d}-{i:02d}", person, name, facts, painted))
        return samples

    @torch.no_grad()
    def _vector(self, image: np.ndarray, face: DetectedFace) -> torch.Tensor:
        """(D,) of unit length: who the face is."""
        aligned = torch.from_numpy(align_face(image, face).image)[None].to(self.device)
        return F.normalize(self.recogniser(aligned, ())[-1][0].float(), dim=0)


def _resolved(brush: Brush) -> Brush:
    """With the names of device and dtype that `auto` stands for here."""
    device = choose_device(brush.device)
    dtype = str(choose_dtype(brush.dtype, brush.device)).removeprefix("torch.")
    return dataclasses.replace(brush, device=device.type if device.index is None else str(device), dtype=dtype)


def _facts(plan: Any, brush: Brush) -> dict[str, Any]:
    """As they come back from a manifest."""
    return json.loads(json.dumps({**plan.to_dict(), **brush.to_dict()}))


def _digests(folder: str | Path) -> dict[str, str]:
    """sha256 of the weights in a folder and right below it."""
    files = sorted(Path(folder).rglob("*.safetensors"))
    return {str(f.relative_to(folder)): file_sha256(f) for f in files}


def _place(painted: Painted) -> dict[str, Any]:
    if painted.face is None or painted.face.landmarks is None:
        return {}
    return {
        "landmarks": np.round(painted.face.landmarks, 2).tolist(),
        "box": np.round(painted.face.box, 2).tolist(),
    }


def _sample(
    key: str, person: int, name: str, facts: dict[str, Any], painted: Painted | None = None
) -> tuple[str, dict[str, bytes]]:
    files = {} if painted is None else {"png": _png(painted.image)}
    return key, {**files, "json": _json(person, name, facts)}


def _json(person: int, name: str, facts: dict[str, Any]) -> bytes:
    return json.dumps({"identity": name, "person": person, **facts}, ensure_ascii=False).encode()


def _png(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()
