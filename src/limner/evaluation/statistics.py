"""Intervals, and distances between sets of pictures. People are the sampling unit: pictures of one person are alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""Weights of P people (D, P), rows summing to 1 → values (D,)."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        value: on the data as they are.
        low, high: 2.5 and 97.5 % quantiles over resampled people; None where there is no interval.
        people, pictures: n.
    """

    value: float
    low: float | None
    high: float | None
    people: int
    pictures: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded to six significant digits; None for what is undefined."""
        return {k: _plain(v) if isinstance(v, float) else v for k, v in asdict(self).items()}


class Bootstrap:
    """Resamples people with replacement (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, Chapter 13).

    Two estimates from equal instances see the same resampled people, so that methods are compared in pairs.

    Args:
        people: P.
        draws: D.
        seed: of the resampling.
    """

    def __init__(self, people: int, draws: int, seed: int) -> None:
        random = np.random.default_rng([seed, people])
        self.people = people
        self.weights = random.multinomial(people, np.full(people, 1 / people), size=draws) / people

    def estimate(self, statistic: Statistic, pictures: int) -> Estimate:
        """Value and percentile interval; draws in which the statistic is undefined are left out."""
        value = float(statistic(np.full((1, self.people), 1 / self.people))[0])
        drawn = statistic(self.weights)
        drawn = drawn[np.isfinite(drawn)]
        low, high = (float(q) for q in np.quantile(drawn, (0.025, 0.975))) if len(drawn) else (None, None)
        return Estimate(value, low, high, self.people, pictures)

    def share_positive(self, statistic: Statistic) -> float:
        """Share of draws in which the statistic is above 0."""
        return float((statistic(self.weights) > 0).mean())

    def share_undefined(self, statistic: Statistic) -> float:
        """Share of draws in which the statistic has no value; `estimate` leaves them out."""
        return float((~np.isfinite(statistic(self.weights))).mean())


def mean(values: np.ndarray) -> Statistic:
    """The mean over people of one value each (P,); people whose value is NaN are left out."""
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ filled) / (weights @ known)

    return statistic


def normalised(values: np.ndarray, floor: np.ndarray, ceiling: np.ndarray) -> Statistic:
    """(mean of values - mean of floor) / (mean of ceiling - mean of floor), each (P,)."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        low = mean(floor)(weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (mean(values)(weights) - low) / (mean(ceiling)(weights) - low)

    return statistic


def ratio(values: np.ndarray, others: np.ndarray) -> Statistic:
    """Ratio of two means over people."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return mean(values)(weights) / mean(others)(weights)

    return statistic


def slope(reference: np.ndarray, outcome: np.ndarray) -> Statistic:
    """Least-squares slope of outcomes on references, (P, K) each, summed over the K columns; NaN rows are left out.

    1 where every outcome repeats its reference, 0 where it does not depend on it.
    """
    known = np.isfinite(reference).all(1) & np.isfinite(outcome).all(1)
    x, y = (np.where(known[:, None], v, 0.0) for v in (reference, outcome))

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = (weights @ known)[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_x, mean_y = weights @ x / total, weights @ y / total
            covariance = (weights @ (x * y) / total - mean_x * mean_y).sum(1)
            return covariance / (weights @ (x * x) / total - mean_x**2).sum(1)

    return statistic


def kid(features: np.ndarray, people: np.ndarray, others: np.ndarray, people_of_others: np.ndarray) -> Statistic:
    """Kernel distance of two sets of features (N, D) and (M, D): the unbiased squared MMD under the kernel
    (x·y / D + 1)³ (Bińkowski et al., Demystifying MMD GANs, arXiv 1801.01401, Section 4).

    Args:
        people, people_of_others: whose picture each row is, 0 to P - 1.
    """
    count = int(max(people.max(), people_of_others.max())) + 1
    inside, n = _blocks(features, people, features, people, count, own=True)
    outside, m = _blocks(others, people_of_others, others, people_of_others, count, own=True)
    across, nm = _blocks(features, people, others, people_of_others, count, own=False)

    def statistic(weights: np.ndarray) -> np.ndarray:
        def total(sums: np.ndarray, pairs: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.einsum("dp,pq,dq->d", weights, sums, weights, optimize=True) / np.einsum(
                    "dp,pq,dq->d", weights, pairs, weights, optimize=True
                )

        return total(inside, n) + total(outside, m) - 2 * total(across, nm)

    return statistic


def fid(features: np.ndarray, others: np.ndarray) -> float:
    """Fréchet distance of two sets of features (N, D), (M, D), taken as Gaussian (Heusel et al., arXiv 1706.08500,
    Equation 6). It is biased upwards by few pictures: compare only where n agrees."""
    first, second = _root(np.cov(features, rowvar=False)), np.cov(others, rowvar=False)
    shared = np.linalg.eigvalsh(first @ second @ first).clip(min=0)
    apart = float(((features.mean(0) - others.mean(0)) ** 2).sum())
    return float(apart + np.trace(first @ first) + np.trace(second) - 2 * np.sqrt(shared).sum())


def comparable(features: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features, scaled so that the mean square of a number of `others` is 1: no network's units matter."""
    scale = np.sqrt((others.astype(np.float64) ** 2).mean())
    return features / max(scale, 1e-12), others / max(scale, 1e-12)


def _plain(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.atleast_2d(matrix))
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def _blocks(
    a: np.ndarray, people_a: np.ndarray, b: np.ndarray, people_b: np.ndarray, count: int, own: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the kernel and numbers of pairs for every pair of people; with `own`, no picture meets itself."""
    kernel = (a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1) ** 3
    if own:
        np.fill_diagonal(kernel, 0)
    from_a, from_b = (np.eye(count)[p] for p in (people_a, people_b))
    pairs = from_a.sum(0)[:, None] * from_b.sum(0)[None]
    if own:
        pairs = pairs - np.diag(from_a.sum(0))
    return from_a.T @ kernel @ from_b, pairs
