"""Trainings side by side: what differs in their recipes, and what they gave.

    python benchmarks/table_trainings.py TITLE RUN [RUN …] > docs/results/NAME.md

Prints a Markdown table of the held-out metrics in every results.json, recalls with the 95 % interval of a share
(Wilson), and the settings in which the recipes differ. An unfinished training is an error.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import yaml


def main(title: str, *folders: str) -> int:
    results = [json.loads((Path(f) / "results.json").read_text()) for f in folders]
    unfinished = [f for f, r in zip(folders, results, strict=True) if not r["finished"]]
    if unfinished:
        sys.exit(f"Not finished: {', '.join(unfinished)}.")
    recipes = [flat(yaml.safe_load((Path(f) / "recipe.yaml").read_text())) for f in folders]
    differ = sorted(k for k in {k for r in recipes for k in r} if len({str(r.get(k)) for r in recipes}) > 1)
    print(f"# {title}\n")
    print("| | " + " | ".join(r["name"] for r in results) + " |")
    print("| --- |" + " --- |" * len(results))
    for key in (k for k in differ if k != "name"):
        print(f"| `{key}` | " + " | ".join(str(r.get(key)) for r in recipes) + " |")
    for key in results[0]["metrics"]:
        cells = [cell(key, r["metrics"]) for r in results]
        print(f"| {key} | " + " | ".join(cells) + " |")
    print("| minutes | " + " | ".join(f"{r['images'] / r['images_per_second'] / 60:.0f}" for r in results) + " |")
    first = results[0]
    print(f"\nMachine: {first['machine']['device']}, {first['machine']['cores']} cores, {first['machine']['system']}.")
    print("Versions: " + ", ".join(f"{k} {v}" for k, v in first["versions"].items()) + ".")
    for r in results:
        print(f"\n    {r['command']}")
    return 0


def cell(key: str, metrics: dict[str, Any]) -> str:
    """A metric as text; shares of n with their interval."""
    value = metrics.get(key)
    if value is None:
        return ""
    if "recall" not in key:
        return f"{value:.4g}"
    low, high = wilson(value, int(metrics["n"]))
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of n (Wilson 1927)."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - reach, middle + reach


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
