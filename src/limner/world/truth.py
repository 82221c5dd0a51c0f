"""One picture with everything that is known about it: as a dict in memory, as files in a shard."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np

from limner.errors import CorruptData
from limner.world.captions import caption, labels
from limner.world.names import name_of
from limner.world.render import Picture
from limner.world.seeds import derive

DEPTH_STEP = 0.002
"""Head units to a step of the 16-bit depth; 0 is the background, and what is farther than 65,535 steps is clipped."""
Sample = dict[str, Any]
"""What `WorldDataset` and `read_shards` yield:

    key         str, unique in its data set; sorts in order
    image       (H, W, 3) uint8 RGB
    mask        (H, W) uint8, indices into `limner.world.render.MASKS`
    depth       (H, W) float32 distance from the camera in head units, inf for the background
    landmarks   (5, 2) float64 pixels, in the order of `limner.types.LANDMARKS`
    visible     (5,) bool
    box         (4,) float64: x0, y0, x1, y1 of the face in pixels
    seed        int, the sitter's number
    digest      str, sha256 of the identity vector
    vector      (D,) float32 identity vector
    name        str, the sitter's invented name, or ""
    view        dict, every factor of `limner.world.factors.View`
    labels      dict of str, see `limner.world.labels.labels`
    caption     str, says who by name or description
    prompt      str, another sentence about the same picture that calls the person S*
"""
_ARRAYS = ("image", "mask", "depth")


def sample_of(picture: Picture, key: str, seed: int) -> Sample:
    """The sample of a rendered picture; `seed` chooses the phrasing of its sentences."""
    sitter, view = picture.sitter, picture.view
    name = name_of(sitter.seed)
    steps = np.where(np.isfinite(picture.depth), np.clip(np.round(picture.depth / DEPTH_STEP), 1, 65535), 0)
    return {
        "key": key,
        "image": picture.image,
        "mask": picture.mask,
        "depth": _depth(steps.astype(np.uint16)),
        "landmarks": np.round(picture.landmarks, 3),
        "visible": np.asarray(picture.visible, bool),
        "box": np.round(np.asarray(picture.box, np.float64), 3),
        "seed": sitter.seed,
        "digest": sitter.digest(),
        "vector": sitter.vector,
        "name": name or "",
        "view": view.to_dict(),
        "labels": labels(sitter, view),
        "caption": caption(sitter, view, derive("caption", seed), name),
        "prompt": caption(sitter, view, derive("prompt", seed), "S*"),
    }


def encode(sample: Sample) -> dict[str, bytes]:
    """Files of a sample by their extension; `decode` gives the equal sample back."""
    depth = sample["depth"]
    steps = np.where(np.isfinite(depth), np.round(depth / np.float32(DEPTH_STEP)), 0).astype(np.uint16)
    facts = {k: v for k, v in sample.items() if k not in _ARRAYS}
    for k in ("landmarks", "visible", "box"):
        facts[k] = facts[k].tolist()
    facts["vector"] = [float(str(v)) for v in sample["vector"]]
    return {
        "png": _png(sample["image"][..., ::-1]),
        "mask.png": _png(sample["mask"]),
        "depth.png": _png(steps),
        "json": json.dumps(facts, separators=(",", ":")).encode(),
    }


def decode(files: dict[str, bytes]) -> Sample:
    """The sample of its files.

    Raises:
        CorruptData: a file is absent or damaged.
    """
    try:
        facts = json.loads(files["json"])
        image, mask, steps = (_read(files[k]) for k in ("png", "mask.png", "depth.png"))
        return {
            **facts,
            "image": np.ascontiguousarray(image[..., ::-1]),
            "mask": mask,
            "depth": _depth(steps),
            "landmarks": np.asarray(facts["landmarks"], np.float64),
            "visible": np.asarray(facts["visible"], bool),
            "box": np.asarray(facts["box"], np.float64),
            "vector": np.asarray(facts["vector"], np.float32),
        }
    except (KeyError, TypeError, ValueError) as e:
        raise CorruptData(f"A sample of the shard is damaged ({e}).", "Build the data set again.") from e


def _depth(steps: np.ndarray) -> np.ndarray:
    return np.where(steps > 0, steps * np.float32(DEPTH_STEP), np.float32(np.inf)).astype(np.float32)


def _png(array: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".png", array, (cv2.IMWRITE_PNG_COMPRESSION, 4))
    if not ok:
        raise CorruptData(f"An array of shape {array.shape} cannot be written as PNG.")
    return bytes(data)


def _read(data: bytes) -> np.ndarray:
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if array is None:
        raise ValueError("a PNG that cannot be read")
    return np.asarray(array)
