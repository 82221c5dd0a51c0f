"""What a denoiser sees while it is trained: noisy latents, and text alone, FaceCLIP's face and text, or either."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from limner.data.cache import Column, Table
from limner.data.loader import Batch
from limner.data.partners import Partners
from limner.data.tables import Report, captions_of, demand, to_images
from limner.diffusion.loss import drop_conditioning
from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.face_vit import FaceTokens, FaceViT
from limner.encoders.parts import save_text
from limner.errors import ConfigError
from limner.precision import affordable
from limner.training.dice import Dice
from limner.training.parts import counting_sizes, encoder_of, text_of
from limner.training.towers import both_ids, branches_of, face_features, feature_table
from limner.training.words import caption_ids

DECODING = ("decoder", "post_quant_conv", "from_frequencies")
"""Parts of autoencoders (Limner's and diffusers') that only decoding needs."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_named(name: str) -> torch.dtype:
    """The type of this name among `DTYPES`, or what the machine at hand computes in instead (`limner.precision`)."""
    accelerator = torch.accelerator.current_accelerator()
    return DTYPES[name] if counting_sizes() else affordable(DTYPES[name], accelerator or "cpu")


def latent_table(vae: Any, pictures: Table, device: torch.device, report: Report) -> Table:
    """Column `latents` (C, h, w) float16 of every picture: the mode of its encoding, scaled for the denoiser."""
    vae = vae.to(device).eval()
    with torch.no_grad():
        first = torch.zeros(1, 3, *pictures["image"].shape[1:3], device=device)
        shape = vae.encode(first).latent_dist.mode().shape[1:]

    def compute(block: range) -> dict[str, torch.Tensor]:
        images = to_images(torch.from_numpy(pictures["image"][block.start : block.stop])).to(device)
        latents = vae.encode(images * 2 - 1).latent_dist.mode()
        return {"latents": (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor}

    encoder = copy.copy(vae)  # the decoder does not matter: another one finds the same latents
    encoder._modules = {k: v for k, v in vae._modules.items() if k not in DECODING}
    columns = {"latents": Column("f2", tuple(shape))}
    return feature_table("latents", pictures, encoder, columns, compute, report, _scaling(vae))


def _scaling(vae: Any) -> dict[str, float]:
    """What besides its weights decides the latents of an autoencoder; nothing where they are left as they are."""
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0
    return {} if (scale, shift) == (1, 0) else {"scaling_factor": scale, "shift_factor": shift}


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B,C,h,w) as the denoiser knows them → pictures (B,3,H,W) in [0, 1], differentiable."""
    latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    return (vae.decode(latents.to(vae.dtype), return_dict=False)[0] + 1).div(2).clamp(0, 1)


class Noisy(NamedTuple):
    """What a denoiser is given: clean latents (B,C,h,w) in float32, the noise and timesteps (B,) drawn for them, and
    both together."""

    latents: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor
    seen: torch.Tensor


def noisy_latents(schedule: NoiseSchedule, batch: Batch, dice: Dice) -> Noisy:
    """The latents of a batch under noise."""
    latents = batch["latents"].float()
    noise, t = dice.normal(*latents.shape[1:]), schedule.timesteps(dice.uniform())
    return Noisy(latents, noise, t, schedule.add_noise(latents, noise, t))


class Targets:
    """Pictures that a denoiser learns to paint, as its rows need them.

    Args:
        pictures, latents: tables of the same rows.
        faces: what the judge of an identity loss says of them (`face_features`), or None.
    """

    def __init__(self, pictures: Table, latents: Table, faces: Table | None = None) -> None:
        self.pictures, self.latents, self.faces = pictures, latents, faces

    def __len__(self) -> int:
        return len(self.pictures)

    def columns(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`latents`, `time` and `landmarks` of the rows (B,); with a judge `own_class_token` and `recognisable` too."""
        found = {"latents": self.latents["latents"][rows]}
        found |= {name: self.pictures[name][rows] for name in ("time", "landmarks")}
        if self.faces is not None:
            found |= {
                "own_class_token": self.faces["class_token"][rows],
                "recognisable": self.pictures["reference"][rows],
            }
        return found

    @staticmethod
    def example(rows: int, channels: int, places: tuple[int, int], factor: int, judge: FaceViT | None) -> Batch:
        """Made-up columns, as `columns` would give them."""
        height, width = (factor * side for side in places)
        marks = torch.tensor([[0.4, 0.45], [0.6, 0.45], [0.5, 0.55], [0.42, 0.65], [0.58, 0.65]])
        batch = {
            "latents": torch.zeros(rows, channels, *places, dtype=torch.float16),
            "time": torch.tensor([[height, width, 0, 0, height, width]] * rows, dtype=torch.int32),
            "landmarks": (marks * torch.tensor([width, height])).expand(rows, 5, 2),
        }
        if judge is not None:
            batch["own_class_token"] = torch.ones(rows, judge.config.output)
            batch["recognisable"] = torch.ones(rows, dtype=torch.bool)
        return batch


def write_out_attention(*models: Any) -> None:
    """Has UNets and ControlNets compute attention step by step on a CPU, which trains faster so."""
    if not torch.accelerator.is_available():
        for model in models:
            model.set_attn_processor(AttnProcessor())


class Drawn(NamedTuple):
    """Conditioning as training sees it: embeddings (B,T,C), pooled ones (B,P), and which rows (B,) were told whom to
    paint."""

    embeds: torch.Tensor
    pooled: torch.Tensor
    told: torch.Tensor


class Conditioner(ABC):
    """Turns rows of pictures into prompt embeddings (B,T,C) and pooled embeddings (B,P), with frozen towers.

    Attributes:
        context, width, pooled: T, C and P.
        modules: the frozen towers.
    """

    context: int
    width: int
    pooled: int
    modules: list[nn.Module]
    _null: tuple[torch.Tensor, torch.Tensor] | None = None

    def null(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The unconditional embeddings: (1,T,C) and (1,P). The towers are frozen, so they are computed once."""
        if counting_sizes():
            return torch.zeros(1, self.context, self.width), torch.zeros(1, self.pooled)
        device = next(self.modules[0].parameters()).device
        if self._null is None or self._null[0].device != device:
            self._null = self._encode_null(device)
        return self._null

    def draw(
        self, batch: Batch, dice: Dice, prompts: float, dropout: float, dtype: torch.dtype = torch.float32
    ) -> Drawn:
        """Conditioning of a batch as training is to see it.

        Args:
            prompts: share of rows that read the sentence with S* instead of the caption.
            dropout: share of rows whose conditioning is dropped, for classifier-free guidance.
            dtype: half precision computes in it where that is harmless (autocast).
        """
        chance = dice.uniform(3)
        half = torch.autocast(chance.device.type, dtype, enabled=dtype != torch.float32)
        with torch.no_grad(), half:
            embeds, pooled = self.encode({**batch, "with_face": chance[:, 0]}, chance[:, 1] < prompts)
            null, null_pooled = self.null()
        embeds, pooled = embeds.float(), pooled.float()  # the null embeddings follow
        told = self.tells(chance[:, 0]) & (chance[:, 2] >= dropout)
        return Drawn(*drop_conditioning(embeds, pooled, null, null_pooled, chance[:, 2], dropout), told)

    def tells(self, with_face: torch.Tensor) -> torch.Tensor:
        """Which rows are told whom to paint, from what `encode` gets as `with_face` (B,)."""
        return torch.ones_like(with_face, dtype=torch.bool)

    @abstractmethod
    def _encode_null(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]: ...

    @abstractmethod
    def prepare(self, pictures: list[Table], device: torch.device, report: Report) -> list[Any]:
        """What `columns` needs for each table of pictures."""

    @abstractmethod
    def columns(self, prepared: Any, rows: np.ndarray, step: int) -> dict[str, np.ndarray]:
        """The columns of a batch of rows that `encode` needs."""

    @abstractmethod
    def example(self, rows: int) -> Batch:
        """Made-up columns of a batch, as `columns` would give them."""

    @abstractmethod
    def encode(self, batch: Batch, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of a batch; rows where `prompt` (B,) is true read the sentence with S*, others the caption."""

    @abstractmethod
    def export(self, folder: Path) -> dict[str, Any]:
        """Writes the towers into a folder, or returns them as components of the pipeline to be saved."""


class JoinedTowers(nn.ModuleList):
    """Text towers that speak as one: tokens side by side, the pooled vector the last tower's."""

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B,T) → tokens (B,T,C) and pooled (B,P)."""
        said = [tower(ids) for tower in self]
        return torch.cat([s.tokens for s in said], -1), said[-1].pooled


class TextConditioner(Conditioner):
    """SDXL's conditioning: the tokens of all text towers side by side; pooled is the last tower's.

    Args:
        clips: folders that the clip task wrote.
    """

    def __init__(self, clips: tuple[Path, ...]) -> None:
        self.towers, self.tokenizers = zip(*(text_of(c) for c in clips), strict=True)
        self.context = self.towers[0].text_config.context
        self.width = sum(t.text_config.width for t in self.towers)
        self.pooled = self.towers[-1].text_config.width
        self.joined = JoinedTowers(self.towers)
        self.modules = [self.joined]

    def prepare(self, pictures: list[Table], device: torch.device, report: Report) -> list[Any]:
        for table in pictures:
            demand(table, captions=True)
        return [{k: self._ids(captions_of(t, k)) for k in ("caption", "prompt")} for t in pictures]

    def columns(self, prepared: Any, rows: np.ndarray, step: int) -> dict[str, np.ndarray]:
        return {f"{k}_ids": ids[rows] for k, ids in prepared.items()}

    def example(self, rows: int) -> Batch:
        ids = torch.zeros(rows, self.context, dtype=torch.long)
        return {"caption_ids": ids, "prompt_ids": ids}

    def encode(self, batch: Batch, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._encode(torch.where(prompt[:, None], batch["prompt_ids"], batch["caption_ids"]))

    def _encode_null(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return self._encode(torch.from_numpy(self._ids([""])).to(device))

    def export(self, folder: Path) -> dict[str, Any]:
        for i, (tower, tokenizer) in enumerate(zip(self.towers, self.tokenizers, strict=True)):
            save_text(folder / f"text_{i}", tower, tokenizer)
        return {}

    def _ids(self, sentences: list[str]) -> np.ndarray:
        return caption_ids(self.tokenizers[0], sentences, self.context)

    def _encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.joined(ids)


class FaceCLIPConditioner(Conditioner):
    """FaceCLIP's conditioning: a reference face (another picture of the person) and a sentence.

    Args:
        folder: of the aligned encoder.
        faceless: share of rows that see the sentence alone, so that the model also paints nobody in particular.
    """

    def __init__(self, folder: Path, faceless: float) -> None:
        self.encoder = encoder_of(folder)
        if self.encoder.tokenizer is None:
            raise ConfigError(f"The encoder in {folder} has no tokenizer.", "Save it with one.")
        if len(self.encoder.faces) != 1:
            raise ConfigError(f"The branches of {folder} have different face encoders; training needs a shared one.")
        self.faceless, self.context = faceless, self.encoder.config.context
        texts = [b.config.text for b in branches_of(self.encoder)]
        self.width, self.pooled = sum(t.width for t in texts), texts[-1].width
        self.modules = [self.encoder]

    def prepare(self, pictures: list[Table], device: torch.device, report: Report) -> list[Any]:
        found = []
        for table in pictures:
            demand(table, captions=True, landmarks=True)
            ids = {k: both_ids(self.encoder, table, k) for k in ("caption", "prompt")}
            faces = face_features(self.encoder.faces[0], table, device, report)
            found.append((ids, faces, Partners(table["identity"], table["reference"])))
        return found

    def columns(self, prepared: Any, rows: np.ndarray, step: int) -> dict[str, np.ndarray]:
        ids, faces, partners = prepared
        reference = partners.of(rows, step)
        found = {f"{k}_{kind}": v[i][rows] for k, v in ids.items() for i, kind in enumerate(("plain", "ids"))}
        return {**found, **{k: faces[k][reference] for k in ("class_token", "patch_tokens")}}

    def example(self, rows: int) -> Batch:
        face, ids = self.encoder.faces[0].config, torch.zeros(rows, self.encoder.config.context, dtype=torch.long)
        batch = {f"{k}_{kind}": ids for k in ("caption", "prompt") for kind in ("plain", "ids")}
        batch["class_token"] = torch.ones(rows, face.output)
        batch["patch_tokens"] = torch.ones(rows, face.grid**2, face.width, dtype=torch.float16)
        return batch

    def tells(self, with_face: torch.Tensor) -> torch.Tensor:
        return with_face >= self.faceless

    def encode(self, batch: Batch, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with_face = self.tells(batch["with_face"])
        kind = torch.where(with_face[:, None], batch["caption_ids"], batch["caption_plain"])
        other = torch.where(with_face[:, None], batch["prompt_ids"], batch["prompt_plain"])
        ids = torch.where(prompt[:, None], other, kind)
        null = self.encoder.null_faces()[0]
        patches = batch["patch_tokens"].to(null.patch_tokens.dtype)
        faces = FaceTokens(
            torch.where(with_face[:, None], batch["class_token"], null.class_token),
            torch.where(with_face[:, None, None], patches, null.patch_tokens),
        )
        said = self.encoder(ids, [faces], with_face.to(self.encoder.dtype))
        return said.tokens, said.pooled

    def _encode_null(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        said = self.encoder.encode(None, [""])
        return said.tokens, said.pooled

    def export(self, folder: Path) -> dict[str, Any]:
        return {"encoder": self.encoder}


class EitherConditioner(Conditioner):
    """FaceCLIP's conditioning for some rows and text alone for the others: one denoiser then serves FaceCLIP and is a
    base for other methods. Sheets are FaceCLIP's.

    Args:
        faces, text: both; their tokens must be of the same size and their tokenizers the same.
        share: of rows that read text alone.

    Raises:
        ConfigError: they are not.
    """

    def __init__(self, faces: FaceCLIPConditioner, text: TextConditioner, share: float) -> None:
        sizes = [(c.context, c.width, c.pooled) for c in (faces, text)]
        if sizes[0] != sizes[1] or faces.encoder.tokenizer.get_vocab() != text.tokenizers[0].get_vocab():
            raise ConfigError(
                f"The encoder and the text towers must say tokens of one size in one vocabulary; theirs are {sizes[0]} "
                f"and {sizes[1]} (tokens, channels, pooled channels).",
                "Take the towers that the encoder was made of, or those that the task `naming` made of them.",
            )
        self.faces, self.text, self.share = faces, text, share
        self.context, self.width, self.pooled = sizes[0]
        self.encoder, self.modules = faces.encoder, [*faces.modules, *text.modules]

    def draw(
        self, batch: Batch, dice: Dice, prompts: float, dropout: float, dtype: torch.dtype = torch.float32
    ) -> Drawn:
        alone = dice.uniform() < self.share
        plain = {**batch, **{f"{k}_ids": batch[f"{k}_plain"] for k in ("caption", "prompt")}}
        said = self.faces.draw(batch, dice, prompts, dropout, dtype)
        others = self.text.draw(plain, dice, prompts, dropout, dtype)
        embeds = torch.where(alone[:, None, None], others.embeds, said.embeds)
        return Drawn(embeds, torch.where(alone[:, None], others.pooled, said.pooled), said.told & ~alone)

    def null(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.faces.null()

    def _encode_null(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return self.faces._encode_null(device)

    def prepare(self, pictures: list[Table], device: torch.device, report: Report) -> list[Any]:
        return self.faces.prepare(pictures, device, report)

    def columns(self, prepared: Any, rows: np.ndarray, step: int) -> dict[str, np.ndarray]:
        return self.faces.columns(prepared, rows, step)

    def example(self, rows: int) -> Batch:
        return self.faces.example(rows)

    def encode(self, batch: Batch, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.faces.encode(batch, prompt)

    def export(self, folder: Path) -> dict[str, Any]:
        self.text.export(folder)
        return self.faces.export(folder)
