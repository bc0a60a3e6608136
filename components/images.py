"""Converts between the encoded image bytes that a client writes and the `PIL.Image` that a model receives.

The bytes are untrusted, so they are bounded before anything is decoded: first their number, then the width and height
in the header (`Image.open` reads no pixels). Only formats whose decoders are meant for untrusted input are tried. All
functions are thread-safe: calls share no state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

from PIL import Image, UnidentifiedImageError, features

from components.errors import DecodeError, EncodeError

# Without JPEG 2000: its decoder is not made for untrusted bytes.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 64 * 1000 * 1000
EXPECTED = "an image as bytes (PNG, JPEG, WebP...)"

_FORMAT_OF = {
    **dict.fromkeys(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "PNG"),
    **dict.fromkeys(("PA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16B"), "TIFF"),
}
"""The format that holds the pixels of a mode exactly."""
_ORIENTATION = 0x0112
_COLOURS = 3 * 256
_accepted: tuple[str, ...] = FORMATS
_elsewhere: Callable[[bytes], Image.Image] | None = None


def narrow(formats: Iterable[str], elsewhere: Callable[[bytes], Image.Image] | None = None) -> None:
    """From now on, decode only these formats of `FORMATS` in this process; none means all of them. If a function
    `elsewhere` is given (`images_apart.decode`), it decodes.
    """
    global _accepted, _elsewhere  # noqa: PLW0603 - the setting of a whole process
    wanted = {name.upper() for name in formats} or FORMATS
    _accepted = tuple(name for name in FORMATS if name in wanted)
    _elsewhere = elsewhere


def accepted() -> tuple[str, ...]:
    """Return the formats that this process decodes."""
    return _accepted


def settings() -> tuple[tuple[str, ...], Callable[[bytes], Image.Image] | None]:
    """Return what `narrow` was called with, for another process."""
    return _accepted, _elsewhere


def decode(value: object) -> Image.Image:
    """Return encoded bytes as a fully loaded image in its native mode (an MNIST PNG is mode `L`).

    An animation gives its first frame. The EXIF data (the orientation) and the colour profile are in the image, and are
    not applied to the pixels: that is for `preprocess` (`PIL.ImageOps.exif_transpose`). Raises DecodeError if the value
    is not bytes, has too many bytes or pixels, has a format that is not accepted, or is truncated or broken.
    """
    if not isinstance(value, bytes):
        raise DecodeError(f"expected {EXPECTED}, got {type(value).__name__}")
    if len(value) > MAX_BYTES:
        raise DecodeError(f"image of {len(value):,} bytes; at most {MAX_BYTES:,} are decoded")
    if _elsewhere is not None:
        return _elsewhere(value)
    image = _open(value)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DecodeError(f"image of {width} x {height} pixels; at most {MAX_PIXELS:,} pixels are decoded")
    try:
        image.load()
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error...: all mean broken bytes
        raise DecodeError(f"broken {image.format} image of {len(value):,} bytes: {error}") from error
    return image


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    try:
        return Image.open(BytesIO(data), formats=_accepted)
    except UnidentifiedImageError:
        start = data[:8].hex(" ") or "nothing"
        raise DecodeError(
            f"{len(data):,} bytes that are no image of a known format ({', '.join(_accepted)}); they begin with {start}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError(f"image of too many pixels; at most {MAX_PIXELS:,} pixels are decoded") from error
    except MemoryError:
        raise
    except Exception as error:  # as in decode: a header parser may raise anything on hostile bytes
        raise DecodeError(f"broken image header in {len(data):,} bytes: {error}") from error


def encode(obj: object) -> bytes:
    """Return an image as PNG bytes, or as TIFF if PNG cannot hold its mode; the pixels stay exactly as they are.

    Bytes are taken as an image that is encoded already and returned unchanged. EXIF data and the colour profile go
    along, so the same picture means the same whoever writes it. Raises EncodeError if the value is neither an image nor
    bytes, or has a mode that neither format holds.
    """
    if isinstance(obj, bytes):
        return bytes(obj)
    if not isinstance(obj, Image.Image):
        raise EncodeError(f"expected a PIL image or {EXPECTED}, got {type(obj).__name__}")
    if obj.mode not in _FORMAT_OF:
        raise EncodeError(
            f"a PIL image of mode {obj.mode} fits into neither PNG nor TIFF; convert it first: image.convert('RGB')"
        )
    buffer = BytesIO()
    try:
        obj.load()  # before its EXIF data is read: loading a TIFF applies its orientation
        if _FORMAT_OF[obj.mode] == "TIFF" and _orientation(obj) != 1:
            raise EncodeError(
                f"a PIL image of mode {obj.mode} with an EXIF orientation becomes a TIFF, which would be turned when "
                "it is read; store the file's own bytes, or turn it first: PIL.ImageOps.exif_transpose(image)"
            )
        image = _whole_palette(obj) if obj.mode == "P" else obj
        image.save(buffer, format=_FORMAT_OF[obj.mode], **_exif(obj))
    except (MemoryError, EncodeError):
        raise
    except Exception as error:  # encoders raise OSError, ValueError, struct.error...
        raise EncodeError(f"a PIL image of mode {obj.mode} cannot be encoded: {error}") from error
    return buffer.getvalue()


def _whole_palette(image: Image.Image) -> Image.Image:
    """Return the image with a palette of 256 colours: PNG would write fewer bits, and change a value beyond them."""
    if image.palette is not None and image.palette.mode == "RGBA":  # PNG holds the transparency apart
        whole = image.copy()
        alpha = image.getpalette("RGBA") or []
        whole.putpalette(image.getpalette() or [])
        whole.info["transparency"] = bytes(alpha[3::4])
        return _whole_palette(whole)
    palette = image.getpalette() or []
    if len(palette) == _COLOURS or max(image.tobytes(), default=0) < len(palette) // 3:
        return image
    whole = image.copy()
    whole.putpalette(palette + [0] * (_COLOURS - len(palette)))
    return whole


def _exif(image: Image.Image) -> dict[str, Any]:
    try:
        exif = image.getexif()
        return {"exif": exif.tobytes()} if exif else {}
    except Exception:  # noqa: BLE001 - what a camera wrote may be anything
        exif = Image.Exif()
        exif[_ORIENTATION] = _orientation(image)
        return {"exif": exif.tobytes()}


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - broken EXIF data says nothing
        return 1
