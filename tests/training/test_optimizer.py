"""Muon: matrices move along orthogonal updates, everything else as under AdamW."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from limner.errors import ConfigError
from limner.training.loop import Trainer
from limner.training.optimizer import Muon, build_optimizer, orthogonalised
from limner.training.recipe import Loop
from limner.training.tasks import load_training
from limner.training.tasks.autoencoder import AutoencoderTask

ADAMW = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
SHAPES = [(16, 16), (8, 24), (24, 8), (8, 200), (200, 8)]


def decaying(rows: int, columns: int) -> torch.Tensor:
    """A matrix with singular values from 1 down to 0.01."""
    torch.manual_seed(rows * columns)
    u, _, v = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    return u * torch.logspace(0, -2, min(rows, columns)) @ v


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_become_alike(shape: tuple[int, int]) -> None:
    matrix = decaying(*shape)
    found = orthogonalised(matrix[None])[0].float()
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), 0) > 0.97


def test_gradients_of_low_rank_do_not_blow_up() -> None:
    torch.manual_seed(0)
    thin = torch.randn(64, 2) @ torch.randn(2, 600)
    assert torch.linalg.svdvals(orthogonalised(thin[None])[0].float()).max() < 1.3


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_torchs_muon(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    start, gradients = torch.randn(shape), [decaying(*shape) + 0.1 * torch.randn(shape) for _ in range(4)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    a = Muon([{"params": [ours], "orthogonal": True}], **ADAMW)
    b = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved, "bfloat16 and the Gram matrix may differ by rounding only"


def test_layout_in_memory_does_not_matter() -> None:
    torch.manual_seed(2)
    start, gradient = torch.randn(12, 4, 3, 3), torch.randn(12, 4, 3, 3)
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(start.clone(memory_format=torch.preserve_format).to(memory_format=layout))
        p.grad = gradient.clone()
        Muon([{"params": [p], "orthogonal": True}], **ADAMW).step()
        ends.append(p.detach())
    torch.testing.assert_close(*ends, atol=1e-4, rtol=0)
    assert (ends[0] - start).abs().max() > 1e-3


def test_vectors_and_embeddings_are_adamws(write_recipe: Callable[..., Path]) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.gain, self.linear = nn.Embedding(5, 4), nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    task = load_training(write_recipe(), [])[1]()
    task.model = model = Small()
    optimizer = build_optimizer(Loop(steps=1, batch_size=1, optimizer="muon", lr=0.01), task)
    reference = Small()
    reference.load_state_dict(model.state_dict())
    torch.manual_seed(3)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    optimizer.step()
    torch.optim.AdamW(
        [{"params": [p for p in reference.parameters() if p.ndim > 1]},
         {"params": [p for p in reference.parameters() if p.ndim < 2], "weight_decay": 0.0}],
        lr=0.01, betas=(0.9, 0.99), weight_decay=0.01,
    ).step()  # fmt: skip
    same = {n: torch.equal(p, q) for (n, p), q in zip(model.named_parameters(), reference.parameters(), strict=True)}
    assert same == {"words.weight": True, "gain": True, "linear.weight": False, "linear.bias": True}


def test_cannot_be_sharded(write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoencoderTask, "shards", ("ResnetBlock2D",))
    recipe = load_training(write_recipe(), ["loop.optimizer=muon", "run.shard=true"])
    with pytest.raises(ConfigError, match="Muon needs whole matrices"):
        Trainer(*recipe, tmp_path / "a")
