"""Values as people have them: pictures of every mode, decimals, scalars of NumPy, BSON vectors."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from io import BytesIO

import numpy as np
import pytest
import torch
from bson.binary import Binary, BinaryVectorDtype
from bson.int64 import Int64
from PIL import Image, ImageOps, features

from components import DecodeError, EncodeError, datatype
from components.datatypes import undeclared


def encoded(image, form, **given):
    file = BytesIO()
    image.save(file, form, **given)
    return file.getvalue()


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16", "I;16B"]


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_every_mode_keeps_its_pixels(mode):
    """PNG holds some modes, TIFF others; nothing is converted."""
    image = Image.new(mode, (8, 4))
    size = len(image.tobytes())
    image = Image.frombytes(mode, (8, 4), bytes(range(1, size + 1)) if mode not in {"F", "1"} else bytes(size))
    back = datatype("pil_image").decode(datatype("pil_image").encode(image))
    assert (back.size, back.mode.removesuffix(";16B")) == (image.size, mode.removesuffix(";16B"))
    assert np.array_equal(np.asarray(back), np.asarray(image))


@pytest.mark.parametrize("mode", ["La", "RGBX", "RGBa", "HSV"])
def test_a_picture_that_no_format_holds_is_refused_by_its_mode(mode):
    """The message says what to convert it to."""
    with pytest.raises(EncodeError, match=f"mode {mode} fits into neither"):
        datatype("pil_image").encode(Image.new(mode, (2, 2)))


@pytest.mark.parametrize("colours", [1, 2, 3, 17, 255, 256])
def test_a_palette_picture_keeps_values_beyond_its_palette(colours):
    """PNG would write as few bits as the palette needs."""
    image = Image.frombytes("P", (16, 16), bytes(range(256)))
    image.putpalette([n % 256 for n in range(3 * colours)])
    back = datatype("pil_image").decode(datatype("pil_image").encode(image))
    assert back.tobytes() == image.tobytes()
    assert back.convert("RGB").tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("alphas", [(255, 0), (0, 128), (7, 7)])
def test_a_palette_with_transparency_keeps_it(alphas):
    """PNG holds it apart from the colours."""
    image = Image.frombytes("P", (4, 1), bytes([0, 1, 0, 1]))
    image.putpalette([1, 2, 3, alphas[0], 4, 5, 6, alphas[1]], "RGBA")
    back = datatype("pil_image").decode(datatype("pil_image").encode(image))
    assert back.tobytes() == image.tobytes()
    assert back.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


def test_a_picture_that_would_be_turned_when_it_is_read_is_refused():
    """CMYK needs a TIFF, whose orientation is applied by its reader; that of a JPEG's bytes is not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("CMYK", (6, 3)), "JPEG", exif=exif)
    with pytest.raises(EncodeError, match="store the file's own bytes, or turn it first"):
        datatype("pil_image").encode(Image.open(BytesIO(data)))
    turned = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert datatype("pil_image").decode(datatype("pil_image").encode(turned)).size == (3, 6)


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_means_the_same_by_its_bytes_and_as_an_image(form, orientation):
    """EXIF orientation, colour profile and transparency are the picture's, whoever writes it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    mode = "RGB" if form == "JPEG" else "RGBA"
    data = encoded(Image.new(mode, (6, 3), (200, 100, 50, 25)[: len(mode)]), form, exif=exif, icc_profile=b"profile")
    kind = datatype("pil_image")
    one, other = kind.decode(data), kind.decode(kind.encode(Image.open(BytesIO(data))))
    applied = form == "TIFF"  # by Pillow
    assert one.getexif().get(0x0112, 1) == other.getexif().get(0x0112, 1) == (1 if applied else orientation)
    assert one.info.get("icc_profile") == other.info.get("icc_profile") == b"profile"
    turned = ImageOps.exif_transpose(one), ImageOps.exif_transpose(other)
    assert turned[0].size == turned[1].size == ((6, 3) if orientation < 5 else (3, 6))
    assert turned[0].tobytes() == turned[1].tobytes()


def test_avif_is_decoded_and_jpeg_2000_is_not():
    """The second's decoder is not made for untrusted bytes."""
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    if features.check("avif"):
        assert datatype("pil_image").decode(encoded(image, "AVIF")).size == (8, 8)
    with pytest.raises(DecodeError, match="no image of a known format"):
        datatype("pil_image").decode(encoded(image, "JPEG2000"))


DIGITS = "9.999999999999999999999999999999999E+6144"


SAME = [
    "0.1",
    "-1E+3",
    "1E-6176",
    "-1.5E-6175",
    DIGITS,
    "1E+6111",
    "NaN",
    "-NaN",
    "sNaN",
    "-Infinity",
    "0.10",
    "-0E-6176",
]


@pytest.mark.parametrize("text", SAME)
def test_decimals_come_back_with_every_digit(text):
    """A Decimal128 is a decimal.Decimal."""
    stored = datatype("decimal").encode(Decimal(text))
    assert str(datatype("decimal").decode(stored)) == str(Decimal(text))
    assert datatype("decimal").decode(Int64(3)) == Decimal(3)


@pytest.mark.parametrize(
    "value", [Decimal("1E+6144"), Decimal("1" * 34 + "0.00"), Decimal("-0E-9999"), 10**5000], ids=range(4)
)
def test_what_a_decimal_holds_otherwise_written_is_the_same_number(value):
    """A Decimal128 has 34 digits and exponents from -6176 to 6111; zeros make up for the rest."""
    stored = datatype("decimal").decode(datatype("decimal").encode(value))
    assert stored == value
    assert stored.is_signed() == Decimal(value).is_signed()


RANGE = r"expected a decimal that BSON can hold \(34 digits, exponents from -6176 to 6111\), got "
NO_DECIMALS = {
    "more digits": (Decimal("1" * 35), RANGE + "1{35}$"),
    "far more digits": (Decimal("1" * 9999), RANGE + r"1{80}\.\.\.$"),
    "a larger exponent": (Decimal("1E+6145"), RANGE + r"1E\+6145$"),
    "a smaller exponent": (Decimal("1E-6177"), RANGE + "1E-6177$"),
    "a subnormal with a digit more": (Decimal("1.55E-6175"), RANGE + "1.55E-6175$"),
    "a NaN that carries a number": (Decimal("NaN123"), RANGE + "NaN123$"),
    "a whole number that is too large": (10**7000, RANGE + "one of 23,254 bits$"),
    "a float": (0.1, "expected a decimal, got float"),
    "a bool": (True, "expected a decimal, got bool"),
    "a text": ("1", "expected a decimal, got str"),
    "none": (None, "is None; expected a decimal"),
}


@pytest.mark.parametrize("what", NO_DECIMALS)
def test_what_no_decimal_holds_is_refused(what):
    """Nothing is rounded."""
    value, message = NO_DECIMALS[what]
    with pytest.raises(EncodeError, match=message):
        datatype("decimal").encode(value)


@pytest.mark.parametrize("spec", ["int", "float"])
def test_a_whole_number_that_python_does_not_write_is_refused_with_its_size(spec):
    """More than 4,300 digits are not written in decimal digits."""
    with pytest.raises(EncodeError, match="one of 16,610 bits"):
        datatype(spec).encode(10**5000)


@pytest.mark.parametrize(
    ("spec", "value", "stored"),
    [
        ("int", np.int8(3), 3),
        ("int", np.uint64(2**40), 2**40),
        ("int", np.array(7), 7),
        ("float", np.float32(0.5), 0.5),
        ("float", np.float16(0.5), 0.5),
        ("float", torch.tensor(0.5), 0.5),
        ("bool", np.bool_(True), True),
        ("str", np.str_("a"), "a"),
        ("bytes", np.bytes_(b"a"), b"a"),
        ("datetime", np.datetime64("2024-05-06T07:08:09.123456789"), datetime(2024, 5, 6, 7, 8, 9, 123456)),  # noqa: DTZ001
    ],
)
def test_scalars_of_numpy_are_stored_as_the_numbers_that_they_are(spec, value, stored):
    """Of whatever width; an array or a tensor without dimensions too."""
    found = datatype(spec).encode(value)
    assert found == stored
    assert type(found).__module__ != "numpy"


def test_a_bson_vector_of_a_field_without_a_datatype_is_an_array():
    """As when a listener reads another's output."""
    kinds = BinaryVectorDtype
    for kind, values, dtype in ((kinds.FLOAT32, [1.5, -2.0], "float32"), (kinds.INT8, [1, -2], "int8")):
        array = undeclared(Binary.from_vector(values, kind))
        assert (array.tolist(), str(array.dtype)) == (values, dtype)
        array += 1
    bits = undeclared(Binary.from_vector([0b10100000], BinaryVectorDtype.PACKED_BIT, padding=5))
    assert bits.tolist() == [1, 0, 1]
    assert undeclared(b"raw") == b"raw"
