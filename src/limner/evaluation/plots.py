"""A report's plots, from its JSON document, and sheets of what was painted."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limner.evaluation.people import Person
from limner.evaluation.recipe import BOUNDS
from limner.evaluation.store import MAIN, Cell, Store, read_picture
from limner.evaluation.tables import Document, main_key
from limner.types import write_atomic

ROWS, COLUMNS = 6, 12


def write_plots(document: Document, folder: Path) -> list[str]:
    """Writes methods.png, and where there is something to show dials.png, cost.png and slices.png.

    Returns:
        the names of the files.

    Raises:
        StorageError: no space.
    """
    made = []
    for name, draw in (
        ("methods.png", _methods),
        ("dials.png", _dials),
        ("cost.png", _cost),
        ("slices.png", _slices),
    ):
        data = draw(document)
        if data is not None:
            write_atomic(folder / name, data)
            made.append(name)
    return made


def write_sheets(
    store: Store, people: Sequence[Person], methods: Sequence[str], prompts: Sequence[str], count: int = 3
) -> list[str]:
    """One sheet for each of the first `count` people: prompts in rows, methods side by side.

    Returns:
        the names of the files.
    """
    from PIL import Image

    from limner.pipelines.sheet import contact_sheet

    made = []
    for number, person in enumerate(people[:count]):
        rows, notes, titles = [], [], []
        for k, prompt in enumerate(prompts[:ROWS]):
            paths = {m: store.picture(Cell(MAIN, m, person.key, k), 0) for m in methods[:COLUMNS]}
            there = {m: p for m, p in paths.items() if p.is_file()}
            if there:
                rows.append([Image.fromarray(read_picture(p)) for p in there.values()])
                notes.append(list(there))
                titles.append(prompt)
        if rows:
            photos = [Image.fromarray(p) for p in person.photos]
            data = io.BytesIO()
            contact_sheet(rows, titles, notes, photos, cell=160).save(data, "PNG")
            name = f"sheet-{number + 1}.png"
            write_atomic(store.out / name, data.getvalue())
            made.append(name)
    return made


def _text_key(document: Document) -> str:
    """Attributes where they were read, else text-alignment."""
    has = any("attributes" in m["estimates"] for m in document["methods"].values())
    return "attributes" if has else "text_alignment"


def _methods(document: Document) -> bytes | None:
    """Identity against text: one point a method, with both intervals."""
    x_key, y_key = main_key(document, "identity"), _text_key(document)
    figure, axes = _figure()
    for name, method in document["methods"].items():
        x, y = method["estimates"].get(x_key), method["estimates"].get(y_key)
        if not (_known(x) and _known(y)):
            continue
        axes.errorbar(
            x["value"], y["value"], xerr=_error(x), yerr=_error(y), fmt="s" if name in BOUNDS else "o",
            color="0.6" if name in BOUNDS else None, capsize=2,
        )  # fmt: skip
        axes.annotate(name, (x["value"], y["value"]), xytext=(5, 4), textcoords="offset points", fontsize=8)
    return _finish(figure, axes, "identity (0 stranger, 1 real)", y_key.replace("_", "-"))


def _dials(document: Document) -> bytes | None:
    """Identity against text over strength and guidance: one line a method and guidance; its Pareto front is ringed."""
    if not document["curve"]:
        return None
    x_key, y_key = main_key(document, "identity"), _text_key(document)
    figure, axes = _figure()
    points = []
    lines: dict[tuple[str, float], list[tuple[float, float, float]]] = {}
    for row in document["curve"]:
        x, y = row["estimates"].get(x_key), row["estimates"].get(y_key)
        if _known(x) and _known(y):
            points.append((x["value"], y["value"]))
            line = lines.setdefault((row["method"], row["guidance"]), [])
            line.append((row["strength"], x["value"], y["value"]))
    if not points:
        return None
    colors = {m: f"C{k}" for k, m in enumerate(dict.fromkeys(m for m, _ in lines))}
    styles = dict(zip(dict.fromkeys(g for _, g in lines), ("-", "--", ":", "-.") * 8, strict=False))
    for (method, guidance), line in lines.items():
        line.sort()
        axes.plot(
            [x for _, x, _ in line], [y for _, _, y in line], styles[guidance], marker="o", markersize=3,
            color=colors[method], label=f"{method}, guidance {guidance:g}",
        )  # fmt: skip
    front = pareto(points)
    axes.scatter(*zip(*front, strict=True), s=70, facecolors="none", edgecolors="k", label="Pareto front")
    axes.legend(fontsize=7)
    return _finish(figure, axes, "identity (0 stranger, 1 real)", y_key.replace("_", "-"))


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points of which no other is at least as high in both values and higher in one, by the first value."""
    return sorted(p for p in set(points) if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points))


def _cost(document: Document) -> bytes | None:
    """What enrolling takes against the identity it buys."""
    key = main_key(document, "identity")
    found = [
        (name, m["estimates"]["encoding_seconds"]["value"], m["estimates"][key])
        for name, m in document["methods"].items()
        if "encoding_seconds" in m["estimates"] and _known(m["estimates"].get(key))
    ]
    if not found:
        return None
    figure, axes = _figure()
    for name, seconds, identity in found:
        axes.errorbar(max(seconds, 1e-4), identity["value"], yerr=_error(identity), fmt="o", capsize=2)
        axes.annotate(name, (max(seconds, 1e-4), identity["value"]), xytext=(5, 4), textcoords="offset points")
    axes.set_xscale("log")
    return _finish(figure, axes, "encoding time (s)", "identity")


def _slices(document: Document) -> bytes | None:
    """Identity by slice, one line a method."""
    methods: Mapping[str, Any] = document["slices"]
    if not methods:
        return None
    key = main_key(document, "identity")
    names = list(dict.fromkeys(v for m in methods.values() for v in m["values"]))
    figure, axes = _figure(9)
    for name, method in methods.items():
        there = [
            (k, method["values"][s][key]) for k, s in enumerate(names) if _known(method["values"].get(s, {}).get(key))
        ]
        errors = [[_error(e)[side][0] for _, e in there] for side in (0, 1)]
        axes.errorbar([k for k, _ in there], [e["value"] for _, e in there], errors, marker="o", capsize=2, label=name)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.legend(fontsize=8)
    return _finish(figure, axes, "", "identity")


def _known(estimate: Any) -> bool:
    return estimate is not None and estimate["value"] is not None


def _error(estimate: Mapping[str, Any]) -> list[list[float]]:
    if estimate["low"] is None:
        return [[0.0], [0.0]]
    value = estimate["value"]
    return [[max(0.0, value - estimate["low"])], [max(0.0, estimate["high"] - value)]]


def _figure(width: float = 6.4) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.6), dpi=120, layout="constrained")
    return figure, figure.subplots()


def _finish(figure: Any, axes: Any, x: str, y: str) -> bytes:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()
