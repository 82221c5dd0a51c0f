"""Caches of features: what decides their content decides their name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from limner.data.pictures import FolderPictures
from limner.data.tables import picture_table
from limner.training.denoising import latent_table
from limner.training.progress import silent
from limner.training.towers import fingerprint


class Halves(nn.Module):
    """An autoencoder's encoder, as far as latents need one."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)

    def encode(self, images: torch.Tensor) -> Any:
        mode = nn.functional.avg_pool2d(images, 8)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: mode))


def test_latents_know_their_scale(pictures: Path) -> None:
    table = picture_table(FolderPictures(pictures), 32, 32, silent)
    plain, scaled, shifted = (
        latent_table(Halves(scaling_factor=scale, shift_factor=shift), table, torch.device("cpu"), silent)
        for scale, shift in ((1.0, None), (0.13025, None), (1.0, 0.5))
    )
    assert len({plain.folder, scaled.folder, shifted.folder}) == 3
    torch.testing.assert_close(
        torch.tensor(scaled["latents"]), torch.tensor(plain["latents"]) * 0.13025, atol=1e-3, rtol=0
    )
    facts = {
        "format": 1, "spec": {"pictures": table.digest, "weights": fingerprint(Halves())}, "rows": 24,
        "columns": {"latents": ["f2", [3, 4, 4]]}, "block": 64,
    }  # fmt: skip
    assert plain.digest == hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(), "caches stay valid"
