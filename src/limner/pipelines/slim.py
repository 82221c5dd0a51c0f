"""Models without their base: a folder with what a method adds to a base that is there already, to be shipped.

UNet, autoencoder, scheduler and face detailer are the base's. Of the encoder, tensors that the base holds too (a
recogniser, text towers), or the picture tower of the CLIP that the package holds, are named by their content and not
stored.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import limner
from limner.diffusion.adapter import has_adapter, read_adapter
from limner.encoders.checkpoint import write_safetensors
from limner.encoders.dreamidentity import FaceWordsEncoder
from limner.encoders.rivals import RivalEncoder
from limner.encoders.word_towers import WordTowers
from limner.errors import ConfigError, CorruptData, WeightsMismatch
from limner.methods.base import SAME_WEIGHTS
from limner.methods.rival import probe_unet
from limner.pipelines.dreamidentity import DreamIdentityPipeline, base_detailer, base_parts
from limner.pipelines.loading import BASE, INDEX, load_pipeline, locate, named_base
from limner.pipelines.rivals import RivalPipeline
from limner.pipelines.schedulers import make_scheduler, scheduler_name
from limner.types import write_atomic

FACTS = ("default_steps", "default_guidance", "default_pag", "same_person", "world", "force_zeros_for_empty_prompt")
PROBE, SAMPLER = "limner_probe", "limner_sampler"
SHARED = "limner.shared"
"""Where the metadata of a file says which of its tensors are the base's: name → digest."""
SMALLEST = 256
"""Values of a tensor that is worth being named instead of stored."""
PICTURES = Path(limner.__file__).parent / "weights" / "mini-clip" / "image"
"""The picture tower that methods which see by CLIP were trained over."""

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
        WeightsUnavailable: the base is not there.
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
    _leave_out(folder / "encoder", _tensors(locate(base)[1]))
    probe = [round(v, 5) for v in probe_unet(pipe.unet, pipe.encoder.towers).tolist()]
    facts = {k: getattr(pipe.config, k) for k in FACTS}
    index = {
        "_class_name": type(pipe).__name__, BASE: base, **facts, SAMPLER: scheduler_name(pipe.scheduler), PROBE: probe,
    }  # fmt: skip
    write_atomic(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())


def onto(pipe: Slim, base: str | Path) -> Slim:
    """What a pipeline has learnt of people, over another base whose UNet reads the same tokens, as one distilled from
    its own does; the base's recommended dials become its own. It paints without being trained again, how well must be
    measured.

    Args:
        pipe: whose encoder is shared with the result, which replaces it.
        base: name or folder of a model.

    Raises:
        WeightsMismatch: the base's UNet reads tokens of another width.
        ConfigError, WeightsUnavailable, CorruptData: no such base.
    """
    folder = locate(str(base))[1]
    theirs = load_pipeline(folder, pipe.unet.dtype)
    if theirs.unet.config.cross_attention_dim != pipe.unet.config.cross_attention_dim:
        raise WeightsMismatch(
            f"The UNet of {base} reads tokens of {theirs.unet.config.cross_attention_dim} channels; "
            f"{pipe.unet.config.cross_attention_dim} are said."
        )
    vae, unet, _ = base_parts(folder, pipe.unet.dtype)  # without what `theirs` may have put into its UNet
    encoder: Any = pipe.encoder
    if isinstance(encoder, RivalEncoder) and has_adapter(pipe.unet):
        encoder.adapter = read_adapter(pipe.unet)
    facts = {k: getattr(theirs.config if k.startswith("default_") else pipe.config, k) for k in FACTS}
    more = _detailer(type(pipe), folder, pipe.unet.dtype)
    return type(pipe)(vae, unet, theirs.scheduler, encoder, **facts, **more)


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
    with whole_encoder(folder) as whole:
        encoder = encoder_class.from_pretrained(whole, torch_dtype=dtype)
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
    return kind(vae, unet, scheduler, encoder, **facts, **_detailer(kind, base, dtype))


def _detailer(kind: type[Slim], base: Path, dtype: torch.dtype) -> dict[str, Any]:
    """What a pipeline over a base is also given: the base's face detailer, where the person is words alone."""
    return {"detailer": base_detailer(base, dtype)} if issubclass(kind, DreamIdentityPipeline) else {}


@contextmanager
def whole_encoder(folder: Path) -> Iterator[Path]:
    """The folder encoder/ of a model with all its tensors, while the context lasts; of a slim one in a temporary place.

    Raises:
        WeightsMismatch: the base has not the tensors that were left out.
        CorruptData: a damaged file.
    """
    base, encoder = named_base(folder), folder / "encoder"
    if base is None:
        yield encoder
        return
    with tempfile.TemporaryDirectory() as place:
        whole = Path(shutil.copytree(encoder, Path(place) / "encoder"))
        known: dict[str, torch.Tensor] = {}
        for path in sorted(whole.rglob("*.safetensors")):
            tensors, metadata = _read(path)
            lacking = json.loads(metadata.pop(SHARED, "{}"))
            known = known or (_tensors(base) if lacking else {})
            if any(digest not in known for digest in lacking.values()):
                raise WeightsMismatch(
                    f"{folder} was trained on another base than that in {base}.",
                    "Train it again, or take its own base.",
                )
            write_safetensors(path, tensors | {k: known[digest] for k, digest in lacking.items()}, metadata)
        yield whole


def base_towers(base: Path, dtype: torch.dtype = torch.float32) -> WordTowers:
    """The text towers of a base, or of a model over one, whole or slim, which keeps them in encoder/towers/.

    Raises:
        WeightsUnavailable, CorruptData, WeightsMismatch: not there, or damaged.
    """
    if not (base / "encoder" / "towers").is_dir():
        return WordTowers.from_base(base, dtype)
    with whole_encoder(base) as encoder:
        return WordTowers.load(encoder / "towers", dtype)


def _leave_out(encoder: Path, known: dict[str, torch.Tensor]) -> None:
    """Rewrites every file under a folder without the tensors that are known."""
    for path in sorted(encoder.rglob("*.safetensors")):
        tensors, metadata = _read(path)
        digests = {k: _digest(v) for k, v in tensors.items() if v.numel() >= SMALLEST}
        shared = {k: d for k, d in digests.items() if d in known}
        own = {k: v for k, v in tensors.items() if k not in shared}
        write_safetensors(path, own, {**metadata, SHARED: json.dumps(shared)} if shared else metadata)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of an encoder's folder, of its bases' and of the packaged picture tower, in halves, by digest."""
    places = [PICTURES]
    base: Path | None = folder
    while base is not None:
        places.append(base / "encoder")
        base = named_base(base)
    paths = [path for place in places for path in sorted(place.rglob("*.safetensors"))]
    return {_digest(v): v.half() for path in paths for v in _read(path)[0].values() if v.numel() >= SMALLEST}


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise CorruptData(f"{path} is damaged ({e}).", "Copy the model's folder again.") from e


def _digest(tensor: torch.Tensor) -> str:
    """Of shape and values in half precision, whatever they are stored in."""
    half = tensor.half().contiguous()
    return hashlib.sha256(repr(tuple(half.shape)).encode() + half.numpy().tobytes()).hexdigest()[:32]
