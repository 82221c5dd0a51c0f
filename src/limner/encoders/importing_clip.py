"""A published CLIP (transformers' layout) → the text and picture towers that Limner trains over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.encoders.config import ACTIVATIONS, TextTowerConfig
from limner.encoders.faceclip import clip_tokenizer
from limner.encoders.importing import count_values
from limner.encoders.parts import save_text
from limner.encoders.published import shapes_of
from limner.encoders.text_tower import TextTower
from limner.errors import OutputConflict, WeightsMismatch, WeightsUnavailable

FILES = ("*.json", "merges.txt", "model*.safetensors")
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on, per channel (Radford et al., arXiv 2103.00020, released preprocessing)."""


def import_clip(source: str, out: str | Path, merges: str | Path | None = None) -> dict[str, Any]:
    """Converts a CLIP to a folder with text.safetensors, tokenizer/ and image/, as the task `clip` writes it.

    Limner shows every picture tower pictures in [-1, 1]. What this CLIP was trained on (mean and deviation of every
    channel, from preprocessor_config.json, else OpenAI's) is worked into the patch and position embeddings, exactly.

    Args:
        source: folder in transformers' layout, or repository on the Hugging Face hub, such as
            facebook/metaclip-l14-fullcc2.5b.
        out: new folder.
        merges: CLIP's byte-pair merges; None takes merges.txt of the source.

    Returns:
        sizes of what was written.

    Raises:
        WeightsUnavailable: no such folder, and the hub does not have it or is not in reach.
        WeightsMismatch: no CLIP, or one whose text tower has another layout.
        OutputConflict, StorageError: the folder is taken or cannot be written.
    """
    from transformers import CLIPModel, CLIPVisionModelWithProjection

    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise OutputConflict(f"{out} is not empty; nothing was overwritten.", "Choose another folder for --out.")
    folder = _folder(source)
    try:
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as e:
        raise WeightsMismatch(f"{source} holds no CLIP that transformers can read: {e}") from e
    own_merges = folder / "merges.txt"
    tokenizer = clip_tokenizer(merges or (own_merges if own_merges.is_file() else None))
    tower = text_tower(model)
    model.config.vision_config.projection_dim = model.visual_projection.out_features  # not always said in files
    vision: Any = CLIPVisionModelWithProjection(model.config.vision_config)
    vision.vision_model.load_state_dict(model.vision_model.state_dict())
    vision.visual_projection.load_state_dict(model.visual_projection.state_dict())
    show_unit_pictures(vision, *_preprocessing(folder))
    out.mkdir(parents=True, exist_ok=True)
    save_text(out, tower, tokenizer)
    vision.save_pretrained(out / "image")
    return {
        "out": str(out),
        "text": {**tower.text_config.to_dict(), "values": count_values(shapes_of(tower.state_dict()))},
        "image": {
            "size": vision.config.image_size, "patch": vision.config.patch_size, "width": vision.config.hidden_size,
            "values": count_values(shapes_of(vision.state_dict())),
        },
    }  # fmt: skip


@torch.no_grad()
def text_tower(model: Any) -> TextTower:
    """The text tower of a `transformers.CLIPModel`, in OpenCLIP's layout; WeightsMismatch where its form differs."""
    config = model.config.text_config
    if config.intermediate_size != 4 * config.hidden_size or config.hidden_act not in ACTIVATIONS:
        raise WeightsMismatch(
            f"A CLIP text tower has a feed-forward part of 4 widths and {' or '.join(ACTIVATIONS)}; this one has "
            f"{config.intermediate_size} for a width of {config.hidden_size}, and {config.hidden_act}."
        )
    sizes = TextTowerConfig(
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        activation=config.hidden_act,
        context=config.max_position_embeddings,
        vocabulary=config.vocab_size,
        projection=model.text_projection.out_features,
    )
    theirs = model.text_model
    state: dict[str, Tensor] = {
        "token_embedding.weight": theirs.embeddings.token_embedding.weight,
        "positional_embedding": theirs.embeddings.position_embedding.weight,
        "ln_final.weight": theirs.final_layer_norm.weight,
        "ln_final.bias": theirs.final_layer_norm.bias,
        "text_projection": model.text_projection.weight.T,
    }
    for i, layer in enumerate(theirs.encoder.layers):
        attention = layer.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        block = {
            "attn.in_proj_weight": torch.cat([p.weight for p in projections]),
            "attn.in_proj_bias": torch.cat([p.bias for p in projections]),
        }
        parts = {
            "ln_1": layer.layer_norm1, "ln_2": layer.layer_norm2, "attn.out_proj": attention.out_proj,
            "mlp.c_fc": layer.mlp.fc1, "mlp.c_proj": layer.mlp.fc2,
        }  # fmt: skip
        block |= {f"{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}
        state |= {f"transformer.resblocks.{i}.{k}": v for k, v in block.items()}
    tower = TextTower(sizes)
    tower.load_state_dict(state)
    return tower.eval()


@torch.no_grad()
def show_unit_pictures(vision: Any, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
    """Changes a picture tower that takes (x − mean) / deviation, x in [0, 1], into one that takes 2x − 1.

    (x − m) / d = (2x − 1) / 2d + (½ − m) / d. The factor goes into the patch embedding's kernel; what the constant adds
    is the same for every patch and goes into the patches' position embeddings.
    """
    embeddings = vision.vision_model.embeddings
    kernel = embeddings.patch_embedding.weight
    m, d = (torch.tensor(v, dtype=kernel.dtype)[None, :, None, None] for v in (mean, deviation))
    constant = (kernel * (0.5 - m) / d).sum((1, 2, 3))
    embeddings.position_embedding.weight[1:] += constant
    kernel.mul_(0.5 / d)


def _preprocessing(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return tuple(values.get("image_mean", MEAN)), tuple(values.get("image_std", DEVIATION))


def _folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import get_session

    try:
        return Path(snapshot_download(source, allow_patterns=list(FILES), local_files_only=True))
    except HFValidationError as e:
        raise WeightsUnavailable(f"{source} is no folder, and no name of a repository either.") from e
    except Exception:  # not cached; the hub's errors have no common base
        pass
    try:
        get_session().head(constants.ENDPOINT, timeout=3)
        return Path(snapshot_download(source, allow_patterns=list(FILES), etag_timeout=3))
    except Exception as e:
        raise WeightsUnavailable(
            f"{source} is no folder here, and {', '.join(FILES)} could not be fetched from the Hugging Face repository "
            f"of that name ({type(e).__name__}).",
            f"Download huggingface.co/{source} on another machine and give its folder.",
        ) from e
