"""The watermark: how often it is found after JPEG 80 and 0.75× resize, false alarms, PSNR, and seconds.

    python benchmarks/bench_watermark.py [--pictures 200] [--unmarked 1000] [--first 0]

Pictures are sitters (photos and styles), noise of many colours, and gradients, at 128 and at 1024 pixels.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator

import cv2
import numpy as np
from common import machine
from PIL import Image

from limner.watermark import THRESHOLD, detect, embed
from limner.world.identity import sitter
from limner.world.render import render
from limner.world.sampling import sample_view

OTHER_KEYS = 9
KINDS = ("sitters", "noise", "gradients")


def sitter_picture(index: int, size: int) -> np.ndarray:
    """Another sitter in another scene and style for every index."""
    person = sitter(index)
    return np.asarray(render(person, sample_view(person, index), size=size).image)


def noise_picture(index: int, size: int) -> np.ndarray:
    """Noise with a spectrum between white and 1/f²."""
    rng = np.random.default_rng(index)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size
    shaped = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal((3, size, size))) / frequency ** rng.uniform(0, 2), s=(size, size)
    )
    shaped /= shaped.std()
    return np.clip(128 + rng.uniform(10, 50) * shaped, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def gradient_picture(index: int, size: int) -> np.ndarray:
    """A smooth passage from one colour to another, with a disc in a third."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:size, :size] / size
    angle = rng.uniform(0, 2 * np.pi)
    t = np.clip(0.5 + (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle), 0, 1)[..., None]
    a, b, c = rng.uniform(0, 255, (3, 3))
    disc = np.hypot(x - rng.uniform(), y - rng.uniform()) < rng.uniform(0.05, 0.4)
    return np.where(disc[..., None], c, a + (b - a) * t).astype(np.uint8)


def picture(kind: str, index: int, size: int) -> np.ndarray:
    """(size, size, 3) uint8."""
    make = {"sitters": sitter_picture, "noise": noise_picture, "gradients": gradient_picture}[kind]
    return make(index, size)


def worn(marked: np.ndarray) -> np.ndarray:
    """After 0.75× resize and JPEG at quality 80 with halved colour: what a web site does."""
    side = [round(0.75 * s) for s in marked.shape[1::-1]]
    small = cv2.resize(marked, side, interpolation=cv2.INTER_AREA)
    out = io.BytesIO()
    Image.fromarray(small).save(out, "JPEG", quality=80)
    return np.asarray(Image.open(out).convert("RGB"))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """In dB, over all channels."""
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    center, spread = hits + z**2 / 2, z * np.sqrt(hits * (n - hits) / n + z**2 / 4)
    return float(max(0, center - spread) / (n + z**2)), float(min(n + z**2, center + spread) / (n + z**2))


def share(hits: int, n: int) -> str:
    """`hits of n`, in per cent, with the interval."""
    low, high = wilson(hits, n)
    return f"{hits}/{n} = {hits / n:.2%} [{low:.2%}, {high:.2%}]"


def marked_scores(kind: str, size: int, indices: range) -> Iterator[tuple[float, float, float]]:
    """PSNR, score after wear, score as written."""
    for index in indices:
        original = picture(kind, index, size)
        marked = embed(original)
        yield psnr(original, marked), detect(worn(marked)).score, detect(marked).score


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=200, help="marked pictures of each kind and size")
    parser.add_argument("--unmarked", type=int, default=1000, help="unmarked pictures of each kind at 128 px")
    parser.add_argument("--first", type=int, default=0, help="another one for pictures that were never looked at")
    args = parser.parse_args()
    print(machine())
    for size in (128, 1024):
        n = args.pictures if size == 128 else max(args.pictures // 8, 4)
        for kind in KINDS:
            scores = marked_scores(kind, size, range(args.first, args.first + n))
            quality, after, before = map(np.asarray, zip(*scores, strict=True))
            hits = int((after >= THRESHOLD).sum())
            print(
                f"{size:5d} px {kind:9s} found {share(hits, n)}, worst score {after.min():.1f} worn, "
                f"{before.min():.1f} fresh; PSNR {quality.min():.1f} to {quality.max():.1f} dB"
            )
    for size, n in ((128, args.unmarked), (1024, max(args.unmarked // 16, 4))):
        for kind in KINDS:
            worn_pictures = [worn(picture(kind, 10**6 + args.first + i, size)) for i in range(n)]
            own = np.asarray([detect(p).score for p in worn_pictures])
            keys = [b"other %d" % k for k in range(OTHER_KEYS)]
            others = np.asarray([detect(p, key).score for key in keys for p in worn_pictures])
            of_own, of_others = (share(int((x >= THRESHOLD).sum()), len(x)) for x in (own, others))
            print(
                f"{size:5d} px {kind:9s} false alarms {of_own}, with {OTHER_KEYS} other keys {of_others}; "
                f"highest score {own.max():.2f} and {others.max():.2f}"
            )
    for size in (128, 1024):
        original = picture("noise", 0, size)
        start = time.perf_counter()
        marked = embed(original)
        middle = time.perf_counter()
        detect(marked)
        print(
            f"{size:5d} px embed {1e3 * (middle - start):.0f} ms, detect {1e3 * (time.perf_counter() - middle):.0f} ms"
        )


if __name__ == "__main__":
    main()
