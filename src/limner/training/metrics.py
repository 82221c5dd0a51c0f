"""Small statistics for validation."""

from __future__ import annotations

import numpy as np


def mean_interval(name: str, values: np.ndarray) -> dict[str, float]:
    """Mean of independent values, and half the width of its 95 % interval (1.96 standard errors) as `name_ci95`."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return {name: float(values.mean()), f"{name}_ci95": float(1.96 * error)}


def recall(similarity: np.ndarray, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """Share of rows of a square similarity matrix whose own column is among the k highest, for every k.

    Ties count against the row, so that constant features score 0 rather than 1.
    """
    own = np.diag(similarity)[:, None]
    better = (similarity >= own).sum(1) - 1
    return {f"recall@{k}": float((better < k).mean()) for k in ks}


def verification(features: np.ndarray, identities: np.ndarray, far: float = 1e-3) -> dict[str, float]:
    """How well unit features (N,D) tell whether two pictures show the same person, over all pairs.

    Returns:
        accuracy at the threshold where both kinds of error are equally frequent, weighing same and different pairs
        alike; `tar`, the share of same pairs above the threshold that lets the share `far` of different pairs pass;
        both numbers of pairs.
    """
    first, second = np.triu_indices(len(features), 1)
    scores = (features @ features.T)[first, second]
    same = identities[first] == identities[second]
    genuine, impostor = np.sort(scores[same]), np.sort(scores[~same])
    thresholds = genuine
    missed = np.arange(len(genuine)) / len(genuine)
    passed = 1 - np.searchsorted(impostor, thresholds) / len(impostor)
    place = int(np.argmin(np.abs(missed - passed)))
    strict = impostor[min(len(impostor) - 1, int(np.ceil((1 - far) * len(impostor))))]
    return {
        "accuracy": float(1 - (missed[place] + passed[place]) / 2),
        f"tar@far{far:g}": float((genuine > strict).mean()),
        "same_pairs": len(genuine),
        "different_pairs": len(impostor),
    }
