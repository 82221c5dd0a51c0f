"""How long it takes to find and align the face in photos of 1, 12 and 50 megapixels, and how much memory.

    python benchmarks/bench_faces.py [--repeats 9] [--threads 2] [--weights YUNET.onnx]

The photo is scikit-image's astronaut, enlarged, with the grain of a camera; its face is a sixth as wide as the photo.
Per size, in a process of its own:

- read: a JPEG file of quality 90 to upright RGB;
- find: YuNet at three scales and a second look at each face;
- align: the crop at 448, pose and quality;
- find + align is what must stay under 150 ms at 12 megapixels on 2 cores. `cpu` is its time over all cores, which
  depends less on what else the machine does;
- peak: the most memory the process held, and of that what it held before the photo came.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys

from common import best_of, machine, peak_memory

SIZES = ((1200, 900), (4000, 3000), (8160, 6120))
LIMIT = 150.0
WIDTHS = (8, 9, 9, 9, 15, 9, 9, 18)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", help="local copy of YuNet's ONNX file (or set LIMNER_YUNET)")
    parser.add_argument("--size", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.size:
        print(json.dumps(measure(args.size[0], args.size[1], args.repeats, args.threads, args.weights)))
        return
    print(f"Faces: {machine()}, {args.threads} threads, best of {args.repeats}")
    heads = zip(
        ("photo", "read", "find", "align", "find + align", "cpu", "per MP", "peak (before)"), WIDTHS, strict=True
    )
    print("".join(f"{head:>{width}}" for head, width in heads))
    for width, height in SIZES:
        row = _in_own_process(width, height)
        if row is None:
            return
        megapixels, both = width * height / 1e6, row["find"] + row["align"]
        print(
            f"{megapixels:5.0f} MP{row['read']:6.0f} ms{row['find']:6.0f} ms{row['align']:6.0f} ms{both:12.0f} ms"
            f"{row['cpu']:6.0f} ms{both / megapixels:6.1f} ms{row['peak']:9.0f} ({row['before']:.0f}) MB"
        )
        if megapixels == 12:
            print(f"         {'within' if both < LIMIT else 'NOT within'} the limit of {LIMIT:.0f} ms")


def measure(width: int, height: int, repeats: int, threads: int, weights: str | None) -> dict[str, float]:
    """Milliseconds and megabytes for one size."""
    import cv2

    from limner.errors import WeightsUnavailable
    from limner.faces import FaceFinder, align_face, load_image

    cv2.setNumThreads(threads)
    finder = FaceFinder("yunet", weights=weights)
    try:
        detector = finder.detector
    except WeightsUnavailable as e:
        sys.exit(f"Skipped: {e}")
    data = photo(width, height)
    before = peak_memory()
    image = load_image(data)
    read = best_of(lambda: load_image(data), 3)
    (face,) = detector.detect(image)
    find = best_of(lambda: detector.detect(image), repeats)
    align = best_of(lambda: align_face(image, face), repeats)
    return {
        "read": read.wall, "find": find.wall, "align": align.wall, "cpu": find.cpu + align.cpu,
        "before": before, "peak": peak_memory(),
    }  # fmt: skip


def photo(width: int, height: int) -> bytes:
    """A JPEG file; made in another process, whose memory is not counted."""
    code = "import sys; from bench_faces import draw; sys.stdout.buffer.write(draw(int(sys.argv[1]), int(sys.argv[2])))"
    command = [sys.executable, "-c", code, str(width), str(height)]
    return subprocess.run(command, capture_output=True, check=True, cwd=sys.path[0]).stdout


def draw(width: int, height: int) -> bytes:
    """The enlarged astronaut with grain, as JPEG."""
    import cv2
    import numpy as np
    from PIL import Image
    from skimage.data import astronaut

    upper = astronaut()[: 512 * height // width]
    picture = cv2.resize(upper, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    picture += np.random.default_rng(0).integers(-6, 7, (height, width, 1), dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _in_own_process(width: int, height: int) -> dict[str, float] | None:
    command = [sys.executable, __file__, *sys.argv[1:], "--size", str(width), str(height)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1])
        return None
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
