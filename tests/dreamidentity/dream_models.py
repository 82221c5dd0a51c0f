"""Tiny text-to-image bases of all three shapes (SD 2.1, SDXL, mini) and encoders for them; real classes throughout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from limner.diffusion.schedule import NoiseSchedule
from limner.encoders.config import FaceViTConfig, TextTowerConfig
from limner.encoders.m2id import M2IDConfig, M2IDEncoder
from limner.encoders.parts import save_text
from limner.encoders.text_tower import TextTower
from limner.encoders.tokenizer import build_word_tokenizer
from limner.encoders.word_towers import WordTowers

WORDS = (
    "a the photo of person man woman as wizard chef in on snow wearing hat face style oil painting looking at camera"
)
CONTEXT = 16
FACE = FaceViTConfig(image_size=28, patch_size=7, width=16, depth=4, heads=2, output=8)
BASES = ("sd21", "sdxl", "mini")
WIDTHS = {"sd21": (24,), "sdxl": (16, 24), "mini": (16, 24)}


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """transformers' own tokenizer with a small vocabulary that spells what it does not know."""
    letters = [chr(c) for c in range(33, 127)]
    tokens, merges = letters + [c + "</w>" for c in letters], []
    for word in WORDS.split():
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            tokens.append(parts[0])
    vocab = {t: i for i, t in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), pad_token=pad)
    tokenizer.model_max_length = CONTEXT
    return tokenizer


def towers(base: str) -> WordTowers:
    """The text towers of a base, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if base == "mini":
            tokenizer = build_word_tokenizer(WORDS.split(), context=CONTEXT)
            sizes = {"depth": 2, "heads": 2, "context": CONTEXT, "vocabulary": len(tokenizer)}
            parts: list[Any] = [TextTower(TextTowerConfig(width=w, projection=w, **sizes)) for w in WIDTHS[base]]
            return WordTowers(parts, [tokenizer, tokenizer]).eval()
        tokenizers = [clip_tokenizer(pad) for pad in (("!",) if base == "sd21" else ("<|endoftext|>", "!"))]
        end = tokenizers[0].eos_token_id

        def config(width: int, act: str) -> CLIPTextConfig:
            return CLIPTextConfig(
                vocab_size=len(tokenizers[0]), hidden_size=width, intermediate_size=32, num_hidden_layers=3,
                num_attention_heads=2, max_position_embeddings=CONTEXT, projection_dim=20, hidden_act=act,
                eos_token_id=end, bos_token_id=end - 1, pad_token_id=0, initializer_factor=3.0,
            )  # fmt: skip

        if base == "sd21":
            return WordTowers([CLIPTextModel(config(24, "gelu"))], tokenizers).eval()
        both = [CLIPTextModel(config(16, "quick_gelu")), CLIPTextModelWithProjection(config(24, "gelu"))]
        return WordTowers(both, tokenizers, penultimate=True).eval()


def encoder(base: str, words: int = 2, seed: int = 2) -> M2IDEncoder:
    """An untrained encoder whose words fit a base."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = M2IDConfig(widths=WIDTHS[base], words=words, layers=(1, 2, 3, 4), hidden=16, face=FACE)
        return M2IDEncoder(config).eval()


def unet(base: str) -> UNet2DConditionModel:
    """A denoiser for 4 latent channels of 8 places; with SDXL's size conditioning but for `sd21`."""
    added: dict[str, Any] = {}
    if base != "sd21":
        pooled = {"sdxl": 20, "mini": 24}[base]
        added = {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": pooled + 48,
        }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4), cross_attention_dim=sum(WIDTHS[base]), use_linear_projection=True, **added,
        ).eval()  # fmt: skip


def vae() -> AutoencoderKL:
    """Pictures of 32 pixels, latents of a quarter of that."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return AutoencoderKL(
            block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4, latent_channels=4, sample_size=32,
        ).eval()  # fmt: skip


def save_base(base: str, folder: Path) -> Path:
    """A base as its folder: diffusers' layout for `sd21` and `sdxl`, Limner's for `mini`."""
    model = towers(base)
    vae().save_pretrained(folder / "vae")
    unet(base).save_pretrained(folder / "unet")
    NoiseSchedule().scheduler("PNDMScheduler").save_pretrained(folder / "scheduler")
    for i, (tower, tokenizer) in enumerate(zip(model.towers, model.tokenizers, strict=True)):
        if base == "mini":
            save_text(folder / f"text_{i}", tower, tokenizer)
        else:
            end = "_2" if i else ""
            tower.save_pretrained(folder / f"text_encoder{end}")
            tokenizer.save_pretrained(folder / f"tokenizer{end}")
    return folder
