"""The page: photos of a person and a sentence in, portraits out; a gradio app over the engine, mounted on its service.

Photos lie in gradio's upload folder until they are an hour old; whatever is kept of a person lives in the engine, under
a key that only the visitor's own session knows.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from limner.serve import page_parts as parts
from limner.serve.page_actions import Actions
from limner.serve.page_place import SHOWN, build_place, wire_place
from limner.serve.page_style import CSS, HEAD, theme

if TYPE_CHECKING:
    from fastapi import FastAPI

    from limner.serve.engine import Engine

PATH = "/page"
AT_ONCE = 16
"""Visitors whose pages are served at the same time; more of them wait."""
MAX_FILE = "32mb"
"""Of one upload, as the HTTP API's bodies."""
KEPT = 3600
"""Seconds that uploaded photos and painted pictures stay in the page's own folder."""


def mount_page(app: FastAPI, engine: Engine, path: str = PATH, *, tokens: Sequence[str] = ()) -> FastAPI:
    """Mounts the page on the service, one port for both; the service's root leads to it.

    Args:
        app: the service.
        engine: does the work; need not have been started.
        path: where the page lies.
        tokens: if any, visitors must sign in with one of them as the password, under any name.
    """
    from fastapi.responses import RedirectResponse

    def known(_user: str, password: str) -> bool:
        return any(secrets.compare_digest(password.encode(), token.encode()) for token in tokens)

    app.add_api_route("/", lambda: RedirectResponse(path), include_in_schema=False)
    return gr.mount_gradio_app(
        app,
        build_page(engine),
        path,
        auth=known if tokens else None,
        auth_message="Any name, and a token of this service as the password." if tokens else None,
        max_file_size=MAX_FILE,
        ssr_mode=False,
        footer_links=[],
        theme=theme(),
        css=CSS,
        head=HEAD,
    )


def build_page(engine: Engine) -> gr.Blocks:
    """The page as a gradio app, bound to an engine."""
    actions = Actions(engine)
    with gr.Blocks(title="Limner", analytics_enabled=False, delete_cache=(600, KEPT)) as page:
        owner = gr.State(new_owner, time_to_live=KEPT * 24, delete_callback=actions.leave)
        gr.HTML(parts.HEADING, padding=False)
        facts = gr.HTML(parts.waiting("Looking for the model"), padding=False, elem_id="facts")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, min_width=340), gr.Tabs():
                with gr.Tab("Paint a person", id="paint"):
                    who = _who()
                    dials, place = _dials()
                    with gr.Row():
                        paint = gr.Button("Paint", variant="primary", elem_id="paint")
                        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
                    gr.HTML(f'<p class="limner-consent">{parts.CONSENT}</p>', padding=False)
                with gr.Tab("Paint a picture again", id="again"):
                    again = _again()
            with gr.Column(scale=6, min_width=340):
                result = _result()
        _wire_start(page, actions, facts, dials, place)
        _wire_who(actions, owner, who)
        wire_place(place, dials["size"], result["paths"])
        _wire_painting(actions, owner, who, dials, place, result, paint, stop)
        _wire_again(actions, owner, again, facts, dials, place, result, stop)
    page.queue(max_size=64, default_concurrency_limit=AT_ONCE)
    return page


def new_owner() -> str:
    """A key that nobody guesses; tells this visitor's people and jobs from all others'."""
    return "page-" + secrets.token_urlsafe(24)


def _who() -> dict[str, Any]:
    photos = gr.File(
        label="Photos of one person",
        file_count="multiple",
        file_types=["image"],
        height=140,
        elem_id="photos",
    )
    faces = gr.Gallery(
        label="Found; pick another face if it is the wrong one",
        columns=4,
        height="auto",
        allow_preview=False,
        fit_columns=False,
        interactive=False,
        object_fit="cover",
        format="jpeg",
        visible=False,
        buttons=[],
        elem_id="faces",
    )
    return {
        "photos": photos,
        "faces": faces,
        "said": gr.HTML(visible=False, padding=False, elem_id="said-faces"),
        "found": gr.State([]),
    }


def _dials() -> tuple[dict[str, Any], dict[str, Any]]:
    """What can be set, and the canvas among it."""
    prompt = gr.Textbox(label="What to paint", lines=2, max_lines=6, placeholder=parts.EXAMPLES[0], elem_id="prompt")
    gr.Examples([[text] for text in parts.EXAMPLES], prompt, label="For example", api_visibility="private")
    method = gr.Dropdown([], label="Model and method", interactive=False, filterable=False, elem_id="method")
    with gr.Row():
        strength = gr.Slider(0, 1, 1, step=0.05, label="Strength", min_width=220)
        number = gr.Slider(1, 8, 4, step=1, label="Pictures", min_width=220, elem_id="number")
    place = build_place()
    with gr.Accordion("More settings", open=False, elem_id="more"):
        negative = gr.Textbox(label="What not to paint", info="Needs guidance above 1.", elem_id="negative")
        with gr.Row():
            seed = gr.Textbox(label="Seed", placeholder="another one each time", max_lines=1, elem_id="seed")
            steps = gr.Slider(1, 100, 30, step=1, label="Steps", elem_id="steps")
        with gr.Row():
            guidance = gr.Slider(1, 15, 5, step=0.5, label="Guidance", info="Weight of the sentence")
            size = gr.Dropdown([], label="Size", elem_id="size")
        embed = gr.Checkbox(
            True,
            label="Keep the person's numbers in the files",
            info="So that a picture can be painted again from its file alone; whoever has it can paint that person.",
        )
        watermark = gr.Checkbox(False, label="Invisible watermark", info="Found again by `limner inspect`.")
    dials = {
        "prompt": prompt, "negative": negative, "strength": strength, "number": number, "seed": seed, "steps": steps,
        "guidance": guidance, "size": size, "method": method, "embed": embed, "watermark": watermark,
    }  # fmt: skip
    return dials, place


def _again() -> dict[str, Any]:
    return {
        "file": gr.File(label="A PNG that Limner painted", file_types=[".png"], height=140, elem_id="again-file"),
        "record": gr.HTML(visible=False, padding=False, elem_id="record"),
        "run": gr.Button("Paint it again", variant="primary", interactive=False, elem_id="again-run"),
        "take": gr.Button("Take its settings over", interactive=False, elem_id="again-take"),
    }


def _result() -> dict[str, Any]:
    return {
        "status": gr.HTML('<p class="limner-empty">Your portraits appear here.</p>', padding=False, elem_id="status"),
        "gallery": gr.Gallery(
            label="Portraits",
            columns=2,
            height="auto",
            object_fit="contain",
            format="png",
            interactive=False,
            buttons=["download", "fullscreen"],
            visible=False,
            elem_id="gallery",
        ),
        "files": gr.File(
            label="Download: the files say how they were painted",
            file_count="multiple",
            interactive=False,
            visible=False,
            elem_id="files",
        ),
        "notes": gr.HTML(visible=False, padding=False, elem_id="notes"),
        "details": gr.HTML(visible=False, padding=False, elem_id="details"),
        "job": gr.State(""),
        "paths": gr.State([]),
    }


def _wire_start(page: gr.Blocks, actions: Actions, facts: Any, dials: dict[str, Any], place: dict[str, Any]) -> None:
    own = [facts, *(dials[name] for name in ("steps", "guidance", "size")), place["box"], place["canvas"]]
    page.load(actions.start, None, [*own, dials["method"], dials["number"]], api_visibility="private")
    inputs = [dials["method"], place["place"]]
    dials["method"].input(actions.take_model, inputs, own, show_progress="hidden", api_visibility="private")


def _wire_who(actions: Actions, owner: Any, who: dict[str, Any]) -> None:
    outputs = [who["found"], who["faces"], who["said"]]
    who["photos"].change(actions.find, who["photos"], outputs, api_visibility="private")

    def choose(found: Any, event: gr.SelectData) -> Any:
        return actions.choose(found, event.index)

    who["faces"].select(choose, who["found"], outputs, api_visibility="private")


def _wire_painting(
    actions: Actions,
    owner: Any,
    who: dict[str, Any],
    dials: dict[str, Any],
    place: dict[str, Any],
    result: dict[str, Any],
    paint: Any,
    stop: Any,
) -> None:
    names = [*dials, "place"]

    def run(owner: str, found: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        for over, new in actions.paint(owner, found, dict(zip(names, values, strict=True))):
            yield (*new, gr.update(interactive=over), gr.update(interactive=not over))

    shown = [result[name] for name in ("status", "gallery", "files", "notes", "job", "paths", "details")]
    inputs = [owner, who["found"], *dials.values(), place["place"]]
    gr.on(
        [paint.click, dials["prompt"].submit],
        run,
        inputs,
        [*shown, paint, stop],
        show_progress="hidden",
        scroll_to_output=True,
        trigger_mode="once",
        api_visibility="private",
    )
    stop.click(actions.stop, [owner, result["job"]], None, show_progress="hidden", api_visibility="private")

    def details(paths: list[str], event: gr.SelectData) -> str:
        return actions.details(paths, event.index)

    result["gallery"].select(details, result["paths"], result["details"], api_visibility="private")


def _wire_again(
    actions: Actions,
    owner: Any,
    again: dict[str, Any],
    facts: Any,
    dials: dict[str, Any],
    place: dict[str, Any],
    result: dict[str, Any],
    stop: Any,
) -> None:
    buttons = [again["run"], again["take"]]
    again["file"].change(actions.read, again["file"], [again["record"], *buttons], api_visibility="private")

    def run(owner: str, file: str | None) -> Iterator[tuple[Any, ...]]:
        for over, new in actions.repaint(owner, file):
            yield (*new, gr.update(interactive=over), gr.update(interactive=not over))

    shown = [result[name] for name in ("status", "gallery", "files", "notes", "job", "paths", "details")]
    again["run"].click(
        run,
        [owner, again["file"]],
        [*shown, again["run"], stop],
        show_progress="hidden",
        scroll_to_output=True,
        trigger_mode="once",
        api_visibility="private",
    )
    names = ("prompt", "negative", "strength", "seed", "steps", "guidance", "size", "method")
    taken = [*(dials[name] for name in names), facts, place["box"], *(place[name] for name in SHOWN)]
    again["take"].click(actions.take, [again["file"], dials["method"]], taken, api_visibility="private")
