"""The order of the data is a function of seed and step, whoever asks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.data.loader import Batch, Share, Source, batches
from limner.data.order import Order
from limner.data.partners import Partners
from limner.errors import ConfigError


class Numbers(Source):
    """Rows that are their own numbers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, rows: np.ndarray, step: int) -> Batch:
        return {"row": torch.from_numpy(rows), "step": torch.full((len(rows),), step)}


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 50), batch=st.integers(1, 12), seed=st.integers(0, 5))
def test_every_epoch_holds_every_row(count: int, batch: int, seed: int) -> None:
    order = Order(count, batch, seed)
    for epoch in range(2):
        steps = range(epoch * order.batches_per_epoch, (epoch + 1) * order.batches_per_epoch)
        seen = np.concatenate([order.rows(s) for s in steps])
        assert set(seen) == set(range(count))
        assert len(seen) < count + max(batch, count)


def test_steps_can_be_asked_in_any_order() -> None:
    forward, backward = Order(20, 4, 0), Order(20, 4, 0)
    rows = [forward.rows(s) for s in range(12)]
    for s in reversed(range(12)):
        assert np.array_equal(backward.rows(s), rows[s])
    assert not np.array_equal(np.concatenate(rows[:5]), np.concatenate(rows[5:10]))
    assert not np.array_equal(Order(20, 4, 1).rows(0), rows[0])


def test_groups_do_not_mix() -> None:
    groups = np.array([0, 1] * 10 + [2] * 3)
    order = Order(len(groups), 4, 0, groups)
    kinds = [set(groups[order.rows(s)]) for s in range(order.batches_per_epoch)]
    assert all(len(k) == 1 for k in kinds)
    assert set.union(*kinds) == {0, 1, 2}


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_share_one_sequence(world: int, accumulation: int, workers: int) -> None:
    order = Order(30, 8, 3)
    streams = [
        list(batches(Numbers(30), Order(30, 8, 3), Share(r, world, accumulation), 2, 6, workers)) for r in range(world)
    ]
    for i, step in enumerate(range(2, 6)):
        parts = [streams[r][i * accumulation + k]["row"] for k in range(accumulation) for r in range(world)]
        assert np.array_equal(torch.cat(parts).numpy(), order.rows(step))


def test_batches_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch of 10 cannot be divided among 4 processes"):
        next(batches(Numbers(30), Order(30, 10, 0), Share(0, 4), 0, 1))
    with pytest.raises(ConfigError, match="at least one row"):
        Order(0, 4, 0)


def test_partners_are_other_pictures_of_the_same_person() -> None:
    identities = np.array([7, 7, 7, 7, 9, 9, 4, 5, 5])
    eligible = np.array([1, 1, 1, 0, 0, 0, 1, 1, 0], bool)
    partners = Partners(identities, eligible)
    rows = np.arange(9)
    seen: dict[int, set[int]] = {r: set() for r in range(9)}
    for step in range(60):
        for row, partner in zip(rows, partners.of(rows, step), strict=True):
            seen[row].add(int(partner))
    assert seen == {0: {1, 2}, 1: {0, 2}, 2: {0, 1}, 3: {0, 1, 2}, 4: {5}, 5: {4}, 6: {6}, 7: {8}, 8: {7}}
    assert np.array_equal(partners.of(rows, 5), np.concatenate([partners.of(rows[:4], 5), partners.of(rows[4:], 5)]))
