"""Tiny text-to-image bases of all three shapes (SD 2.1, SDXL, mini) and encoders for them; real classes throughout."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from limner.encoders.config import FaceViTConfig, TextTowerConfig
from limner.encoders.m2id import M2IDConfig, M2IDEncoder
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
