"""Datatypes: what is stored, what a model sees, and how a wrong value is named."""

from __future__ import annotations

import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from io import BytesIO

import bson
import numpy as np
import pytest
import torch
from bson.binary import Binary, BinaryVectorDtype
from bson.code import Code
from bson.int64 import Int64
from bson.objectid import ObjectId
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components import DecodeError, EncodeError, Table, UnknownDatatype, datatype, images
from components.datatypes import NAMES
from components.declarations import ListenerDeclaration
from components.errors import DeclarationError
from daemon.rehearsal.sample import made_up

NOON = datetime(2024, 5, 1, 12, 0)  # noqa: DTZ001  # what the driver returns unless told otherwise: UTC, and naive


def stored(spec, obj):
    """Encode, send through BSON as the server would, and return what comes back."""
    return bson.decode(bson.encode({"x": datatype(spec).encode(obj)}))["x"]


def encoded(image, kind="PNG"):
    """Return an image as the bytes of a file."""
    buffer = BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("int", 3),
        ("int", -(2**40)),
        ("int", 2**63 - 1),
        ("float", 2.5),
        ("str", "naïve"),
        ("bool", True),
        ("bytes", b"\0\1"),
        ("datetime", NOON),
        ("json", {"a": [1, None, {"b": "c"}], "d": 1.5}),
        ("json", [1, 2]),
    ],
)
def test_a_plain_value_survives_the_way_through_bson(spec, value):
    """What is encoded and stored decodes to the same value of the same type."""
    result = datatype(spec).decode(stored(spec, value))
    assert result == value
    assert type(result) is type(value)


def test_numbers_are_read_in_the_forms_that_clients_write():
    """A 64 bit integer is an int, an integer is a float where one is asked for."""
    assert type(datatype("int").decode(Int64(7))) is int
    assert datatype("float").decode(7) == 7.0
    assert type(datatype("float").decode(Int64(7))) is float
    assert type(datatype("bytes").decode(Binary(b"x", 5))) is bytes


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        ("pil_image", "abc", "expected an image as bytes (PNG, JPEG, WebP...), got str"),
        ("pil_image", None, "is null; expected an image as bytes (PNG, JPEG, WebP...)"),
        ("int", True, "expected an int, got bool"),
        ("int", "3", "expected an int, got str"),
        ("int", 3.0, "expected an int, got float; store it as a 32 or 64 bit integer"),
        ("float", True, "expected a float, got bool"),
        ("float", "x", "expected a float, got str"),
        ("str", b"x", "expected a string, got bytes"),
        ("str", Code("x", {"y": 1}), "expected a string, got Code"),
        ("json", [Code("x")], "expected a JSON value, got Code at $[0]"),
        ("bool", 1, "expected a bool, got int"),
        ("bytes", "x", "expected bytes (a BSON binary), got str"),
        ("datetime", "2024-01-01", "expected a datetime (a BSON date), got str"),
        ("json", {"a": [ObjectId()]}, "expected a JSON value, got ObjectId at $.a[0]"),
        ("array[float32,2x2]", b"123", "got 3 bytes"),
        ("array[float32,2x2]", [[1, 2], [3]], "lists that form no array"),
        ("array[float32,2x2]", [1, 2, 3, 4], "got shape 4"),
        ("array[float32,2]", ["1", "2"], "something else than numbers"),
        ("array[float32,2]", [1, None], "something else than numbers"),
        ("array[int8,2]", [1, 300], "got 300, which int8 cannot hold"),
        ("array[uint64,2]", [1, -1], "got -1, which uint64 cannot hold"),
        ("array[int32,2]", [1.5, 2], "got elements of float64"),
        ("array[float32,1]", [1e300], "which float32 cannot hold"),
        ("array[float32,1]", [True], "got elements of bool"),
        ("vector[3]", [1, 2], "expected a vector of 3 numbers (a BSON vector of float32, or a list), got 2"),
        ("vector[3]", b"123", "got bytes"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(spec, value, message):
    """The message says what the field must hold and what it holds instead."""
    with pytest.raises(DecodeError) as caught:
        datatype(spec).decode(value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "obj"),
    [
        ("pil_image", 3),
        ("pil_image", Image.new("HSV", (2, 2))),
        ("int", 2**63),
        ("int", None),
        ("str", 1),
        ("array[float32,2]", np.zeros(3)),
        ("array[int32,2]", np.zeros(2)),
        ("array[float32,2]", "ab"),
        ("vector[2]", {}),
        ("vector[2]", [[1, 2]]),
        ("json", {1: 2}),
    ],
)
def test_an_object_that_does_not_fit_is_not_encoded(spec, obj):
    """Encoding is as strict as decoding."""
    with pytest.raises(EncodeError):
        datatype(spec).encode(obj)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pil_imge", "did you mean 'pil_image'?"),
        ("Int", "did you mean 'int'?"),
        ("array", "write array[DTYPE,SHAPE]"),
        ("array[flaot32,3]", "did you mean 'float32'?"),
        ("array[float32,0x3]", "every size must be at least 1"),
        ("array[float64,9999x9999]", "a MongoDB document holds at most"),
        ("tensor[float32]", "write tensor[DTYPE,SHAPE]"),
        ("tensor[uint16,2]", "use int32"),
        ("vector", "write vector[LENGTH]"),
        ("vector[0]", "write vector[LENGTH]"),
        ("vector[3x3]", "write vector[LENGTH]"),
        ("int[3]", "takes no parameters"),
        ("", "the datatypes are"),
        ("array[float32,2][3]", "the datatypes are"),
    ],
)
def test_an_unknown_datatype_gets_a_remedy(spec, message):
    """A misspelt datatype is refused with the nearest one, or with the form to write."""
    with pytest.raises(UnknownDatatype) as caught:
        datatype(spec)
    assert message in str(caught.value)


def test_specs_are_canonical():
    """The tutorial's name and free spaces lead to the same datatype."""
    assert datatype("superduper_pillow.pil_image").spec == "pil_image"
    assert datatype(" array[float32, 28x28] ").spec == "array[float32,28x28]"
    assert datatype("vector[384]").spec == "vector[384]"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_an_image_of_every_listed_format_is_decoded(kind):
    """A row may hold any of the listed formats."""
    image = datatype("pil_image").decode(encoded(Image.new("RGB", (9, 7), (255, 255, 255)), kind))
    assert image.size == (9, 7)
    assert image.convert("L").getpixel((0, 0)) > 250


def test_a_grey_png_stays_grey():
    """An image is handed over in its native mode, loaded, with its very pixels."""
    original = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    image = datatype("pil_image").decode(stored("pil_image", original))
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), np.asarray(original))


def test_bytes_of_an_image_are_stored_as_they_are():
    """An image that is encoded already is not encoded again."""
    data = encoded(Image.new("L", (4, 4)), "JPEG")
    assert stored("pil_image", data) == data


def png_claiming(width, height):
    """Return a PNG whose header says a size that its data does not have."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no image of a known format"),
        (b"hello world", f"no image of a known format ({', '.join(images.FORMATS)}); they begin with 68 65 6c 6c"),
        (encoded(Image.effect_noise((64, 64), 50))[:-1500], "broken PNG image"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:-500], "broken JPEG image"),
        (encoded(Image.effect_noise((64, 64), 50))[:20], ""),
        (png_claiming(8001, 8000), "image of 8001 x 8000 pixels; at most 64,000,000 pixels"),
        (png_claiming(10_000, 10_000), "at most 64,000,000 pixels"),
        (png_claiming(60_000, 60_000), "at most 64,000,000 pixels"),
        (bytes(images.MAX_BYTES + 1), "at most 33,554,432 are decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no image of a known format"),
    ],
)
def test_broken_and_oversized_images_are_refused(data, message):
    """Garbage, truncated data, other formats and bombs become errors of the row, before pixels are decoded."""
    with pytest.raises(DecodeError) as caught:
        datatype("pil_image").decode(data)
    assert message in str(caught.value)


SAMPLES = [encoded(Image.effect_noise((16, 16), 60).convert("RGB"), kind) for kind in images.FORMATS]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SAMPLES), st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
@pytest.mark.filterwarnings("ignore")
def test_any_damage_to_an_image_is_an_image_or_a_decode_error(data, at, damage):
    """No bytes of a stranger raise anything else than DecodeError."""
    at %= len(data)
    try:
        datatype("pil_image").decode(data[:at] + damage + data[at + len(damage) :])
    except DecodeError:
        return


def test_the_formats_may_be_narrowed():
    """A decoder that is not accepted never sees the bytes; another process of the same job has the setting too."""
    from daemon.store.rows.datasets import RowExamples

    samples = dict(zip(images.FORMATS, SAMPLES, strict=True))
    try:
        images.narrow(["png", "jpeg"])
        assert images.decode(samples["PNG"]).size == images.decode(samples["JPEG"]).size == (16, 16)
        for name in ("WEBP", "GIF", "BMP", "TIFF"):
            with pytest.raises(DecodeError, match=r"known format \(PNG, JPEG\)"):
                images.decode(samples[name])
        packed = pickle.dumps(RowExamples("mongodb://h", "d", "t", [("x", "pil_image")], []))
        images.narrow([])
        assert images.accepted() == images.FORMATS
        pickle.loads(packed)
        assert images.accepted() == ("PNG", "JPEG")
    finally:
        images.narrow([])


def test_images_are_decoded_by_several_threads_at_once():
    """Each thread gets the image of its own bytes."""
    values = list(range(0, 250, 5))
    rows = [encoded(Image.new("L", (28, 28), value)) for value in values]
    with ThreadPoolExecutor(8) as pool:
        decoded = list(pool.map(datatype("pil_image").decode, rows))
    assert [image.getpixel((3, 3)) for image in decoded] == values


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint8", "uint64", "bool"])
def test_an_array_is_stored_as_raw_bytes_and_read_from_lists_too(dtype):
    """Both forms of a row give the same writable array of the declared dtype and shape."""
    array = np.arange(6).reshape(2, 3).astype(dtype)
    kind = datatype(f"array[{dtype},2x3]")
    data = stored(kind.spec, array.T.copy().T)
    assert isinstance(data, bytes)
    assert len(data) == array.nbytes
    for value in (data, array.tolist()):
        result = kind.decode(value)
        assert np.array_equal(result, array)
        assert result.dtype == array.dtype
        result[0, 0] = 1


def test_stored_bytes_are_little_endian():
    """A client without numpy can write them."""
    assert stored("array[int32,2]", [1, 2]) == struct.pack("<2i", 1, 2)
    assert stored("array[float32,2]", np.array([1, 2], ">f4")) == struct.pack("<2f", 1, 2)


def test_a_vector_is_a_bson_vector():
    """It is what the driver itself writes, so that vector search reads it; lists and int8 vectors are read."""
    value = stored("vector[3]", np.array([0.5, 1, -2]))
    assert value == Binary.from_vector([0.5, 1.0, -2.0], BinaryVectorDtype.FLOAT32)
    kind = datatype("vector[3]")
    for row in (value, [0.5, 1, -2]):
        assert np.array_equal(kind.decode(row), np.array([0.5, 1, -2], np.float32))
    assert kind.decode(Binary.from_vector([1, 2, -3], BinaryVectorDtype.INT8)).tolist() == [1, 2, -3]
    with pytest.raises(DecodeError, match="BSON vector of another kind"):
        kind.decode(Binary.from_vector([1, 2, 3], BinaryVectorDtype.PACKED_BIT, padding=0))


def test_a_tensor_goes_in_and_out():
    """Also one that needs a gradient; the result does not share memory with the row."""
    tensor = torch.arange(4.0, requires_grad=True).reshape(2, 2)
    kind = datatype("tensor[float32,2x2]")
    result = kind.decode(stored(kind.spec, tensor))
    assert torch.equal(result, tensor.detach())
    assert torch.equal(kind.decode([[0, 1], [2, 3]]), tensor.detach())


def test_a_table_knows_its_fields_datatypes():
    """Undeclared fields have none."""
    table = Table("mnist", fields={"img": "superduper_pillow.pil_image", "class": "int", "_fold": "str"})
    assert table.datatypes.get("img").spec == "pil_image"
    assert table.datatypes.get("other") is None
    assert table == Table("mnist", fields=dict(table.fields))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mnist", {"img": "pil_imag"}, "table 'mnist': fields.img: 'pil_imag' is no datatype"),
        ("mnist", {"_outputs.x": "int"}, "where predictd writes"),
        ("mnist", {"a..b": "int"}, "is no field"),
        ("mnist", {"$a": "int"}, "is no field"),
        ("", {}, "no collection can have this name"),
        ("a..b", {}, "no collection can have this name"),
        (".a", {}, "no collection can have this name"),
        ("a.", {}, "no collection can have this name"),
        ("a" * 200, {}, "no collection can have this name"),
        ("é" * 100, {}, "no collection can have this name"),
        (3, {}, "no collection can have this name"),
        ("t", None, "fields: it must be a section of field names"),
        ("system.users", {}, "no collection can have this name"),
        ("_predictd.jobs", {}, "reserved"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(name, fields, message):
    """The message names the table and the field."""
    with pytest.raises(DeclarationError) as caught:
        Table(name, fields)
    assert message in str(caught.value)


def test_aware_datetimes_are_stored():
    """Time zones are the driver's business."""
    assert stored("datetime", NOON.replace(tzinfo=UTC)) == NOON


@pytest.mark.parametrize("name", NAMES)
def test_a_rehearsal_makes_up_a_value_of_every_datatype(name):
    """It is encoded as a client would, and the model's side decodes it."""
    spec = {"array": "array[float32,2x2]", "tensor": "tensor[float32,2x2]", "vector": "vector[3]"}.get(name, name)
    [row] = made_up(ListenerDeclaration(table="t", key="x", model="m"), {"x": spec})
    assert datatype(spec).decode(bson.decode(row)["x"]) is not None
