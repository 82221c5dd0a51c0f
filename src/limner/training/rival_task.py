"""What the rivals' trainings share: a frozen base, rows of faces and sentences, validation, sheets, export."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from limner.config import Config
from limner.data.cache import Table
from limner.data.crops import align_faces
from limner.data.loader import Batch, Source
from limner.data.tables import DataConfig, open_pictures, picture_table, to_images
from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.pseudo_words import PLACEHOLDER
from limner.encoders.rivals import RivalEncoder
from limner.encoders.word_towers import WordTowers
from limner.pipelines.dreamidentity import base_parts, zeros_for_empty
from limner.pipelines.rivals import RivalPipeline
from limner.training.dice import Dice
from limner.training.dreamidentity import DTYPES
from limner.training.dreamidentity_data import PromptTable, latent_table
from limner.training.metrics import mean_interval
from limner.training.rival_data import RivalRows, rival_features
from limner.training.sheets import contact_sheet
from limner.training.task import Losses, Report, Task
from limner.types import Face
from limner.world.words import EDIT_PROMPTS

SHEET_FACES = 4
SHEET_PROMPTS = (EDIT_PROMPTS[0], EDIT_PROMPTS[4], EDIT_PROMPTS[8])


@dataclass(frozen=True)
class RivalSettings(Config):
    """Settings that all rivals have.

    Attributes:
        data, held_out: pictures with landmarks and persons, and captions unless there are templates.
        base: folder of SD 2.1-base, SDXL (diffusers' layout) or of a base that Limner trained.
        templates: sentences that all pictures share; empty takes captions and prompts of the data.
        prompts: share of rows that read the sentence with S* instead of the caption.
        partner: the face comes from another picture of the person; False: from the very picture.
        drop_text, drop_face, drop_both: shares of rows without them, for classifier-free guidance, where a method needs
            that.
        base_dtype: in which the frozen base computes.
        checkpointing: trades time for memory.
        validation: held-out pictures whose loss is measured.
        guidance, steps: of the sample sheets; the exported pipeline recommends them.
    """

    data: DataConfig
    held_out: DataConfig
    base: str
    templates: tuple[str, ...] = ()
    prompts: float = 0.5
    partner: bool = True
    drop_text: float = 0.05
    drop_face: float = 0.05
    drop_both: float = 0.05
    base_dtype: str = "float32"
    checkpointing: bool = False
    validation: int = 256
    guidance: float = 3.0
    steps: int = 30

    def validate(self) -> None:
        for name in ("prompts", "drop_text", "drop_face", "drop_both"):
            self.check(0 <= getattr(self, name) <= 1, name, "0 to 1")
        self.check(self.drop_text + self.drop_face + self.drop_both <= 1, "drop_both", "all three together 0 to 1")
        self.check(self.base_dtype in DTYPES, "base_dtype", ", ".join(DTYPES))
        self.check(self.validation >= 1, "validation", "1 or more")
        self.check(self.steps >= 1, "steps", "1 or more")
        self.check(self.data.size == self.held_out.size, "data", "one size for data and held_out")


C = TypeVar("C", bound=RivalSettings)


class RivalTask(Task[C]):
    """Metrics are the loss on held-out pictures at fixed noise and times, with the person and without (`nobody`).

    Attributes:
        kind: what is read of a face, see `rival_features`.
        encoder, pipeline: set by `assemble`.
        sources: rows of training and of held-out pictures, set by `prepare`; both have `pictures`, their table.
    """

    kind: str
    encoder: RivalEncoder
    pipeline: RivalPipeline
    sources: list[Any]
    _nothing: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def open_base(self) -> tuple[WordTowers, Any, Any]:
        """Text towers, UNet and scheduler of the base, frozen; sets vae and schedule."""
        settings = self.settings
        base, dtype = Path(settings.base), DTYPES[settings.base_dtype]
        towers = WordTowers.from_base(base, dtype)
        self.vae, unet, scheduler = base_parts(base)
        self.vae.requires_grad_(False)
        nn.Module.to(unet, dtype).requires_grad_(False)
        self.schedule = NoiseSchedule.of(scheduler.config)
        if settings.checkpointing:
            unet.enable_gradient_checkpointing()
        self.unet: Any = unet
        return towers, unet, scheduler

    def assemble(self, kind: type[RivalPipeline], scheduler: Any, encoder: RivalEncoder) -> None:
        """Makes the pipeline that will be exported."""
        settings = self.settings
        self.encoder = encoder
        self.pipeline = kind(
            self.vae,
            self.unet,
            scheduler,
            encoder,
            default_steps=settings.steps,
            default_guidance=settings.guidance,
            world="sitters" if settings.data.kind == "world" else "",
            force_zeros_for_empty_prompt=zeros_for_empty(Path(settings.base), encoder.towers),
        )
        self.pipeline.set_progress_bar_config(disable=True)

    @abstractmethod
    def each(self, model: nn.Module, batch: Batch, dice: Dice, nobody: bool = False) -> torch.Tensor:
        """The diffusion loss of every row: (B,); `nobody` leaves out the person and nothing else."""

    def frozen(self) -> list[nn.Module]:
        return [self.vae, self.encoder]

    def prepare(self, report: Report) -> None:
        settings = self.settings
        self.sources = []
        for config in (settings.data, settings.held_out):
            pictures = picture_table(open_pictures(config), config.size, config.size, report, config.workers)
            latents = latent_table(self.vae, pictures, self.device, report)
            faces = rival_features(self.encoder, pictures, self.kind, self.device, report)
            self.sources.append(
                RivalRows(
                    pictures, latents, faces, self.lay_out,
                    templates=settings.templates, prompts=settings.prompts, partner=settings.partner,
                )
            )  # fmt: skip
        nn.Module.to(self.vae, DTYPES[settings.base_dtype])

    def source(self) -> Source:
        return self.sources[0]

    def example(self, rows: int) -> Batch:
        size, channels = self.settings.data.size, self.vae.config.latent_channels
        places = size // self.pipeline.vae_scale_factor
        prompts = self.lay_out([f"a photo of {PLACEHOLDER}"]).batch(np.zeros(rows, np.int64))
        return {
            "latents": torch.zeros(rows, channels, places, places, dtype=torch.float16),
            "time": torch.tensor([[size, size, 0, 0, size, size]] * rows, dtype=torch.int32),
            **{k: torch.from_numpy(v) for k, v in prompts.items()},
        }

    def tokens(self) -> int:
        """Places of the latent picture."""
        return (self.settings.data.size // self.pipeline.vae_scale_factor) ** 2

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        return Losses(self.each(model, batch, dice).mean(), {})

    def validate(self) -> dict[str, float]:
        source = self.sources[1]
        count = min(self.settings.validation, len(source))
        found: dict[str, list[torch.Tensor]] = {"loss": [], "nobody": []}
        for start in range(0, count, 16):
            rows = np.arange(start, min(start + 16, count))
            batch = {k: v.to(self.device) for k, v in source.batch(rows, step=0).items()}
            for name, values in found.items():
                dice = Dice(0, 0, range(start, start + len(rows)), self.device)
                values.append(self.each(self.model, batch, dice, nobody=name == "nobody"))
        measured = {name: torch.cat(values).float().cpu().numpy() for name, values in found.items()}
        return {**mean_interval("loss", measured["loss"]), **mean_interval("nobody", measured["nobody"]), "n": count}

    def sheet(self) -> Image.Image:
        """Held-out faces, and what is painted of them for three of the edit prompts."""
        return face_sheet(self.pipeline, self.sources[1].pictures, self.device)

    def export(self, folder: Path) -> None:
        """The whole pipeline, base included."""
        self.pipeline.save_pretrained(folder)

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
        if self._nothing is None or self._nothing[0].device != tokens.device:  # the towers are frozen: made once
            made = self.pipeline.method.condition(None, [""])
            assert made.negative_prompt_embeds is not None
            self._nothing = made.negative_prompt_embeds, made.negative_pooled
        null, null_pooled = self._nothing
        if pooled is not None and null_pooled is not None:
            pooled = torch.where(rows[:, None], null_pooled.to(pooled), pooled)
        return torch.where(rows[:, None, None], null.to(tokens), tokens), pooled

    def added(self, batch: Batch, pooled: torch.Tensor | None) -> dict[str, Any]:
        """SDXL's conditions besides the tokens; empty for a UNet without them."""
        if pooled is None or self.unet.config.addition_embed_type != "text_time":
            return {}
        return {"text_embeds": pooled.to(self.unet.dtype), "time_ids": batch["time"].to(self.unet.dtype)}

    def noisy(self, batch: Batch, dice: Dice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, noise, times and noisy latents of a batch."""
        latents = batch["latents"].float()
        noise, t = dice.normal(*latents.shape[1:]), dice.integers(self.schedule.steps)
        return latents, noise, t, self.schedule.add_noise(latents, noise, t).to(self.unet.dtype)


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
    shown, people = list(images), []
    for row, face in zip(rows, align_faces(images, marks, 448).clamp(0, 1), strict=True):
        photo = np.asarray(pictures["image"][row])
        whole = Face(face.float().cpu().numpy(), (0.0, 0.0, *photo.shape[1::-1]), 1.0, np.eye(2, 3), photo=photo)
        people.append(pipeline.method.enroll([whole]))
    for prompt in SHEET_PROMPTS:
        for person in people:
            painted: Any = pipeline(
                prompt, identity=person, generator=torch.Generator().manual_seed(0), output_type="pt"
            )
            shown += list(painted.images)
    return contact_sheet(shown, columns=len(rows))
