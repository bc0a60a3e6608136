"""Reads predictd's own documents, which anybody who may write to the database may have written.

A reply is decoded field by field: a field that cannot be decoded counts as missing, and its document's neighbours do
not notice. What the fields may hold is said by the typed record of each collection (`Job`, `Version`, `ServiceStatus`,
...): a value of another type reads as the field's default, and a document that lacks what identifies it is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from gridfs.errors import CorruptGridFile
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import AutoReconnect

from components.raw_value import RAW, fields, readable

DAMAGED_FILE: Final = (CorruptGridFile, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What the driver raises while it reads a GridFS file whose documents hold something else than it wrote."""


def read(
    collection: Collection[dict[str, Any]],
    query: Mapping[str, Any],
    projection: Mapping[str, Any] | None = None,
    *,
    session: ClientSession | None = None,
    sort: list[tuple[str, int]] | None = None,
    limit: int = 0,
    batch_size: int = 0,
) -> Iterator[dict[str, Any]]:
    """The documents that match."""
    raw = collection.with_options(codec_options=RAW)
    for found in raw.find(query, projection, session=session, sort=sort, limit=limit, batch_size=batch_size):
        yield decoded(found, collection.codec_options)


def read_one(
    collection: Collection[dict[str, Any]],
    query: Mapping[str, Any],
    projection: Mapping[str, Any] | None = None,
    *,
    session: ClientSession | None = None,
    sort: list[tuple[str, int]] | None = None,
) -> dict[str, Any] | None:
    """The first document that matches; None if there is none."""
    return next(read(collection, query, projection, session=session, sort=sort, limit=1), None)


def change_one(
    collection: Collection[dict[str, Any]], query: Mapping[str, Any], change: Any, **options: Any
) -> RawBSONDocument | None:
    """Changes the first document that matches, as `find_one_and_update` does; that document, undecoded.

    At a step-down the server answers with a write concern error and error labels. The driver cannot read both from an
    undecoded reply: it raises AttributeError. That is AutoReconnect here, as any write that may not last.
    """
    try:
        return collection.with_options(codec_options=RAW).find_one_and_update(query, change, **options)
    except AttributeError as error:
        raise AutoReconnect("the server has not confirmed a write: its primary steps down") from error


def decoded(found: RawBSONDocument, codec: CodecOptions[dict[str, Any]]) -> dict[str, Any]:
    """The fields of a document that can be decoded."""
    return readable(fields(found.raw), codec=codec)
