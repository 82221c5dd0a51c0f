"""Feeds damaged and hostile files to the way in, in a process of its own; prints what came of it as JSON.

    python fuzz_driver.py YUNET COUNT SEED

Per file: only a picture or a typed error may come; anything else is reported with the file's kind.
"""

from __future__ import annotations

import collections
import io
import json
import random
import resource
import struct
import sys
import time
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from limner.errors import LimnerError
from limner.faces import FaceFinder, load_image

KINDS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM")


def seeds() -> dict[str, bytes]:
    """Sound files of every kind, with and without compression, palettes, frames and metadata."""
    from skimage.data import astronaut

    picture = Image.fromarray(astronaut()).resize((144, 144))
    exif = Image.Exif()
    exif[0x0112] = 6

    def encode(source: Image.Image, kind: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        source.save(buffer, kind, **options)
        return buffer.getvalue()

    Image.init()
    files = {kind: encode(picture, kind) for kind in KINDS if kind in Image.SAVE}  # old Pillows know no AVIF
    files |= {
        f"TIFF {name}": encode(picture, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")
    }
    files["JPEG progressive, turned"] = encode(picture, "JPEG", progressive=True, exif=exif)
    files["PNG palette"] = encode(picture.convert("P"), "PNG", transparency=0)
    files["PNG grey 16"] = cv2.imencode(".png", np.asarray(picture)[..., 0].astype(np.uint16) * 257)[1].tobytes()
    files["JPEG cmyk"] = encode(picture.convert("CMYK"), "JPEG")
    for kind in ("GIF", "WEBP"):
        files[f"{kind} animated"] = encode(picture, kind, save_all=True, append_images=[picture.rotate(9)])
    return files


def damaged(files: dict[str, bytes], rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Truncated, overwritten, shortened and interrupted files, and noise behind a sound beginning."""
    for _ in range(count):
        kind = rng.choice(sorted(files))
        data = bytearray(files[kind])
        how = rng.choice(("cut", "flip", "header", "drop", "insert", "noise"))
        if how == "cut":
            data = data[: rng.randrange(len(data))]
        elif how == "flip":
            for _ in range(rng.randrange(1, 20)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif how == "header":
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(min(64, len(data)))] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
        elif how == "drop":
            start, end = sorted(rng.randrange(len(data)) for _ in range(2))
            del data[start:end]
        elif how == "insert":
            where = rng.randrange(len(data))
            data[where:where] = rng.randbytes(rng.randrange(1, 200))
        else:
            data = data[: rng.randrange(4, 40)] + rng.randbytes(rng.randrange(400))
        yield f"{kind}: {how}", bytes(data)


def hostile() -> Iterator[tuple[str, bytes]]:
    """Headers that promise enormous pictures, files that unpack to them, and files that are something else."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    def png(width: int, height: int, body: bytes, depth: int = 8, color: int = 2) -> bytes:
        head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")

    for width, height in (
        (2**31 - 1, 2**31 - 1),
        (100_000, 100_000),
        (2**31 - 1, 1),
        (60_000, 1_000),
        (0, 0),
        (7_000, 7_000),
    ):
        yield f"PNG {width} × {height}", png(width, height, zlib.compress(b"\0" * 1000))
    yield "PNG bomb within the limit", png(7_000, 7_000, zlib.compress(b"\0" * (7_000 * (1 + 7_000 * 3))))
    yield "PNG bomb beyond it", png(20_000, 20_000, zlib.compress(b"\0" * 10_000_000), color=0)
    yield "PNG one row", png(50_000_000, 1, zlib.compress(b"\0" * 50_000_001), color=0)
    yield "GIF 65535²", b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\xf7\0\0" + b"\0" * 800
    yield (
        "BMP huge",
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 60, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0) + b"\0" * 9,
    )
    yield "PPM huge", b"P6 60000 60000 255\n" + b"\0" * 99
    yield "PPM endless number", b"P6 " + b"9" * 5000 + b" 1 255\n"
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 65500, 65500, 3) + bytes((1, 17, 0, 2, 17, 0, 3, 17, 0))
    yield "JPEG 65500²", b"\xff\xd8" + frame + b"\xff\xd9"
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, 7000, 7000, 3) + bytes((1, 17, 0, 2, 17, 0, 3, 17, 0))
    scan = b"\xff\xda" + struct.pack(">HB", 12, 3) + bytes((1, 0, 2, 0, 3, 0, 0, 0, 0))
    yield "JPEG of a thousand scans", b"\xff\xd8" + frame + scan * 1000 + b"\xff\xd9"
    body = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xfe\x3f\0" * 2
    yield "WebP 16383²", b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    tags = [
        (256, 4, 10**6),
        (257, 4, 10**6),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (278, 4, 10**6),
        (279, 4, 8),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    yield "TIFF 10⁶ × 10⁶", b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    loop = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8)
    yield "TIFF that points at itself", loop
    yield "empty", b""
    yield "text", b"#!/bin/sh\necho hello\n"
    yield "zip", b"PK\x03\x04" + b"\0" * 64
    yield "zeros", b"\0" * 100_000
    yield "EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n"


def main() -> None:
    weights, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    finder = FaceFinder("yunet", weights=weights)
    finder.detector.detect(np.zeros((64, 64, 3), np.uint8))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = random.Random(seed)
    noise = (("noise", rng.randbytes(rng.randrange(1, 5000))) for _ in range(40))
    outcomes: collections.Counter[str] = collections.Counter()
    wrong, slowest = [], (0.0, "")
    for cases in (hostile(), noise, damaged(seeds(), rng, count)):
        for number, (kind, data) in enumerate(cases):
            began = time.perf_counter()
            try:
                image = load_image(data)
                assert image.dtype == np.uint8
                assert image.ndim == 3
                if number % 10 == 0:
                    finder.find(image)
                outcomes["read"] += 1
            except LimnerError as e:
                outcomes[type(e).__name__] += 1
            except BaseException as e:
                wrong.append(f"{kind}: {e!r}")
            slowest = max(slowest, (time.perf_counter() - began, kind))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
    print(json.dumps({"outcomes": outcomes, "wrong": wrong, "slowest": slowest, "peak_mb": peak / 1024}))


if __name__ == "__main__":
    main()
