"""Training the face encoder to tell people apart: ArcFace, begun with contrasted pairs.

ArcFace alone hardly begins where there are thousands of people with a dozen pictures each: a centre that meets its
person once in a thousand pictures says nothing for long. Two pictures of one person against the other people of the
batch say something at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from limner.config import Config
from limner.data.cache import Table
from limner.data.crops import align_faces
from limner.data.loader import Batch, Source
from limner.data.partners import Partners
from limner.data.tables import (
    DataConfig,
    demand,
    example_pictures,
    open_pictures,
    picture_table,
    to_images,
)
from limner.encoders.config import FaceViTConfig
from limner.encoders.face_vit import FaceViT
from limner.encoders.parts import save_face
from limner.encoders.scorer import ConvFace, ConvFaceConfig, save_recogniser
from limner.errors import ConfigError
from limner.training.contrast import softmax_pairs
from limner.training.dice import Dice
from limner.training.distributed import gather_labels, gather_rows, processes
from limner.training.metrics import verification
from limner.training.sheets import contact_sheet
from limner.training.task import Losses, Report, Task, channels_last
from limner.training.towers import load_image_tower

CENTRE_LENGTH = 0.05
"""Of a centre in the beginning."""
MOST_HELD_OUT = 4096
"""Pictures that are compared in a validation, each with each; those of the first people are taken."""
VALIDATION_ROWS = 64
"""Pictures that the encoder sees at once in a validation."""


@dataclass(frozen=True)
class RecogniserSettings(Config):
    """Settings of the task.

    Attributes:
        data, held_out: pictures with landmarks and persons; the persons of the two must differ.
        face: sizes of the encoder.
        init: folder of a CLIP (clip task) whose picture tower, of the same width, depth, heads and number of patches,
            the encoder starts from; empty starts from nothing.
        references: trains and validates on pictures that can serve as references alone (`Sample.reference`).
        network: sizes of a convolutional recogniser, which is trained in the encoder's place (a scorer); None for none.
        scale, margin: ArcFace's s and m (m in radians).
        margin_warmup: pictures over which the margin grows from 0, without which small models do not start.
        shift, zoom, turn: deviations of the random errors of alignment: share of the side, log scale, degrees.
        colour: deviation of random gain and offset of the colours; `grey`: share of pictures shown without colour.
        pairs_weight: of the second loss, which contrasts each picture with another one of the same person among the
            people of the batch (Sohn, N-pair loss, NeurIPS 2016); 0 leaves it out.
        pairs_scale: of its cosines.
        views: held-out pictures per person used for validation, `MOST_HELD_OUT` in all.
        persons: people in `data`; 0 takes as many as there are.
    """

    data: DataConfig
    held_out: DataConfig
    face: FaceViTConfig = field(default_factory=FaceViTConfig)
    network: ConvFaceConfig | None = None
    init: str = ""
    references: bool = False
    scale: float = 32.0
    margin: float = 0.4
    margin_warmup: int = 100_000
    shift: float = 0.02
    zoom: float = 0.05
    turn: float = 3.0
    colour: float = 0.15
    grey: float = 0.1
    pairs_weight: float = 1.0
    pairs_scale: float = 16.0
    views: int = 8
    persons: int = 0

    @property
    def crop(self) -> int:
        """Side of the crops in pixels."""
        return (self.network or self.face).image_size

    def validate(self) -> None:
        for name in ("scale", "pairs_scale"):
            self.check(getattr(self, name) > 0, name, "more than 0")
        self.check(0 <= self.margin < math.pi / 2, "margin", "0 to pi/2 radians")
        for name in ("margin_warmup", "shift", "zoom", "turn", "colour", "pairs_weight"):
            self.check(getattr(self, name) >= 0, name, "0 or more")
        self.check(0 <= self.grey <= 1, "grey", "0 to 1")
        self.check(self.views >= 2, "views", "2 or more")
        self.check(self.persons >= 0, "persons", "0 or more")


class RecogniserTask(Task[RecogniserSettings]):
    """See `RecogniserSettings`; metrics are accuracy and TAR at FAR 1e-3 over all pairs of held-out pictures.

    A row is two pictures of one person.
    """

    name = "recogniser"
    settings_class: ClassVar = RecogniserSettings
    contrasts_rows: ClassVar = True

    def __init__(self, settings: RecogniserSettings) -> None:
        super().__init__(settings)
        self.persons = settings.persons or open_pictures(settings.data).persons
        self.face: FaceViT | ConvFace
        if settings.network is not None:
            self.face = channels_last(ConvFace(settings.network))
        else:
            self.face = FaceViT(settings.face)
            self.face.mask_token.requires_grad_(settings.face.mask_ratio > 0)
            if settings.init:
                start_from_clip(self.face, Path(settings.init))
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
        self.rows = self._eligible(self.table)
        _, views = np.unique(self.held_out["identity"][self._held_out_rows()], return_counts=True)
        if len(views) < 2 or views.max() < 2:
            raise ConfigError(
                "The held-out pictures cannot show whether people are told apart: several people are needed, one of "
                "them in two pictures" + (" that can be references." if self.settings.references else "."),
                "See docs/training.md.",
            )

    def source(self) -> Source:
        return _Pairs(self.table, self.rows)

    def example(self, rows: int) -> Batch:
        pictures = example_pictures(2 * rows, self.settings.data.size, landmarks=True)
        pairs = {k: v.unflatten(0, (rows, 2)) for k, v in pictures.items()}
        return {**pairs, "identity": torch.arange(rows) % self.persons}

    def tokens(self) -> int:
        """Patches of both faces and their class tokens; 0 for a convolutional network."""
        return 0 if self.settings.network else 2 * (self.settings.face.grid**2 + 1)

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        settings = self.settings
        spread = torch.tensor([settings.shift, settings.shift, settings.zoom, math.radians(settings.turn)])
        images, landmarks = (batch[k].flatten(0, 1) for k in ("image", "landmarks"))
        jitter = dice.normal(2, 4).flatten(0, 1) * spread.to(self.device)
        faces = align_faces(to_images(images), landmarks, settings.crop, jitter)
        change = dice.normal(2, 2, 3).flatten(0, 1) * settings.colour
        faces = faces * (1 + change[:, 0, :, None, None]) + change[:, 1, :, None, None] / 2
        grey = dice.uniform(2).flatten()[:, None, None, None] < settings.grey
        faces = torch.where(grey, faces.mean(1, keepdim=True), faces).clamp(0, 1)
        persons = batch["identity"].repeat_interleave(2)
        logits, plain, features = model(faces, persons, settings.margin, settings.margin_warmup)
        arcface = F.cross_entropy(logits, persons)
        parts = {"arcface": arcface.detach(), "right": (plain.argmax(1) == persons).float().mean()}
        if not settings.pairs_weight:
            return Losses(arcface, parts)
        one, other = gather_rows(features).unflatten(0, (-1, 2)).unbind(1)
        people = gather_labels(batch["identity"])
        scale = torch.tensor(math.log(settings.pairs_scale), device=self.device)
        pairs = softmax_pairs(one, other, scale, people[:, None] == people)
        return Losses(arcface + settings.pairs_weight * pairs, {**parts, "pairs": pairs.detach()})

    def validate(self) -> dict[str, float]:
        rows = self._held_out_rows()
        parts = np.array_split(rows, -(-len(rows) // VALIDATION_ROWS))
        features = [self.face(self._crops(part)).class_token.float().cpu() for part in parts]
        return verification(torch.cat(features).numpy(), self.held_out["identity"][rows])

    def sheet(self) -> Image.Image:
        """Held-out crops, one row per person: what the encoder sees."""
        return contact_sheet(list(self._crops(self._held_out_rows()[:32])), columns=8)

    def export(self, folder: Path) -> None:
        if isinstance(self.face, ConvFace):
            save_recogniser(folder, self.face)
        else:
            save_face(folder, self.face)

    def _held_out_rows(self) -> np.ndarray:
        rows = self._eligible(self.held_out)
        identities = self.held_out["identity"][rows]
        found = [rows[identities == p][: self.settings.views] for p in np.unique(identities)]
        return np.concatenate(found or [rows])[:MOST_HELD_OUT]

    def _eligible(self, table: Table) -> np.ndarray:
        return np.flatnonzero(table["reference"]) if self.settings.references else np.arange(len(table))

    def _crops(self, rows: np.ndarray) -> torch.Tensor:
        images = to_images(torch.from_numpy(self.held_out["image"][rows])).to(self.device)
        landmarks = torch.from_numpy(self.held_out["landmarks"][rows]).to(self.device)
        return align_faces(images, landmarks, self.settings.crop)


class _Pairs(Source):
    """Two pictures of one person in every row."""

    def __init__(self, table: Table, rows: np.ndarray) -> None:
        self.table, self.rows = table, rows
        self.partners = Partners(table["identity"], np.isin(np.arange(len(table)), rows))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray, step: int) -> Batch:
        rows = self.rows[rows]
        both = np.stack([rows, self.partners.of(rows, step)], 1)
        found = {k: torch.from_numpy(self.table[k][both]) for k in ("image", "landmarks")}
        return {**found, "identity": torch.from_numpy(self.table["identity"][rows])}


@torch.no_grad()
def start_from_clip(face: FaceViT, clip: Path) -> None:
    """Copies the transformer of a CLIP's picture tower into a face encoder; its head stays as it was.

    The patches are resized, and take pictures in [0, 1] instead of [-1, 1]. Activations differ (ReLU6 instead of GELU),
    and queries, keys and values have no bias, so this is a start, not the same function. On the mini world it saves
    the first 20,000 pictures or so.

    Raises:
        WeightsUnavailable: no such CLIP.
        ConfigError: sizes differ.
    """
    tower: Any = load_image_tower(clip)
    theirs, config = tower.config, face.config
    patches_a_side = theirs.image_size // theirs.patch_size
    tower_sizes = (theirs.hidden_size, theirs.num_hidden_layers, theirs.num_attention_heads, patches_a_side)
    face_sizes = (config.width, config.depth, config.heads, config.grid)
    if tower_sizes != face_sizes:
        raise ConfigError(
            f"Width, depth, heads and patches a side are {tower_sizes} in the picture tower of {clip}, but "
            f"{face_sizes} in the face encoder; they must agree."
        )
    embeddings, size = tower.vision_model.embeddings, config.patch_size
    kernel = embeddings.patch_embedding.weight.float()
    kernel = F.interpolate(kernel, (size, size), mode="area") * (theirs.patch_size / size) ** 2
    patches: Any = face.patch_embed.proj
    patches.weight.copy_(2 * kernel)
    patches.bias.copy_(-kernel.sum((1, 2, 3)))
    face.pos_embed.copy_(embeddings.position_embedding.weight[None, 1:])
    for block, layer in zip(face.blocks, tower.vision_model.encoder.layers, strict=True):
        own: Any = block
        attention = layer.self_attn
        qkv = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        own.attn["qkv"].weight.copy_(torch.cat(qkv))
        own.attn["proj"].load_state_dict(attention.out_proj.state_dict())
        own.norm1.load_state_dict(layer.layer_norm1.state_dict())
        own.norm2.load_state_dict(layer.layer_norm2.state_dict())
        own.mlp.load_state_dict(layer.mlp.state_dict())


class ArcFace(nn.Module):
    """An encoder with one centre per training person (Deng et al., arXiv 1801.07698, Equation 3)."""

    def __init__(self, face: FaceViT | ConvFace, persons: int, scale: float) -> None:
        super().__init__()
        self.face, self.scale = face, scale
        # Only their direction counts. Short ones turn quicker: a centre meets its own person once in many steps, and
        # Adam moves every value by about the same, so that at unit length it would take a dozen meetings to get there.
        self.centres = nn.Parameter(CENTRE_LENGTH * F.normalize(torch.randn(persons, face.config.output), dim=1))
        self.seen: torch.Tensor
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(
        self, faces: torch.Tensor, persons: torch.Tensor, margin: float, warmup: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (B, persons) with the margin at each row's own person, the cosines without it, and the features."""
        features = self.face(faces).class_token.float()
        if self.training:
            self.seen += len(faces) * processes()
        margin *= min(1.0, int(self.seen) / max(1, warmup))
        with torch.autocast(features.device.type, enabled=False):  # half precision would round the margin away
            return *self._logits(features, persons, margin), features

    def _logits(
        self, features: torch.Tensor, persons: torch.Tensor, margin: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, persons) with the margin, and the cosines without it."""
        cosine = (features @ F.normalize(self.centres.float(), dim=1).T).clamp(-1, 1)
        own = cosine.gather(1, persons[:, None])
        sine = (1 - own.square()).clamp(min=1e-9).sqrt()
        turned = own * math.cos(margin) - sine * math.sin(margin)
        # Beyond pi - m the cosine would rise again; there the margin is taken linearly, as in the reference code.
        turned = torch.where(own > math.cos(math.pi - margin), turned, own - math.sin(math.pi - margin) * margin)
        return self.scale * cosine.scatter(1, persons[:, None], turned), cosine.detach()
