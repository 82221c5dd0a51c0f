"""Does a face detector agree with the truth? `python benchmarks/check_world_faces.py [N] [SIZE] [DETECTOR]`

Runs `limner.faces` with DETECTOR (yunet, its file in LIMNER_YUNET) over N (500) pictures of the test split, SIZE (128)
pixels wide, in all styles. Prints in how many exactly one face is found, how far its landmarks lie from the truth, as
a share of the face's width, over landmarks that nothing covers, and the time a picture takes; leaves with status 1
when fewer than 99 % of the pictures with |yaw| ≤ 45° have one face, or the mean distance there exceeds 4 %.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict

import numpy as np

from limner.errors import NoFaceFound
from limner.faces.finder import FaceFinder
from limner.world.dataset import WorldDataset

FOUND, APART = 0.99, 0.04


def main(pictures: int = 500, size: int = 128, detector: str = "yunet") -> int:
    finder = FaceFinder(detector)
    took = []
    one: dict[str, list[bool]] = defaultdict(list)
    apart: dict[str, list[float]] = defaultdict(list)
    for sample in WorldDataset(split="test", identities=pictures, views=1, seed=5, size=size):
        view, visible, box = sample["view"], sample["visible"], sample["box"]
        start = time.perf_counter()
        try:
            faces = finder.find(sample["image"]).detected
        except NoFaceFound:
            faces = ()
        took.append(time.perf_counter() - start)
        turned = "yaw <= 45" if abs(view["yaw"]) <= 45 else "yaw > 45"
        groups = [turned] + ([f"style {view['style']}", f"eyewear {view['eyewear']}"] if turned == "yaw <= 45" else [])
        for group in groups:
            one[group].append(len(faces) == 1)
        if len(faces) == 1 and visible.any():
            off = np.linalg.norm(faces[0].landmarks - sample["landmarks"], axis=1)[visible]
            for group in groups:
                apart[group].append(float(off.mean()) / (box[2] - box[0]))
    print(f"{'group':20s} {'n':>5s} {'one face':>9s} {'apart (share of face width)':>28s}")
    for group in sorted(one):
        mean = np.mean(apart[group]) if apart[group] else float("nan")
        half = 1.96 * np.std(apart[group]) / max(len(apart[group]), 1) ** 0.5
        print(f"{group:20s} {len(one[group]):5d} {np.mean(one[group]):9.2%} {mean:20.2%} ± {half:.2%}")
    print(f"{1000 * np.median(took):.0f} ms a picture")
    return int(np.mean(one["yaw <= 45"]) < FOUND or np.mean(apart["yaw <= 45"]) > APART)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3]), *sys.argv[3:4]))
