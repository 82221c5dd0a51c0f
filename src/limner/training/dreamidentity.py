"""Training DreamIdentity's M² ID encoder on an untouched base (arXiv 2307.00300, sections 3.2 and 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from limner.config import Config
from limner.data.crops import align_faces
from limner.data.loader import Batch, Source
from limner.data.tables import DataConfig, open_pictures, picture_table, to_images
from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.config import FaceViTConfig
from limner.encoders.dreamidentity import FaceWordsEncoder
from limner.encoders.m2id import M2IDConfig, M2IDEncoder, word_norm
from limner.encoders.pseudo_words import PLACEHOLDER, Layout
from limner.encoders.scales import Backbone, ClipVisionConfig, load_backbone, quarters
from limner.encoders.word_towers import WordTowers
from limner.errors import ConfigError, PromptError
from limner.pipelines.dreamidentity import DreamIdentityPipeline, base_parts, zeros_for_empty
from limner.training.dice import Dice
from limner.training.dreamidentity_data import FaceMix, PromptTable, face_weights, latent_table
from limner.training.metrics import mean_interval
from limner.training.sheets import contact_sheet
from limner.training.task import Losses, Report, Task
from limner.types import Identity
from limner.world.words import EDIT_PROMPTS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHEET_FACES = 4
SHEET_PROMPTS = (EDIT_PROMPTS[0], EDIT_PROMPTS[4], EDIT_PROMPTS[8])


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


@dataclass(frozen=True)
class DreamIdentitySettings(Config):
    """Settings of the task.

    Attributes:
        data, held_out: pictures with landmarks, for reconstruction: a face in, the same picture as target.
        edits: the self-augmented set, or None: pictures with `identity`; those with `reference` are the identity faces
            (they need landmarks), the others the edited pictures, whose `prompt` calls the person S*.
        base: folder of SD 2.1-base, SDXL (diffusers' layout) or of a base that Limner trained.
        recogniser: folder of the backbone; see `limner.encoders.scales.load_backbone`.
        encoder: what it reads and makes.
        tune_backbone: train the backbone too; False trains the MLPs alone.
        regularisation: lambda of the words' norms.
        edit_share: share of rows from `edits`; 0 is reconstruction only, 1 edits only (the paper's ablations).
        templates: prompts of reconstruction.
        outside: weight of the loss away from the face, in pictures whose landmarks are known; 1 is the plain loss, 0
            looks at the face alone.
        base_dtype: in which the frozen base computes.
        checkpointing: trades time for memory.
        validation: held-out pictures whose loss is measured.
        guidance, steps: of the sample sheets; the exported pipeline recommends them.
    """

    data: DataConfig
    held_out: DataConfig
    base: str
    recogniser: str
    edits: DataConfig | None = None
    encoder: WordsConfig = field(default_factory=WordsConfig)
    tune_backbone: bool = False
    regularisation: float = 1e-4
    edit_share: float = 0.5
    templates: tuple[str, ...] = ("S* face",)
    outside: float = 1.0
    base_dtype: str = "float32"
    checkpointing: bool = False
    validation: int = 256
    guidance: float = 7.5
    steps: int = 30

    def validate(self) -> None:
        self.check(0 <= self.edit_share <= 1, "edit_share", "0 to 1")
        self.check(self.edits is not None or self.edit_share == 0, "edit_share", "0 without edits")
        self.check(bool(self.templates), "templates", "at least one prompt")
        self.check(all(PLACEHOLDER in t for t in self.templates), "templates", f"prompts with {PLACEHOLDER}")
        self.check(self.regularisation >= 0, "regularisation", "0 or more")
        self.check(0 <= self.outside <= 1, "outside", "0 to 1")
        self.check(self.base_dtype in DTYPES, "base_dtype", ", ".join(DTYPES))
        self.check(self.validation >= 1, "validation", "1 or more")
        self.check(self.steps >= 1, "steps", "1 or more")
        sizes = {c.size for c in (self.data, self.held_out, self.edits) if c is not None}
        self.check(len(sizes) == 1, "data", "one size for data, held_out and edits")


class DreamIdentityTask(Task[DreamIdentitySettings]):
    """See `DreamIdentitySettings`; metrics are the loss on held-out faces at fixed noise and times, with the person's
    words and with those for nobody in particular."""

    name = "dreamidentity"
    settings_class: ClassVar = DreamIdentitySettings

    def __init__(self, settings: DreamIdentitySettings) -> None:
        super().__init__(settings)
        base, dtype = Path(settings.base), DTYPES[settings.base_dtype]
        self.towers = WordTowers.from_base(base, dtype)
        self.vae, self.unet, scheduler = base_parts(base)
        nn.Module.to(self.unet, dtype).requires_grad_(False)
        self.vae.requires_grad_(False)
        if settings.checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.schedule = NoiseSchedule.of(scheduler.config)
        self.m2id = settings.encoder.build(load_backbone(settings.recogniser), self.towers.widths)
        for name, value in self.m2id.backbone.named_parameters():
            value.requires_grad_(settings.tune_backbone and not name.endswith("mask_token"))
        self.model: nn.Module = self.m2id if settings.tune_backbone else self.m2id.head
        self.pipeline = DreamIdentityPipeline(
            self.vae,
            self.unet,
            scheduler,
            FaceWordsEncoder(self.m2id, self.towers),
            default_steps=settings.steps,
            default_guidance=settings.guidance,
            world="sitters" if settings.data.kind == "world" else "",
            force_zeros_for_empty_prompt=zeros_for_empty(base, self.towers),
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def frozen(self) -> list[nn.Module]:
        own = [] if self.settings.tune_backbone else [self.m2id.backbone]
        return [self.vae, self.unet, self.towers, *own]

    def prepare(self, report: Report) -> None:
        settings = self.settings
        self.sources = [
            FaceMix(
                *self._pictures(settings.data, report),
                self._prompts(list(settings.templates)),
                *(self._pictures(settings.edits, report) if settings.edits and settings.edit_share else ()),
                share=settings.edit_share,
                lay_out=self._prompts,
            ),
            FaceMix(*self._pictures(settings.held_out, report), self._prompts(list(settings.templates))),
        ]
        nn.Module.to(self.vae, DTYPES[settings.base_dtype])

    def source(self) -> Source:
        return self.sources[0]

    def example(self, rows: int) -> Batch:
        size, channels = self.settings.data.size, self.vae.config.latent_channels
        places = size // self.pipeline.vae_scale_factor
        eyes = torch.tensor([[0.4, 0.45], [0.6, 0.45], [0.5, 0.55], [0.42, 0.65], [0.58, 0.65]]) * size
        prompts = self._prompts([self.settings.templates[0]])
        return {
            "latents": torch.zeros(rows, channels, places, places, dtype=torch.float16),
            "time": torch.tensor([[size, size, 0, 0, size, size]] * rows, dtype=torch.int32),
            "face": torch.zeros(rows, size, size, 3, dtype=torch.uint8),
            "face_landmarks": eyes.expand(rows, 5, 2),
            "landmarks": eyes.expand(rows, 5, 2),
            **{k: torch.from_numpy(v) for k, v in prompts.batch(np.zeros(rows, np.int64)).items()},
        }

    def tokens(self) -> int:
        """Places of the latent picture."""
        return (self.settings.data.size // self.pipeline.vae_scale_factor) ** 2

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        words = self._words(model, batch)
        diffusion = self._each(words, batch, dice).mean()
        norm = word_norm(words).mean()
        total = diffusion + self.settings.regularisation * norm
        return Losses(total, {"diffusion": diffusion.detach(), "norm": norm.detach()})

    def validate(self) -> dict[str, float]:
        source = self.sources[1]
        count = min(self.settings.validation, len(source))
        found: dict[str, list[torch.Tensor]] = {"loss": [], "nobody": []}
        for start in range(0, count, 16):
            rows = np.arange(start, min(start + 16, count))
            batch = {k: v.to(self.device) for k, v in source.batch(rows, step=0).items()}
            neutral = [w.expand(len(rows), -1, -1) for w in self.towers.neutral_words(self.m2id.config.words)]
            for name, words in (("loss", self._words(self.model, batch)), ("nobody", neutral)):
                dice = Dice(0, 0, range(start, start + len(rows)), self.device)
                found[name].append(self._each(words, batch, dice))
        values = {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}
        return {**mean_interval("loss", values["loss"]), **mean_interval("nobody", values["nobody"]), "n": count}

    def sheet(self) -> Image.Image:
        """Held-out faces, and what is painted of them for three of the paper's edit prompts."""
        source = self.sources[1]
        rows = np.linspace(0, len(source) - 1, min(SHEET_FACES, len(source))).astype(int)
        batch = {k: v.to(self.device) for k, v in source.batch(rows, step=0).items()}
        pictures = list(to_images(batch["face"]))
        method = self.pipeline.method
        people = [
            Identity({**method.encoder.enroll(face[None]), **method.nulls()}, method.name, method.version, method.model)
            for face in self._faces(batch)
        ]
        for prompt in SHEET_PROMPTS:
            for person in people:
                painted: Any = self.pipeline(
                    prompt, identity=person, generator=torch.Generator().manual_seed(0), output_type="pt"
                )
                pictures += list(painted.images)
        return contact_sheet(pictures, columns=len(rows))

    def export(self, folder: Path) -> None:
        """The whole pipeline, base included."""
        self.pipeline.save_pretrained(folder)

    # --- parts ----------------------------------------------------------------------------------------------------

    def _pictures(self, config: DataConfig, report: Report) -> tuple[Any, Any]:
        pictures = picture_table(open_pictures(config), config.size, config.size, report, config.workers)
        return pictures, latent_table(self.vae, pictures, self.device, report)

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

    def _each(self, words: list[torch.Tensor], batch: Batch, dice: Dice) -> torch.Tensor:
        """The diffusion loss of every row: (B,)."""
        latents, dtype = batch["latents"].float(), self.unet.dtype
        noise = dice.normal(*latents.shape[1:])
        t = dice.integers(self.schedule.steps)
        layouts: list[Layout] = PromptTable.layouts(batch, len(self.towers.widths))
        said = self.towers(layouts, {PLACEHOLDER: words})
        added = None
        if said.pooled is not None and self.unet.config.addition_embed_type == "text_time":
            added = {"text_embeds": said.pooled.to(dtype), "time_ids": batch["time"].to(dtype)}
        noisy = self.schedule.add_noise(latents, noise, t).to(dtype)
        prediction = self.unet(noisy, t, said.tokens.to(dtype), added_cond_kwargs=added).sample
        error = (prediction.float() - self.schedule.target(latents, noise, t)).square()
        if self.settings.outside == 1:
            return error.flatten(1).mean(1)
        size = self.settings.data.size
        weights = face_weights(batch["landmarks"], size, latents.shape[-1], self.settings.outside)
        return (error * weights).flatten(1).mean(1) / weights.flatten(1).mean(1)
