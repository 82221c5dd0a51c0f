"""Is the truth true? Labels and captions of a sample against what its pixels, masks and landmarks show."""

from __future__ import annotations

import cv2
import numpy as np

from limner.world import colors
from limner.world.labels import FIXED_CLOTH
from limner.world.prompts import requirements
from limner.world.render import MASKS
from limner.world.scenes import background
from limner.world.truth import Sample

_LONG = ("long", "wavy")
_SHORT = ("short", "side", "quiff", "fringe", "receding", "bun")


def check(sample: Sample) -> dict[str, bool]:
    """Name of each check that applies to the sample → whether it holds.

    Presence: headwear, eyewear, facial hair, clothes and hair have pixels exactly when the labels say so. Geometry:
    long hair hangs below the chin and short hair does not, the nose points where the pose says, landmarks that count as
    visible lie on the face. Photometry (photos only): the colour of clothes and headwear, the side of the light, the
    scene. Language: everything that the caption and the prompt claim is among the labels.
    """
    said, mask = sample["labels"], sample["mask"]
    share = {name: float((mask == k).mean()) for k, name in enumerate(MASKS)}
    x0, y0, x1, y1 = sample["box"]
    face = max((x1 - x0) * (y1 - y0) / mask.size, 1e-6)
    out = {
        "headwear": _present(share["headwear"], said["headwear"] != "none", 0.06 * face),
        "eyewear": _present(share["eyewear"], said["eyewear"] != "none", 0.004 * face),
        "facial hair": _present(share["facial_hair"], said["facial_hair"] not in ("none", "stubble"), 0.003 * face),
        "box": 0 <= (x0 + x1) / 2 <= mask.shape[1] and 0 <= (y0 + y1) / 2 <= mask.shape[0],
        "caption": _claims(sample["caption"], said),
        "prompt": _claims(sample["prompt"], said),
        "landmarks": _landmarks(sample),
        "pose": _pose(sample),
    }
    if said["clothing"] != "hidden":
        out["clothes"] = share["clothes"] > 0.01
    if said["hair"] == "shaved":
        out["no hair"] = share["hair"] == 0
    elif said["hair"] != "hidden" or said["hair_color"] != "hidden":
        out["hair"] = share["hair"] > 0.03 * face
    if said["hair"] in _LONG + _SHORT and said["headwear"] == "none":
        rows = np.flatnonzero((mask == MASKS.index("hair")).sum(1) > 0.01 * mask.shape[1])
        bottom = float(rows[-1] - y1) / (y1 - y0) if len(rows) else -1.0
        out["hair length"] = bottom > 0.0 if said["hair"] in _LONG else bottom < 0.25
    if said["style"] == "photo":
        out |= _photometry(sample)
    return out


def _present(share: float, expected: bool, least: float) -> bool:
    return share >= least if expected else share == 0


def _claims(text: str, said: dict[str, str]) -> bool:
    return all(said[key] == value for key, value in requirements(text).items())


def _landmarks(sample: Sample) -> bool:
    """Visible landmarks inside the canvas lie on skin, facial hair or eyewear, up to a pixel."""
    mask = sample["mask"]
    n = mask.shape[0]
    face = np.isin(mask, [MASKS.index(k) for k in ("skin", "facial_hair", "eyewear")])
    on = cv2.dilate(face.astype(np.uint8), np.ones((3, 3), np.uint8))
    for (x, y), seen in zip(sample["landmarks"], sample["visible"], strict=True):
        if seen and 0 <= x < n and 0 <= y < n and not on[int(y), int(x)]:
            return False
    return True


def _pose(sample: Sample) -> bool:
    """The nose stands to the side of the eyes' middle that the pose names."""
    left, right, nose = sample["landmarks"][:3]
    roll = np.deg2rad(sample["view"]["roll"])
    across = np.array((np.cos(roll), np.sin(roll)))
    turn = float((nose - (left + right) / 2) @ across) / max(float(np.hypot(*(right - left))), 1e-6)
    pose = sample["labels"]["pose"]
    return {"left": turn < 0, "right": turn > 0, "front": abs(turn) < 0.35}.get(pose, True)


def _photometry(sample: Sample) -> dict[str, bool]:
    """Colours and light of a photo."""
    said, view, mask = sample["labels"], sample["view"], sample["mask"]
    image = (sample["image"] / 255.0) ** 2.2
    out = {}
    plain = said["light_tone"] == "neutral" and said["light_level"] == "normal"
    if plain and said["clothing"] not in (*FIXED_CLOTH, "hidden", "striped", "suit", "robe"):
        out["cloth color"] = _same_hue(image[mask == MASKS.index("clothes")], view["cloth_colors"][0])
    if plain and said["headwear"] in ("cap", "hat", "firefighter"):
        out["headwear color"] = _same_hue(image[mask == MASKS.index("headwear")], view["headwear_color"])
    if said["light_side"] in ("left", "right") and said["pose"] == "front" and said["light_level"] == "normal":
        out["light side"] = _brighter_side(sample, image) == said["light_side"]
    empty = cv2.erode((mask == 0).astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    if empty.sum() > 100:
        scene = background(view["scene"], view["scene_seed"], mask.shape[0])[empty].ravel()
        seen = image[empty].ravel()
        out["scene"] = float(np.abs(np.corrcoef(np.cbrt(scene), np.cbrt(seen))[0, 1])) > 0.97 or seen.std() < 0.02
    return out


def _same_hue(pixels: np.ndarray, color: list[float]) -> bool:
    """Whether the median of lit pixels has the colour's direction in linear RGB, or it is nearly grey as that is."""
    if len(pixels) < 20:
        return True
    bright = pixels[pixels.sum(1) >= np.median(pixels.sum(1))]
    seen, wanted = np.median(bright, 0), np.asarray(color)
    cosine = float(seen @ wanted / (np.linalg.norm(seen) * np.linalg.norm(wanted) + 1e-9))
    return cosine > 0.93 or colors.word(tuple(wanted)) in ("black", "navy", "brown", "grey", "white", "beige")


def _brighter_side(sample: Sample, image: np.ndarray) -> str:
    """Which half of the skin between brow and chin is brighter."""
    x0, _, x1, y1 = (round(v) for v in sample["box"])
    left, right = sample["landmarks"][:2, 0]
    middle = round((left + right) / 2)
    top = max(round(float(sample["landmarks"][:2, 1].mean())), 0)
    skin = sample["mask"] == MASKS.index("skin")

    def level(a: int, b: int) -> float:
        a, b = max(a, 0), max(b, 0)
        part = skin[top : max(y1, 0), a:b]
        return float(image[top : max(y1, 0), a:b].mean(2)[part].mean()) if part.sum() > 10 else 0.0

    return "left" if level(x0, middle) > level(middle, x1) else "right"
