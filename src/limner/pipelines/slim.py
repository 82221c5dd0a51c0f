"""Models without their base: a folder with what a method adds to a base that is there already, to be shipped."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limner.diffusion.adapter import has_adapter, read_adapter
from limner.encoders.dreamidentity import FaceWordsEncoder
from limner.encoders.rivals import RivalEncoder
from limner.errors import ConfigError, CorruptData, WeightsMismatch
from limner.methods.base import SAME_WEIGHTS
from limner.methods.rival import probe_unet
from limner.pipelines.dreamidentity import DreamIdentityPipeline, base_parts
from limner.pipelines.loading import BASE, INDEX
from limner.pipelines.rivals import RivalPipeline
from limner.pipelines.schedulers import make_scheduler, scheduler_name
from limner.types import write_atomic

FACTS = ("default_steps", "default_guidance", "default_pag", "same_person", "world", "force_zeros_for_empty_prompt")
PROBE, SAMPLER = "limner_probe", "limner_sampler"

Slim = DreamIdentityPipeline | RivalPipeline


def write_slim(pipe: Slim, folder: str | Path, base: str) -> None:
    """Writes encoder/ in half precision, and an index that names the base; `load_model` reads the folder as any other.

    Args:
        pipe: whose UNet and autoencoder are those of the base.
        folder: to write to.
        base: name or folder of a model that holds the base.

    Raises:
        ConfigError: a pipeline whose UNet is its own (InstructPix2Pix).
        StorageError: it cannot be written.
    """
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise ConfigError(f"{type(pipe).__name__} has a UNet of its own; without it nothing would be left.")
    encoder: Any = copy.deepcopy(pipe.encoder)
    nn.Module.to(encoder, torch.float16)
    if isinstance(encoder, RivalEncoder):
        adapter = read_adapter(pipe.unet) if has_adapter(pipe.unet) else {}
        encoder.adapter = {k: v.half() for k, v in adapter.items()}
        encoder.offsets = {k: v.half() for k, v in encoder.offsets.items()}
    folder = Path(folder)
    encoder.save_pretrained(folder / "encoder")
    probe = [round(v, 5) for v in probe_unet(pipe.unet, pipe.encoder.towers).tolist()]
    facts = {k: getattr(pipe.config, k) for k in FACTS}
    index = {
        "_class_name": type(pipe).__name__, BASE: base, **facts, SAMPLER: scheduler_name(pipe.scheduler), PROBE: probe,
    }  # fmt: skip
    write_atomic(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())


def over_its_base(kind: type[Slim], folder: Path, base: Path, dtype: torch.dtype) -> Slim:
    """The pipeline of a folder that `write_slim` wrote, over the base in another folder, on the CPU.

    Raises:
        CorruptData: damaged.
        WeightsMismatch: another base than the one that the model was trained on.
        WeightsUnavailable: something is not there.
    """
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    vae, unet, scheduler = base_parts(base, dtype)
    encoder_class: Any = FaceWordsEncoder if issubclass(kind, DreamIdentityPipeline) else RivalEncoder
    encoder = encoder_class.from_pretrained(folder / "encoder", torch_dtype=dtype)
    try:
        theirs, facts = torch.tensor(index[PROBE], dtype=torch.float32), {k: index[k] for k in FACTS}
        scheduler = make_scheduler(index[SAMPLER], scheduler)
    except (KeyError, TypeError, ValueError) as e:
        raise CorruptData(f"{folder / INDEX} is damaged ({e!r}).", "Copy the model's folder again.") from e
    ours = probe_unet(unet, encoder.towers)
    if ours.shape != theirs.shape or torch.cosine_similarity(ours, theirs, dim=0) < SAME_WEIGHTS:
        raise WeightsMismatch(
            f"{folder} was trained on another base than that in {base}.", "Train it again, or take its own base."
        )
    return kind(vae, unet, scheduler, encoder, **facts)
