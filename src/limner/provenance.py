"""What a Limner PNG says about itself: how it was painted, that a machine painted it, and (unless left out) of whom.

Four text chunks, all before the pixels, all ordinary PNG:

- `limner`: JSON with seed, prompts, model, weight hashes, every dial, versions and the sha256 of the pixels;
- `limner.identity`: the identity's tensors (safetensors, base64), so that the picture can be painted again from the
  file alone. They are biometric: whoever has the file can paint the same person. They are not a photo and no photo can
  be read from them, except those of instruct-pix2pix, which *are* the photo (`Method.keeps_photo`), and which
  `limner generate` embeds only where that is asked for. `write_portrait(..., identity=None)` leaves them out;
- `parameters`: the same dials as a line that people and common picture browsers read;
- `XML:com.adobe.xmp`: the IPTC digital source type `trainedAlgorithmicMedia`, which is how pictures are declared
  AI-generated (IPTC Photo Metadata Standard 2023.1, "Digital Source Type").
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import platform
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.sax.saxutils import quoteattr

from limner import __version__
from limner.errors import CorruptData, ImageTooLarge, NoProvenance, UnreadableImage
from limner.types import Identity, Portrait, write_atomic

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

KEY = "limner"
IDENTITY_KEY = "limner.identity"
XMP_KEY = "XML:com.adobe.xmp"
FORMAT = 1
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MAX_PIXELS = 64_000_000
MAX_IDENTITY_BYTES = 700_000
"""Larger identities are not embedded: PNG readers commonly refuse text chunks above 1 MiB (base64 adds a third)."""

_RECORDED = ("seed", "prompt", "negative_prompt", "model", "weights", "identity", "settings", "scores", "timings")
_PACKAGES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Provenance:
    """Everything read back from a Limner PNG.

    Attributes:
        portrait: the picture and its dials.
        identity: the embedded identity, or None when it was left out (or the picture was painted from text alone).
        versions: of python, limner, torch, diffusers, transformers at the time of painting.
        license: of the model's weights; empty when unknown.
        intact: whether the pixels are the ones that were written.
    """

    portrait: Portrait
    identity: Identity | None = None
    versions: dict[str, str] = field(default_factory=dict)
    license: str = ""
    intact: bool = True


def compact(identity: Identity) -> Identity:
    """The identity rounded to half precision: what is embedded, saved and painted from, so that all three agree.

    Idempotent: compacting twice changes nothing.
    """
    tensors = {k: v.detach().cpu().half() if v.is_floating_point() else v for k, v in identity.tensors.items()}
    return dataclasses.replace(identity, tensors=tensors)


def versions() -> dict[str, str]:
    """Versions of what decides how a picture comes out; packages that are not installed are left out."""
    found = {"python": platform.python_version(), "limner": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def pixel_digest(image: Any) -> str:
    """sha256 (hex) over size and RGB values of a PIL picture."""
    rgb = image.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}".encode() + rgb.tobytes()).hexdigest()


def encode_portrait(portrait: Portrait, identity: Identity | None = None, license: str = "") -> bytes:
    """The portrait as the bytes of a PNG with its provenance inside.

    Args:
        portrait: what was painted.
        identity: embedded when given; `portrait.identity` must be its digest.
        license: of the model's weights.

    Raises:
        CorruptData: the identity is not the one the portrait was painted from, or is too large to embed.
    """
    from PIL.PngImagePlugin import PngInfo

    record = {k: getattr(portrait, k) for k in _RECORDED}
    record |= {"kind": "portrait", "format": FORMAT, "ai_generated": True, "license": license}
    record |= {"versions": versions(), "pixels": pixel_digest(portrait.image)}
    info = PngInfo()
    if identity is not None:
        record["identity_meta"] = {k: getattr(identity, k) for k in ("method", "version", "model", "info")}
        info.add_itxt(IDENTITY_KEY, _pack(identity, portrait.identity), zip=True)
    info.add_itxt(KEY, json.dumps(record, sort_keys=True))
    info.add_itxt("parameters", _clean(describe(portrait)))
    _declare(info)
    return _png(portrait.image, info)


def write_portrait(portrait: Portrait, path: str | Path, identity: Identity | None = None, license: str = "") -> None:
    """Writes `encode_portrait` to `path`, atomically.

    Raises:
        StorageError: the file cannot be written.
        CorruptData: as `encode_portrait`.
    """
    write_atomic(path, encode_portrait(portrait, identity, license))


def read_provenance(source: str | Path | BinaryIO) -> Provenance:
    """Reads a PNG that Limner wrote.

    Raises:
        UnreadableImage: no picture, or a damaged one.
        ImageTooLarge: more than `MAX_PIXELS` pixels.
        NoProvenance: a picture, but not one that Limner painted.
        CorruptData: its Limner text is damaged, or was changed by hand.
    """
    image, text = _open(source)
    record = _record(text, source)
    if record is None or record.get("kind") != "portrait":
        raise NoProvenance(
            f"{_name(source)} carries no record of how it was painted.",
            "Only PNGs written by `limner generate`, unchanged by other programs, can be painted again.",
        )
    try:
        if record["format"] != FORMAT:
            raise CorruptData(
                f"{_name(source)} was written in format {record['format']}; this Limner reads format {FORMAT}.",
                "Use the version of Limner that wrote it, or a newer one.",
            )
        portrait = Portrait(image=image, **{k: record[k] for k in _RECORDED})
        _check_types(portrait)
        identity = _unpack(text[IDENTITY_KEY], record) if IDENTITY_KEY in text else None
        intact = pixel_digest(image) == record["pixels"]
        return Provenance(portrait, identity, dict(record["versions"]), str(record["license"]), intact)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise CorruptData(f"The Limner record in {_name(source)} is damaged ({type(e).__name__}: {e}).") from e


def read_portrait(source: str | Path | BinaryIO) -> Portrait:
    """The portrait alone; errors as `read_provenance`."""
    return read_provenance(source).portrait


def read_record(source: str | Path | BinaryIO) -> dict[str, Any] | None:
    """What Limner wrote into a PNG, as it stands there, whatever its `kind` (portrait, sheet, render); None for any
    other picture.

    Raises:
        UnreadableImage, ImageTooLarge: as `read_provenance`.
        CorruptData: its Limner text is damaged.
    """
    return _record(_open(source)[1], source)


def picture_world(source: str | Path | BinaryIO) -> str:
    """The synthetic world that a picture comes from (`sitters`), as a render or as painted by a model that knows only
    that world; empty for any other picture.

    Raises:
        UnreadableImage, ImageTooLarge: as `read_provenance`.
    """
    try:
        record = read_record(source) or {}
    except CorruptData:
        return ""
    settings = record.get("settings")
    return str(record.get("world") or (settings.get("world") if isinstance(settings, dict) else "") or "")


def render_info(world: str, **facts: Any) -> PngInfo:
    """Pillow's `pnginfo` for a picture of a synthetic world: marks it as such, with JSON-able `facts`."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(KEY, json.dumps({"kind": "render", "format": FORMAT, "world": world, **facts}, sort_keys=True))
    info.add_text("Software", f"Limner {__version__}")
    return info


def encode_sheet(sheet: Image.Image, portraits: Sequence[Portrait]) -> bytes:
    """A contact sheet of portraits as the bytes of a PNG that says it was machine-made, and of what it consists."""
    from PIL.PngImagePlugin import PngInfo

    parts = [{k: getattr(p, k) for k in ("prompt", "seed", "model", "identity")} for p in portraits]
    info = PngInfo()
    record = {"kind": "sheet", "format": FORMAT, "ai_generated": True, "portraits": parts}
    info.add_itxt(KEY, json.dumps(record, sort_keys=True))
    _declare(info)
    return _png(sheet, info)


def describe(portrait: Portrait) -> str:
    """The dials as text: prompt, negative prompt, then `Steps: …, Sampler: …, CFG scale: …, Seed: …, Size: …`."""
    s = portrait.settings
    named = {
        "Steps": s.get("steps"),
        "Sampler": s.get("scheduler"),
        "CFG scale": s.get("guidance_scale"),
        "PAG scale": s.get("pag_scale") or None,
        "Face guidance": s.get("face_guidance") or None,
        "Face detail": s.get("face_detail") or None,
        "Seed": portrait.seed,
        "Size": f"{portrait.image.width}x{portrait.image.height}",
        "Model": portrait.model,
        "Identity strength": s.get("strength"),
        "Identity hash": portrait.identity[:12] or None,
        "Version": f"Limner {__version__}",
    }
    lines = [portrait.prompt]
    if portrait.negative_prompt:
        lines.append(f"Negative prompt: {portrait.negative_prompt}")
    lines.append(", ".join(f"{k}: {v}" for k, v in named.items() if v is not None))
    return "\n".join([*lines, "AI-generated"])


def _declare(info: PngInfo) -> None:
    """Says in the words of other programs that a machine made the picture."""
    info.add_itxt(XMP_KEY, _xmp())
    info.add_text("Software", f"Limner {__version__}")
    info.add_text("Comment", "AI-generated picture")


def _png(image: Image.Image, info: PngInfo) -> bytes:
    out = io.BytesIO()
    image.convert("RGB").save(out, "PNG", pnginfo=info)
    return out.getvalue()


def _xmp() -> str:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        f"Iptc4xmpExt:DigitalSourceType={quoteattr(SOURCE_TYPE)} xmp:CreatorTool={quoteattr('Limner ' + __version__)}/>"
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def _clean(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot hold, and NULs, which iTXt cannot."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")


def _pack(identity: Identity, digest: str) -> str:
    from safetensors.torch import save

    if identity.digest() != digest:
        raise CorruptData("The identity to embed is not the one that the portrait was painted from.")
    data = save({k: v.contiguous().cpu() for k, v in identity.tensors.items()})
    if len(data) > MAX_IDENTITY_BYTES:
        raise CorruptData(
            f"The identity has {len(data)} bytes; at most {MAX_IDENTITY_BYTES} can be embedded in a PNG.",
            "Leave it out (--no-embed-identity) and keep it in a file of its own.",
        )
    return base64.b64encode(data).decode("ascii")


def _unpack(text: str, record: dict[str, Any]) -> Identity:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        identity = Identity(tensors=load(base64.b64decode(text, validate=True)), **record["identity_meta"])
    except (binascii.Error, SafetensorError) as e:
        raise CorruptData(f"The identity inside the picture is damaged ({e}).") from e
    if identity.digest() != record["identity"]:
        raise CorruptData("The identity inside the picture is not the one that it was painted from.")
    return identity


def _open(source: str | Path | BinaryIO) -> tuple[Any, dict[str, str]]:
    """The decoded RGB picture and its text chunks."""
    from PIL import Image

    try:
        with Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageTooLarge(f"{_name(source)} has {image.width}×{image.height} pixels; at most {MAX_PIXELS}.")
            image.load()
            text = {k: str(v) for k, v in getattr(image, "text", {}).items()}
            return image.convert("RGB"), text
    except Image.DecompressionBombError as e:
        raise ImageTooLarge(f"{_name(source)} has too many pixels; at most {MAX_PIXELS}.") from e
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, OverflowError) as e:
        raise UnreadableImage(f"{_name(source)} cannot be read as a picture ({e}).") from e


def _record(text: dict[str, str], source: Any) -> dict[str, Any] | None:
    if KEY not in text:
        return None
    try:
        record = json.loads(text[KEY])
    except json.JSONDecodeError as e:
        raise CorruptData(f"The Limner record in {_name(source)} is damaged ({e}).") from e
    if not isinstance(record, dict):
        raise CorruptData(f"The Limner record in {_name(source)} is damaged (no JSON object).")
    return record


def _check_types(portrait: Portrait) -> None:
    for name, kind in (("seed", int), ("prompt", str), ("negative_prompt", str), ("model", str), ("identity", str)):
        if not isinstance(getattr(portrait, name), kind):
            raise TypeError(f"{name} is no {kind.__name__}")
    for name in ("weights", "settings", "scores", "timings"):
        if not isinstance(getattr(portrait, name), dict):
            raise TypeError(f"{name} is no mapping")


def _name(source: Any) -> str:
    return str(source) if isinstance(source, (str, Path)) else "the picture"
