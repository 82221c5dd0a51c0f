"""Teaching names: the text towers of a base learn to say of a named person what FaceCLIP says of that person's face.

A base that is to make self-augmented data (arXiv 2307.00300, section 3.3) must know people by name. Learning them
through the denoiser takes a thousand pictures and more of each (docs/trainings.md, "Whom the base knows"). FaceCLIP's
denoiser paints anybody already, given the right tokens, so here only the towers learn: for a caption with a name, the
tokens that FaceCLIP gives for that caption and the person's face; for any other, those that it gives without a face.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from limner.config import Config
from limner.data.loader import Batch, Source
from limner.data.names import read_names
from limner.data.tables import DataConfig, captions_of, open_pictures, picture_table
from limner.encoders.parts import save_text
from limner.encoders.tokenizer import IDENTITY_PREFIX
from limner.errors import ConfigError
from limner.training.denoising import DTYPES, FaceCLIPConditioner, JoinedTowers, dtype_named
from limner.training.dice import Dice
from limner.training.parts import text_of
from limner.training.task import Losses, Report, Task
from limner.training.towers import branches_of
from limner.training.words import WORLD

COPIED = ("unet", "vae", "scheduler")
"""Parts of the teacher that are parts of the base too."""


@dataclass(frozen=True)
class NamingSettings(Config):
    """Settings of the task.

    Attributes:
        data, held_out: pictures with captions, landmarks and persons; captions of known people hold their names.
        teacher: folder of a trained FaceCLIP pipeline; the base gets its UNet and autoencoder.
        clips: folders of the text towers to start from, one per branch of the teacher's encoder.
        names: `world` (the named sitters), or a file of names, one a line.
        named: share of rows whose caption names somebody.
        prompts: share of the other rows that read the sentence with S* instead of the caption.
        towers_dtype: float32, bfloat16 or float16: in which the teacher computes.
        validation: held-out rows with a name, and as many without, on which the towers are judged.
    """

    data: DataConfig
    held_out: DataConfig
    teacher: str
    clips: tuple[str, ...]
    names: str = WORLD
    named: float = 0.6
    prompts: float = 0.3
    towers_dtype: str = "float32"
    validation: int = 256

    def validate(self) -> None:
        for name in ("named", "prompts"):
            self.check(0 <= getattr(self, name) <= 1, name, "0 to 1")
        self.check(self.towers_dtype in DTYPES, "towers_dtype", ", ".join(DTYPES))
        self.check(self.validation >= 2, "validation", "2 or more")


class NamingTask(Task[NamingSettings]):
    """See `NamingSettings`; metrics are the mean squared errors `named` and `plain` of the tokens, and `stranger`, that
    of the named rows had the teacher seen somebody else's face: names are learnt as far as `named` is below it."""

    name = "naming"
    settings_class: ClassVar = NamingSettings

    def __init__(self, settings: NamingSettings) -> None:
        super().__init__(settings)
        self.teacher = FaceCLIPConditioner(Path(settings.teacher) / "encoder", faceless=0.5)
        self.towers, self.tokenizers = zip(*(text_of(Path(c)) for c in settings.clips), strict=True)
        widths = [b.config.text.width for b in branches_of(self.teacher.encoder)]
        own = [t.text_config.width for t in self.towers]
        if own != widths or self.towers[0].text_config.context != self.teacher.context:
            raise ConfigError(
                f"The teacher's branches have widths {widths} and {self.teacher.context} tokens; the towers have "
                f"{own} and {self.towers[0].text_config.context}.",
                "Start from the towers that the teacher was made of.",
            )
        self.shift = len(self.tokenizers[0](IDENTITY_PREFIX)["input_ids"]) - 2  # without start and end
        self.model = JoinedTowers(self.towers).requires_grad_(True)
        for tower in self.towers:
            tower.text_projection.requires_grad_(False)  # of comparisons with pictures, which are over

    def frozen(self) -> list[nn.Module]:
        return self.teacher.modules

    def prepare(self, report: Report) -> None:
        self.sources = []
        for config in (self.settings.data, self.settings.held_out):
            table = picture_table(open_pictures(config), config.size, config.size, report, config.workers)
            (columns,) = self.teacher.prepare([table], self.device, report)
            named = holds_name(captions_of(table), known_names(self.settings.names))
            if not named.any() or named.all():
                raise ConfigError(
                    f"{named.sum()} of {len(named)} captions hold a name; some must, and some must not.",
                    "Take data that show named people, with their names in the captions.",
                )
            self.sources.append(_Rows(self.teacher, columns, named, self.settings.named))

    def source(self) -> Source:
        return self.sources[0]

    def example(self, rows: int) -> Batch:
        return {**self.teacher.example(rows), "named": torch.ones(rows, dtype=torch.bool)}

    def tokens(self) -> int:
        return self.teacher.context

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        prompt = dice.uniform() < self.settings.prompts
        tokens, pooled = self._errors(model, batch, prompt)
        named = batch["named"]
        kinds = {"named": named, "plain": ~named}
        parts = {k: (tokens.detach() * rows).sum() / rows.sum().clamp(min=1) for k, rows in kinds.items()}
        return Losses((tokens + pooled).mean(), parts)

    def validate(self) -> dict[str, float]:
        source, count = self.sources[1], self.settings.validation
        found: dict[str, list[torch.Tensor]] = {"named": [], "plain": [], "stranger": []}
        for kind, places in (("named", np.flatnonzero(source.named)), ("plain", np.flatnonzero(~source.named))):
            places = places[np.linspace(0, len(places) - 1, min(count, len(places))).astype(int)]
            for some in np.array_split(places, max(1, len(places) // 64)):
                batch = {k: v.to(self.device) for k, v in source.fetch(some, step=0).items()}
                never = torch.zeros(len(some), dtype=torch.bool, device=self.device)
                found[kind].append(self._errors(self.model, batch, never)[0])
                if kind == "named":
                    others = {k: batch[k].roll(1, 0) for k in ("class_token", "patch_tokens")}
                    found["stranger"].append(self._errors(self.model, {**batch, **others}, never)[0])
        means = {k: float(torch.cat(v).mean()) for k, v in found.items()}
        return {**means, "n": sum(map(len, found["named"]))}

    def export(self, folder: Path) -> None:
        """A base in diffusers' form: text_0/, text_1/, … and the teacher's unet/, vae/ and scheduler/."""
        for i, (tower, tokenizer) in enumerate(zip(self.towers, self.tokenizers, strict=True)):
            save_text(folder / f"text_{i}", tower, tokenizer)
        for part in COPIED:
            shutil.copytree(Path(self.settings.teacher) / part, folder / part)

    def _errors(self, model: nn.Module, batch: Batch, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean squared errors of the tokens and of the pooled vector, row by row (B,)."""
        named = batch["named"]
        prompt = prompt & ~named
        dtype = dtype_named(self.settings.towers_dtype)
        with torch.no_grad(), torch.autocast(named.device.type, dtype, enabled=dtype != torch.float32):
            wanted, wanted_pooled = self.teacher.encode({**batch, "with_face": named.float()}, prompt)
        wanted = torch.where(named[:, None, None], behind(wanted, self.shift), wanted).float()
        ids = torch.where(prompt[:, None], batch["prompt_plain"], batch["caption_plain"])
        tokens, pooled = model(ids)
        pooled_errors = F.mse_loss(pooled.float(), wanted_pooled.float(), reduction="none").mean(-1)
        return F.mse_loss(tokens.float(), wanted, reduction="none").mean((1, 2)), pooled_errors


def behind(tokens: torch.Tensor, shift: int) -> torch.Tensor:
    """Tokens (B,T,C) with those of the identity prefix (after the start, `shift` of them) moved to the end.

    So each word's token stands where the word stands without a prefix, and a tower that reads from left to right has
    met the name before it must say who that is. Cross-attention does not mind the order.
    """
    return torch.cat([tokens[:, :1], tokens[:, 1 + shift :], tokens[:, 1 : 1 + shift]], 1)


def known_names(source: str) -> list[str]:
    """The names of the world's sitters, or those in a file."""
    if source == WORLD:
        from limner.world.names import names

        return list(names())
    return [name for entry in read_names(source) for name in entry.all]


def holds_name(captions: list[str], names: list[str]) -> np.ndarray:
    """(N,) whether a caption holds one of the names, case aside."""
    lowered = [n.lower() for n in names]
    first = {n.split()[0] for n in lowered}
    found = []
    for caption in captions:
        text = caption.lower()
        words = set(text.replace(",", " ").split())
        found.append(bool(words & first) and any(n in text for n in lowered))
    return np.array(found, bool)


class _Rows(Source):
    """Rows of which a given share has a name; each pass takes the rarer kind as often as that needs."""

    def __init__(self, teacher: FaceCLIPConditioner, prepared: Any, named: np.ndarray, share: float) -> None:
        self.teacher, self.prepared, self.named, self.share = teacher, prepared, named, share
        self.kinds = [np.flatnonzero(~named), np.flatnonzero(named)]

    def __len__(self) -> int:
        return len(self.named)

    def batch(self, rows: np.ndarray, step: int) -> Batch:
        split = round(self.share * len(self))  # rows below it stand for named ones
        places = [self.kinds[int(r < split)][int(r) % len(self.kinds[int(r < split)])] for r in rows]
        return self.fetch(np.array(places, np.int64), step)

    def fetch(self, places: np.ndarray, step: int) -> Batch:
        """The rows at these places of the table."""
        found = self.teacher.columns(self.prepared, places, step)
        return {**{k: torch.from_numpy(v) for k, v in found.items()}, "named": torch.from_numpy(self.named[places])}
