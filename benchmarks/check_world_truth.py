"""Checks labels and captions against masks, landmarks and pixels: `python benchmarks/check_world_truth.py [N]`.

Prints for every check how many of N (1,000) test pictures it applies to, how many fail, and the rate with its 95 %
Wilson interval; leaves with status 1 when a check of presence or language fails at all or another in over 3 %.
"""

from __future__ import annotations

import sys
from collections import Counter
from math import sqrt

from limner.world.checks import check
from limner.world.dataset import WorldDataset

STRICT = ("headwear", "eyewear", "clothes", "caption", "prompt", "no hair")
LOOSE = 0.03


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a rate (E. B. Wilson, JASA 22, 1927)."""
    p, d = hits / n, 1 + z * z / n
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (p + z * z / (2 * n) - half) / d, (p + z * z / (2 * n) + half) / d


def main(pictures: int = 1000) -> int:
    views = 2
    data = WorldDataset(split="test", identities=max(pictures // views, 1), views=views, seed=11)
    applied: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    examples: dict[str, list[int]] = {}
    for k, sample in enumerate(data):
        for name, ok in check(sample).items():
            applied[name] += 1
            if not ok:
                failed[name] += 1
                examples.setdefault(name, []).append(k)
    bad = False
    print(f"{len(data)} pictures of the test split")
    for name, n in sorted(applied.items()):
        low, high = wilson(n - failed[name], n)
        wrong = failed[name] > (0 if name in STRICT else LOOSE * n)
        bad |= wrong
        where = f"  e.g. {examples[name][:6]}" if failed[name] else ""
        print(
            f"{'FAIL' if wrong else 'ok  '} {name:15s} n {n:5d}  failed {failed[name]:4d}  "
            f"true {(n - failed[name]) / n:7.2%} [{low:.2%}, {high:.2%}]{where}"
        )
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
