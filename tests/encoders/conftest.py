"""A mini encoder with random weights, and the tiny branch behind the stored numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_weights import PARITY, synthetic_state

from limner.encoders.faceclip import FaceCLIPEncoder, clip_tokenizer, from_published, preset
from limner.encoders.tokenizer import PromptTokenizer, build_word_tokenizer

WORDS = ["a portrait of the chef in front library", "old smiling person at sea", "wizard with hat", "t-shirt"]


@pytest.fixture(scope="session")
def stored() -> dict[str, torch.Tensor]:
    """Inputs and outputs measured from the published code on the tiny branch."""
    with np.load(PARITY / "faceclip_tiny.npz") as f:
        return {key: torch.from_numpy(f[key]) for key in f.files}


@pytest.fixture(scope="session")
def tiny_state() -> dict[str, torch.Tensor]:
    return synthetic_state(json.loads((PARITY / "faceclip_tiny_keys.json").read_text()), "tiny.")


@pytest.fixture
def tiny(tiny_state: dict[str, torch.Tensor]) -> FaceCLIPEncoder:
    return from_published(tiny_state, None)


@pytest.fixture(scope="session")
def merges(shared: Path) -> PromptTokenizer:
    """CLIP's tokenizer; skips where its merges are absent."""
    return clip_tokenizer(shared / "parity" / "clip_bpe_merges.txt.gz")


@pytest.fixture(scope="session")
def words() -> PromptTokenizer:
    return build_word_tokenizer(WORDS, context=40)


@pytest.fixture
def mini(words: PromptTokenizer) -> FaceCLIPEncoder:
    """Two branches, one face encoder, weights random but the same in every run."""
    torch.manual_seed(0)
    encoder = FaceCLIPEncoder(preset("mini").with_text(vocabulary=len(words)), words).eval()
    with torch.no_grad():  # untrained gains are so small that faces would hardly show
        for name, value in encoder.named_parameters():
            if "gamma_" in name or "proj1" in name:
                value.normal_()
    return encoder


@pytest.fixture
def photos() -> torch.Tensor:
    """Three pictures in [0, 1]."""
    return torch.rand(3, 3, 64, 80, generator=torch.Generator().manual_seed(1))
