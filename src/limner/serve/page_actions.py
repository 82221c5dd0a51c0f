"""What happens when something on the page is pressed: from the visitor's inputs to engine calls to what is shown."""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from limner.errors import ConfigError, LimnerError, NoFaceFound, WeightsMismatch
from limner.pipelines.again import compare
from limner.pipelines.paint import Dials
from limner.provenance import Provenance, read_portrait, read_provenance
from limner.serve import page_parts as parts
from limner.serve.errors import NotFound, Unsupported
from limner.serve.jobs import PaintRequest, Picture
from limner.serve.page_place import SHOWN, Place, as_gaze, as_place, draw_canvas, show_place

if TYPE_CHECKING:
    from limner.serve.engine import Engine

FASTEST = 0.15
"""Least seconds between two updates of a visitor's page."""
CROP = 192
"""Side in pixels of the faces that are offered for choice."""


@dataclass(frozen=True)
class Photo:
    """An uploaded photo and whom it shows.

    Attributes:
        path: where gradio keeps the upload.
        name: what messages call it.
        crops: (CROP, CROP, 3) of every face, from left to right; none where the photo cannot be used.
        chosen: index of the person's face.
    """

    path: str
    name: str
    crops: tuple[Any, ...]
    chosen: int


class Shown(NamedTuple):
    """New values of the result column."""

    status: Any
    gallery: Any
    files: Any
    notes: Any
    job: Any
    paths: Any
    details: Any


class Actions:
    """Everything the page can do, over one engine. Holds nothing of any visitor."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def start(self) -> tuple[Any, ...]:
        """Which models paint here, and the first one's own dials; for a page that was just opened."""
        facts = self.engine.facts
        if not facts:
            return (parts.alert({"code": "unavailable", "message": "The model is being loaded.",
                                 "hint": "Open the page again in a moment."}), *[gr.skip()] * 7)  # fmt: skip
        offers = self.engine.offers()
        return (
            *self._of_model(facts),
            gr.update(choices=parts.offer_choices(offers), value=offers[0]["name"], interactive=len(offers) > 1),
            gr.update(maximum=min(8, self.engine.limits.number)),
        )

    def take_model(self, name: str, place: Place | None) -> Iterator[tuple[Any, ...]]:
        """What changes on the page when another model is picked, which may have to be loaded first."""
        yield (parts.waiting(f"Looking for {name}"), *[gr.skip()] * 5)
        try:
            yield self._of_model(self.engine.prepare(name), place)
        except LimnerError as e:
            yield (parts.alert(e, name), *[gr.skip()] * 5)

    def _of_model(self, facts: dict[str, Any], place: Place | None = None) -> tuple[Any, ...]:
        """The line about the model, its steps, guidance and sizes, whether a place can be asked for, and the canvas."""
        dials = facts["dials"]
        choices = sizes(dials["width"], dials["height"], facts["size_unit"])
        return (
            parts.model_line(facts),
            gr.update(value=dials["steps"], maximum=self.engine.limits.steps),
            gr.update(value=dials["guidance_scale"]),
            gr.update(choices=choices, value=choices[0][1]),
            gr.update(visible="gaze" not in facts["lacks"]),
            draw_canvas(place, choices[0][1]),
        )

    def find(self, files: list[str] | None) -> tuple[list[Photo], Any, Any]:
        """Looks for faces in all uploaded photos."""
        found, said = [], ""
        for number, path in enumerate(files or [], 1):
            name = f"Photo {number} ({Path(path).name})"
            try:
                seen = self.engine.find_faces(_read(path))
            except LimnerError as e:
                said += parts.alert(e, name)
                found.append(Photo(path, name, (), 0))
                continue
            crops = tuple(_crop(seen.face(i).image) for i in range(len(seen.detected)))
            found.append(Photo(path, name, crops, seen.chosen))
        return found, _faces(found), _html(said)

    def choose(self, found: Sequence[Photo], index: int) -> tuple[list[Photo], Any, Any]:
        """Takes face number `index` of all that are shown for the person, in the photo that it comes from."""
        chosen = []
        for photo in found:
            here = 0 <= index < len(photo.crops)
            chosen.append(replace(photo, chosen=index) if here else photo)
            index -= len(photo.crops)
        return chosen, _faces(chosen), gr.skip()

    def paint(self, owner: str, found: Sequence[Photo], dials: dict[str, Any]) -> Iterator[tuple[bool, Shown]]:
        """Enrols the person and paints; yields (whether it is over, what to show)."""
        yield False, _show(parts.waiting("Reading the photos"), clear=True)
        person = ""
        try:
            usable = [photo for photo in found if photo.crops]
            if not usable:
                raise NoFaceFound("There is no photo of a person yet.", "Drop at least one photo that shows the face.")
            enrolled = self.engine.enroll(
                owner,
                [_read(photo.path) for photo in usable],
                [str(photo.chosen) for photo in usable],
                model=dials["method"] or None,
            )
            person = enrolled.id
            request = as_request(dials, person)
            if "gaze" in self.engine.prepare(enrolled.model)["lacks"]:
                request = replace(
                    request, gaze=""
                )  # asked for while another model was picked; the canvas is hidden now
            yield from self._follow(owner, request, enrolled.remarks)
        except LimnerError as e:
            yield True, _show(parts.alert(e), job="")
        finally:
            self._forget(owner, person)

    def stop(self, owner: str, job: str) -> None:
        """Ends a job; what it finished is shown."""
        with contextlib.suppress(LimnerError):
            self.engine.cancel(owner, job)

    def leave(self, owner: str) -> None:
        """Forgets everything of a visitor whose page was closed."""
        for job in self.engine.jobs(owner):
            with contextlib.suppress(LimnerError):
                self.engine.delete(owner, job.id)
        for person in self.engine.persons(owner):
            self._forget(owner, person.id)

    def read(self, file: str | None) -> tuple[Any, Any, Any]:
        """What a dropped PNG says of itself, and whether it can be painted again."""
        able, unable = gr.update(interactive=True), gr.update(interactive=False)
        if not file:
            return _html(""), unable, unable
        try:
            record = _record(file)
        except LimnerError as e:
            return _html(parts.alert(e, Path(file).name)), unable, unable
        said = parts.table(parts.record_rows(record))
        try:
            self._painter_of(record)
        except LimnerError as e:
            return _html(said + parts.alert(e)), unable, able
        return _html(said), able, able

    def take(self, file: str | None, method: str | None = None) -> tuple[Any, ...]:
        """The settings of a dropped PNG, for the other tab, with the model that painted it if it is offered here.

        Args:
            method: the model that is picked now.
        """
        if not file:
            return (gr.skip(),) * (10 + len(SHOWN))
        try:
            record = _record(file)
            request, index = as_recorded(record, None, self.engine.limits.number)
            names = [offer["name"] for offer in self.engine.offers()]
            name = record.portrait.model if record.portrait.model in names else method
            facts = self.engine.prepare(name or None)
            line, *_, sized, able, _ = self._of_model(facts)
            place = as_place(request.gaze)
        except LimnerError as e:
            raise gr.Error(str(e)) from e
        size = f"{request.width}x{request.height}"
        if size in [value for _, value in sized["choices"]]:
            sized["value"] = size
        return (
            request.prompt,
            request.negative_prompt,
            request.strength,
            str((request.seed or 0) + index),
            request.steps,
            request.guidance_scale,
            sized,
            gr.update(value=name) if name else gr.skip(),
            line,
            able,
            *show_place(place, sized["value"]),
        )

    def repaint(self, owner: str, file: str | None) -> Iterator[tuple[bool, Shown]]:
        """Paints a dropped PNG again, in the company that it was painted in, and compares."""
        yield False, _show(parts.waiting("Reading the picture"), clear=True)
        person = ""
        try:
            if not file:
                raise ConfigError("There is no picture to paint again yet.", "Drop a PNG that Limner painted.")
            record = _record(file)
            name = self._painter_of(record)
            if record.identity is not None:
                person = self.engine.keep(owner, record.identity, model=name).id
            request, index = as_recorded(record, person or None, self.engine.limits.number)
            yield from self._follow(owner, replace(request, model=name), (), (record, index))
        except LimnerError as e:
            yield True, _show(parts.alert(e), job="")
        finally:
            self._forget(owner, person)

    def details(self, paths: Sequence[str], index: int) -> Any:
        """What one of the painted pictures says of itself."""
        if not 0 <= index < len(paths):
            return _html("")
        try:
            return _html(parts.table(parts.record_rows(_record(paths[index]))))
        except LimnerError as e:
            return _html(parts.alert(e))

    def _follow(
        self,
        owner: str,
        request: PaintRequest,
        remarks: Sequence[str],
        again: tuple[Provenance, int] | None = None,
    ) -> Iterator[tuple[bool, Shown]]:
        """Submits, shows progress until the end, then the pictures. A visitor who leaves takes the job along."""
        job = self.engine.submit(owner, request)
        try:
            last = 0.0
            for state in self.engine.watch(owner, job):
                if not state.status.final and time.monotonic() - last >= FASTEST:
                    last = time.monotonic()
                    yield False, _show(parts.progress(state), job=job)
            notes = [*remarks, *(r for r in state.remarks if r not in remarks)]
            if state.error is not None:
                yield True, _show(parts.alert(state.error), notes=parts.remarks(notes), job="")
                return
            pictures = self.engine.result(owner, job)
            if again is not None:
                notes += self._compared(again, pictures)
                pictures = pictures[again[1] : again[1] + 1]
            notes += [f"A picture was held back: {p.refused}" for p in pictures if p.refused]
            missing = {name: why for p in pictures for name, why in p.unscored.items() if request.identity}
            notes += [f"There is no score of the {name}: {why}" for name, why in missing.items()]
            kept = [p for p in pictures if not p.refused]
            yield True, _pictures(parts.progress(state), parts.remarks(notes), request.prompt, kept)
        finally:
            with contextlib.suppress(LimnerError):
                self.engine.delete(owner, job)

    def _compared(self, again: tuple[Provenance, int], pictures: Sequence[Picture]) -> list[str]:
        record, index = again
        if len(pictures) <= index or pictures[index].refused:
            return []
        new = read_portrait(io.BytesIO(pictures[index].png))
        return [str(compare(record, new)["summary"])]

    def _painter_of(self, record: Provenance) -> str:
        """The name of the offered model that painted the picture; WeightsMismatch if there is none, or if it does not
        know the person, Unsupported if small faces were painted again in it."""
        if record.portrait.settings.get("rescue", "never") != "never":
            raise Unsupported(
                "Small faces of this picture were to be painted again (--rescue), which the page does not do.",
                "Paint it again with `limner generate --from FILE`, or take its settings over without that.",
            )
        weights = "placed_weights" if record.portrait.settings.get("gaze") else "weights"
        found = ""
        for offer in self.engine.offers():
            facts = offer["facts"]
            if facts is None and offer["name"] == record.portrait.model:
                facts = self.engine.prepare(offer["name"])
            if facts is not None and facts[weights] == record.portrait.weights:
                found = offer["name"]
        if not found:
            raise WeightsMismatch(
                f"The picture was painted by {record.portrait.model} with other weights than those that paint here.",
                "Its settings can be taken over, or `limner generate --from` can be given that model.",
            )
        if record.portrait.identity and record.identity is None:
            raise WeightsMismatch(
                "The person's numbers were left out of this file, so it cannot say whom to paint.",
                "Take its settings over, and drop photos of the person.",
            )
        return found

    def _forget(self, owner: str, person: str) -> None:
        if person:
            with contextlib.suppress(LimnerError):
                self.engine.forget(owner, person)


def sizes(width: int, height: int, unit: int) -> list[tuple[str, str]]:
    """(label, `WIDTHxHEIGHT`) of the model's own size and of the same area upright and wide, in multiples of `unit`."""

    def near(value: float) -> int:
        return max(unit, round(value / unit) * unit)

    short, long = near((width * height * 3 / 4) ** 0.5), near((width * height * 4 / 3) ** 0.5)
    named = {"The model's own": (width, height), "Upright": (short, long), "Wide": (long, short)}
    return [(f"{name}, {w} × {h}", f"{w}x{h}") for name, (w, h) in named.items()]


def as_request(dials: dict[str, Any], person: str | None) -> PaintRequest:
    """What the visitor set, as the engine is asked."""
    width, height = (int(part) for part in dials["size"].split("x")) if dials["size"] else (None, None)
    return PaintRequest(
        prompt=dials["prompt"] or "",
        identity=person,
        negative_prompt=dials["negative"] or "",
        number=int(dials["number"]),
        seed=as_seed(dials["seed"]),
        strength=dials["strength"],
        guidance_scale=dials["guidance"],
        steps=int(dials["steps"]),
        width=width,
        height=height,
        watermark=dials["watermark"],
        embed_identity=dials["embed"],
        preview=True,
        model=dials["method"] or None,
        gaze=as_gaze(dials["place"]),
    )


def as_seed(text: str | None) -> int | None:
    """A seed as typed; None for an empty field.

    Raises:
        ConfigError: no whole number.
    """
    text = (text or "").strip()
    if text and not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ConfigError(f"The seed is {text[:40]!r}; a whole number, or nothing, is expected.")
    return int(text) if text else None


def as_recorded(record: Provenance, person: str | None, most: int) -> tuple[PaintRequest, int]:
    """The order that a recorded picture came from, with the pictures that were painted beside it, and its place there.

    The company matters for the last bits only; where it was no row of seeds, or of more than `most`, the picture is
    painted alone.
    """
    portrait, settings = record.portrait, record.portrait.settings
    batch = settings.get("batch_seeds")
    first, number = portrait.seed, 1
    if isinstance(batch, list) and len(batch) <= most and portrait.seed in batch:
        start = portrait.seed - batch.index(portrait.seed)
        if batch == list(range(start, start + len(batch))):
            first, number = start, len(batch)
    dials = Dials.from_dict({k: v for k, v in settings.items() if k in Dials.__dataclass_fields__})
    request = PaintRequest(
        prompt=portrait.prompt,
        identity=person,
        negative_prompt=portrait.negative_prompt,
        number=number,
        seed=first,
        strength=dials.strength,
        guidance_scale=dials.guidance_scale,
        guidance_rescale=dials.guidance_rescale,
        pag_scale=dials.pag_scale,
        face_guidance=dials.face_guidance,
        face_detail=dials.face_detail,
        steps=dials.steps,
        width=dials.width,
        height=dials.height,
        scheduler=dials.scheduler,
        watermark=dials.watermark,
        embed_identity=person is not None,
        preview=True,
        gaze=dials.gaze,
    )
    return request, portrait.seed - first


def file_name(prompt: str, seed: int) -> str:
    """Of a picture, as `limner generate` would name it."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].strip("-") or "portrait"
    return f"{words}-{seed}.png"


def _record(path: str) -> Provenance:
    return read_provenance(io.BytesIO(_read(path)))


def _read(path: str) -> bytes:
    """An upload; NotFound where it was deleted since."""
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise NotFound(f"{Path(path).name} is no longer here.", "Drop it again.") from e


def _crop(image: Any) -> Any:
    """(3, 448, 448) in [0, 1] → a PIL picture for choosing."""
    pixels = (image.transpose(1, 2, 0) * 255).round().astype("uint8")
    return Image.fromarray(pixels).resize((CROP, CROP), Image.Resampling.LANCZOS)


def _faces(found: Sequence[Photo]) -> Any:
    """The row of faces, those that are taken marked."""
    items = [
        (crop, f"{'✓ ' if i == photo.chosen else ''}{photo.name.split(' (')[0]}")
        for photo in found
        for i, crop in enumerate(photo.crops)
    ]
    return gr.update(value=items, visible=bool(items), selected_index=None)


def _html(text: str) -> Any:
    """New content of a part that takes no room while it is empty."""
    return gr.update(value=text, visible=bool(text))


def _show(status: str, *, notes: str | None = None, job: Any = None, clear: bool = False) -> Shown:
    """The result column while something is under way; None leaves a part as it is."""
    empty = gr.update(value=None, visible=False) if clear else gr.skip()
    none = _html("") if clear else gr.skip()
    return Shown(
        status=status,
        gallery=empty,
        files=empty,
        notes=none if notes is None else _html(notes),
        job=gr.skip() if job is None else job,
        paths=[] if clear else gr.skip(),
        details=none,
    )


def _pictures(status: str, notes: str, prompt: str, pictures: Sequence[Picture]) -> Shown:
    """The finished pictures; their files go to gradio's own folder, byte for byte."""
    paths = [save_bytes_to_cache(p.png, file_name(prompt, p.seed), get_upload_folder()) for p in pictures]
    captions = [parts.caption(p) for p in pictures]
    there = bool(paths)
    return Shown(
        status=status,
        gallery=gr.update(value=list(zip(paths, captions, strict=True)), visible=there, selected_index=None),
        files=gr.update(value=paths, visible=there),
        notes=_html(notes),
        job="",
        paths=paths,
        details=_html(""),
    )
