"""Buckets: pictures of many shapes, sorted to a few sizes that can be batched."""

from __future__ import annotations

import numpy as np


def bucket_of(shapes: np.ndarray, sizes: tuple[tuple[int, int], ...]) -> np.ndarray:
    """For pictures of shapes (N,2), height and width: the index of the size nearest in aspect ratio, (N,) int64.

    Nearness is measured on the logarithm of the ratio, so that 2:1 and 1:2 are equally far from square (NovelAI's
    aspect ratio bucketing, as SDXL uses it: arXiv 2307.01952, Section 2.3).
    """
    ratios = np.log(shapes[:, 0] / shapes[:, 1])
    wanted = np.log([h / w for h, w in sizes])
    return np.abs(ratios[:, None] - wanted[None]).argmin(1)
