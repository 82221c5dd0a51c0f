"""What the rivals' trainings share: rows of faces and sentences, what is dropped of them, sheets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from limner.data.cache import Table
from limner.data.crops import align_faces
from limner.data.loader import Batch
from limner.data.tables import to_images
from limner.encoders.pseudo_words import PLACEHOLDER
from limner.encoders.rivals import RivalEncoder
from limner.pipelines.rivals import RivalPipeline
from limner.training.dice import Dice
from limner.training.dreamidentity_data import PromptTable
from limner.training.frozen_base import SHEET_FACES, FrozenBaseSettings, FrozenBaseTask, people_sheet
from limner.training.parts import counting_sizes
from limner.training.rival_data import RivalRows, rival_features
from limner.training.task import Report
from limner.types import Face


@dataclass(frozen=True)
class RivalSettings(FrozenBaseSettings):
    """Settings that all rivals have; see also `FrozenBaseSettings`.

    Attributes:
        data, held_out: pictures with landmarks and persons, and captions unless there are templates.
        templates: sentences that all pictures share; empty takes captions and prompts of the data.
        prompts: share of rows that read the sentence with S* instead of the caption.
        partner: the face comes from another picture of the person; False: from the very picture.
        drop_text, drop_face, drop_both: shares of rows without them, for classifier-free guidance, where a method needs
            that.
    """

    templates: tuple[str, ...] = ()
    prompts: float = 0.5
    partner: bool = True
    drop_text: float = 0.05
    drop_face: float = 0.05
    drop_both: float = 0.05

    def validate(self) -> None:
        super().validate()
        for name in ("prompts", "drop_text", "drop_face", "drop_both"):
            self.check(0 <= getattr(self, name) <= 1, name, "0 to 1")
        self.check(self.drop_text + self.drop_face + self.drop_both <= 1, "drop_both", "all three together 0 to 1")


C = TypeVar("C", bound=RivalSettings)


class RivalTask(FrozenBaseTask[C]):
    """See `FrozenBaseTask`; the second metric, `nobody`, is without the person.

    Attributes:
        kind: what is read of a face, see `rival_features`.
        sources: both have `pictures`, their table.
    """

    kind: str
    encoder: RivalEncoder
    pipeline: RivalPipeline
    _nothing: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def frozen(self) -> list[nn.Module]:
        return [*super().frozen(), self.encoder]

    def prepare(self, report: Report) -> None:
        settings = self.settings
        self.sources = []
        for config in (settings.data, settings.held_out):
            targets = self.targets(config, report)
            faces = rival_features(self.encoder, targets.pictures, self.kind, self.device, report)
            self.sources.append(
                RivalRows(
                    targets,
                    faces,
                    self.lay_out,
                    templates=settings.templates,
                    prompts=settings.prompts,
                    partner=settings.partner,
                )
            )
        nn.Module.to(self.vae, settings.dtype)

    def example(self, rows: int) -> Batch:
        prompts = self.lay_out([f"a photo of {PLACEHOLDER}"]).batch(np.zeros(rows, np.int64))
        return {**super().example(rows), **{k: torch.from_numpy(v) for k, v in prompts.items()}}

    def sheet(self) -> Image.Image:
        """Held-out faces, and what is painted of them for three of the edit prompts."""
        return face_sheet(self.pipeline, self.sources[1].pictures, self.device)

    # --- parts ----------------------------------------------------------------------------------------------------

    def lay_out(self, sentences: list[str]) -> PromptTable:
        """Sentences as token ids with the place of S*."""
        return PromptTable(self.encoder.towers.lay_out(sentences, {PLACEHOLDER: 1}))

    def say(self, batch: Batch, words: list[torch.Tensor] | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings (B, T, C) and pooled embeddings of a batch's sentences; words (B, 1, width) for each tower stand
        for S*, or "person" where there are none."""
        towers = self.encoder.towers
        layouts = PromptTable.layouts(batch, len(towers.widths))
        said = towers(layouts, {} if words is None else {PLACEHOLDER: words})
        return said.tokens, said.pooled

    def dropped(self, model: nn.Module, dice: Dice) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows (B,) lose their text, and which their face: none outside of training."""
        chance = dice.uniform()
        if not model.training:
            chance = torch.ones_like(chance)
        a = self.settings.drop_text
        b, c = a + self.settings.drop_face, a + self.settings.drop_face + self.settings.drop_both
        both = (chance >= b) & (chance < c)
        return (chance < a) | both, ((chance >= a) & (chance < b)) | both

    def without_text(
        self, rows: torch.Tensor, tokens: torch.Tensor, pooled: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings in which some rows (B,) hold what sampling uses for the unconditional branch."""
        if counting_sizes():
            self._nothing = tokens[:1], None if pooled is None else pooled[:1]
        elif self._nothing is None or self._nothing[0].device != tokens.device:  # the towers are frozen: made once
            made = self.pipeline.method.condition(None, [""])
            assert made.negative_prompt_embeds is not None
            self._nothing = made.negative_prompt_embeds, made.negative_pooled
        null, null_pooled = self._nothing
        if pooled is not None and null_pooled is not None:
            pooled = torch.where(rows[:, None], null_pooled.to(pooled), pooled)
        return torch.where(rows[:, None, None], null.to(tokens), tokens), pooled


class BesideUNet(nn.Module):
    """A trainable model that uses a frozen UNet, which moves with it but is no part of its weights."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self._unet = [unet]

    @property
    def unet(self) -> Any:
        """The frozen UNet."""
        return self._unet[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.unet._apply(fn, recurse)
        return super()._apply(fn, recurse)


def face_sheet(pipeline: RivalPipeline, pictures: Table, device: torch.device) -> Image.Image:
    """Held-out faces above what a pipeline paints of them for three of the edit prompts."""
    rows = np.flatnonzero(pictures["reference"])
    rows = rows[np.linspace(0, len(rows) - 1, min(SHEET_FACES, len(rows))).astype(int)]
    images = to_images(torch.from_numpy(pictures["image"][rows])).to(device)
    marks = torch.from_numpy(pictures["landmarks"][rows]).to(device)
    people = []
    for row, face in zip(rows, align_faces(images, marks, 448).clamp(0, 1), strict=True):
        photo = np.asarray(pictures["image"][row])
        whole = Face(face.float().cpu().numpy(), (0.0, 0.0, *photo.shape[1::-1]), 1.0, np.eye(2, 3), photo=photo)
        people.append(pipeline.method.enroll([whole]))
    return people_sheet(pipeline, list(images), people)
