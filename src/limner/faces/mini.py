"""Limner's own face detector: half a megabyte of convolutions, trained on the sitters, shipped in the package.

It makes the mini world need no download. It knows sitters, not people: for photos of people there is YuNet.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import limner
from limner.config import Config
from limner.encoders.checkpoint import fill_part, load_part, save_part
from limner.faces.align import invert, similarity, template, transform, usual_box
from limner.faces.detect import DetectedFace, FaceDetector

STRIDE: Final = 8
"""Pixels between the places at which the network says whether a face has its centre there."""
REACH: Final = 32.0
"""Pixels that an offset of 1 stands for."""
RARE: Final = 5.0
"""Nearly all places hold no face: what an untrained network should say."""
FILE: Final = "detector.safetensors"
METADATA: Final = "limner.detector"
_MIN_SCORE: Final = 0.4


@dataclass(frozen=True)
class MiniDetectorConfig(Config):
    """Sizes of the network: channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the picture's size, multiples of 8."""

    widths: tuple[int, int, int, int, int] = (16, 32, 48, 96, 96)

    def validate(self) -> None:
        self.check(min(self.widths) >= 8 and all(w % 8 == 0 for w in self.widths), "widths", "multiples of 8")


class LandmarkNet(nn.Module):
    """Faces as centres with five landmarks (Zhou et al., Objects as Points, arXiv 1904.07850), on one level of 1/8."""

    def __init__(self, config: MiniDetectorConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c, d, e = config.widths
        self.stem = nn.Sequential(_conv(3, a, 2), _conv(a, b, 2), _conv(b, c, 2), _Residual(c))
        self.middle = nn.Sequential(_conv(c, d, 2), _Residual(d))
        self.deep = nn.Sequential(_conv(d, e, 2), _Residual(e), _Residual(e))
        self.from_deep, self.join_middle = nn.Conv2d(e, d, 1), _Residual(d)
        self.from_middle, self.join = nn.Conv2d(d, c, 1), _Residual(c)
        last = nn.Conv2d(c, 11, 1)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.head = nn.Sequential(_conv(c, c, 1), last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B,3,H,W) in [0, 1], sides multiples of 32 → logits (B,H/8,W/8) of a face centred there, and its landmarks
        (B,H/8,W/8,5,2) in pixels."""
        fine = self.stem(images * 2 - 1)
        middle = self.middle(fine)
        deep = self.deep(middle)
        middle = self.join_middle(middle + F.interpolate(self.from_deep(deep), scale_factor=2.0))
        fine = self.join(fine + F.interpolate(self.from_middle(middle), scale_factor=2.0))
        said = self.head(fine).float().permute(0, 2, 3, 1)
        return said[..., 0] - RARE, said[..., 1:].unflatten(-1, (5, 2)) * REACH + cells(said.shape[1:3], said.device)

    def save(self, folder: Path) -> None:
        """Writes detector.safetensors into a folder."""
        save_part(folder / FILE, self, self.config.to_dict(), METADATA)

    @classmethod
    def load(cls, folder: Path) -> LandmarkNet:
        """What `save` wrote, in float32 and evaluation mode.

        Raises:
            WeightsUnavailable: not there.
            CorruptData, WeightsMismatch: damaged, or of another shape than its config says.
        """
        values, state = load_part(folder / FILE, METADATA)
        net = fill_part(cls(MiniDetectorConfig.from_dict(values)), state, folder / FILE)
        return net.float().requires_grad_(False)


class MiniDetector(FaceDetector):
    """Sitters of about 20 pixels and more, with landmarks; a few milliseconds on a CPU.

    Args:
        net: trained.
    """

    name = "mini"
    license = "Apache-2.0"
    levels = (128, 256)
    last_level = 640
    look_sizes = (96, 96)

    def __init__(self, net: LandmarkNet) -> None:
        self._net = net
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path | None = None) -> MiniDetector:
        """From a folder that training wrote; by default the packaged one. Raises what `LandmarkNet.load` raises."""
        packaged = Path(limner.__file__).parent / "weights" / "mini-detector"
        return cls(LandmarkNet.load(Path(folder) if folder else packaged))

    def scan(self, image: np.ndarray) -> list[DetectedFace]:
        """See `FaceDetector.scan`."""
        height, width = image.shape[:2]
        # A copy: numpy calls a turned picture one pixel wide contiguous, although its strides are negative.
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        pixels = F.pad(pixels, (0, -width % 32, 0, -height % 32), value=0.5)
        with self._lock, torch.inference_mode():
            logits, landmarks = self._net(pixels)
        score = logits[0].sigmoid()
        best = F.max_pool2d(score[None], 3, 1, 1)[0] == score
        rows, columns = torch.where(best & (score > _MIN_SCORE))
        return [
            _face(landmarks[0, r, c].double().numpy(), float(score[r, c]))
            for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
        ]


def cells(shape: tuple[int, int] | torch.Size, device: torch.device) -> Tensor:
    """(rows, columns, 1, 2): the pixel (x, y) in the middle of every place."""
    rows, columns = (torch.arange(n, device=device, dtype=torch.float32) * STRIDE + STRIDE / 2 for n in shape)
    return torch.stack(torch.broadcast_tensors(columns[None, :], rows[:, None]), -1)[:, :, None]


def _face(landmarks: np.ndarray, score: float) -> DetectedFace:
    """With the upright box around where the box of an aligned face lies."""
    back = invert(similarity(landmarks, template(1)))
    x0, y0, x1, y1 = usual_box(1)
    corners = transform(np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]]), back)
    middle = corners.mean(0)
    half = np.array([x1 - x0, y1 - y0]) / 2
    cos, sin = np.abs(back[0, :2])
    half = np.hypot(half * cos, half[::-1] * sin)  # of the ellipse in the turned box
    left, top, right, bottom = np.hstack([middle - half, middle + half]).tolist()
    return DetectedFace((left, top, right, bottom), score, landmarks)


def _conv(inward: int, outward: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(outward // 8, outward), nn.SiLU())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(width, width, 1), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.GroupNorm(width // 8, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.body(x))
