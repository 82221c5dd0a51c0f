"""Training the denoiser: the mini base on text, FaceCLIP-SDXL (any size) on faces and text."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import nn

from limner.config import Config
from limner.data.buckets import bucket_of
from limner.data.loader import Batch, Source
from limner.data.tables import DataConfig, open_pictures, picture_table
from limner.diffusion.loss import denoising_loss
from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.face_vit import FaceViT
from limner.errors import ConfigError
from limner.pipelines.schedulers import SCHEDULERS, make_scheduler
from limner.training.denoising import (
    DTYPES,
    Conditioner,
    EitherConditioner,
    FaceCLIPConditioner,
    Targets,
    TextConditioner,
    decode_latents,
    dtype_named,
    latent_table,
    noisy_latents,
    write_out_attention,
)
from limner.training.dice import Dice
from limner.training.face_weights import place_weights
from limner.training.growing import Grown, grow
from limner.training.identity_loss import IdentityLoss, IdentityLossSettings, RowLosses
from limner.training.parts import autoencoder_of, face_of, unet_of
from limner.training.rereading import Said, reread
from limner.training.sheets import contact_sheet
from limner.training.task import Losses, Report, Task, channels_last
from limner.training.towers import face_features

SAMPLING_STEPS = 30
EXAMPLES, SENTENCES = 128, 4096
"""Pictures by which a UNet that grew is settled, and by which one learns to read another encoder."""


@dataclass(frozen=True)
class UNetConfig(Config):
    """Sizes of an SDXL-shaped UNet2DConditionModel.

    Attributes:
        channels: of each level.
        layers: residual blocks per level.
        attention: transformer layers of each level; 0 for a level without attention.
        head: channels of an attention head.
        time_channels: of the embedding of each of SDXL's six size numbers.
        groups: of the group normalisation.
    """

    channels: tuple[int, ...] = (64, 128, 192)
    layers: int = 1
    attention: tuple[int, ...] = (0, 1, 1)
    head: int = 32
    time_channels: int = 32
    groups: int = 16

    def validate(self) -> None:
        self.check(len(self.channels) >= 2, "channels", "two levels or more")
        self.check(len(self.attention) == len(self.channels), "attention", "one number per level")
        self.check(all(c % self.head == 0 for c in self.channels), "head", "a divisor of every level's channels")
        self.check(all(c % self.groups == 0 for c in self.channels), "groups", "a divisor of every level's channels")

    def build(self, latent_channels: int, size: int | tuple[int, int], width: int, pooled: int) -> UNet2DConditionModel:
        """The UNet for latents of `size` places, prompt embeddings of `width` and `pooled` channels."""
        down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in self.attention)
        up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(self.attention))
        return UNet2DConditionModel(
            sample_size=size,
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            down_block_types=down,
            up_block_types=up,
            transformer_layers_per_block=tuple(max(1, a) for a in self.attention),
            attention_head_dim=tuple(c // self.head for c in self.channels),  # diffusers' name for the number of heads
            cross_attention_dim=width,
            use_linear_projection=True,
            norm_num_groups=self.groups,
            addition_embed_type="text_time",
            addition_time_embed_dim=self.time_channels,
            projection_class_embeddings_input_dim=pooled + 6 * self.time_channels,
        )


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings(IdentityLossSettings):
    """Settings of the task; see also `IdentityLossSettings`, where no `judge` takes the face encoder of `encoder`.

    Attributes:
        data, held_out: pictures with captions (and, for FaceCLIP, landmarks and persons).
        autoencoder: folder of the autoencoder.
        clips: folders of the text towers, to train on text alone; and/or
        encoder: folder of the aligned FaceCLIP encoder, to train on faces and text. With both, one UNet learns either.
        alone: with both, share of rows that read text alone.
        init: folder of a UNet in diffusers' form to start from; its sizes replace `unet`.
        grow_channels, grow_layers: of each level, what the UNet of `init` is grown to (`limner.training.growing`);
            empty leaves it as it is.
        formerly: folder of the FaceCLIP encoder under which the UNet of `init` was trained, if that is not `encoder`:
            it begins by reading the one nearly as it read the other (`limner.training.rereading`).
        unet: sizes of a new one.
        schedule: of the noise.
        min_snr: gamma of min-SNR weighting; None weighs all noise alike.
        face_weight, eye_weight: how much more an error counts in the face and at the eyes; need landmarks.
        dropout: share of rows whose conditioning is dropped, for classifier-free guidance.
        faceless: see `FaceCLIPConditioner`.
        prompts: share of rows that read the sentence with S* instead of the caption.
        towers_dtype: float32, bfloat16 or float16: in which the frozen towers compute.
        sizes: (height, width) of the pictures in pixels; each goes to the size nearest in shape. Empty means square.
        checkpointing: trades time for memory.
        validation: held-out pictures whose loss is measured.
        guidance: of the sample sheets; the exported pipeline recommends it.
        pag: perturbed-attention guidance, which an exported FaceCLIP pipeline recommends. Sheets are without.
        sampler: which the exported pipeline recommends, a name of `limner.pipelines.schedulers`. Sheets use DDIM.
    """

    data: DataConfig
    held_out: DataConfig
    autoencoder: str
    clips: tuple[str, ...] = ()
    encoder: str = ""
    alone: float = 0.0
    init: str = ""
    grow_channels: tuple[int, ...] = ()
    grow_layers: tuple[int, ...] = ()
    formerly: str = ""
    unet: UNetConfig = field(default_factory=UNetConfig)
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    min_snr: float | None = None
    face_weight: float = 0.0
    eye_weight: float = 0.0
    dropout: float = 0.1
    faceless: float = 0.1
    prompts: float = 0.5
    towers_dtype: str = "float32"
    sizes: tuple[tuple[int, int], ...] = ()
    checkpointing: bool = False
    validation: int = 256
    guidance: float = 3.0
    pag: float = 0.0
    sampler: str = "ddim"

    def validate(self) -> None:
        super().validate()
        self.check(bool(self.clips or self.encoder), "encoder", "clips, encoder or both")
        both = bool(self.clips and self.encoder)
        grown = (bool(self.grow_channels), bool(self.grow_layers))
        self.check(grown[0] == grown[1], "grow_channels", "given with grow_layers")
        self.check(not grown[0] or bool(self.init), "grow_channels", "given with init")
        self.check(not self.formerly or bool(self.init and self.encoder), "formerly", "given with init and encoder")
        self.check(not (self.formerly and self.grow_channels), "formerly", "not given with grow_channels")
        self.check(0 < self.alone < 1 if both else self.alone == 0, "alone", "above 0 and below 1 with both, else 0")
        for name in ("dropout", "faceless", "prompts"):
            self.check(0 <= getattr(self, name) <= 1, name, "0 to 1")
        for name in ("face_weight", "eye_weight"):
            self.check(getattr(self, name) >= 0, name, "0 or more")
        judged = bool(self.encoder or self.judge)
        self.check(not self.identity_weight or judged, "judge", "a folder, where there is no encoder")
        self.check(self.min_snr is None or self.min_snr > 0, "min_snr", "more than 0, or null")
        self.check(self.min_snr is None or not self.schedule.zero_snr, "min_snr", "null with schedule.zero_snr")
        self.check(all(h % 8 == 0 and w % 8 == 0 for h, w in self.sizes), "sizes", "multiples of 8")
        self.check(self.towers_dtype in DTYPES, "towers_dtype", ", ".join(DTYPES))
        self.check(self.pag >= 0, "pag", "0 or more")
        self.check(self.sampler in SCHEDULERS, "sampler", ", ".join(SCHEDULERS))
        self.check(self.validation >= 1, "validation", "1 or more")


class DiffusionTask(Task[DiffusionSettings]):
    """See `DiffusionSettings`; metrics are the loss on held-out pictures at fixed noise and times, and `unlike`, the
    mean identity loss, if there is one."""

    name = "diffusion"
    settings_class: ClassVar = DiffusionSettings
    shards: ClassVar[tuple[str, ...]] = ("BasicTransformerBlock", "ResnetBlock2D")
    grown: Grown | None = None
    sampling_steps: int = SAMPLING_STEPS
    """Of sheets, and what the exported pipeline recommends."""

    def __init__(self, settings: DiffusionSettings) -> None:
        super().__init__(settings)
        self.autoencoder = autoencoder_of(Path(settings.autoencoder))
        self.conditioner = _conditioner(settings)
        self.sizes = settings.sizes or ((settings.data.size, settings.data.size),)
        self.unet: Any = self._unet()
        if settings.checkpointing:
            self.unet.enable_gradient_checkpointing()
        write_out_attention(self.unet)
        self.judge: FaceViT | None = None
        if settings.identity_weight:
            if settings.judge:
                self.judge = face_of(Path(settings.judge)).requires_grad_(False)
            else:
                assert isinstance(self.conditioner, FaceCLIPConditioner | EitherConditioner)
                self.judge = self.conditioner.encoder.faces[0]
            self.identity = IdentityLoss(
                settings.schedule,
                self._decode,
                self.judge.eval(),
                settings.identity_share,
                settings.identity_noise,
                dtype_named(settings.towers_dtype),
            )
        self.model = channels_last(self.unet)

    def frozen(self) -> list[nn.Module]:
        return [self.autoencoder, *self.conditioner.modules, *([self.judge] if self.judge else [])]

    def prepare(self, report: Report) -> None:
        self.sources = []
        for config in (self.settings.data, self.settings.held_out):
            pictures = open_pictures(config)
            buckets = bucket_of(pictures.sizes, self.sizes)
            tables = []
            for k in np.unique(buckets):
                rows = None if len(self.sizes) == 1 else np.flatnonzero(buckets == k)
                height, width = self.sizes[k]
                tables.append(picture_table(pictures, height, width, report, config.workers, rows))
            latents = [latent_table(self.autoencoder, t, self.device, report) for t in tables]
            faces = [face_features(self.judge, t, self.device, report) if self.judge else None for t in tables]
            targets = [Targets(*own) for own in zip(tables, latents, faces, strict=True)]
            self.sources.append(_Rows(targets, self.conditioner, self.conditioner.prepare(tables, self.device, report)))
        if self.settings.formerly:
            former = _conditioner(replace(self.settings, encoder=self.settings.formerly))
            targets = self.sources[0].targets
            prepared = former.prepare([t.pictures for t in targets], self.device, report)
            self._reread(_Rows(targets, former, prepared))
        if self.grown is not None:
            self._settle(self.grown)
            self.grown = None

    def source(self) -> Source:
        return self.sources[0]

    def example(self, rows: int) -> Batch:
        height, width = max(self.sizes)
        channels, places = self.autoencoder.config.latent_channels, (height // 8, width // 8)
        return {**Targets.example(rows, channels, places, 8, self.judge), **self.conditioner.example(rows)}

    def tokens(self) -> int:
        """Places of the latent picture and words of the prompt."""
        height, width = max(self.sizes)
        return height * width // 64 + self.conditioner.context

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        return self._each(model, batch, dice).losses(self.settings)

    def validate(self) -> dict[str, float]:
        source = self.sources[1]
        rows = source.first_group()[: self.settings.validation]
        found = []
        for start in range(0, len(rows), 32):
            some = rows[start : start + 32]
            batch = {k: v.to(self.device) for k, v in source.batch(some, step=0).items()}
            found.append(self._each(self.model, batch, Dice(0, 0, range(start, start + len(some)), self.device)))
        return {**RowLosses.metrics(found), "n": len(rows)}

    def _each(self, model: nn.Module, batch: Batch, dice: Dice) -> RowLosses:
        settings = self.settings
        latents, noise, t, noisy = noisy_latents(settings.schedule, batch, dice)
        embeds, pooled, told = self.conditioner.draw(
            batch, dice, settings.prompts, settings.dropout, dtype_named(settings.towers_dtype)
        )
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        added = {"text_embeds": pooled, "time_ids": batch["time"].float()}
        prediction = model(noisy, t, embeds, added_cond_kwargs=added).sample
        places = place_weights(batch["landmarks"], latents.shape[2:], 8, settings.face_weight, settings.eye_weight)
        loss = denoising_loss(settings.schedule, prediction, latents, noise, t, settings.min_snr, places)
        if self.judge is None:
            return RowLosses(loss)
        judged = {**batch, "recognisable": batch["recognisable"] & told}
        return RowLosses(loss, *self.identity(noisy, prediction, t, judged, dice.uniform()))

    def sheet(self) -> Image.Image:
        """Held-out pictures above what the model paints for their conditioning."""
        source = self.sources[1]
        rows = source.first_group()
        rows = rows[np.linspace(0, len(rows) - 1, min(8, len(rows))).astype(int)]
        batch = {k: v.to(self.device) for k, v in source.batch(rows, step=0).items()}
        ones = torch.ones(len(rows), device=self.device)
        embeds, pooled = self.conditioner.encode({**batch, "with_face": ones}, ones < 0)
        painted = self._exhibit(batch, embeds, pooled)
        real = self._decode(batch["latents"].float())
        return contact_sheet([*real, *painted], columns=len(rows), scale=1)

    def _exhibit(self, batch: Batch, embeds: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """What a sheet shows of a batch: (B,3,H,W) in [0, 1]."""
        return self.sample(embeds, pooled, batch["latents"].shape[2:], batch["time"].float())

    @torch.no_grad()
    def sample(
        self, embeds: torch.Tensor, pooled: torch.Tensor, places: torch.Size, time_ids: torch.Tensor, seed: int = 0
    ) -> torch.Tensor:
        """Paints by DDIM with classifier-free guidance: (B,3,H,W) in [0, 1]."""
        null, null_pooled = (x.expand(len(embeds), *x.shape[1:]) for x in self.conditioner.null())
        both = torch.cat([null, embeds])
        added = {"text_embeds": torch.cat([null_pooled, pooled]), "time_ids": torch.cat([time_ids, time_ids])}
        scheduler: Any = self.settings.schedule.scheduler("DDIMScheduler")
        scheduler.set_timesteps(self.sampling_steps, device=self.device)
        x = Dice(seed, 0, range(len(embeds)), self.device).normal(self.unet.config.in_channels, *places)
        for t in scheduler.timesteps:
            without, given = self.model(torch.cat([x, x]), t, both, added_cond_kwargs=added).sample.float().chunk(2)
            x = scheduler.step(without + self.settings.guidance * (given - without), t, x).prev_sample
        return self._decode(x)

    def export(self, folder: Path) -> None:
        """A complete pipeline for FaceCLIP; for text: unet/, vae/, scheduler/ and text_0/, text_1/; for both: both."""
        scheduler: Any = make_scheduler(self.settings.sampler, self.settings.schedule.scheduler("DDIMScheduler"))
        components = self.conditioner.export(folder)
        if components:
            from limner.pipelines.faceclip import FaceCLIPPipeline

            pipeline = FaceCLIPPipeline(
                self.autoencoder,
                self.unet,
                scheduler,
                default_steps=self.sampling_steps,
                default_guidance=self.settings.guidance,
                default_pag=self.settings.pag,
                world="sitters" if self.settings.data.kind == "world" else "",
                **components,
            )
            pipeline.save_pretrained(folder)
            return
        self.unet.save_pretrained(folder / "unet")
        self.autoencoder.save_pretrained(folder / "vae")
        scheduler.save_pretrained(folder / "scheduler")

    def _unet(self) -> Any:
        settings, width, pooled = self.settings, self.conditioner.width, self.conditioner.pooled
        if not settings.init:
            height, across = self.sizes[0]
            size = height // 8 if height == across else (height // 8, across // 8)
            return settings.unet.build(self.autoencoder.config.latent_channels, size, width, pooled)
        unet = unet_of(Path(settings.init))
        if unet.config.cross_attention_dim != width:
            raise ConfigError(
                f"The UNet in {settings.init} reads embeddings of {unet.config.cross_attention_dim} channels; "
                f"the encoder gives {width}."
            )
        if not settings.grow_channels:
            return unet
        self.grown = grow(unet, settings.grow_channels, settings.grow_layers)
        return self.grown.unet

    def _settle(self, grown: Grown) -> None:
        """Has a UNet that grew paint as the one that it grew from, on the first pictures."""
        rows = self.sources[0].first_group()
        rows = rows[np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).astype(int)]
        for module in (grown.old, grown.unet, *self.conditioner.modules):
            module.to(self.device)
        batch = {k: v.to(self.device) for k, v in self.sources[0].batch(rows, step=0).items()}
        dice = Dice(0, 0, range(len(rows)), self.device)
        noisy = noisy_latents(self.settings.schedule, batch, dice)
        said = self.conditioner.draw(batch, dice, self.settings.prompts, self.settings.dropout)
        added = {"text_embeds": said.pooled, "time_ids": batch["time"].float()}
        grown.settle(lambda unet: unet(noisy.seen, noisy.t, said.embeds, added_cond_kwargs=added))

    def _reread(self, former: _Rows) -> None:
        """Has the UNet read the encoder nearly as it read the former one, whose rows these are."""
        rows = former.first_group()
        rows = rows[np.linspace(0, len(rows) - 1, min(SENTENCES, len(rows))).astype(int)]
        now, was = (self._said(source, rows) for source in (self.sources[0], former))
        reread(self.unet.to(self.device), now, was)

    def _said(self, source: _Rows, rows: np.ndarray) -> Said:
        """The conditioning of some rows, drawn as training draws it."""
        settings, found = self.settings, []
        for module in source.conditioner.modules:
            module.to(self.device)
        for start in range(0, len(rows), 64):
            some = rows[start : start + 64]
            batch = {k: v.to(self.device) for k, v in source.batch(some, step=0).items()}
            dice = Dice(0, 0, range(start, start + len(some)), self.device)
            found.append(source.conditioner.draw(batch, dice, settings.prompts, settings.dropout))
        return Said(torch.cat([f.embeds for f in found]), torch.cat([f.pooled for f in found]))

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return decode_latents(self.autoencoder, latents)


def _conditioner(settings: DiffusionSettings) -> Conditioner:
    text = TextConditioner(tuple(map(Path, settings.clips))) if settings.clips else None
    if not settings.encoder:
        assert text is not None
        return text
    faces = FaceCLIPConditioner(Path(settings.encoder), settings.faceless)
    return EitherConditioner(faces, text, settings.alone) if text else faces


class _Rows(Source):
    """Pictures of one or more sizes, with what conditions them; rows are counted through all sizes."""

    def __init__(self, targets: list[Targets], conditioner: Conditioner, prepared: list[Any]) -> None:
        self.targets, self.conditioner, self.prepared = targets, conditioner, prepared
        self.first = np.cumsum([0, *map(len, targets)])
        self.groups: np.ndarray = np.concatenate([np.full(len(t), i) for i, t in enumerate(targets)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def batch(self, rows: np.ndarray, step: int) -> Batch:
        k = int(self.groups[rows[0]])
        own = rows - self.first[k]
        found = {**self.targets[k].columns(own), **self.conditioner.columns(self.prepared[k], own, step)}
        return {name: torch.from_numpy(value) for name, value in found.items()}

    def first_group(self) -> np.ndarray:
        """Rows of the first size."""
        return np.arange(self.first[1])
