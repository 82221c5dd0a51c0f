"""Small parts of training: averages, metrics, contrastive losses, randomness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from limner.training.contrast import pairwise_sigmoid, softmax_pairs
from limner.training.dice import Dice, seed_everything
from limner.training.ema import Ema
from limner.training.metrics import mean_interval, recall, verification


def test_average_follows_and_gives_the_weights_back() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.9)
    expected = model.weight.detach().clone()
    for n in range(1, 30):
        with torch.no_grad():
            model.weight.copy_(torch.full((2, 2), float(n)))
        ema.update()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert torch.allclose(ema.average["weight"], expected, rtol=1e-5)
    with ema.applied():
        assert torch.equal(model.weight, ema.average["weight"])
    assert (model.weight == 29).all()


def test_average_of_frozen_parameters_is_not_kept() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert list(Ema(model, 0.5).average) == ["weight"]


def test_recall_counts_ties_as_misses() -> None:
    assert recall(np.eye(4)) == {"recall@1": 1.0, "recall@5": 1.0}
    assert recall(np.ones((8, 8))) == {"recall@1": 0.0, "recall@5": 0.0}
    one_off = np.eye(6)
    one_off[0, 1] = 2
    assert recall(one_off, (1, 2)) == {"recall@1": pytest.approx(5 / 6), "recall@2": 1.0}


def test_verification_of_perfect_and_of_random_features() -> None:
    identities = np.repeat(np.arange(20), 5)
    perfect = np.eye(20)[identities]
    found = verification(perfect, identities)
    assert (found["accuracy"], found["tar@far0.001"]) == (1.0, 1.0)
    assert (found["same_pairs"], found["different_pairs"]) == (20 * 10, 100 * 99 / 2 - 200)
    random = np.random.default_rng(0).standard_normal((100, 16))
    found = verification(random / np.linalg.norm(random, axis=1, keepdims=True), identities)
    assert 0.4 < found["accuracy"] < 0.6
    assert found["tar@far0.001"] < 0.05


def test_interval_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = mean_interval("x", values)
    assert found["x"] == pytest.approx(3, abs=0.3)
    assert found["x_ci95"] == pytest.approx(1.96 * 2 / 20, rel=0.1)


def test_pairwise_sigmoid_is_siglips() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = (nn.functional.normalize(torch.randn(3, 4, generator=random), dim=1) for _ in range(2))
    scale, bias = torch.tensor(math.log(10.0)), torch.tensor(-10.0)
    expected = 0.0
    for i in range(3):
        for j in range(3):
            sign = 1 if i == j else -1
            expected += math.log1p(math.exp(-sign * (10 * float(a[i] @ b[j]) - 10)))
    assert float(pairwise_sigmoid(a, b, scale, bias)) == pytest.approx(expected / 3, rel=1e-5)
    everyone = torch.ones(3, 3, dtype=torch.bool)
    assert pairwise_sigmoid(a, b, scale, bias, everyone) > pairwise_sigmoid(a, b, scale, bias)


def test_softmax_pairs_is_least_for_matching_features() -> None:
    features, scale = torch.eye(5), torch.tensor(3.0)
    assert softmax_pairs(features, features, scale) < 0.01
    assert softmax_pairs(features, features.roll(1, 0), scale) > 10


def test_a_row_meets_the_same_noise_wherever_it_falls() -> None:
    whole, part = Dice(1, 7, range(8)), Dice(1, 7, range(4, 6))
    assert torch.equal(whole.normal(3, 2)[4:6], part.normal(3, 2))
    assert torch.equal(whole.uniform()[4:6], part.uniform())
    assert torch.equal(whole.integers(1000)[4:6], part.integers(1000))
    assert not torch.equal(Dice(1, 7, range(2)).normal(2), Dice(1, 8, range(2)).normal(2))
    assert not torch.equal(Dice(1, 7, range(2)).normal(2), Dice(2, 7, range(2)).normal(2))


def test_all_global_generators_are_seeded() -> None:
    import random

    drawn = []
    for _ in range(2):
        seed_everything(3, 5)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    seed_everything(3, 6)
    assert random.random() != drawn[0][0]
