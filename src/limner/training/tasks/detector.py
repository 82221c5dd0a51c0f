"""Training the mini face detector: sitters at any place, size and turn, on made-up surroundings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from limner.config import Config
from limner.data.loader import Batch, Source
from limner.data.tables import (
    DataConfig,
    TableSource,
    demand,
    example_pictures,
    open_pictures,
    picture_table,
    to_images,
)
from limner.faces.mini import STRIDE, LandmarkNet, MiniDetectorConfig, cells
from limner.training.dice import Dice
from limner.training.metrics import mean_interval
from limner.training.sheets import contact_sheet
from limner.training.task import Losses, Report, Task, channels_last

MIRRORED = [1, 0, 2, 4, 3]
"""Order of the landmarks of a mirrored face."""
WIDTH_IN_SPREADS = 3.54
"""A face's width (YuNet's box) in root mean square distances of its landmarks from their middle (ArcFace template)."""


@dataclass(frozen=True)
class DetectorSettings(Config):
    """Settings of the task.

    Attributes:
        data, held_out: pictures with landmarks, one face in each.
        detector: sizes of the network.
        view: side in pixels of what the network is shown.
        smallest, largest: width of a face there, in pixels.
        turn: deviation of the turn in degrees.
        outside: share of views whose face lies anywhere up to half a view outside.
        colour: deviation of random gains and offsets of the colours.
        landmark_weight: of the landmarks' loss against that of the places.
        validation: held-out pictures used.
    """

    data: DataConfig
    held_out: DataConfig
    detector: MiniDetectorConfig = field(default_factory=MiniDetectorConfig)
    view: int = 128
    smallest: float = 16.0
    largest: float = 110.0
    turn: float = 18.0
    outside: float = 0.2
    colour: float = 0.2
    landmark_weight: float = 10.0
    validation: int = 1024

    def validate(self) -> None:
        self.check(self.view >= 64 and self.view % 32 == 0, "view", "a multiple of 32, 64 or more")
        self.check(0 < self.smallest <= self.largest, "smallest", "more than 0, and at most largest")
        for name in ("turn", "colour", "landmark_weight"):
            self.check(getattr(self, name) >= 0, name, "0 or more")
        self.check(0 <= self.outside <= 1, "outside", "0 to 1")
        self.check(self.validation >= 2, "validation", "2 or more")


class DetectorTask(Task[DetectorSettings]):
    """See `DetectorSettings`.

    Metrics on held-out views: share of the faces found (score 0.5 within a quarter of the face's width), mean distance
    of the landmarks in widths of the face, and faces claimed per view where there is none.
    """

    name = "detector"
    settings_class: ClassVar = DetectorSettings

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__(settings)
        self.net = LandmarkNet(settings.detector)
        self.model = channels_last(self.net)

    def prepare(self, report: Report) -> None:
        tables = []
        for config in (self.settings.data, self.settings.held_out):
            tables.append(picture_table(open_pictures(config), config.size, config.size, report, config.workers))
            demand(tables[-1], landmarks=True)
        self.table, self.held_out = tables

    def source(self) -> Source:
        return TableSource(self.table, ("image", "landmarks"))

    def example(self, rows: int) -> Batch:
        return example_pictures(rows, self.settings.data.size, landmarks=True)

    def tokens(self) -> int:
        """Places where a face may be."""
        return (self.settings.view // STRIDE) ** 2

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        views, landmarks = self._views(batch, dice)
        logits, found = model(views)
        near, inside = self._near(landmarks, logits.shape[1:])
        own = (near <= 0.5) & inside  # the place nearest to the face's middle
        unclear = (near <= 1.5) & inside & ~own
        places = F.binary_cross_entropy_with_logits(logits, own.float(), reduction="none")
        places = (places * ~unclear).sum((1, 2)).mean()
        distance = (found - landmarks[:, None, None]).norm(dim=-1).mean(-1) / _width(landmarks)[:, None, None]
        taught = (own | unclear).float()
        points = ((distance * taught).sum((1, 2)) / taught.sum((1, 2)).clamp(min=1)).mean()
        total = places + self.settings.landmark_weight * points
        return Losses(total, {"places": places.detach(), "landmarks": points.detach()})

    def validate(self) -> dict[str, float]:
        hit, apart, claimed = [], [], []
        rows = np.arange(min(self.settings.validation, len(self.held_out)))
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            batch = {k: torch.from_numpy(self.held_out[k][part]).to(self.device) for k in ("image", "landmarks")}
            dice = Dice(1, 0, range(part[0], part[0] + len(part)), self.device)
            views, landmarks = self._views(batch, dice)
            logits, found = self.net(views)
            _, inside = self._near(landmarks, logits.shape[1:])
            inside = inside.flatten(1).any(1)
            best = logits.flatten(1).argmax(1)
            points = found.flatten(1, 2)[torch.arange(len(best)), best]
            distance = (points - landmarks).norm(dim=-1).mean(-1) / _width(landmarks)
            sure = logits.flatten(1).amax(1) > 0
            ok = sure & (distance < 0.25)
            hit.append(ok[inside].float())
            apart.append(distance[inside & ok])
            far = (landmarks < -8).any(-1).all(-1) | (landmarks > self.settings.view + 8).any(-1).all(-1)
            claimed.append(sure[far].float())
        parts = {"found": torch.cat(hit), "claimed": torch.cat(claimed)}
        values = {k: float(v.mean()) for k, v in parts.items() if len(v)}
        distances = torch.cat(apart).cpu().numpy()
        if len(distances) > 1:
            values |= mean_interval("apart", distances)
        return {**values, "n": len(rows)}

    def sheet(self) -> Image.Image:
        """Held-out views with the landmarks that were found."""
        rows = np.linspace(0, len(self.held_out) - 1, min(24, len(self.held_out))).astype(int)
        batch = {k: torch.from_numpy(self.held_out[k][rows]).to(self.device) for k in ("image", "landmarks")}
        views, _ = self._views(batch, Dice(2, 0, range(len(rows)), self.device))
        logits, found = self.net(views)
        best = logits.flatten(1).argmax(1)
        points = found.flatten(1, 2)[torch.arange(len(best)), best]
        for view, sure, face in zip(views, logits.flatten(1).amax(1) > 0, points.round().long(), strict=True):
            for x, y in face.clamp(1, self.settings.view - 2).tolist() if sure else []:
                view[:, y - 1 : y + 2, x - 1 : x + 2] = torch.tensor([0.0, 1.0, 0.0], device=view.device)[:, None, None]
        return contact_sheet(list(views), columns=8)

    def export(self, folder: Path) -> None:
        self.net.save(folder)

    def _near(self, landmarks: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
        """How far every place is from the face's middle, in places along the longer axis, (B,h,w); and whether that
        middle lies in the view, (B,1,1)."""
        middle = landmarks.mean(1)[:, None, None]
        near = (cells(shape, landmarks.device)[:, :, 0] - middle).abs().amax(-1) / STRIDE
        inside = ((middle > 0) & (middle < self.settings.view)).all(-1)
        return near, inside

    def _views(self, batch: Batch, dice: Dice) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network is shown: (B,3,view,view) in [0, 1], and the landmarks there, (B,5,2)."""
        s = self.settings
        images, landmarks = to_images(batch["image"]), batch["landmarks"].float()
        chance, bell = dice.uniform(8), dice.normal(8)
        mirror = chance[:, 0] < 0.5
        side = images.shape[3]
        images = torch.where(mirror[:, None, None, None], images.flip(3), images)
        flipped = landmarks[:, MIRRORED] * landmarks.new_tensor([-1.0, 1.0]) + landmarks.new_tensor([side, 0.0])
        landmarks = torch.where(mirror[:, None, None], flipped, landmarks)

        width = s.smallest * (s.largest / s.smallest) ** chance[:, 1]
        turn = torch.polar(width / _width(landmarks), torch.deg2rad(bell[:, 0] * s.turn))
        reach = torch.where(chance[:, 2] < s.outside, 1.0, 0.42)[:, None]
        place = (0.5 + (chance[:, 3:5] * 2 - 1) * reach) * s.view
        points = torch.complex(landmarks[..., 0], landmarks[..., 1])
        move = torch.complex(place[:, 0], place[:, 1]) - turn * points.mean(1)
        points = points * turn[:, None] + move[:, None]

        line = torch.arange(s.view, device=images.device) + 0.5
        grid = torch.complex(line[None, :].expand(s.view, s.view), line[:, None].expand(s.view, s.view))
        source = (grid - move[:, None, None]) / turn[:, None, None]
        where = torch.stack([source.real, source.imag], -1) * 2 / side - 1
        layers = torch.cat([images, torch.ones_like(images[:, :1])], 1)
        seen = F.grid_sample(layers, where, mode="bilinear", padding_mode="zeros", align_corners=False)
        around = self._surroundings(dice)
        views = seen[:, :3] + (1 - seen[:, 3:]) * around
        gain, offset = (1 + bell[:, 1:4] * s.colour)[..., None, None], (bell[:, 4:7] * s.colour / 2)[..., None, None]
        views = views * gain + offset
        views = torch.where((chance[:, 5] < 0.1)[:, None, None, None], views.mean(1, keepdim=True), views)
        blurred = F.avg_pool2d(F.pad(views, (1, 1, 1, 1), mode="replicate"), 3, 1)
        views = torch.where((chance[:, 6] < 0.2)[:, None, None, None], blurred, views)
        return views.clamp(0, 1), torch.stack([points.real, points.imag], -1)

    def _surroundings(self, dice: Dice) -> torch.Tensor:
        """Cloudy colours, coarse and fine, (B,3,view,view): what a picture is laid on."""
        size = (self.settings.view,) * 2
        coarse = F.interpolate(dice.normal(3, 3, 3), size, mode="bilinear")
        fine = F.interpolate(dice.normal(1, 16, 16), size, mode="nearest") * dice.uniform(1)[..., None, None]
        return (0.5 + 0.25 * coarse + 0.1 * fine).clamp(0, 1)


def _width(landmarks: torch.Tensor) -> torch.Tensor:
    """Of the face with these landmarks (B,5,2), about, in pixels."""
    spread = (landmarks - landmarks.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()
    return spread.clamp(min=1e-3) * WIDTH_IN_SPREADS
