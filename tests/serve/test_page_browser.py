"""The page in real headless Chromium, over a real service on loopback with the tiny random model."""

from __future__ import annotations

import io
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CHROMIUM = os.environ.get("LIMNER_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""
if not CHROMIUM:
    pytest.skip("needs Chromium (Debian: apt-get install chromium), which is not here", allow_module_level=True)
pytest.importorskip("gradio", reason="the page needs gradio (extra serve)")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev)")

import uvicorn  # noqa: E402
from serve_models import offer  # noqa: E402

from limner.pipelines.loading import Model, load_model  # noqa: E402
from limner.provenance import read_provenance  # noqa: E402
from limner.serve.app import create_app  # noqa: E402
from limner.serve.engine import Engine  # noqa: E402
from limner.serve.jobs import Limits  # noqa: E402
from limner.serve.page import mount_page  # noqa: E402
from limner.serve.shelf import Offer  # noqa: E402

FLAGS = [
    f"--{flag}"
    for flag in (
        "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync",
    )
]  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 1000 * int(os.environ.get("LIMNER_PATIENCE", "120"))
"""Milliseconds that one thing may take; LIMNER_PATIENCE (seconds) is for busy machines."""


@pytest.fixture(scope="module")
def pace() -> dict[str, float]:
    """Seconds that a step of painting waits: slow enough to be watched. A test may change `step` while it paints."""
    return {"step": 0.03}


@pytest.fixture(scope="module")
def address(tiny_folder: Path, dream_folder: Path, steered_folder: Path, pace: dict[str, float]) -> Iterator[str]:
    """A service with the page, as `limner serve` puts it together: two models, the first of them can place eyes."""

    def load() -> Model:
        model = load_model(str(tiny_folder), device="cpu")
        model.pipe.unet.register_forward_pre_hook(lambda *_: time.sleep(pace["step"]))
        return model

    offers = [Offer("tiny", load, "faceclip"), offer(dream_folder, "dreamidentity")]
    engine = Engine(offers, Limits(photo_pixels=600_000, batch=1), gaze_weights=steered_folder)
    engine.start()
    app = create_app(engine)
    mount_page(app, engine)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = server.force_exit = True
    thread.join(20)
    engine.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, photo: bytes, wall: bytes) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("photos")
    one = Image.open(io.BytesIO(photo)).convert("RGB")
    two = Image.new("RGB", (640, 340), "gray")
    two.paste(one.resize((240, 240)), (20, 50))
    two.paste(one, (300, 10))
    two.save(folder / "two.png")
    one.save(folder / "one.png")
    Image.new("RGB", (1000, 700)).save(folder / "huge.png")
    (folder / "wall.png").write_bytes(wall)
    (folder / "text.png").write_bytes(b"no picture")
    return {p.stem: str(p) for p in folder.iterdir()}


class Visitor:
    """One tab, with the few things that a person does on the page."""

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.strangers: list[str] = []
        self.page.on("request", lambda r: self._note(r.url, address))
        self.page.goto(address)
        self.page.wait_for_selector("text=Painted by")

    def _note(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.strangers.append(url)

    def drop(self, *paths: str, into: str = "#photos") -> None:
        self.page.set_input_files(f"{into} input[type=file]", list(paths))

    def set_steps(self, steps: int, number: int) -> None:
        if not self.page.is_visible("#steps"):
            self.page.click("#more button")
        for field, value in (("#steps", steps), ("#number", number)):
            self.page.fill(f"{field} input[type=number]", str(value))
            self.page.press(f"{field} input[type=number]", "Tab")

    def paint(self, prompt: str) -> None:
        self.page.fill("#prompt textarea", prompt)
        self.page.click("button#paint")

    def finish(self, pictures: int) -> None:
        self.page.wait_for_selector(f"#status:has-text('Done: {pictures} picture')")
        self.page.wait_for_function(f"document.querySelectorAll('#gallery .thumbnail-item img').length == {pictures}")

    def alert(self, code: str, inside: str) -> str:
        return self.page.wait_for_selector(f"{inside} .limner-alert[data-code={code}]").inner_text()


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Any]:
    visitors: list[Visitor] = []

    def open_page(**context: Any) -> Visitor:
        visitors.append(Visitor(chromium, address, **{"viewport": DESKTOP, **context}))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.context.close()


def look(visitor: Visitor, name: str) -> None:
    """Keeps a picture of the page for people, where LIMNER_SHOTS names a folder."""
    if folder := os.environ.get("LIMNER_SHOTS"):
        visitor.page.wait_for_timeout(1000)
        visitor.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_from_photos_to_a_picture_that_is_painted_again(
    visit: Any, files: dict[str, str], tmp_path: Path, pace: dict[str, float]
) -> None:
    visitor = visit()
    page = visitor.page
    look(visitor, "desktop-open")
    visitor.drop(files["two"], files["one"])
    page.wait_for_selector("#faces .thumbnail-item >> nth=2")
    captions = "() => [...document.querySelectorAll('#faces .caption-label')].map(e => e.innerText.trim())"
    assert page.evaluate(captions) == ["Photo 1", "✓ Photo 1", "✓ Photo 2"]
    page.click("#faces .thumbnail-item >> nth=0")
    page.wait_for_function(f"({captions})()[0] == '✓ Photo 1'")
    assert page.evaluate(captions) == ["✓ Photo 1", "Photo 1", "✓ Photo 2"]

    visitor.set_steps(100, 2)
    assert page.input_value("#seed textarea, #seed input") == ""
    usual, pace["step"] = pace["step"], 1.0  # whole minutes, that a busy browser cannot miss
    try:
        visitor.paint("a wizard in the snow")
        page.wait_for_selector("#status [role=progressbar][aria-valuenow] >> nth=0")
        page.wait_for_selector("#status img.limner-preview")
        assert page.is_disabled("button#paint")
    finally:
        pace["step"] = usual
    visitor.finish(2)
    assert page.is_enabled("button#paint")
    page.click("#gallery button.thumbnail-item >> nth=0")
    assert "a wizard in the snow" in page.wait_for_selector("#details table").inner_text()
    look(visitor, "desktop-painted")

    with page.expect_download() as download:
        page.click("#files a >> nth=0")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    record = read_provenance(path)
    assert record.intact
    assert record.identity is not None
    assert path.name.startswith("a-wizard-in-the-snow-")

    page.get_by_role("tab", name="Paint a picture again").click()
    visitor.drop(str(path), into="#again-file")
    assert str(record.portrait.seed) in page.wait_for_selector("#record table").inner_text()
    page.click("button#again-run")
    assert "pixel for pixel" in page.wait_for_selector("#notes:has-text('Painted again')").inner_text()
    look(visitor, "desktop-again")
    assert visitor.strangers == []


def test_eyes_are_placed_by_a_click_and_models_picked(visit: Any, files: dict[str, str]) -> None:
    visitor = visit()
    page = visitor.page
    visitor.drop(files["one"])
    page.wait_for_selector("#faces .thumbnail-item")
    page.click("#place button.label-wrap")
    page.wait_for_selector("#canvas img")
    assert "Anywhere" in page.inner_text("#place-said")
    assert page.is_disabled("button#place-clear")

    def click(x: float, y: float) -> None:
        canvas = page.locator("#canvas img")
        box = canvas.bounding_box()
        canvas.click(position={"x": x * box["width"], "y": y * box["height"]})

    click(0.3, 0.6)
    page.wait_for_selector("#place-said:has-text('30 % from the left, 60 % from the top')")
    assert page.input_value("#place-x input[type=number]") == "0.3"
    page.click("button#place-clear")
    page.wait_for_selector("#place-said:has-text('Anywhere')")
    page.focus("#place-y input[type=range]")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#place-said:has-text('50 % from the left, 41 % from the top')")
    click(0.4, 0.5)
    page.wait_for_selector("#place-said:has-text('40 % from the left, 50 % from the top')")
    visitor.set_steps(2, 2)
    visitor.paint("a chef")
    visitor.finish(2)
    captions = page.locator("#gallery .caption-label").all_inner_texts()
    assert all(" · text " in c for c in captions), captions
    page.click("#gallery button.thumbnail-item >> nth=0")
    said = re.search(r"Eyes at\s+(\S+)", page.wait_for_selector("#details table").inner_text())
    assert [float(v) for v in said[1].split(",")] == pytest.approx([0.4, 0.5, 0.18], abs=0.005)
    look(visitor, "desktop-placed")
    page.focus("#method input")
    page.get_by_role("option", name="dream, by dreamidentity").click()
    page.wait_for_selector("#facts:has-text('S* stands for the person')")
    assert not page.is_visible("#place")
    visitor.paint("S* as a chef")
    page.wait_for_selector("#notes:has-text('no score of the text')")


def test_stop_keeps_what_is_finished(visit: Any, files: dict[str, str]) -> None:
    visitor = visit()
    visitor.drop(files["one"])
    visitor.page.wait_for_selector("#faces .thumbnail-item")
    visitor.set_steps(100, 8)
    visitor.paint("a chef")
    visitor.page.wait_for_selector("#status:has-text('Painting: step')")
    visitor.page.click("button#stop")
    visitor.page.wait_for_selector("#status:has-text('Stopped.')")
    assert visitor.page.locator("#gallery .thumbnail-item img").count() < 8
    assert visitor.page.is_disabled("button#stop")


def test_every_kind_of_error_is_said_where_it_happens(visit: Any, files: dict[str, str]) -> None:
    visitor = visit()
    visitor.paint("a chef")
    assert "Drop at least one photo" in visitor.alert("no_face", "#status")
    visitor.drop(files["wall"], files["text"], files["huge"])
    assert "Photo 1 (wall.png)" in visitor.alert("no_face", "#said-faces")
    assert "JPEG" in visitor.alert("unreadable_image", "#said-faces")
    assert "megapixels" in visitor.alert("image_too_large", "#said-faces")
    look(visitor, "desktop-errors")
    visitor.page.click("#photos button[aria-label=Clear]")
    visitor.drop(files["one"])
    visitor.page.wait_for_selector("#faces .thumbnail-item")
    visitor.paint("   ")
    visitor.alert("prompt", "#status")
    visitor.page.get_by_role("tab", name="Paint a picture again").click()
    visitor.drop(files["one"], into="#again-file")
    visitor.alert("no_provenance", "#record")
    assert visitor.page.is_disabled("button#again-run")


def test_on_a_phone_by_touch(visit: Any, files: dict[str, str]) -> None:
    visitor = visit(viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2)
    visitor.drop(files["one"])
    visitor.page.wait_for_selector("#faces .thumbnail-item")
    visitor.page.tap("button:has-text('a portrait of a wizard in the snow')")
    visitor.page.wait_for_function("document.querySelector('#prompt textarea').value.includes('wizard')")
    visitor.page.tap("#place button.label-wrap")
    visitor.page.wait_for_selector("#canvas img")
    visitor.page.locator("#canvas img").tap()
    visitor.page.wait_for_selector("#place-said:has-text('50 % from the left')")
    visitor.page.tap("button#paint")
    visitor.finish(4)
    look(visitor, "phone-painted")
    width = visitor.page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"], "the page is wider than the phone"
    height = visitor.page.evaluate("document.querySelector('button#paint').getBoundingClientRect().height")
    assert height >= 44, "too low for a thumb"


def test_by_keyboard_alone(visit: Any, files: dict[str, str]) -> None:
    visitor = visit(color_scheme="dark")
    page = visitor.page
    visitor.drop(files["two"])
    page.wait_for_selector("#faces .thumbnail-item >> nth=1")
    reached: list[str] = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(60):
        page.keyboard.press("Tab")
        inside = "e => (e.closest('#photos, #faces, #prompt, #method, #place, #more') || e).id"
        reached.append(page.evaluate_handle("document.activeElement").evaluate(inside))
        if reached[-1] == "faces":
            page.keyboard.press("Enter")
            page.wait_for_selector("#faces .caption-label:has-text('✓') >> nth=0")
        if reached[-1] == "prompt":
            page.keyboard.type("a chef")
        if reached[-1] == "paint":
            break
    assert {"photos", "faces", "prompt", "method", "place", "more", "paint"} <= set(reached)
    page.keyboard.press("Enter")
    visitor.finish(4)
    assert not page.is_visible("ul.option-list")
    look(visitor, "desktop-dark")
