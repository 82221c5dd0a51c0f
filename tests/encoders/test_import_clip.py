"""A published CLIP in transformers' layout becomes towers that say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from limner.encoders.importing_clip import import_clip, text_tower
from limner.encoders.parts import load_text
from limner.errors import OutputConflict, WeightsMismatch, WeightsUnavailable
from limner.training.towers import load_image_tower

TEXT = {
    "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60,
    "max_position_embeddings": 16, "bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
LETTERS = [chr(c) for c in range(33, 127)]
PAIRS = [(a, b) for a in LETTERS for b in LETTERS]
MERGES = [*PAIRS, *((a + b, c) for a, b in PAIRS for c in LETTERS)][:48894]


def clip(**text: Any) -> Any:
    torch.manual_seed(0)
    config = CLIPConfig(text_config={**TEXT, **text}, vision_config=VISION, projection_dim=20)
    model: Any = CLIPModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # biases and gains of a new model would hide mistakes
            p.add_(0.05 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    clip().save_pretrained(folder)
    (folder / "merges.txt").write_text("#version\n" + "\n".join(map(" ".join, MERGES)))
    preprocessing = {"image_mean": [0.2, 0.4, 0.6], "image_std": [0.3, 0.2, 0.1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_text_tower_says_the_same(activation: str) -> None:
    model = clip(hidden_act=activation)
    ids = torch.tensor([[58, 5, 9, 59, 0, 0], [58, 7, 8, 3, 2, 59]])
    own = text_tower(model)(ids)
    theirs = model.text_model(ids)
    assert torch.allclose(own.tokens[1], theirs.last_hidden_state[1], atol=1e-5)
    feature = torch.nn.functional.normalize(model.text_projection(theirs.pooler_output), dim=-1)
    assert torch.allclose(own.feature, feature, atol=1e-5)


def test_the_picture_tower_takes_unit_pictures(folder: Path, tmp_path: Path) -> None:
    found = import_clip(str(folder), tmp_path / "clip")
    assert found["image"]["width"] == 24
    pictures = torch.rand(3, 3, 32, 32)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ([0.2, 0.4, 0.6], [0.3, 0.2, 0.1]))
    model: Any = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=(pictures - mean) / deviation).pooler_output
        theirs = model.visual_projection(pooled)
        own = load_image_tower(tmp_path / "clip")(pixel_values=pictures * 2 - 1).image_embeds
    assert torch.allclose(own, theirs, atol=1e-4)
    tower, tokenizer = load_text(tmp_path / "clip")
    assert tower.text_config.to_dict() == {k: found["text"][k] for k in tower.text_config.to_dict()}
    assert tokenizer is not None


def test_what_cannot_be_imported(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(OutputConflict, match="not empty"):
        import_clip(str(folder), tmp_path / "taken")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsMismatch, match="no CLIP"):
        import_clip(str(tmp_path / "empty"), tmp_path / "a")
    with pytest.raises(WeightsMismatch, match=r"feed-forward part of 4 widths.*64 for a width of 32"):
        text_tower(clip(intermediate_size=64))
    with pytest.raises(WeightsUnavailable, match="no name of a repository"):
        import_clip("no/such/folder", tmp_path / "b")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsUnavailable, match=r"model\*\.safetensors could not be fetched.*some/clip|of that name"):
        import_clip("some/clip", tmp_path / "c")
