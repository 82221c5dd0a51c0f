"""How fast sitters are rendered: `python benchmarks/bench_world.py [SECONDS] [WORKERS]`.

Prints images a second with WORKERS (2) processes for photos at 64 to 512 pixels, for each style at 128, for what a
build does (all styles, truth, encoding), milliseconds of scenes alone, the wait for the first picture of a fresh
process, and how memory grows. Each rate is measured for SECONDS (4) after a warm-up, all processes at once.
"""

from __future__ import annotations

import multiprocessing
import resource
import subprocess
import sys
import time
from typing import Any

STYLED_GOAL, PHOTO_GOAL = 40, 80
SIZES = (64, 128, 256, 512)


def work(job: tuple[str, int, float, int]) -> tuple[int, float, int]:
    """Pictures made, seconds taken, and growth of memory in KiB in one process."""
    import cv2

    cv2.setNumThreads(1)
    from limner.world.dataset import WorldDataset
    from limner.world.identity import sitter
    from limner.world.render import render
    from limner.world.sampling import sample_view
    from limner.world.truth import encode

    style, size, seconds, worker = job
    people = [sitter(100 * worker + k) for k in range(16)]
    fixed = {} if style == "mixed" else {"style": style}
    data = WorldDataset(split="train", identities=1000, views=8, size=size, seed=worker) if style == "build" else None

    def make(k: int) -> Any:
        if data is not None:
            return encode(data[k])
        return render(people[k % 16], sample_view(people[k % 16], 1000 * worker + k, **fixed), size)

    for k in range(6):
        make(k)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        make(done + 6)
        done += 1
    return done, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def rate(pool: Any, workers: int, style: str, size: int, seconds: float) -> tuple[float, int]:
    """Images a second of all workers together, and the most that one's memory grew."""
    parts = pool.map(work, [(style, size, seconds, w) for w in range(workers)], chunksize=1)
    return sum(n / t for n, t, _ in parts), max(m for _, _, m in parts)


def main(seconds: float = 4.0, workers: int = 2) -> None:
    from limner.world.factors import SCENES, STYLES
    from limner.world.scenes import background

    code = (
        "from limner.world.identity import sitter; from limner.world.render import render; "
        "from limner.world.sampling import sample_view; s = sitter(1); render(s, sample_view(s, 1), 128)"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    print(f"first picture of a fresh process, interpreter included: {time.perf_counter() - start:.2f} s")
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        rate(pool, workers, "photo", 128, 0.1)
        for size in SIZES:
            found, grown = rate(pool, workers, "photo", size, seconds)
            goal = f"  (goal {PHOTO_GOAL})" if size == 128 else ""
            print(f"photo        {size:4d} px  {found:7.1f} images/s{goal}  memory +{grown / 1024:.1f} MiB")
        for style in STYLES[1:]:
            found, _ = rate(pool, workers, style, 128, seconds / 2)
            print(f"{style:12s}  128 px  {found:7.1f} images/s  (goal {STYLED_GOAL})")
        for kind in ("mixed", "build"):
            found, grown = rate(pool, workers, kind, 128, seconds)
            print(f"{kind:12s}  128 px  {found:7.1f} images/s  memory +{grown / 1024:.1f} MiB")
    for scene in SCENES:
        start = time.perf_counter()
        for k in range(40):
            background(scene, k, 128)
        print(f"scene {scene:10s} {(time.perf_counter() - start) / 40 * 1e3:5.2f} ms")


if __name__ == "__main__":
    main(*(float(a) for a in sys.argv[1:2]), *(int(a) for a in sys.argv[2:3]))
