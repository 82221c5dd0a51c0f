"""Any picture a user has → (H, W, 3) uint8 RGB, upright; or a typed error, before memory or time is spent on it."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from limner.errors import ImageTooLarge, UnreadableImage

if TYPE_CHECKING:
    from PIL import Image

ImageSource = str | Path | bytes | np.ndarray | Any
"""A path, the bytes of a file, a PIL picture, or an array of pixels."""

MAX_PIXELS: Final = 52_000_000
"""50-megapixel cameras deliver up to 8192 × 6144 = 50.3 million."""
MAX_BYTES: Final = 400_000_000
"""A 16-bit RGB picture of `MAX_PIXELS`, uncompressed, has 312 MB."""
FORMATS: Final = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "GIF", "PPM")
"""What photos come in. HEIF is read only where its plug-in is installed; formats that call other programs are not."""
_MAX_SCANS: Final = 100  # a progressive JPEG has about ten; each costs a pass over all pixels

_READ_HINT = (
    "JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF and PPM can be read. Open it in a picture editor and save it as one."
)


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads a picture as people see it.

    EXIF orientation is applied, transparency is laid on white, grey, palette, CMYK and 16-bit pictures become 8-bit
    RGB; of an animation the first frame is taken. Colour profiles are not applied.

    Args:
        source: a path, the bytes of an image file, a PIL picture, or an array: (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4) of uint8, uint16 (full range), bool, or floats in [0, 1].
        max_pixels: larger pictures are refused before they are decoded.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UnreadableImage: not there, empty, damaged, or no picture.
        ImageTooLarge: more than `max_pixels`, or a file of more than `MAX_BYTES`.
    """
    if isinstance(source, np.ndarray):
        _demand_size(source.shape[1::-1] if source.ndim >= 2 else (0, 0), max_pixels, "The array")
        return _from_array(source)
    if isinstance(source, (str, Path)):
        return _decode(_read(Path(source)), str(source), max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), "The given data", max_pixels)

    from PIL import Image

    if isinstance(source, Image.Image):
        _demand_size(source.size, max_pixels, "The picture")
        return _from_pil(source, "The picture")
    raise UnreadableImage(
        f"A picture is expected as a path, bytes, a PIL picture or a numpy array; got {type(source).__name__}."
    )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an opened picture as `load_image` gives it, without decoding it."""
    from PIL import Image

    try:
        turned = Image.Image.getexif(image).get(0x0112, 1) in (5, 6, 7, 8)  # PNG's own getexif decodes the picture
    except Exception:  # as in `_orientation`
        turned = False
    return (image.width, image.height) if turned else (image.height, image.width)


def source_name(source: ImageSource) -> str:
    """What messages call the picture: its path, or what kind of thing it is."""
    return str(source) if isinstance(source, (str, Path)) else f"<{type(source).__name__}>"


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():  # also keeps away from pipes and devices, which may never end
            what = "is a folder" if path.is_dir() else "does not exist" if not path.exists() else "is no regular file"
            raise UnreadableImage(f"{path} {what}; the path of a picture is expected.", "Check the path.")
        if path.stat().st_size > MAX_BYTES:
            raise ImageTooLarge(
                f"{path} has {path.stat().st_size / 1e6:.0f} MB; at most {MAX_BYTES // 10**6} MB are read.",
                "Save a smaller copy, as JPEG for instance.",
            )
        return path.read_bytes()
    except (OSError, ValueError) as e:
        raise UnreadableImage(f"{path} cannot be read ({e}).", "Check the path and its permissions.") from e


def _decode(data: bytes, name: str, max_pixels: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise UnreadableImage(f"{name} is empty; a picture is expected.", "Copy or download it again.")
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > _MAX_SCANS:
        raise UnreadableImage(f"{name} is a JPEG of more than {_MAX_SCANS} scans, which no camera makes.", _READ_HINT)
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limits and its remarks on odd metadata; ours follow
            image = Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN])
    except Image.DecompressionBombError as e:
        raise ImageTooLarge(
            f"{name} claims to be far larger than {max_pixels / 1e6:.0f} megapixels.", _SIZE_HINT
        ) from e
    except UnidentifiedImageError as e:
        raise UnreadableImage(f"{name} is not a picture in a format that Limner reads.", _READ_HINT) from e
    except Exception as e:  # decoders raise anything on hostile bytes: struct.error, SyntaxError, EOFError, …
        raise UnreadableImage(f"{name} is damaged ({type(e).__name__}).", "Copy or download it again.") from e
    with image:
        _demand_size(image.size, max_pixels, name)
        return _from_pil(image, name)


_SIZE_HINT = "Save a smaller copy; a face needs no more than a few hundred pixels."


def _demand_size(size: tuple[int, ...], max_pixels: int, name: str) -> None:
    if len(size) != 2 or min(size) < 1:
        raise UnreadableImage(f"{name} has no pixels (size {size}).")
    if size[0] * size[1] > max_pixels:
        raise ImageTooLarge(
            f"{name} has {size[0]} × {size[1]} pixels; at most {max_pixels / 1e6:.0f} megapixels are read.", _SIZE_HINT
        )


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            return _upright(_rgb(image), _orientation(image))
    except Exception as e:  # as above; MemoryError included
        raise UnreadableImage(f"{name} is damaged or cut off ({e}).", "Copy or download it again.") from e


def _rgb(image: Image.Image) -> np.ndarray:
    """A decoded picture of any mode → (H, W, 3) uint8, strip by strip, so that only the result is held beside it."""
    highest = float(np.max(image.getextrema())) if image.mode == "I" else 0.0
    result = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, 2_000_000 // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        result[top : top + rows] = _strip_rgb(strip, 16 if highest > 255 else 8)
    return result


def _strip_rgb(image: Image.Image, bits: int) -> np.ndarray:
    """`bits`: how many of a 32-bit integer's bits mean something."""
    from PIL import Image

    if image.mode == "I":
        return _from_array(np.clip(np.asarray(image), 0, 2**bits - 1).astype(np.uint16 if bits == 16 else np.uint8))
    if image.mode.startswith("I;16") or image.mode == "F":
        return _from_array(np.asarray(image))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", image.size, (255, 255, 255))
        flat.paste(rgba, mask=rgba)
        return np.asarray(flat)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _from_array(array: np.ndarray) -> np.ndarray:
    """Pixels of any usual shape and type → (H, W, 3) uint8."""
    array = np.atleast_3d(array)
    channels = array.shape[-1]
    if array.ndim != 3 or channels not in (1, 3, 4):
        raise UnreadableImage(f"An array of shape (H, W), (H, W, 3) or (H, W, 4) is expected; got {array.shape}.")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:  # in either byte order
        array = (array >> 8).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= -1e-3 and array.max() <= 1 + 1e-3):
            raise UnreadableImage("Floating-point pixels must be finite and lie in [0, 1].", "Scale them first.")
        array = np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise UnreadableImage(f"Pixels of type uint8, uint16 or float are expected; got {array.dtype}.")
    if channels == 1:
        array = np.repeat(array, 3, axis=2)
    if channels == 4:
        color, alpha = array[..., :3].astype(np.uint16), array[..., 3:].astype(np.uint16)
        array = ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(array)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; read after decoding, for some decoders turn the picture themselves."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata does not spoil a picture
        return 1


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    import cv2

    match orientation:
        case 2:
            return cv2.flip(array, 1)
        case 3:
            return cv2.rotate(array, cv2.ROTATE_180)
        case 4:
            return cv2.flip(array, 0)
        case 5:
            return cv2.transpose(array)
        case 6:
            return cv2.rotate(array, cv2.ROTATE_90_CLOCKWISE)
        case 7:
            return cv2.flip(cv2.transpose(array), -1)
        case 8:
            return cv2.rotate(array, cv2.ROTATE_90_COUNTERCLOCKWISE)
        case _:
            return array
