"""Training the face encoder to tell people apart (ArcFace)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from limner.config import Config
from limner.data.crops import align_faces
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
from limner.encoders.config import FaceViTConfig
from limner.encoders.face_vit import FaceViT
from limner.encoders.parts import save_face
from limner.errors import ConfigError
from limner.training.dice import Dice
from limner.training.distributed import processes
from limner.training.metrics import verification
from limner.training.sheets import contact_sheet
from limner.training.task import Losses, Report, Task


@dataclass(frozen=True)
class RecogniserSettings(Config):
    """Settings of the task.

    Attributes:
        data, held_out: pictures with landmarks and persons; the persons of the two must differ.
        face: sizes of the encoder.
        scale, margin: ArcFace's s and m (m in radians).
        margin_warmup: pictures over which the margin grows from 0, without which small models do not start.
        shift, zoom, turn: deviations of the random errors of alignment: share of the side, log scale, degrees.
        colour: deviation of random gain and offset of the colours; `grey`: share of pictures shown without colour.
        views: held-out pictures per person used for validation.
        persons: people in `data`; 0 takes as many as there are.
    """

    data: DataConfig
    held_out: DataConfig
    face: FaceViTConfig = field(default_factory=FaceViTConfig)
    scale: float = 32.0
    margin: float = 0.4
    margin_warmup: int = 100_000
    shift: float = 0.02
    zoom: float = 0.05
    turn: float = 3.0
    colour: float = 0.15
    grey: float = 0.1
    views: int = 8
    persons: int = 0

    def validate(self) -> None:
        self.check(self.scale > 0, "scale", "more than 0")
        self.check(0 <= self.margin < math.pi / 2, "margin", "0 to pi/2 radians")
        for name in ("margin_warmup", "shift", "zoom", "turn", "colour"):
            self.check(getattr(self, name) >= 0, name, "0 or more")
        self.check(0 <= self.grey <= 1, "grey", "0 to 1")
        self.check(self.views >= 2, "views", "2 or more")
        self.check(self.persons >= 0, "persons", "0 or more")


class RecogniserTask(Task[RecogniserSettings]):
    """See `RecogniserSettings`; metrics are accuracy and TAR at FAR 1e-3 over all pairs of held-out pictures."""

    name = "recogniser"
    settings_class: ClassVar = RecogniserSettings

    def __init__(self, settings: RecogniserSettings) -> None:
        super().__init__(settings)
        self.persons = settings.persons or open_pictures(settings.data).persons
        self.face = FaceViT(settings.face)
        self.face.mask_token.requires_grad_(settings.face.mask_ratio > 0)
        self.model = ArcFace(self.face, self.persons, settings.scale)

    def prepare(self, report: Report) -> None:
        data, held_out = self.settings.data, self.settings.held_out
        pictures = open_pictures(data)
        if pictures.persons != self.persons:
            raise ConfigError(
                f"RecogniserSettings.persons is {self.persons}, but the pictures show {pictures.persons}."
            )
        self.table = picture_table(pictures, data.size, data.size, report, data.workers)
        self.held_out = picture_table(open_pictures(held_out), held_out.size, held_out.size, report, held_out.workers)
        for table in (self.table, self.held_out):
            demand(table, landmarks=True, persons=True)

    def source(self) -> Source:
        return TableSource(self.table, ("image", "landmarks", "identity"))

    def example(self, rows: int) -> Batch:
        identity = torch.arange(rows) % self.persons
        return {**example_pictures(rows, self.settings.data.size, landmarks=True), "identity": identity}

    def tokens(self) -> int:
        """Patches of the face and the class token."""
        return self.settings.face.grid**2 + 1

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        settings = self.settings
        spread = torch.tensor([settings.shift, settings.shift, settings.zoom, math.radians(settings.turn)])
        jitter = dice.normal(4) * spread.to(self.device)
        faces = align_faces(to_images(batch["image"]), batch["landmarks"], settings.face.image_size, jitter)
        change = dice.normal(2, 3) * settings.colour
        faces = faces * (1 + change[:, 0, :, None, None]) + change[:, 1, :, None, None] / 2
        grey = dice.uniform(1)[..., None, None] < settings.grey
        faces = torch.where(grey, faces.mean(1, keepdim=True), faces).clamp(0, 1)
        logits, plain = model(faces, batch["identity"], settings.margin, settings.margin_warmup)
        right = (plain.argmax(1) == batch["identity"]).float().mean()
        return Losses(F.cross_entropy(logits, batch["identity"]), {"right": right.detach()})

    def validate(self) -> dict[str, float]:
        rows = self._held_out_rows()
        features = [self.face(self._crops(part)).class_token.float().cpu() for part in np.array_split(rows, 16)]
        return verification(torch.cat(features).numpy(), self.held_out["identity"][rows])

    def sheet(self) -> Image.Image:
        """Held-out crops, one row per person: what the encoder sees."""
        identities = self.held_out["identity"]
        rows = np.concatenate([np.flatnonzero(identities == p)[:8] for p in np.unique(identities)[:4]])
        return contact_sheet(list(self._crops(rows)), columns=8)

    def export(self, folder: Path) -> None:
        save_face(folder, self.face)

    def _held_out_rows(self) -> np.ndarray:
        identities = self.held_out["identity"]
        return np.concatenate([np.flatnonzero(identities == p)[: self.settings.views] for p in np.unique(identities)])

    def _crops(self, rows: np.ndarray) -> torch.Tensor:
        images = to_images(torch.from_numpy(self.held_out["image"][rows])).to(self.device)
        landmarks = torch.from_numpy(self.held_out["landmarks"][rows]).to(self.device)
        return align_faces(images, landmarks, self.settings.face.image_size)


class ArcFace(nn.Module):
    """An encoder with one centre per training person (Deng et al., arXiv 1801.07698, Equation 3)."""

    def __init__(self, face: FaceViT, persons: int, scale: float) -> None:
        super().__init__()
        self.face, self.scale = face, scale
        self.centres = nn.Parameter(F.normalize(torch.randn(persons, face.config.output), dim=1))
        self.seen: torch.Tensor
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(
        self, faces: torch.Tensor, persons: torch.Tensor, margin: float, warmup: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, persons) with the margin at each row's own person, and the cosines without it."""
        cosine = (self.face(faces).class_token.float() @ F.normalize(self.centres.float(), dim=1).T).clamp(-1, 1)
        if self.training:
            self.seen += len(faces) * processes()
        margin *= min(1.0, int(self.seen) / max(1, warmup))
        own = cosine.gather(1, persons[:, None])
        sine = (1 - own.square()).clamp(min=1e-9).sqrt()
        turned = own * math.cos(margin) - sine * math.sin(margin)
        # Beyond pi - m the cosine would rise again; there the margin is taken linearly, as in the reference code.
        turned = torch.where(own > math.cos(math.pi - margin), turned, own - math.sin(math.pi - margin) * margin)
        return self.scale * cosine.scatter(1, persons[:, None], turned), cosine.detach()
