"""Converts between the encoded image bytes that a client writes and the `PIL.Image` that a model receives.

The bytes are untrusted, so they are bounded before anything is decoded: first their number, then the width and height
in the header (`Image.open` reads no pixels). Only formats whose decoders are meant for untrusted input are tried. All
functions are thread-safe: calls share no state.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from components.errors import DecodeError, EncodeError

__all__ = ["EXPECTED", "FORMATS", "MAX_BYTES", "MAX_PIXELS", "accepted", "decode", "encode", "narrow"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 64 * 1000 * 1000
EXPECTED = "an image as bytes (PNG, JPEG, WebP...)"

_accepted: tuple[str, ...] = FORMATS

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})


def narrow(formats: Iterable[str]) -> None:
    """From now on, decode only these formats of `FORMATS` in this process; none means all of them."""
    global _accepted  # noqa: PLW0603 - the setting of a whole process
    wanted = {name.upper() for name in formats} or FORMATS
    _accepted = tuple(name for name in FORMATS if name in wanted)


def accepted() -> tuple[str, ...]:
    """Return the formats that this process decodes."""
    return _accepted


def decode(value: object) -> Image.Image:
    """Return encoded bytes as a fully loaded image in its native mode (an MNIST PNG is mode `L`).

    An animation gives its first frame. Raises DecodeError if the value is not bytes, has too many bytes or pixels, has
    a format that is not accepted, or is truncated or broken.
    """
    if not isinstance(value, bytes):
        raise DecodeError(f"expected {EXPECTED}, got {type(value).__name__}")
    if len(value) > MAX_BYTES:
        raise DecodeError(f"image of {len(value):,} bytes; at most {MAX_BYTES:,} are decoded")
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
    """Return an image as PNG bytes. Bytes are taken as an image that is encoded already and returned unchanged.

    Raises EncodeError if the value is neither an image nor bytes, or has a mode that PNG cannot hold.
    """
    if isinstance(obj, bytes):
        return bytes(obj)
    if not isinstance(obj, Image.Image):
        raise EncodeError(f"expected a PIL image or {EXPECTED}, got {type(obj).__name__}")
    if obj.mode not in _PNG_MODES:
        raise EncodeError(
            f"a PIL image of mode {obj.mode} does not fit into a PNG; convert it first: image.convert('RGB')"
        )
    buffer = BytesIO()
    obj.save(buffer, format="PNG")
    return buffer.getvalue()
