"""Training an IP-Adapter on an untouched base: IP-Adapter-FaceID from identity vectors (arXiv 2308.06721), and ELITE's
local mapping from patch tokens beside a trained global mapping (arXiv 2302.13848, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor
from PIL import Image
from torch import nn

from limner.config import Config
from limner.data.cache import Table
from limner.data.crops import align_faces
from limner.data.loader import Batch, Source
from limner.data.tables import DataConfig, open_pictures, picture_table, to_images
from limner.diffusion.adapter import KINDS, adapter_modules, install, new_adapter
from limner.diffusion.loss import denoising_loss
from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.m2id import M2IDEncoder
from limner.encoders.pseudo_words import PLACEHOLDER
from limner.encoders.rivals import RivalEncoder, patch_width
from limner.encoders.scales import load_backbone
from limner.encoders.word_towers import WordTowers
from limner.pipelines.dreamidentity import base_parts, zeros_for_empty
from limner.pipelines.rivals import ElitePipeline, IPAdapterPipeline, RivalPipeline
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
class AdapterSettings(Config):
    """Settings of the task.

    Attributes:
        data, held_out: pictures with landmarks and persons, and captions unless there are templates.
        base: folder of SD 2.1-base, SDXL (diffusers' layout) or of a base that Limner trained.
        recogniser: folder of the backbone (`limner.encoders.scales.load_backbone`); empty with `words`.
        words: folder of a trained M² ID encoder whose first word stands for S* (ELITE's global mapping); or empty.
        kind: what the adapter reads of a face: `identity` (IP-Adapter-FaceID) or `patches` (ELITE; needs `words`).
        tokens: that an identity vector becomes.
        templates: sentences that all pictures share; empty takes captions and prompts of the data.
        prompts: share of rows that read the sentence with S* instead of the caption.
        partner: the face comes from another picture of the person; False: from the very picture.
        drop_text, drop_face, drop_both: shares of rows without them, for classifier-free guidance.
        base_dtype: in which the frozen base computes.
        checkpointing: trades time for memory.
        validation: held-out pictures whose loss is measured.
        guidance, steps: of the sample sheets; the exported pipeline recommends them.
    """

    data: DataConfig
    held_out: DataConfig
    base: str
    recogniser: str = ""
    words: str = ""
    kind: str = "identity"
    tokens: int = 4
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
        self.check(self.kind in KINDS, "kind", ", ".join(KINDS))
        self.check(bool(self.recogniser) != bool(self.words), "recogniser", "either recogniser or words")
        self.check((self.kind == "patches") == bool(self.words), "words", "a folder with kind patches, and only then")
        self.check(self.tokens >= 1, "tokens", "1 or more")
        for name in ("prompts", "drop_text", "drop_face", "drop_both"):
            self.check(0 <= getattr(self, name) <= 1, name, "0 to 1")
        self.check(self.drop_text + self.drop_face + self.drop_both <= 1, "drop_both", "all three together 0 to 1")
        self.check(self.base_dtype in DTYPES, "base_dtype", ", ".join(DTYPES))
        self.check(self.validation >= 1, "validation", "1 or more")
        self.check(self.steps >= 1, "steps", "1 or more")
        self.check(self.data.size == self.held_out.size, "data", "one size for data and held_out")


class AdapterTask(Task[AdapterSettings]):
    """See `AdapterSettings`; metrics are the loss on held-out pictures at fixed noise and times, with the face and
    without it (`nobody`)."""

    name = "adapter"
    settings_class: ClassVar = AdapterSettings
    _nothing: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def __init__(self, settings: AdapterSettings) -> None:
        super().__init__(settings)
        base, dtype = Path(settings.base), DTYPES[settings.base_dtype]
        towers = WordTowers.from_base(base, dtype)
        self.vae, unet, scheduler = base_parts(base)
        self.vae.requires_grad_(False)
        nn.Module.to(unet, dtype).requires_grad_(False)
        self.schedule = NoiseSchedule.of(scheduler.config)
        words = M2IDEncoder.from_pretrained(settings.words) if settings.words else None
        backbone = None if words else load_backbone(settings.recogniser)
        self.encoder = RivalEncoder(towers, backbone, words)
        seen = self.encoder.backbone
        width = seen.config.output if settings.kind == "identity" else patch_width(seen)
        install(unet, new_adapter(unet, settings.kind, width, settings.tokens))
        if settings.checkpointing:
            unet.enable_gradient_checkpointing()
        if not torch.accelerator.is_available():  # a CPU trains faster with attention written out
            _write_out_attention(unet)
        adapter_modules(unet).float().requires_grad_(True)
        self.unet = unet
        self.model = AdaptedUNet(unet)
        kind: type[RivalPipeline] = IPAdapterPipeline if settings.kind == "identity" else ElitePipeline
        self.pipeline = kind(
            self.vae,
            unet,
            scheduler,
            self.encoder,
            default_steps=settings.steps,
            default_guidance=settings.guidance,
            world="sitters" if settings.data.kind == "world" else "",
            force_zeros_for_empty_prompt=zeros_for_empty(base, towers),
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def frozen(self) -> list[nn.Module]:
        return [self.vae, self.encoder]

    def prepare(self, report: Report) -> None:
        settings = self.settings
        self.sources = []
        for config in (settings.data, settings.held_out):
            pictures = picture_table(open_pictures(config), config.size, config.size, report, config.workers)
            latents = latent_table(self.vae, pictures, self.device, report)
            faces = rival_features(self.encoder, pictures, settings.kind, self.device, report)
            self.sources.append(
                RivalRows(
                    pictures, latents, faces, self._lay_out,
                    templates=settings.templates, prompts=settings.prompts, partner=settings.partner,
                )
            )  # fmt: skip
        nn.Module.to(self.vae, DTYPES[settings.base_dtype])

    def source(self) -> Source:
        return self.sources[0]

    def example(self, rows: int) -> Batch:
        size, channels, seen = self.settings.data.size, self.vae.config.latent_channels, self.encoder.backbone.config
        places = size // self.pipeline.vae_scale_factor
        face = (seen.output,)
        if self.settings.kind == "patches":
            face = ((seen.image_size // seen.patch_size) ** 2, seen.width)  # type: ignore[assignment]
        prompts = self._lay_out([f"a photo of {PLACEHOLDER}"]).batch(np.zeros(rows, np.int64))
        widths = self.encoder.towers.widths if self.settings.words else ()
        return {
            "latents": torch.zeros(rows, channels, places, places, dtype=torch.float16),
            "time": torch.tensor([[size, size, 0, 0, size, size]] * rows, dtype=torch.int32),
            "face": torch.ones(rows, *face),
            **{f"words_{i}": torch.zeros(rows, 1, width) for i, width in enumerate(widths)},
            **{k: torch.from_numpy(v) for k, v in prompts.items()},
        }

    def tokens(self) -> int:
        """Places of the latent picture."""
        return (self.settings.data.size // self.pipeline.vae_scale_factor) ** 2

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        return Losses(self._each(model, batch, dice).mean(), {})

    def validate(self) -> dict[str, float]:
        source = self.sources[1]
        count = min(self.settings.validation, len(source))
        found: dict[str, list[torch.Tensor]] = {"loss": [], "nobody": []}
        for start in range(0, count, 16):
            rows = np.arange(start, min(start + 16, count))
            batch = {k: v.to(self.device) for k, v in source.batch(rows, step=0).items()}
            for name, values in found.items():
                dice = Dice(0, 0, range(start, start + len(rows)), self.device)
                values.append(self._each(self.model, batch, dice, nobody=name == "nobody"))
        measured = {name: torch.cat(values).cpu().numpy() for name, values in found.items()}
        return {**mean_interval("loss", measured["loss"]), **mean_interval("nobody", measured["nobody"]), "n": count}

    def sheet(self) -> Image.Image:
        """Held-out faces, and what is painted of them for three of the edit prompts."""
        return face_sheet(self.pipeline, self.sources[1].pictures, self.device)

    def export(self, folder: Path) -> None:
        """The whole pipeline, base included."""
        self.pipeline.save_pretrained(folder)

    # --- parts ----------------------------------------------------------------------------------------------------

    def _lay_out(self, sentences: list[str]) -> PromptTable:
        return PromptTable(self.encoder.towers.lay_out(sentences, {PLACEHOLDER: 1}))

    def _each(self, model: nn.Module, batch: Batch, dice: Dice, nobody: bool = False) -> torch.Tensor:
        """The diffusion loss of every row: (B,); `nobody` drops the face and nothing else."""
        dtype = self.unet.dtype
        latents = batch["latents"].float()
        noise = dice.normal(*latents.shape[1:])
        t = dice.integers(self.schedule.steps)
        chance = dice.uniform()
        with torch.no_grad():
            tokens, pooled = self._say(batch)
            if not model.training:
                chance = torch.ones_like(chance)
            no_text, no_face = self._dropped(chance)
            null, null_pooled = self._null()
            tokens = torch.where(no_text[:, None, None], null.to(tokens), tokens)
            if pooled is not None and null_pooled is not None:
                pooled = torch.where(no_text[:, None], null_pooled.to(pooled), pooled)
        if nobody:
            no_face = torch.ones_like(no_face)
        face = batch["face"].float() * ~no_face.view(-1, *[1] * (batch["face"].ndim - 1))
        added: dict[str, Any] = {"image_embeds": [face[:, None].to(dtype)]}
        if pooled is not None and self.unet.config.addition_embed_type == "text_time":
            added |= {"text_embeds": pooled.to(dtype), "time_ids": batch["time"].to(dtype)}
        noisy = self.schedule.add_noise(latents, noise, t).to(dtype)
        prediction = model(noisy, t, tokens.to(dtype), added).sample
        return denoising_loss(self.schedule, prediction, latents, noise, t)

    def _say(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        towers = self.encoder.towers
        layouts = PromptTable.layouts(batch, len(towers.widths))
        words = [batch[f"words_{i}"] for i in range(len(towers.widths))] if self.settings.words else None
        said = towers(layouts, {} if words is None else {PLACEHOLDER: words})
        return said.tokens, said.pooled

    def _null(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What sampling uses for the unconditional branch, one row. The towers are frozen, so it is made once."""
        if self._nothing is None or self._nothing[0].device != self.device:
            made = self.pipeline.method.condition(None, [""])
            assert made.negative_prompt_embeds is not None
            self._nothing = made.negative_prompt_embeds, made.negative_pooled
        return self._nothing

    def _dropped(self, chance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows (B,) lose their text, and which their face."""
        a = self.settings.drop_text
        b, c = a + self.settings.drop_face, a + self.settings.drop_face + self.settings.drop_both
        both = (chance >= b) & (chance < c)
        return (chance < a) | both, ((chance >= a) & (chance < b)) | both


class AdaptedUNet(nn.Module):
    """The trainable part of a UNet with an adapter; the UNet stands beside it, so that no checkpoint holds the base."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.adapter = adapter_modules(unet)
        self._unet = [unet]

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor, added: dict[str, Any]) -> Any:
        """See diffusers' UNet2DConditionModel."""
        return self._unet[0](noisy, t, tokens, added_cond_kwargs=added)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._unet[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)


def face_sheet(pipeline: RivalPipeline, pictures: Table, device: torch.device) -> Image.Image:
    """Held-out faces above what a pipeline paints of them for three of the edit prompts."""
    rows = np.flatnonzero(pictures["reference"])
    rows = rows[np.linspace(0, len(rows) - 1, min(SHEET_FACES, len(rows))).astype(int)]
    images = to_images(torch.from_numpy(pictures["image"][rows])).to(device)
    marks = torch.from_numpy(pictures["landmarks"][rows]).to(device)
    shown, people = list(images), []
    for face in align_faces(images, marks, 448).clamp(0, 1):
        whole = Face(face.float().cpu().numpy(), (0.0, 0.0, 448.0, 448.0), 1.0, np.eye(2, 3))
        people.append(pipeline.method.enroll([whole]))
    for prompt in SHEET_PROMPTS:
        for person in people:
            painted: Any = pipeline(
                prompt, identity=person, generator=torch.Generator().manual_seed(0), output_type="pt"
            )
            shown += list(painted.images)
    return contact_sheet(shown, columns=len(rows))


def _write_out_attention(unet: Any) -> None:
    """Processors that compute attention step by step, with the same weights."""
    found: dict[str, Any] = {}
    for name, old in unet.attn_processors.items():
        if not hasattr(old, "to_k_ip"):
            found[name] = AttnProcessor()
            continue
        found[name] = IPAdapterAttnProcessor(old.hidden_size, old.cross_attention_dim, old.num_tokens)
        found[name].load_state_dict(old.state_dict())
    unet.set_attn_processor(found)
