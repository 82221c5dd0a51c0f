"""The comparison at the published sizes. Minutes and gigabytes, so only on demand:

LIMNER_FULL_SIZE=1 pytest tests/encoders/test_full_size.py      # 2 minutes per branch, 8 GB

No outputs of the published code exist at these sizes. Weights are the synthetic ones; what is compared with is a
second, independent writing of the branch (which reproduces the stored outputs at tiny size), and transformers' CLIP.
"""

from __future__ import annotations

import gzip
import json
import os

import faceclip_reference
import pytest
import torch
from synthetic_weights import PARITY, PROMPTS, synthetic_state
from test_parts import as_transformers

from limner.encoders.config import preset
from limner.encoders.faceclip import Encoded, from_published
from limner.encoders.tokenizer import PromptTokenizer

pytestmark = pytest.mark.skipif(not os.environ.get("LIMNER_FULL_SIZE"), reason="needs LIMNER_FULL_SIZE=1")
FACES = [True, True, False]


@pytest.mark.parametrize(("name", "size", "heads"), [("face_clip_l", "L", 12), ("face_clip_g", "bigG", 20)])
@torch.no_grad()
def test_full_size_branches_agree(name: str, size: str, heads: int, stored, merges: PromptTokenizer) -> None:
    text = gzip.decompress((PARITY / "faceclip_published_keys.json.gz").read_bytes())
    shapes = {k: s for k, s in json.loads(text).items() if k.startswith(f"{name}.")}
    state = synthetic_state(shapes)
    encoder = from_published({f"model.{k}": v for k, v in state.items()}, merges)
    assert encoder.config == preset(size)
    assert encoder.to_published().keys() == state.keys()
    out = encoder.encode(stored["image"], PROMPTS, FACES)
    expected = faceclip_reference.run_branch(
        {k.removeprefix(f"{name}."): v for k, v in state.items()}, stored["input_ids"], stored["image"],
        torch.tensor(FACES), text_heads=heads, face_heads=8, quick=size == "L",
    )  # fmt: skip
    for ours, key in zip(Encoded._fields, ("fused", "pooled", "text_feature", "face_feature"), strict=True):
        torch.testing.assert_close(getattr(out, ours), expected[key], atol=1e-4, rtol=0)
    tower = encoder.branches[0]
    theirs = as_transformers(tower, tower.text_config)(input_ids=stored["input_ids"])
    torch.testing.assert_close(
        tower.encode_text(stored["input_ids"]).tokens, theirs.last_hidden_state, atol=1e-4, rtol=0
    )
