"""Where a face lies → the same face upright at a fixed size and place, and back again.

All transforms are 2 × 3 similarities from source pixels to aligned pixels. Coordinates have their origin at the corner
of the top-left pixel (`limner.types`), so that one template serves every size: the crop at 448, averaged over 4 × 4
pixels, is the crop at 112.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from limner.errors import FaceError
from limner.types import Face

ARCFACE_112: Final = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""(5, 2) landmarks in a crop of 112 pixels, pixel centres at integers (Deng et al., ArcFace, CVPR 2019)."""

HEAD_ZOOM: Final = 0.5
"""A head crop shows twice the width of an ArcFace crop: hair, ears, chin and some shoulder."""
_HEAD_SHIFT: Final = 0.02  # ArcFace crops sit low on the head; in shares of the crop's side

BOX_CENTER: Final = (0.500, 0.584)
BOX_SIZE: Final = (0.734, 0.948)
"""Where the box of a face lies in its ArcFace crop, in shares of the side: YuNet's mean over seven photos."""


def template(size: int, zoom: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """(5, 2) places of `LANDMARKS` in a crop of `size` pixels.

    Args:
        size: side of the crop in pixels.
        zoom: 1 is the ArcFace crop; 0.5 shows twice the width around the same centre.
        shift: moves the face down by this share of the side.
    """
    unit = (ARCFACE_112 + 0.5) / 112
    return ((unit - 0.5) * zoom + (0.5, 0.5 + shift)) * size


def head_template(size: int) -> np.ndarray:
    """`template` of the looser crop that shows the whole head."""
    return template(size, HEAD_ZOOM, _HEAD_SHIFT)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares similarity that takes `source` to `target`, both (N, 2).

    Umeyama (TPAMI 1991) without reflection; in the plane its solution is one complex number: with centred points as
    complex s and t, rotation and scale are Σ s̄t / Σ|s|².

    Raises:
        FaceError: the source points coincide.
    """
    s, t = (np.asarray(p, np.float64) @ (1, 1j) for p in (source, target))
    spread = float(np.sum(np.abs(s - s.mean()) ** 2))
    if not np.isfinite(spread) or spread < 1e-12:
        raise FaceError("Landmarks of one face must be apart; got coinciding or endless ones.")
    turn = np.sum(np.conj(s - s.mean()) * (t - t.mean())) / spread
    move = t.mean() - turn * s.mean()
    return np.array([[turn.real, -turn.imag, move.real], [turn.imag, turn.real, move.imag]])


def box_similarity(box: tuple[float, float, float, float], size: int, zoom: float = 1.0) -> np.ndarray:
    """Alignment without landmarks: the box goes where the box of an aligned face usually is; no rotation.

    Raises:
        FaceError: the box has no area.
    """
    x0, y0, x1, y1 = box
    if not (x1 > x0 and y1 > y0):
        raise FaceError(f"A face box (x0, y0, x1, y1) with area is expected; got {box}.")
    scale = BOX_SIZE[1] * zoom * size / (y1 - y0)
    center = ((np.array(BOX_CENTER) - 0.5) * zoom + 0.5) * size
    move = center - scale * np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    return np.array([[scale, 0, move[0]], [0, scale, move[1]]])


def usual_box(size: int, zoom: float = 1.0) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) of the box of an aligned face in a crop of `size` pixels."""
    center, half = (np.array(BOX_CENTER) - 0.5) * zoom + 0.5, np.array(BOX_SIZE) * zoom / 2
    x0, y0, x1, y1 = (size * np.hstack([center - half, center + half])).tolist()
    return x0, y0, x1, y1


def invert(matrix: np.ndarray) -> np.ndarray:
    """The 2 × 3 inverse of a 2 × 3 transform."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.hstack([linear, -linear @ matrix[:, 2:]])


def transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(N, 2) points taken through a 2 × 3 transform."""
    return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def scale_of(matrix: np.ndarray) -> float:
    """Aligned pixels per source pixel."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))


def warp(image: np.ndarray, matrix: np.ndarray, size: int, *, extend: bool = False) -> np.ndarray:
    """The (size, size, 3) uint8 crop that `matrix` describes.

    Where there is no picture it is black, as in the crops that recognisers were trained on, or with `extend` as the
    picture's border.

    Only the part of the picture that is seen is touched, and it is halved first where the crop is much smaller than
    the source, so that nothing aliases.
    """
    import cv2

    height, width = image.shape[:2]
    corners = transform(np.array([[0, 0], [size, 0], [0, size], [size, size]], float), invert(matrix))
    low = np.clip(np.floor(corners.min(0)) - 4, 0, (width, height)).astype(int)
    high = np.clip(np.ceil(corners.max(0)) + 4, 0, (width, height)).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    if 0 in part.shape:
        return np.zeros((size, size, 3), np.uint8)
    matrix = np.hstack([matrix[:, :2], matrix[:, 2:] + matrix[:, :2] @ low[:, None]])
    scale = scale_of(matrix)
    part, factor = halved(part, scale)
    matrix = np.hstack([matrix[:, :2] * factor, matrix[:, 2:]])
    half = np.array([[0.5], [0.5]])  # OpenCV counts from pixel centres
    centered = np.hstack([matrix[:, :2], matrix[:, 2:] + matrix[:, :2] @ half - half])
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR
    border = cv2.BORDER_REPLICATE if extend else cv2.BORDER_CONSTANT
    return cv2.warpAffine(part, centered, (size, size), flags=how, borderMode=border)


def halved(image: np.ndarray, scale: float) -> tuple[np.ndarray, int]:
    """The picture averaged over 2 × 2 pixels as often as it stays at `scale` of its size or larger.

    OpenCV averages exact 2 × 2 blocks ten times faster than any other area; what is left to shrink, a factor under two,
    bilinear interpolation does without aliasing to speak of.

    Returns:
        the picture, and how many source pixels one of its pixels is wide.
    """
    import cv2

    factor = 1
    while 2 * factor * scale <= 1 and min(image.shape[:2]) >= 2:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        image = cv2.resize(image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
        factor *= 2
    return image, factor


def put_back(image: np.ndarray, patch: np.ndarray, matrix: np.ndarray, *, feather: float = 0.1) -> np.ndarray:
    """Lays an aligned patch back where it came from.

    Args:
        image: (H, W, 3) uint8 source picture; left as it is.
        patch: (S, S, 3) uint8 aligned picture, perhaps repainted.
        matrix: the alignment that made it (`Face.matrix`, for S = 448).
        feather: width of the soft border in shares of the patch's side.

    Returns:
        (H, W, 3) uint8.
    """
    import cv2

    size = patch.shape[0]
    height, width = image.shape[:2]
    inverse = invert(matrix)
    corners = transform(np.array([[0, 0], [size, 0], [0, size], [size, size]], float), inverse)
    low = np.clip(np.floor(corners.min(0)) - 1, 0, (width, height)).astype(int)
    high = np.clip(np.ceil(corners.max(0)) + 1, 0, (width, height)).astype(int)
    w, h = (int(v) for v in high - low)
    result = image.copy()
    if w < 1 or h < 1:
        return result
    patch, factor = halved(patch, 1 / scale_of(matrix))
    inverse = np.hstack([inverse[:, :2] * factor, inverse[:, 2:]])
    size = patch.shape[0]
    half = np.array([[0.5], [0.5]])
    centered = np.hstack([inverse[:, :2], inverse[:, 2:] - low[:, None] + inverse[:, :2] @ half - half])
    steps = np.clip((np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5) / max(feather * size, 0.5), 0, 1)
    soft = np.minimum.outer(steps, steps).astype(np.float32)
    mask = cv2.warpAffine(soft, centered, (w, h), flags=cv2.INTER_LINEAR)[..., None]
    color = cv2.warpAffine(patch, centered, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    part = result[low[1] : high[1], low[0] : high[0]]
    part[:] = np.round(part * (1 - mask) + color * mask).astype(np.uint8)
    return result


def head_matrix(
    box: tuple[float, float, float, float], landmarks: np.ndarray | None, size: int, zoom: float = 1.0
) -> np.ndarray:
    """The 2 × 3 transform from source pixels to an upright crop of the whole head, `size` pixels a side.

    Args:
        box, landmarks: of a face; without landmarks the crop is placed by the box.
        zoom: how many times larger the head is than usual, in the same middle.
    """
    if landmarks is not None:
        matrix = similarity(landmarks, head_template(size))
    else:
        matrix = box_similarity(box, size, HEAD_ZOOM)
        matrix[1, 2] += _HEAD_SHIFT * size
    matrix *= zoom
    matrix[:, 2] += (1 - zoom) * size / 2
    return matrix


def head_crop(image: np.ndarray, face: Face, size: int = 448) -> tuple[np.ndarray, np.ndarray]:
    """The whole head, upright: a (size, size, 3) uint8 crop and the 2 × 3 transform that made it (`head_matrix`).

    Args:
        image: the picture that the face was found in.
        face: of any detector; without landmarks the crop is placed by the box.
    """
    matrix = head_matrix(face.box, face.landmarks, size)
    return warp(image, matrix, size), matrix
