"""Pipelines of the methods that learn a person by tuning. They need no training of their own: any base will do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from limner.data.cache import cache_root
from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.rivals import RivalEncoder
from limner.errors import ConfigError, WeightsMismatch
from limner.methods.dreambooth import DreamBooth, DreamBoothLora
from limner.methods.e4t import E4T
from limner.methods.textual_inversion import TextualInversion
from limner.methods.tuned import Tuned
from limner.methods.tuning import Report, Studio, TuningSettings, silent
from limner.pipelines.dreamidentity import base_parts, zeros_for_empty
from limner.pipelines.loading import locate_base, named_base
from limner.pipelines.rivals import RivalPipeline
from limner.pipelines.slim import base_towers


class TunedPipeline(RivalPipeline):
    """Face + prompt → portrait, by a method that tunes; see `RivalPipeline`.

    Attributes:
        tuning: how a person is learnt; None takes the method's own settings.
        teacher: UNet over which people are learnt, where the pipeline's own was distilled from it: a distilled one does
            not predict what the loss of tuning expects. None: the pipeline's own.
        report: shows progress of enrolling; silent at first.
        cache: folder for checkpoints and class pictures; None takes Limner's own (LIMNER_CACHE, or ~/.cache/limner).
    """

    rival: ClassVar[type[Tuned]]
    tuning: TuningSettings | None = None
    teacher: Any = None
    report: Report = staticmethod(silent)
    cache: Path | None = None

    @property
    def method(self) -> Tuned:
        """The method over this pipeline's parts."""
        zero_empty = bool(self.config.force_zeros_for_empty_prompt)
        return self.rival(self.encoder, self.studio, self.tuning, unet=self.unet, zero_empty=zero_empty)

    @property
    def studio(self) -> Studio:
        """What tuning needs of this pipeline."""
        schedule = NoiseSchedule.of(self.scheduler.config)
        cache = cache_root() if self.cache is None else self.cache
        unet = self.unet if self.teacher is None else self.teacher.to(self.unet.device)
        return Studio(unet, self.vae, schedule, self.default_size[0], self._paint_class, self.report, cache)

    def learn_over(self, folder: str | Path) -> None:
        """Has people learnt over the UNet of the base in a folder; see `teacher`.

        Raises:
            WeightsMismatch: it reads other tokens, or predicts otherwise, than the pipeline's own.
            ConfigError, WeightsUnavailable, CorruptData: no such base.
        """
        _, unet, scheduler = base_parts(locate_base(str(folder)), self.unet.dtype)
        ours, theirs = NoiseSchedule.of(self.scheduler.config), NoiseSchedule.of(scheduler.config)
        if unet.config.cross_attention_dim != self.unet.config.cross_attention_dim or ours != theirs:
            raise WeightsMismatch(f"The UNet in {folder} is not the one that this model's own was distilled from.")
        self.teacher = unet

    def _paint_class(self, prompt: str, seeds: Sequence[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        painted: Any = self(prompt, num_images_per_prompt=len(seeds), generator=generators, output_type="latent")
        return painted.images


class TextualInversionPipeline(TunedPipeline):
    """Textual Inversion; see `limner.methods.textual_inversion`."""

    rival = TextualInversion


class DreamBoothPipeline(TunedPipeline):
    """DreamBooth; see `limner.methods.dreambooth`."""

    rival = DreamBooth


class DreamBoothLoraPipeline(TunedPipeline):
    """DreamBooth by a LoRA; see `limner.methods.dreambooth`."""

    rival = DreamBoothLora


class E4TPipeline(TunedPipeline):
    """E4T; see `limner.methods.e4t`. Its encoder and offsets are trained, so it is no pipeline for any base."""

    rival = E4T


TUNED: dict[str, type[TunedPipeline]] = {
    kind.rival.name: kind for kind in (TextualInversionPipeline, DreamBoothPipeline, DreamBoothLoraPipeline)
}
"""Method → pipeline that `over_base` makes."""


def over_base(method: str, folder: str | Path, dtype: torch.dtype = torch.float32, **facts: Any) -> TunedPipeline:
    """A pipeline that tunes, over a base, on the CPU, sampled by DDIM.

    Args:
        method: a key of `TUNED`.
        folder: of SD 2.1-base, SDXL (diffusers' layout), of a base that `limner train` made, or of a DreamIdentity
            model, whose base is as it was.
        facts: of the pipeline: default_steps, default_guidance, world.

    Raises:
        ConfigError: another method.
        WeightsUnavailable: something is not there.
        CorruptData, WeightsMismatch: damaged.
    """
    if method not in TUNED:
        raise ConfigError(f"{method!r} does not learn people by tuning; these do: {', '.join(TUNED)}.")
    folder = Path(folder)
    towers = base_towers(folder, dtype)
    vae, unet, scheduler = base_parts(folder, dtype)
    facts = {"force_zeros_for_empty_prompt": zeros_for_empty(folder, towers), **_facts(folder), **facts}
    return TUNED[method](vae, unet, scheduler, RivalEncoder(towers), **facts)


def _facts(folder: Path) -> dict[str, Any]:
    """What the base recommends, where it says so; a base of the sitters' says it by its autoencoder."""
    import json

    index = folder / "model_index.json"
    said = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    found = {k: said[k] for k in ("default_steps", "default_guidance", "default_pag", "world") if k in said}
    vae = (named_base(folder) or folder) / "vae" / "config.json"
    kind = json.loads(vae.read_text(encoding="utf-8")).get("_class_name")
    own = {"default_guidance": 3.0, "world": "sitters"} if kind == "PatchAutoencoder" else {}
    return {**own, **found}
