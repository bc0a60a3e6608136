"""A table's handle, `db["mnist"]`: a query that can also read and write rows.

Rows are written and read as Python objects. The datatype of each declared field encodes its value, on a copy of the
row; undeclared fields are stored as they are. An insert encodes all rows before it sends the first, so a row that
cannot be stored leaves the table as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, Final, NoReturn, Self

import bson
from bson import ObjectId
from bson.codec_options import CodecOptions, TypeRegistry
from bson.errors import BSONError, InvalidDocument
from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from components.datatypes import Datatype, plain_scalar
from components.errors import DeclarationError, DecodeError, EncodeError, PredictdError, RowError
from components.query import Query
from components.raw_value import RAW, STRICT, among, chunks, fields, identity, key_of
from daemon.store.connection import Data, reaching

MAX_ROW_BYTES = 16 * 1024 * 1024
_DUPLICATE = 11000

Datatypes = Mapping[str, Datatype]
Ranking = Callable[[int], list[tuple[Any, float]]]
"""Returns the keys of so many rows with their scores, the nearest first; fewer if there are no more."""


class TableHandle(Query):
    """The rows of a table. `filter`, `select` and `limit` return a handle of fewer rows or fields.

    `handle["field"]` is the field, for comparisons: `db["mnist"].filter(db["mnist"]["_fold"] == "valid")`.
    """

    def __init__(
        self,
        table: str,
        database: Data,
        datatypes: Callable[[str], Datatypes],
        ranking: Callable[[str, str, Any], Ranking],
    ) -> None:
        """`datatypes` returns the current datatypes of a table's declared fields, by path. `ranking` of a table, an
        index and what is searched for returns the nearest rows.
        """
        super().__init__(table)
        self._database = database
        self._datatypes = datatypes
        self._ranking = ranking

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"db[{self.table!r}] cannot be serialized, because it is connected to the database; in code that the "
            "daemon runs, use the row that it gets"
        )

    # ---- writing --------------------------------------------------------------------------------------------------

    def insert(self, rows: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> list[Any]:
        """Stores all rows, or none if one cannot be stored, and returns their `_id`s in order. The caller's
        dictionaries stay as they were. A pandas.DataFrame is its records.

        Raises EncodeError, which names row and field, if a value does not fit its field's datatype or MongoDB cannot
        hold it. Raises PredictdError if MongoDB refuses a row (its `_id` exists already): the rows before it are then
        stored.
        """
        rows = rows.to_dict("records") if hasattr(rows, "columns") and hasattr(rows, "to_dict") else rows
        given = [rows] if isinstance(rows, Mapping) else list(rows)
        datatypes, codec = self._datatypes(self.table), self._collection.codec_options
        ids: list[Any] = []
        documents: list[RawBSONDocument] = []
        for number, row in enumerate(given):
            try:
                document = _stored(row, datatypes)
                documents.append(RawBSONDocument(_bson(document, codec), codec_options=_raw(codec)))
            except EncodeError as error:
                raise EncodeError(
                    f"{self.table}: rows[{number}]{error}; none of the {len(given)} rows is inserted"
                ) from None
            ids.append(document["_id"])
        if documents:
            self._send(documents, ids)
        return ids

    def _send(self, documents: list[RawBSONDocument], ids: list[Any]) -> None:
        try:
            with reaching(BulkWriteError):
                self._collection.insert_many(documents)
        except BulkWriteError as error:
            failed = (error.details or {}).get("writeErrors") or []
            if not failed:
                raise PredictdError(f"{self.table}: MongoDB did not acknowledge the insert: {error}") from None
            place, code, message = failed[0]["index"], failed[0].get("code"), failed[0].get("errmsg")
            why = (
                f"a row with the _id {ids[place]!r} is there already"
                if code == _DUPLICATE and "_id_" in str(message)
                else message
            )
            raise PredictdError(
                f"{self.table}: rows[{place}]: {why}; the {place} before it are inserted, it and the "
                f"{len(ids) - place - 1} after it are not"
            ) from None

    # ---- reading --------------------------------------------------------------------------------------------------

    def get(self) -> dict[str, Any] | None:
        """The first of the rows, by `_id`; None if there is none."""
        return next(iter(self.limit(1)), None)

    def count(self) -> int:
        """The number of rows. Raises MongoUnavailable."""
        limit: dict[str, Any] = {} if self.max_rows is None else {"limit": self.max_rows}
        where = self._filter()
        with reaching():
            return int(self._collection.count_documents(where, **limit))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows by `_id`, decoded, with their `_outputs`. Raises DecodeError, which names the row, if a value does
        not fit its datatype.
        """
        datatypes = self._datatypes(self.table)
        projection = None if self.fields is None else _projection(self.fields)
        where = self._filter()
        with reaching(), self._collection.find(where, projection).sort("_id", 1).limit(self.max_rows or 0) as found:
            for row in found:
                yield self._decoded(row, datatypes)

    def like(self, like: Mapping[str, Any] | Any, *, index: str, n: int = 10) -> list[dict[str, Any]]:
        """The `n` of the rows whose outputs are nearest to `like`, the nearest first, each with its `_score`.

        `like` is a document with the fields that the index's listener reads, from which the listener's live version
        computes a vector, or a vector. Every row of the index is compared, as the rows are now. A UserWarning says if
        rows whose output is of another version are left out, or if the search is approximate.

        Raises NotApplied if there is no such index, DeclarationError if `like` does not fit or cannot be predicted,
        IndexFull if even rounded vectors take more memory than `limits.index_bytes`.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise DeclarationError(f"like: n: expected a number of rows from 1, got {n!r}")
        datatypes = self._datatypes(self.table)
        if isinstance(like, Mapping):
            try:
                like = bson.decode(_bson(_stored(like, datatypes), self._collection.codec_options), STRICT)
            except EncodeError as error:
                raise EncodeError(f"like{error}") from None
        ranking = self._ranking(self.table, index, like)
        wanted = size = min(n, self.max_rows or n)
        while True:
            best = ranking(size)
            rows = self._rows([key for key, _ in best], datatypes)
            found = [{**rows[identity(key)], "_score": score} for key, score in best if identity(key) in rows]
            if len(found) >= wanted or len(best) < size:
                return found[:wanted]
            size *= 4  # some do not match, or were deleted just now

    def _rows(self, keys: list[Any], datatypes: Datatypes) -> dict[Hashable, dict[str, Any]]:
        """Those of the rows with these keys that match, by the keys' identities."""
        codec = self._collection.codec_options
        projection = None if self.fields is None else _projection(self.fields)
        rows, where = {}, self._filter()
        for some in chunks(keys, 1000, 4 * 1024 * 1024):
            query = {"$and": [{"_id": among(some)}, where]}
            with reaching():
                for raw in self._collection.with_options(codec_options=RAW).find(query, projection):
                    key = key_of(fields(raw.raw)["_id"])
                    rows[identity(key)] = self._decoded(bson.decode(raw.raw, codec), datatypes)
        return rows

    def _decoded(self, row: dict[str, Any], datatypes: Datatypes) -> dict[str, Any]:
        for path, datatype in datatypes.items():
            holder, name = _holder(row, path)
            if holder is not None and name in holder:
                try:
                    holder[name] = datatype.decode(holder[name])
                except RowError as error:
                    if path.startswith("_outputs."):  # it was written before its listener had this datatype
                        continue
                    raise DecodeError(f"{self.table}: row {row['_id']!r}: {path}: {error}") from None
        return row

    def _filter(self) -> dict[str, Any]:
        """The query's filter. Raises DeclarationError if it holds what BSON does not."""
        try:
            bson.encode(self.where, codec_options=self._collection.codec_options)
        except (InvalidDocument, OverflowError) as error:
            raise DeclarationError(f"query: the filter holds what MongoDB does not: {error}") from None
        return self.where

    @property
    def _collection(self) -> Collection[dict[str, Any]]:
        return self._database[self.table]


def _stored(row: Any, datatypes: Datatypes) -> dict[str, Any]:
    """A copy of the row as MongoDB stores it, with an `_id`. Raises EncodeError, whose message goes after the row's
    number.
    """
    if not isinstance(row, Mapping):
        raise EncodeError(f": expected a dictionary, got {type(row).__name__}")
    document = {"_id": ObjectId(), **row}
    for path, datatype in datatypes.items():
        holder, name = _holder(document, path, copied=True)
        if holder is not None and name in holder:
            try:
                holder[name] = datatype.encode(holder[name])
            except RowError as error:
                raise EncodeError(f".{path}: {error}") from None
    return document


def _holder(row: dict[str, Any], path: str, *, copied: bool = False) -> tuple[dict[str, Any] | None, str]:
    """The dictionary that holds the last part of a path, and that part. With `copied`, those on the way are copied
    first, because they belong to the caller.
    """
    *way, name = path.split(".")
    holder: Any = row
    for part in way:
        inner = holder.get(part)
        if not isinstance(inner, Mapping):
            return None, name
        if copied:
            inner = holder[part] = dict(inner)
        holder = inner
    return holder, name


def _bson(document: dict[str, Any], codec: CodecOptions[Any]) -> bytes:
    """The BSON bytes of a row. Raises EncodeError, which names the field that cannot be encoded."""
    try:
        data = bson.encode(document, codec_options=codec.with_options(type_registry=_SCALARS))
    except (BSONError, OverflowError, ValueError, TypeError, RecursionError) as error:
        raise EncodeError(_blamed(document, codec, error)) from None
    if len(data) > MAX_ROW_BYTES:
        raise EncodeError(f": takes {len(data):,} bytes; MongoDB holds rows of at most {MAX_ROW_BYTES:,}")
    return data


def _blamed(document: dict[str, Any], codec: CodecOptions[Any], error: Exception) -> str:
    for name, value in document.items():
        try:
            bson.encode({name: value}, codec_options=codec.with_options(type_registry=_SCALARS))
        except (BSONError, OverflowError, ValueError, TypeError, RecursionError) as own:
            kind = type(value).__name__
            reason = str(own).partition(":")[0] if len(str(own)) > 200 else str(own)
            return (
                f".{name}: MongoDB cannot hold this {kind} ({reason}); declare the field with a datatype, or convert it"
            )
    return f": {error}"


_SCALARS: Final = TypeRegistry(fallback_encoder=plain_scalar)  # NumPy's scalars, in fields without a datatype too


def _raw(codec: CodecOptions[Any]) -> CodecOptions[RawBSONDocument]:
    return codec.with_options(document_class=RawBSONDocument)


def _projection(fields: tuple[str, ...]) -> list[str]:
    """`fields` without those inside another of them; MongoDB would refuse both."""
    return [path for path in fields if not any(path.startswith(f"{other}.") for other in fields)]
