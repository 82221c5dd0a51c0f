"""Do the eyes land where they were asked to be? `python benchmarks/bench_gaze.py MODEL [GAZE_WEIGHTS] [options]`.

Paints N (100) pictures, each of another held-out sitter (split test) in another scene with the eyes at another place,
by the model and the ControlNet in the given folders, finds the face, and measures how far the middle between the eyes
lies from where it was asked, in shares of the canvas' width. A picture without a face is a miss by a whole width.

Prints the share of hits (within 5 %) with a 95 % interval (Wilson), median and 95th percentile, and the same for the
model without the ControlNet; writes a sheet with the place asked (red) and found (green), and the figures as JSON.
Leaves with status 1 when fewer than 95 % hit.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from limner.faces import FaceFinder, align_face
from limner.faces.detect import DetectedFace
from limner.pipelines.gaze import Gaze, add_gaze
from limner.pipelines.loading import load_model
from limner.pipelines.paint import default_dials, paint
from limner.types import Face
from limner.world.dataset import WorldDataset
from limner.world.words import SCENE

NEAR = 0.05
WANTED = 0.95
TILE = 128


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a pipeline, or a name of `limner models`")
    parser.add_argument("gaze", nargs="?", type=Path, help="folder of the ControlNet; default: the model's own")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--detector", default="yunet", help="its file in LIMNER_YUNET; it never took part in training")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    model, finder = load_model(args.model, device=args.device), FaceFinder(args.detector)
    places, people = draw_places(args.draws, args.seed), list(sitters(args.draws, args.seed))
    add_gaze(model, args.gaze)
    args.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"model": model.name, "draws": args.draws, "seed": args.seed, "detector": args.detector}
    for name, steered in (("gaze", True), ("without", False)):
        tiles, off = [], []
        for i, (place, face) in enumerate(zip(places, people, strict=True)):
            image = painted(model, face, i, place if steered else None, args)
            found = eyes(finder, image)
            off.append(distance(place, found, image.size))
            tiles.append(marked(image, place, found))
            print(f"\r{name} {i + 1}/{args.draws}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        report[name] = summary(np.array(off))
        sheet(tiles).save(args.out / f"gaze-{name}.png")
        print(f"{name:8}" + "".join(f"  {k} {v}" for k, v in report[name].items()))
    (args.out / "gaze.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(report["gaze"]["hits"] < WANTED)


def draw_places(count: int, seed: int) -> list[Gaze]:
    """Eyes that leave room for the whole face, as far apart as in usual portraits."""
    random = np.random.default_rng([seed, 1])
    found = []
    for _ in range(count):
        size = random.uniform(0.13, 0.2)
        x, y = random.uniform(1.4 * size, 1 - 1.4 * size), random.uniform(0.3, 0.55)
        found.append(Gaze((x - size / 2, y), (x + size / 2, y)))
    return found


def sitters(count: int, seed: int) -> Any:
    """An aligned face of each of `count` people of the test split, by their true landmarks."""
    for sample in WorldDataset(split="test", identities=count, views=1, seed=seed, size=512):
        yield truly_aligned(sample)


def truly_aligned(sample: dict[str, Any]) -> Face:
    """The face of a sitter's picture as the truth of the world has it."""
    marks, box = np.asarray(sample["landmarks"]), sample["box"]
    return align_face(sample["image"], DetectedFace(tuple(map(float, box)), 1.0, marks))


def painted(model: Any, face: Face, number: int, place: Gaze | None, args: argparse.Namespace) -> Image.Image:
    scenes = [phrases[0] for phrases in SCENE.values()]
    person = "S*" if model.pipe.method.name == "dreamidentity" else "person"
    prompt = f"a photo of {person}, {scenes[number % len(scenes)]}"
    dials = default_dials(model, steps=args.steps, gaze=place.text if place else None)
    identity = model.pipe.method.enroll([face])
    return next(paint(model, identity, [prompt], [args.seed + number], dials)).image


def eyes(finder: FaceFinder, image: Image.Image) -> np.ndarray | None:
    """(2, 2) pixels of the largest face's eyes, or None."""
    faces = [f for f in finder.detector.detect(np.asarray(image.convert("RGB"))) if f.landmarks is not None]
    best = max(faces, key=lambda f: f.area, default=None)
    return None if best is None or best.landmarks is None else best.landmarks[:2]


def distance(place: Gaze, found: np.ndarray | None, size: tuple[int, int]) -> float:
    """From the middle asked to the middle found, in canvas widths; 1 without a face."""
    if found is None:
        return 1.0
    asked = np.array(place.middle) * size
    return float(np.linalg.norm(found.mean(0) - asked)) / size[0]


def summary(off: np.ndarray) -> dict[str, Any]:
    n, hits = len(off), float((off <= NEAR).mean())
    z = 1.96
    middle, half = hits + z * z / (2 * n), z * np.sqrt(hits * (1 - hits) / n + z * z / (4 * n * n))
    low, high = ((middle + s * half) / (1 + z * z / n) for s in (-1, 1))
    return {
        "hits": round(hits, 3), "interval": [round(float(low), 3), round(float(high), 3)], "n": n,
        "median": round(float(np.median(off)), 4), "p95": round(float(np.quantile(off, 0.95)), 4),
        "faceless": int((off >= 1).sum()),
    }  # fmt: skip


def marked(image: Image.Image, place: Gaze, found: np.ndarray | None) -> Image.Image:
    tile = image.convert("RGB").resize((TILE, TILE))
    pen = ImageDraw.Draw(tile)
    asked = np.array([place.left, place.right]) * TILE
    for points, color in ((asked, "red"), (None if found is None else found * TILE / image.size, "lime")):
        for x, y in () if points is None else points:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), outline=color)
    return tile


def sheet(tiles: list[Image.Image], columns: int = 10) -> Image.Image:
    rows = -(-len(tiles) // columns)
    found = Image.new("RGB", (columns * TILE, rows * TILE), "white")
    for i, tile in enumerate(tiles):
        found.paste(tile, (i % columns * TILE, i // columns * TILE))
    return found


if __name__ == "__main__":
    sys.exit(main())
