"""Training a CLIP: a text and a picture tower that agree on which caption belongs to which picture, and, where wanted,
a picture tower that also knows who is on it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from limner.config import Config
from limner.data.cache import Table
from limner.data.loader import Batch, Source
from limner.data.partners import Partners
from limner.data.tables import (
    DataConfig,
    TableSource,
    captions_of,
    demand,
    example_pictures,
    open_pictures,
    picture_table,
    to_images,
)
from limner.encoders.config import TextTowerConfig
from limner.encoders.parts import fill_part, save_text
from limner.encoders.text_tower import TextTower
from limner.training.contrast import pairwise_sigmoid, softmax_pairs
from limner.training.dice import Dice
from limner.training.distributed import gather_labels, gather_rows
from limner.training.metrics import recall
from limner.training.parts import counting_sizes, face_of, text_of
from limner.training.task import Losses, Report, Task
from limner.training.towers import face_features, load_image_tower
from limner.training.words import WORLD, caption_ids, make_tokenizer

LOSSES = ("sigmoid", "softmax")
LARGEST_SCALE = math.log(100)


@dataclass(frozen=True)
class ImageTowerConfig(Config):
    """A vision transformer over the whole picture, in [-1, 1]: transformers' CLIPVisionModelWithProjection."""

    patch_size: int = 16
    width: int = 192
    depth: int = 6
    heads: int = 6

    def validate(self) -> None:
        self.check(self.width % self.heads == 0, "heads", f"a divisor of width {self.width}")


@dataclass(frozen=True)
class ClipSettings(Config):
    """Settings of the task.

    Attributes:
        data, held_out: pictures with captions.
        text: sizes of the text tower; its vocabulary is set to the tokenizer's.
        image: sizes of the picture tower.
        tokenizer: see `limner.training.words.make_tokenizer`.
        objective: `sigmoid` (SigLIP) or `softmax` (CLIP).
        prefix: share of captions read behind the identity prefix, so that its words disturb nothing later.
        colour: deviation of random gain and offset of the pictures' colours.
        init: folder of a trained CLIP whose towers this one starts from.
        frozen_text: the text tower stays as it is.
        people_weight: of a second contrast, between the picture's feature, read linearly, and the class token of the
            face in another picture of the same person. CLIPs of the web read names; captions of the world have none.
        recogniser: folder of the trained face encoder that gives the class tokens.
        validation: held-out pairs among which retrieval is measured.
    """

    data: DataConfig
    held_out: DataConfig
    text: TextTowerConfig
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    tokenizer: str = WORLD
    objective: str = "sigmoid"
    prefix: float = 0.25
    colour: float = 0.05
    init: str = ""
    frozen_text: bool = False
    people_weight: float = 0.0
    recogniser: str = ""
    validation: int = 256

    def validate(self) -> None:
        self.check(self.objective in LOSSES, "objective", ", ".join(LOSSES))
        self.check(0 <= self.prefix <= 1, "prefix", "0 to 1")
        self.check(self.colour >= 0, "colour", "0 or more")
        self.check(bool(self.init) or not self.frozen_text, "frozen_text", "only with init")
        self.check(self.people_weight >= 0, "people_weight", "0 or more")
        self.check(
            bool(self.recogniser) == (self.people_weight > 0),
            "recogniser",
            "a folder exactly where people_weight is above 0",
        )
        self.check(self.validation >= 2, "validation", "2 or more")
        self.check(self.data.size == self.held_out.size, "held_out", "the size of data")


class ClipTask(Task[ClipSettings]):
    """See `ClipSettings`; metrics are recall@1 and @5, both ways, among held-out pairs, and with `people_weight` of the
    person's face by the picture, among as many people."""

    name = "clip"
    settings_class: ClassVar = ClipSettings
    contrasts_rows: ClassVar = True

    def __init__(self, settings: ClipSettings) -> None:
        super().__init__(settings)
        self.tokenizer = make_tokenizer(settings.tokenizer, settings.text.context)
        text = dataclasses.replace(settings.text, vocabulary=len(self.tokenizer))
        self.face = face_of(Path(settings.recogniser)) if settings.recogniser else None
        token = self.face.config.output if self.face else 0
        self.clip = Clip(text, settings.image, settings.data.size, settings.objective, token)
        if settings.init and not counting_sizes():
            folder = Path(settings.init)
            fill_part(self.clip.text, text_of(folder)[0].state_dict(), folder)
            fill_part(self.clip.image, load_image_tower(folder).state_dict(), folder)
        self.clip.text.requires_grad_(not settings.frozen_text)
        self.model = self.clip

    def prepare(self, report: Report) -> None:
        tables = []
        for config in (self.settings.data, self.settings.held_out):
            tables.append(picture_table(open_pictures(config), config.size, config.size, report, config.workers))
            demand(tables[-1], captions=True, landmarks=self.face is not None, persons=self.face is not None)
        self.table, self.held_out = tables
        self.faces = [face_features(self.face, t, self.device, report) if self.face else None for t in tables]
        context, captions = self.settings.text.context, captions_of(self.table)
        self.ids = [caption_ids(self.tokenizer, captions, context, prefixed=p) for p in (False, True)]

    def source(self) -> Source:
        return _Captioned(self.table, self.ids, self.faces[0])

    def example(self, rows: int) -> Batch:
        ids = torch.zeros(rows, self.settings.text.context, dtype=torch.long)
        batch = {**example_pictures(rows, self.settings.data.size), "ids": ids, "prefixed": ids}
        if self.face is not None:
            batch |= {"class_token": torch.ones(rows, self.face.config.output), "person": torch.arange(rows)}
        return batch

    def tokens(self) -> int:
        """Words, patches of the picture and its class token."""
        settings = self.settings
        return settings.text.context + (settings.data.size // settings.image.patch_size) ** 2 + 1

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        prefixed = dice.uniform(1) < self.settings.prefix
        ids = torch.where(prefixed, batch["prefixed"], batch["ids"])
        change = dice.normal(2, 3, 1, 1) * self.settings.colour
        images = (to_images(batch["image"]) * (1 + change[:, 0]) + change[:, 1]).clamp(0, 1)
        text, image, scale, bias, *who = model(ids, images * 2 - 1)
        text, image = gather_rows(text), gather_rows(image)
        if self.settings.objective == "softmax":
            total = softmax_pairs(text, image, scale)
        else:
            total = pairwise_sigmoid(text, image, scale, bias)
        found = (text.detach() @ image.detach().T).argmax(1) == torch.arange(len(text), device=text.device)
        parts = {"found": found.float().mean(), "scale": scale.detach().exp()}
        if who:
            person, scale = who
            persons = gather_labels(batch["person"])
            tokens = F.normalize(gather_labels(batch["class_token"]), dim=-1)
            people = softmax_pairs(gather_rows(person), tokens, scale, persons[:, None] == persons)
            total, parts["people"] = total + self.settings.people_weight * people, people.detach()
        return Losses(total, parts)

    def validate(self) -> dict[str, float]:
        count = min(self.settings.validation, len(self.held_out))
        rows = np.linspace(0, len(self.held_out) - 1, count).astype(int)
        captions = [captions_of(self.held_out)[r] for r in rows]
        ids = torch.from_numpy(caption_ids(self.tokenizer, captions, self.settings.text.context))
        texts, images = [], []
        for part in np.array_split(np.arange(count), max(1, count // 64)):
            pictures = to_images(torch.from_numpy(self.held_out["image"][rows[part]])).to(self.device)
            text, image, *_ = self.model(ids[part].to(self.device), pictures * 2 - 1)
            texts.append(text.float().cpu())
            images.append(image.float().cpu())
        similarity = (torch.cat(texts) @ torch.cat(images).T).numpy()
        values = {f"text_to_image_{k}": v for k, v in recall(similarity).items()}
        values |= {f"image_to_text_{k}": v for k, v in recall(similarity.T).items()}
        return {**values, **self._people(), "n": count}

    def _people(self) -> dict[str, float]:
        """How often a picture finds its person's face, from another picture, among held-out people."""
        faces = self.faces[1]
        if faces is None:
            return {}
        _, rows = np.unique(self.held_out["identity"], return_index=True)
        rows = rows[: self.settings.validation]
        partners = _partners(self.held_out).of(rows, 0)
        seen = []
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            pictures = to_images(torch.from_numpy(self.held_out["image"][part])).to(self.device)
            seen.append(self.clip.people(self.clip.picture(pictures * 2 - 1)).float().cpu())
        tokens = F.normalize(torch.from_numpy(faces["class_token"][partners]), dim=-1)
        similarity = (torch.cat(seen) @ tokens.T).numpy()
        return {f"image_to_face_{k}": v for k, v in recall(similarity).items()}

    def export(self, folder: Path) -> None:
        """text.safetensors with its tokenizer, and image/ in transformers' form."""
        save_text(folder, self.clip.text, self.tokenizer)
        self.clip.image.save_pretrained(folder / "image")


class Clip(nn.Module):
    """Both towers with the learned scale and bias of their comparison, and the reading of the person (`token` values, 0
    for none), which serves only the training."""

    def __init__(
        self, text: TextTowerConfig, image: ImageTowerConfig, size: int, objective: str, token: int = 0
    ) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        super().__init__()
        self.text = TextTower(text)
        self.image: Any = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=image.width,
                intermediate_size=4 * image.width,
                projection_dim=text.projection,
                num_hidden_layers=image.depth,
                num_attention_heads=image.heads,
                image_size=size,
                patch_size=image.patch_size,
                hidden_act="gelu",
            )
        )
        self.image.set_attn_implementation("eager")  # in training on a CPU twice as fast
        self.scale = nn.Parameter(torch.tensor(math.log(10 if objective == "sigmoid" else 1 / 0.07)))
        self.bias = nn.Parameter(torch.tensor(-10.0), requires_grad=objective == "sigmoid")
        self.person = nn.Linear(text.projection, token) if token else None
        if token:
            self.person_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, ids: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Token ids (B,T) and pictures (B,3,H,W) in [-1, 1] → unit features (B,P) of both, scale and bias of their
        comparison; and the person (B,token) as the picture shows them, of unit length, with its scale."""
        image = self.picture(images)
        said = self.text(ids).feature, image, self.scale.clamp(max=LARGEST_SCALE), self.bias
        if self.person is None:
            return said
        return *said, self.people(image), self.person_scale.clamp(max=LARGEST_SCALE)

    def picture(self, images: torch.Tensor) -> torch.Tensor:
        """Unit features (B,P) of pictures in [-1, 1]."""
        return F.normalize(self.image(pixel_values=images).image_embeds, dim=-1)

    def people(self, image: torch.Tensor) -> torch.Tensor:
        """The person (B,token), of unit length, in features of pictures."""
        assert self.person is not None
        return F.normalize(self.person(image), dim=-1)


class _Captioned(TableSource):
    """Pictures with their captions' token ids, plain and behind the identity prefix; with features of faces, also the
    class token of another picture of the same person, and who that is."""

    def __init__(self, table: Table, ids: list[np.ndarray], faces: Table | None) -> None:
        super().__init__(table, ("image",))
        self.ids, self.faces = ids, faces
        if faces is not None:
            self.partners, self.persons = _partners(table), table["identity"]

    def batch(self, rows: np.ndarray, step: int) -> Batch:
        plain, prefixed = (torch.from_numpy(ids[rows]) for ids in self.ids)
        batch = {**super().batch(rows, step), "ids": plain, "prefixed": prefixed}
        if self.faces is not None:
            batch["class_token"] = torch.from_numpy(self.faces["class_token"][self.partners.of(rows, step)])
            batch["person"] = torch.from_numpy(self.persons[rows])
        return batch


def _partners(table: Table) -> Partners:
    return Partners(table["identity"], table["reference"])
