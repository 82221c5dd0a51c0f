"""`limner faces`: what Limner sees in a picture before it paints anybody."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from limner.errors import LimnerError
    from limner.faces import FaceFinder, Found
    from limner.types import Face

FACE_HELP = (
    "Which face: [bold]largest[/bold], [bold]center[/bold], [bold]only[/bold], a number (from 0, left to right), a "
    "point X,Y or a box X0,Y0,X1,Y1 in pixels, or [bold]like:PHOTO[/bold]."
)


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""

    @app.command()
    def faces(
        images: Annotated[
            list[Path], typer.Argument(metavar="IMAGE…", help="Pictures to look at.", show_default=False)
        ],
        face: Annotated[str | None, typer.Option("--choose", "--face", help=FACE_HELP, show_default="largest")] = None,
        draw: Annotated[Path | None, typer.Option(help="Write a picture that shows what was found.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print a list with one object per image.")] = False,
        detector: Annotated[str, typer.Option(help="auto, yunet, mini, cascade or insightface.")] = "auto",
        detector_weights: Annotated[
            Path | None, typer.Option(help="Local copy of YuNet's ONNX file (or set LIMNER_YUNET).")
        ] = None,
        embedder: Annotated[
            str, typer.Option(help="Recogniser for like:PHOTO: sface, auraface or mobilefacenet.")
        ] = "sface",
        min_size: Annotated[float, typer.Option(min=0, help="Least width of the chosen face in pixels.")] = 0,
        accept_license: Annotated[
            bool, typer.Option("--accept-license", help="Accept weights that forbid commercial use.")
        ] = False,
    ) -> None:
        """List the faces in pictures: where they are, where they look, how good they are, and which one is taken.

        Leaves with status 2 if a picture cannot be read, shows no face, or has none that the choice fits; the others
        are listed all the same.
        """
        from limner.faces import FaceFinder

        finder = FaceFinder(
            detector, weights=detector_weights, embedder=embedder, min_size=min_size, accept_license=accept_license
        )
        raise typer.Exit(_run(finder, images, face, draw, as_json))


def _run(finder: FaceFinder, images: list[Path], face: str | None, draw: Path | None, as_json: bool) -> int:
    from limner.cli.output import console_error, note, print_json
    from limner.errors import ImageError, OutputConflict
    from limner.faces.draw import contact_sheet, draw_failed, draw_found

    if draw and draw.resolve() in {image.resolve() for image in images}:
        raise OutputConflict(f"--draw {draw} is one of the pictures to look at; nothing was written.")
    choice = finder.resolve_choice(face or "largest")
    rows: list[dict[str, Any]] = []
    drawn, longest = [], 1600 if len(images) == 1 else 640
    for path in images:
        try:
            found = finder.find(path, choice)
        except ImageError as e:
            rows.append(_failed_row(path, e))
            if not as_json:
                console_error(e)
            if draw:
                drawn.append(draw_failed(path, e.message, longest))
            continue
        seen = [found.face(i) for i in range(len(found.detected))]
        rows.append(_row(path, found, seen))
        if not as_json:
            _print_table(path, found, seen)
            if face is None and found.advice:
                note(found.advice)
        if draw:
            drawn.append(draw_found(found, seen, longest))
    if draw:
        _write(draw, contact_sheet(drawn))
    if as_json:
        print_json(rows)
    return 2 if any(row["error"] for row in rows) else 0


def _failed_row(path: Path, error: LimnerError) -> dict[str, Any]:
    return {"path": str(path), "faces": [], "chosen": None, "error": error.as_dict()}


def _row(path: Path, found: Found, faces: list[Face]) -> dict[str, Any]:
    height, width = found.image.shape[:2]
    return {
        "path": str(path),
        "width": width,
        "height": height,
        "faces": [{"index": i, "chosen": i == found.chosen, **_facts(face)} for i, face in enumerate(faces)],
        "chosen": found.chosen,
        "error": None,
    }


def _facts(face: Face) -> dict[str, Any]:
    from dataclasses import asdict

    from limner.types import LANDMARKS

    points = None
    if face.landmarks is not None:
        points = {
            name: [round(float(v), 2) for v in point] for name, point in zip(LANDMARKS, face.landmarks, strict=True)
        }
    return {
        "box": [round(v, 2) for v in face.box],
        "score": round(face.score, 4),
        "landmarks": points,
        "pose": None if face.pose is None else {k: round(v, 1) for k, v in asdict(face.pose).items()},
        "quality": None if face.quality is None else asdict(face.quality),
    }


def _print_table(path: Path, found: Found, faces: list[Face]) -> None:
    from rich.console import Console
    from rich.table import Table

    height, width = found.image.shape[:2]
    table = Table(title=f"{path} ({width} × {height})", title_justify="left")
    for name in ("face", "box x0,y0,x1,y1", "score", "yaw,pitch,roll", "sharp", "quality"):
        table.add_column(name)
    for i, face in enumerate(faces):
        pose, quality = face.pose, face.quality
        table.add_row(
            f"{i} ← taken" if i == found.chosen else str(i),
            ",".join(f"{v:.0f}" for v in face.box),
            f"{face.score:.2f}",
            f"{pose.yaw:+.0f},{pose.pitch:+.0f},{pose.roll:+.0f}" if pose else "unknown",
            f"{quality.sharpness:.2f}" if quality else "",
            f"{quality.score:.2f}" if quality else "",
            style="bold" if i == found.chosen else None,
        )
    console = Console(soft_wrap=True)
    console.print(table)
    for i, face in enumerate(faces):
        for warning in face.quality.warnings if face.quality else ():
            console.print(f"  {i}: {warning}", markup=False, highlight=False)


def _write(path: Path, picture: Any) -> None:
    import io

    from limner.types import write_atomic

    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")
    write_atomic(path, buffer.getvalue())
