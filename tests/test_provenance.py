"""A portrait's PNG says how it was painted, and nothing that was tampered with passes for genuine."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner import provenance
from limner.errors import CorruptData, ImageTooLarge, LimnerError, NoProvenance, StorageError, UnreadableImage
from limner.types import Identity, Portrait

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"


@pytest.fixture
def identity() -> Identity:
    g = torch.Generator().manual_seed(0)
    tensors = {"token": torch.randn(64, generator=g), "patches": torch.randn(12, 16, generator=g)}
    return provenance.compact(Identity(tensors, "faceclip", 1, "abc", {"references": 2}))


@pytest.fixture
def portrait(identity: Identity) -> Portrait:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Portrait(
        image=Image.fromarray(pixels),
        seed=2**40 + 7,
        prompt='a "wizard"\nwith ünïcode 魔法 <&>',
        negative_prompt="blurry",
        model="mini",
        weights={"unet": "ab" * 32},
        identity=identity.digest(),
        settings={"steps": 30, "guidance_scale": 2.5, "strength": 0.8, "scheduler": "ddim"},
        scores={"likeness": 0.5},
        timings={"paint": 1.25},
    )


def png(info: PngInfo | None = None) -> io.BytesIO:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG", pnginfo=info)
    out.seek(0)
    return out


def test_everything_survives_the_file(tmp_path: Path, portrait: Portrait, identity: Identity) -> None:
    path = tmp_path / "p.png"
    provenance.write_portrait(portrait, path, identity, license="CC BY-NC 4.0")
    back = provenance.read_provenance(path)
    for f in dataclasses.fields(Portrait):
        if f.name != "image":
            assert getattr(back.portrait, f.name) == getattr(portrait, f.name), f.name
    assert back.portrait.image.tobytes() == portrait.image.tobytes()
    assert back.identity is not None
    assert back.identity.digest() == identity.digest()
    assert back.identity.info == {"references": 2}
    assert back.license == "CC BY-NC 4.0"
    assert back.versions["torch"] == torch.__version__.split("+")[0] or back.versions["torch"] == torch.__version__
    assert back.intact


def test_the_identity_can_be_left_out(tmp_path: Path, portrait: Portrait, identity: Identity) -> None:
    provenance.write_portrait(portrait, tmp_path / "p.png")
    back = provenance.read_provenance(tmp_path / "p.png")
    assert back.identity is None
    assert back.portrait.identity == identity.digest()
    token = identity.tensors["token"].numpy().tobytes()
    assert token not in (tmp_path / "p.png").read_bytes()
    assert provenance.IDENTITY_KEY not in Image.open(tmp_path / "p.png").text


def test_other_programs_can_tell_it_is_ai_generated(portrait: Portrait, identity: Identity) -> None:
    text = Image.open(io.BytesIO(provenance.encode_portrait(portrait, identity))).text
    (description,) = ElementTree.fromstring(text["XML:com.adobe.xmp"]).iter(f"{RDF}Description")
    assert description.get(f"{IPTC}DigitalSourceType", "").endswith("/trainedAlgorithmicMedia")
    assert "AI-generated" in text["Comment"]
    assert json.loads(text["limner"])["ai_generated"] is True
    for words in ("Steps: 30", "CFG scale: 2.5", f"Seed: {2**40 + 7}", "Size: 32x24", "Negative prompt: blurry"):
        assert words in text["parameters"]


def test_compact_is_idempotent_and_keeps_integers(identity: Identity) -> None:
    assert provenance.compact(identity).digest() == identity.digest()
    ids = Identity({"ids": torch.arange(3)}, "m", 1, "x")
    assert provenance.compact(ids).tensors["ids"].dtype == torch.int64


def test_changed_pixels_are_noticed(tmp_path: Path, portrait: Portrait) -> None:
    provenance.write_portrait(portrait, tmp_path / "p.png")
    edited = Image.open(tmp_path / "p.png")
    info = PngInfo()
    for key, value in edited.text.items():
        info.add_itxt(key, value)
    edited.putpixel((0, 0), (1, 2, 3))
    edited.save(tmp_path / "q.png", pnginfo=info)
    back = provenance.read_provenance(tmp_path / "q.png")
    assert not back.intact
    assert back.portrait.seed == portrait.seed


def test_foreign_pictures_are_refused_by_type() -> None:
    with pytest.raises(NoProvenance):
        provenance.read_provenance(png())
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    with pytest.raises(NoProvenance):
        provenance.read_provenance(jpeg)
    with pytest.raises(NoProvenance):
        provenance.read_provenance(png(provenance.render_info("sitters")))


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"kind": "portrait"}', '{"kind": "portrait", "format": 1}'])
def test_damaged_records_are_refused(text: str) -> None:
    info = PngInfo()
    info.add_itxt("limner", text)
    with pytest.raises(CorruptData):
        provenance.read_provenance(png(info))


def rewritten(data: bytes, **changes: object) -> io.BytesIO:
    """The same PNG with fields of its record (or, under their keys, whole chunks) replaced."""
    image = Image.open(io.BytesIO(data))
    chunks = dict(image.text)
    record = json.loads(chunks["limner"])
    for key, value in changes.items():
        if key == "identity_chunk":
            chunks["limner.identity"] = str(value)
        else:
            record[key] = value
    chunks["limner"] = json.dumps(record)
    info = PngInfo()
    for key, value in chunks.items():
        info.add_itxt(key, value)
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=info)
    out.seek(0)
    return out


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "seven"}, {"seed": None}, {"settings": 3}, {"prompt": ["a"]}, {"format": 99}, {"versions": 5},
        {"identity_meta": 4}, {"identity": "0" * 64}, {"identity_chunk": "!!"}, {"identity_chunk": "AAAA"},
        {"identity_meta": {"method": "other", "version": 1, "model": "abc", "info": {}}},
    ],
)  # fmt: skip
def test_records_changed_by_hand_are_refused(portrait: Portrait, identity: Identity, change: dict[str, object]) -> None:
    data = provenance.encode_portrait(portrait, identity)
    assert provenance.read_provenance(rewritten(data)).intact
    with pytest.raises(CorruptData):
        provenance.read_provenance(rewritten(data, **change))


def test_nothing_but_typed_errors_comes_out_of_damaged_files(portrait: Portrait, identity: Identity) -> None:
    data = provenance.encode_portrait(portrait, identity)
    rng = np.random.default_rng(1)
    refused = 0
    for trial in range(300):
        broken = bytearray(data)
        if trial % 3 == 0:
            broken = broken[: rng.integers(0, len(data))]
        else:
            for at in rng.integers(0, len(data), rng.integers(1, 6)):
                broken[at] = rng.integers(0, 256)
        try:
            provenance.read_provenance(io.BytesIO(bytes(broken)))
        except LimnerError:
            refused += 1
    assert refused > 250


def test_unreadable_and_oversized_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(b"not a picture")
    for path in (tmp_path / "x.png", tmp_path / "absent.png", tmp_path):
        with pytest.raises(UnreadableImage):
            provenance.read_provenance(path)
    monkeypatch.setattr(provenance, "MAX_PIXELS", 63)
    with pytest.raises(ImageTooLarge):
        provenance.read_provenance(png())


def test_an_identity_too_large_or_of_somebody_else_is_not_embedded(portrait: Portrait) -> None:
    other = Identity({"token": torch.zeros(4)}, "faceclip", 1, "abc")
    with pytest.raises(CorruptData, match="not the one"):
        provenance.encode_portrait(portrait, other)
    large = Identity({"token": torch.zeros(400_000, dtype=torch.half)}, "faceclip", 1, "abc")
    with pytest.raises(CorruptData, match="at most"):
        provenance.encode_portrait(dataclasses.replace(portrait, identity=large.digest()), large)


def test_a_failed_write_is_typed(tmp_path: Path, portrait: Portrait) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        provenance.write_portrait(portrait, tmp_path / "file" / "no folder.png")
    assert (tmp_path / "file").read_bytes() == b""


def test_worlds_of_pictures(portrait: Portrait) -> None:
    painted = dataclasses.replace(portrait, settings={**portrait.settings, "world": "sitters"})
    assert provenance.picture_world(io.BytesIO(provenance.encode_portrait(painted))) == "sitters"
    assert provenance.picture_world(io.BytesIO(provenance.encode_portrait(portrait))) == ""
    assert provenance.picture_world(png(provenance.render_info("sitters"))) == "sitters"
    assert provenance.picture_world(png()) == ""
    with pytest.raises(UnreadableImage):
        provenance.picture_world(io.BytesIO(b"x"))


def test_sheets_declare_themselves_and_are_no_portraits(portrait: Portrait) -> None:
    data = provenance.encode_sheet(Image.new("RGB", (9, 9)), [portrait, portrait])
    assert "trainedAlgorithmicMedia" in Image.open(io.BytesIO(data)).text["XML:com.adobe.xmp"]
    with pytest.raises(NoProvenance):
        provenance.read_provenance(io.BytesIO(data))
