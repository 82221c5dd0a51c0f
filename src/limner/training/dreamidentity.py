"""Training DreamIdentity's M² ID encoder on an untouched base (arXiv 2307.00300, sections 3.2 and 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from limner.config import Config
from limner.data.crops import align_faces
from limner.data.loader import Batch
from limner.data.tables import DataConfig, to_images
from limner.encoders.config import FaceViTConfig
from limner.encoders.dreamidentity import FaceWordsEncoder
from limner.encoders.m2id import M2IDConfig, M2IDEncoder, word_norm
from limner.encoders.pseudo_words import PLACEHOLDER, Layout
from limner.encoders.scales import Backbone, ClipVisionConfig, quarters
from limner.errors import ConfigError, PromptError
from limner.pipelines.dreamidentity import DreamIdentityPipeline, assemble
from limner.training.denoising import write_out_attention
from limner.training.dice import Dice
from limner.training.dreamidentity_data import FaceMix, PromptTable
from limner.training.frozen_base import SHEET_FACES, FrozenBaseSettings, FrozenBaseTask, people_sheet
from limner.training.identity_loss import RowLosses
from limner.training.parts import backbone_of
from limner.training.task import Losses, Report
from limner.types import Identity


@dataclass(frozen=True)
class WordsConfig(Config):
    """What the encoder reads and makes; see `M2IDConfig`. No layers means the quarters of the backbone's depth."""

    words: int = 2
    layers: tuple[int, ...] = ()
    multi_scale: bool = True
    hidden: int = 1024

    def validate(self) -> None:
        self.check(self.words >= 1, "words", "1 or more")
        self.check(self.hidden >= 1, "hidden", "1 or more")

    def build(self, backbone: Backbone, widths: tuple[int, ...]) -> M2IDEncoder:
        """The encoder over a backbone, for the text towers of a base."""
        sizes = backbone.config
        config = M2IDConfig(
            widths=widths,
            words=self.words,
            layers=self.layers or quarters(sizes.depth),
            multi_scale=self.multi_scale,
            hidden=self.hidden,
            face=sizes if isinstance(sizes, FaceViTConfig) else None,
            clip=sizes if isinstance(sizes, ClipVisionConfig) else None,
        )
        return M2IDEncoder(config, backbone)


@dataclass(frozen=True, kw_only=True)
class DreamIdentitySettings(FrozenBaseSettings):
    """Settings of the task; see also `FrozenBaseSettings`.

    Attributes:
        data, held_out: pictures with landmarks, for reconstruction: a face in, the same picture as target.
        edits: the self-augmented set, or None: pictures with `identity`; those with `reference` are the identity faces
            (they need landmarks), the others the edited pictures, whose `prompt` calls the person S*.
        recogniser: folder of the backbone; see `limner.encoders.scales.load_backbone`.
        encoder: what it reads and makes.
        tune_backbone: train the backbone too; False trains the MLPs alone.
        regularisation: lambda of the words' norms.
        edit_share: share of rows from `edits`; 0 is reconstruction only, 1 edits only (the paper's ablations).
        templates: prompts of reconstruction.
        outside: weight of the loss away from the face, in pictures whose landmarks are known; 1 is the plain loss, 0
            looks at the face alone.
    """

    recogniser: str
    edits: DataConfig | None = None
    encoder: WordsConfig = field(default_factory=WordsConfig)
    tune_backbone: bool = False
    regularisation: float = 1e-4
    edit_share: float = 0.5
    templates: tuple[str, ...] = ("S* face",)
    outside: float = 1.0
    guidance: float = 7.5

    def validate(self) -> None:
        super().validate()
        self.check(0 <= self.edit_share <= 1, "edit_share", "0 to 1")
        self.check(self.edits is not None or self.edit_share == 0, "edit_share", "0 without edits")
        self.check(bool(self.templates), "templates", "at least one prompt")
        self.check(all(PLACEHOLDER in t for t in self.templates), "templates", f"prompts with {PLACEHOLDER}")
        self.check(self.regularisation >= 0, "regularisation", "0 or more")
        self.check(0 <= self.outside <= 1, "outside", "0 to 1")
        one_size = self.edits is None or self.edits.size == self.data.size
        self.check(one_size, "edits", "one size for data, held_out and edits")


class DreamIdentityTask(FrozenBaseTask[DreamIdentitySettings]):
    """See `DreamIdentitySettings` and `FrozenBaseTask`; the second metric, `nobody`, is with the words for nobody in
    particular instead of the person's."""

    name = "dreamidentity"
    settings_class: ClassVar = DreamIdentitySettings

    def __init__(self, settings: DreamIdentitySettings) -> None:
        super().__init__(settings)
        self.towers = self.open_towers()
        self.open_base(settings.dtype)
        write_out_attention(self.unet)
        self.m2id = settings.encoder.build(backbone_of(Path(settings.recogniser)), self.towers.widths)
        for name, value in self.m2id.backbone.named_parameters():
            value.requires_grad_(settings.tune_backbone and not name.endswith("mask_token"))
        self.model: nn.Module = self.m2id if settings.tune_backbone else self.m2id.head
        self.assemble(DreamIdentityPipeline, FaceWordsEncoder(self.m2id, self.towers))

    def frozen(self) -> list[nn.Module]:
        own = [] if self.settings.tune_backbone else [self.m2id.backbone]
        return [*super().frozen(), self.unet, self.towers, *own]

    def prepare(self, report: Report) -> None:
        settings = self.settings
        self.sources = [
            FaceMix(
                self.targets(settings.data, report),
                self._prompts(list(settings.templates)),
                self.targets(settings.edits, report) if settings.edits and settings.edit_share else None,
                share=settings.edit_share,
                lay_out=self._prompts,
            ),
            FaceMix(self.targets(settings.held_out, report), self._prompts(list(settings.templates))),
        ]
        nn.Module.to(self.vae, settings.dtype)

    def example(self, rows: int) -> Batch:
        size = self.settings.data.size
        prompts = self._prompts([self.settings.templates[0]])
        made = super().example(rows)
        return {
            **made,
            "face": torch.zeros(rows, size, size, 3, dtype=torch.uint8),
            "face_landmarks": made["landmarks"],
            **{k: torch.from_numpy(v) for k, v in prompts.batch(np.zeros(rows, np.int64)).items()},
        }

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        words = self._words(model, batch)
        costs = self._each(words, batch, dice).losses(self.settings)
        norm = word_norm(words).mean()
        total = costs.total + self.settings.regularisation * norm
        return Losses(total, {"noise": costs.total.detach(), **costs.parts, "norm": norm.detach()})

    def each(self, model: nn.Module, batch: Batch, dice: Dice, baseline: bool = False) -> RowLosses:
        if not baseline:
            return self._each(self._words(model, batch), batch, dice)
        rows = len(batch["latents"])
        neutral = [w.expand(rows, -1, -1) for w in self.towers.neutral_words(self.m2id.config.words)]
        return self._each(neutral, batch, dice)

    def sheet(self) -> Image.Image:
        """Held-out faces, and what is painted of them for three of the paper's edit prompts."""
        source = self.sources[1]
        rows = np.linspace(0, len(source) - 1, min(SHEET_FACES, len(source))).astype(int)
        batch = {k: v.to(self.device) for k, v in source.batch(rows, step=0).items()}
        method = self.pipeline.method
        people = [
            Identity({**method.encoder.enroll(face[None]), **method.nulls()}, method.name, method.version, method.model)
            for face in self._faces(batch)
        ]
        return people_sheet(self.pipeline, list(to_images(batch["face"])), people)

    def export(self, folder: Path) -> None:
        """The whole pipeline, with the base as it is on disk, not as `base_dtype` rounds it."""
        facts = {k: self.pipeline.config[k] for k in ("default_steps", "default_guidance", "default_pag", "world")}
        pipeline = assemble(self.settings.base, self.m2id, **facts)
        pipeline.scheduler = self.scheduler
        pipeline.save_pretrained(folder)

    # --- parts ----------------------------------------------------------------------------------------------------

    def _prompts(self, prompts: list[str]) -> PromptTable:
        """Prompts as token ids with places for the person's words.

        Raises:
            ConfigError: a prompt that does not call the person S*, or has too many words.
        """
        try:
            layouts = self.towers.lay_out(prompts, {PLACEHOLDER: self.m2id.config.words}, demanded=True)
        except PromptError as e:
            raise ConfigError(f"A prompt of the training set cannot be used: {e.message}", e.hint) from e
        return PromptTable(layouts)

    def _faces(self, batch: Batch) -> torch.Tensor:
        size = self.m2id.config.backbone.image_size
        return align_faces(to_images(batch["face"]), batch["face_landmarks"], size).clamp(0, 1)

    def _words(self, model: nn.Module, batch: Batch) -> list[torch.Tensor]:
        faces = self._faces(batch)
        if self.settings.tune_backbone:
            return model(faces)
        with torch.no_grad():
            scales = self.m2id.scales(faces)
        return model(scales)

    def _each(self, words: list[torch.Tensor], batch: Batch, dice: Dice) -> RowLosses:
        drawn = self.noisy(batch, dice)
        layouts: list[Layout] = PromptTable.layouts(batch, len(self.towers.widths))
        said = self.towers(layouts, {PLACEHOLDER: words})
        tokens, added = said.tokens.to(drawn.seen.dtype), self.added(batch, said.pooled)
        prediction = self.denoiser(drawn.seen, drawn.t, tokens, added_cond_kwargs=added).sample
        return self.costs(batch, drawn, prediction, dice, self.settings.outside)
