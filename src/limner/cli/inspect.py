"""`limner inspect`: what a picture says about where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from limner.cli.output import print_json
from limner.errors import CorruptData, NoProvenance

HELP = """Says how a picture was painted, as far as it tells: the record inside the PNG, and the invisible watermark.

Any picture can be given. That nothing is found does not mean that no machine painted it: records are lost when another
program saves the picture, marks when it is cropped or turned.

[bold]Example[/bold]

  limner inspect portrait.png
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("inspect", help=HELP)(inspect)


def inspect(
    picture: Annotated[Path, typer.Argument(help="A picture of any origin.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    from limner.faces.images import load_image
    from limner.watermark import MIN_SIDE, THRESHOLD, detect

    pixels = load_image(picture)
    large_enough = min(pixels.shape[:2]) >= MIN_SIDE
    mark = detect(pixels) if large_enough else None
    report = {
        "path": str(picture),
        "size": [pixels.shape[1], pixels.shape[0]],
        **_record(picture),
        "watermark": {"detected": mark.detected, "score": mark.score, "threshold": THRESHOLD} if mark else None,
    }
    if as_json:
        print_json(report)
        return
    for line in _sentences(report):
        typer.echo(line)


def _record(picture: Path) -> dict[str, Any]:
    """`kind` (portrait, sheet, render; empty for other pictures), `provenance` (None for all but portraits), `record`
    (of a sheet or render, as it stands there), `declared_ai_generated`, and `damage`, a sentence."""
    from limner.provenance import SOURCE_TYPE, read_provenance, read_record

    declared = SOURCE_TYPE.encode() in picture.read_bytes()
    nothing = {"kind": "", "provenance": None, "record": None, "declared_ai_generated": declared, "damage": ""}
    try:
        found = read_provenance(picture)
    except NoProvenance:
        record = read_record(picture)
        return nothing | {"kind": str((record or {}).get("kind", "")), "record": record}
    except CorruptData as e:
        return nothing | {"damage": str(e)}
    portrait = found.portrait
    keys = ("seed", "prompt", "negative_prompt", "model", "weights", "identity", "settings", "scores", "timings")
    facts = {key: getattr(portrait, key) for key in keys}
    facts |= {
        "license": found.license, "versions": found.versions, "intact": found.intact,
        "identity_embedded": found.identity is not None,
    }  # fmt: skip
    return nothing | {"kind": "portrait", "provenance": facts}


def _other_kind(kind: str, record: dict[str, Any]) -> list[str]:
    """What the record of a picture says that is no portrait."""
    if kind == "render":
        return [f"A render of a synthetic world ({record.get('world')}); no model painted it"]
    portraits = record.get("portraits")
    if kind != "sheet" or not isinstance(portraits, list):
        return [f"A record of the kind {kind!r}, which this Limner does not know"]
    rows = [p for p in portraits if isinstance(p, dict)]
    return [
        f"A contact sheet of {len(rows)} portraits",
        *(f"  {p.get('prompt')}, seed {p.get('seed')}, painted by {p.get('model')}" for p in rows),
    ]


def _sentences(report: dict[str, Any]) -> list[str]:
    facts, mark = report["provenance"], report["watermark"]
    lines = [f"{report['path']}: {report['size'][0]} × {report['size'][1]} pixels"]
    if report["record"] is not None:
        lines += _other_kind(report["kind"], report["record"])
    elif facts is None:
        lines.append(report["damage"] or "It carries no record of how it was painted.")
    else:
        settings = facts["settings"]
        dials = ", ".join(f"{k} {settings[k]}" for k in ("steps", "guidance_scale", "strength") if k in settings)
        lines += [
            f"Painted by {facts['model']} (licence: {facts['license'] or 'unknown'})",
            f"  prompt    {facts['prompt']}",
            *([f"  negative  {facts['negative_prompt']}"] if facts["negative_prompt"] else []),
            f"  seed      {facts['seed']}; {dials}, scheduler {settings.get('scheduler')}",
            *(f"  weights   {name} {digest}" for name, digest in facts["weights"].items()),
            f"  identity  {facts['identity'] or 'nobody in particular'}",
            f"            {'embedded' if facts['identity_embedded'] else 'not embedded'}",
            f"  versions  {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}",
            f"  pixels    {'as they were painted' if facts['intact'] else 'CHANGED after the picture was painted'}",
        ]
    declared = "declared" if report["declared_ai_generated"] else "not declared"
    lines.append(f"AI-generated: {declared} in its metadata (IPTC digital source type)")
    if mark is None:
        lines.append("Watermark: the picture is too small to hold one")
    else:
        found = "found" if mark["detected"] else "not found"
        lines.append(f"Watermark: {found} (score {mark['score']:.1f}; {mark['threshold']} or more is a mark)")
    return lines
