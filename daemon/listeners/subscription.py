"""What a change stream is asked for: the server filters and projects.

It does not send an update whose paths are all under `_outputs.`, so the daemon's own writes cost nothing; but for those
by which somebody else takes an output away. An event contains its key, so no event is too large and an update needs no
lookup; that of an insert or a replace also its small row, which MongoDB has at hand; that of an update the names of the
fields that it changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bson import Binary

from daemon.store import names
from daemon.store.partition import WHOLE, Partition
from daemon.store.registry.components import signature

SMALL_ROW: Final = 512
"""An insert or a replace brings its row along if that takes at most so many bytes."""

MOST_PATHS: Final = 64
MOST_BYTES: Final = 4096
"""An update that changes more paths, or longer ones, is taken for one that may change any field: no event is too large.
"""


@dataclass(frozen=True, slots=True)
class Subscription:
    """The events that a stream reads: those of the tables, those of paths under `_outputs.` that are a listener's
    input, and its service's requests.
    """

    service: str
    tables: tuple[str, ...]
    chained: tuple[str, ...] = ()
    dropped: tuple[Binary, ...] = ()
    """The sessions whose events the server drops while it reads the oplog, at a thirtieth of the cost of the path
    filter: those in which this worker writes outputs that none of its own listeners reads.
    """
    partition: Partition = WHOLE
    """The keys whose events it reads."""
    outputs: tuple[tuple[str, str], ...] = ()
    """The tables and listeners whose outputs this worker keeps: it hears if somebody else takes one away."""

    @property
    def hash(self) -> str:
        share = [] if self.partition == WHOLE else [[self.partition.index, self.partition.of]]
        return signature([sorted(self.tables), sorted(self.chained), *share])

    def pipeline(self) -> list[Mapping[str, Any]]:
        """The stages behind `$changeStream`."""
        here = {"$in": list(self.tables)}
        changes = [
            {"operationType": {"$in": ["insert", "replace", "delete"]}, "ns.coll": here, **self._share()},
            {"operationType": "update", "ns.coll": here, **self._share(_touches_more_than_outputs(self.chained))},
            *(
                {"operationType": "update", "ns.coll": table, **self._share(_takes_away(listener))}
                for table, listener in self.outputs
            ),
            {"operationType": "insert", "ns.coll": names.REQUESTS, **self._asked()},
            # Without these, the stream would end without an event.
            {"operationType": {"$in": ["drop", "rename"]}, "$or": [{"ns.coll": here}, {"to.coll": here}]},
            {"operationType": {"$in": ["dropDatabase", "invalidate"]}},
        ]
        keep = {"operationType": 1, "ns": 1, "to": 1, "documentKey._id": 1, "clusterTime": 1, "txnNumber": 1}
        image = {"$cond": [{"$lte": [{"$bsonSize": "$fullDocument"}, SMALL_ROW]}, "$fullDocument", "$$REMOVE"]}
        # MongoDB drops these events early only if the condition is the first stage, alone.
        own = [{"$match": {"lsid.id": {"$nin": list(self.dropped)}}}] if self.dropped else []
        return [
            *own,
            {"$match": {"$or": changes}},
            {"$project": {**keep, "fullDocument": image, "changed": _changed_fields()}},
        ]

    def _share(self, *conditions: Mapping[str, Any]) -> dict[str, Any]:
        """The condition that a row's key is in the partition, which is cheap, then the others."""
        own = () if self.partition == WHOLE else (self.partition.holds("$documentKey._id"),)
        both = [*own, *conditions]
        return {"$expr": both[0] if len(both) == 1 else {"$and": both}} if both else {}

    def _asked(self) -> dict[str, Any]:
        """The condition that a request is for a row in the partition, or for no row."""
        if self.partition == WHOLE:
            return {}
        row = "$documentKey._id.row"
        return {"$expr": {"$or": [{"$eq": [{"$type": row}, "missing"]}, self.partition.holds(row)]}}


def _touches_more_than_outputs(chained: Sequence[str]) -> Mapping[str, Any]:
    """The condition for an update that changes a path outside `_outputs`, or one that a chained key reads.

    Paths are compared part by part: `_outputs2.x` and `_outputsx` are other fields.
    """
    change = "$updateDescription"
    wanted: list[Mapping[str, Any]] = [{"$ne": [{"$arrayElemAt": [{"$split": ["$$path", "."]}, 0]}, "_outputs"]}]
    for path in chained:
        wanted.append({"$eq": ["$$path", path]})
        wanted.append({"$eq": [{"$indexOfBytes": ["$$path", f"{path}."]}, 0]})
        wanted.append({"$eq": [{"$indexOfBytes": [path, {"$concat": ["$$path", "."]}]}, 0]})
    # The daemon never removes, empties or replaces `_outputs` as a whole. A client did, and the outputs are due again.
    whole = f"{change}.updatedFields._outputs"
    taken_away = {"$in": ["_outputs", {"$ifNull": [f"{change}.removedFields", []]}]}
    replaced = {"$or": [{"$not": [{"$in": [{"$type": whole}, ["missing", "object"]]}]}, {"$eq": [whole, {}]}]}
    changed = {"$anyElementTrue": [{"$map": {"input": changed_paths(), "as": "path", "in": {"$or": wanted}}}]}
    return {"$or": [taken_away, replaced, changed]}


def _takes_away(listener: str) -> Mapping[str, Any]:
    """The condition for an update that takes the listener's output away: that removes it or its value, puts an error
    in its place, or changes what it belongs to. The daemon sets whole outputs, and errors in transactions of its own.
    """
    change, path = "$updateDescription", f"_outputs.{listener}"
    updated = f"{change}.updatedFields"
    removed = {"$setIntersection": [[path, f"{path}.value"], {"$ifNull": [f"{change}.removedFields", []]}]}
    wanted: list[Mapping[str, Any]] = [{"$ne": [removed, []]}]
    for part in ("error", "input", "generation"):
        field = {"$getField": {"field": {"$literal": f"{path}.{part}"}, "input": {"$ifNull": [updated, {}]}}}
        wanted.append({"$ne": [{"$type": field}, "missing"]})
    own = {"$getField": {"field": {"$literal": path}, "input": {"$ifNull": [updated, {}]}}}
    for output in (own, f"{updated}.{path}"):
        is_none = {"$not": [{"$in": [{"$type": "$$output"}, ["missing", "object"]]}]}
        has_value = {"$ne": [{"$type": "$$output.value"}, "missing"]}
        has_error = {"$ne": [{"$type": "$$output.error"}, "missing"]}
        is_hollow = {"$and": [{"$eq": [{"$type": "$$output"}, "object"]}, {"$or": [has_error, {"$not": [has_value]}]}]}
        wanted.append({"$let": {"vars": {"output": output}, "in": {"$or": [is_none, is_hollow]}}})
    return {"$or": wanted}


def _changed_fields() -> Mapping[str, Any]:
    """The expression for the top-level fields that an update has changed; nothing for other events."""
    field = {"$arrayElemAt": [{"$split": ["$$this", "."]}, 0]}
    named = {"$setUnion": [{"$map": {"input": "$$paths", "in": field}}]}
    length = {"$sum": {"$map": {"input": "$$paths", "in": {"$strLenBytes": "$$this"}}}}
    short = {"$and": [{"$lte": [{"$size": "$$paths"}, MOST_PATHS]}, {"$lte": [length, MOST_BYTES]}]}
    few = {"$cond": [short, named, "$$REMOVE"]}
    update = {"$eq": ["$operationType", "update"]}
    return {"$cond": [update, {"$let": {"vars": {"paths": changed_paths()}, "in": few}}, "$$REMOVE"]}


def changed_paths() -> Mapping[str, Any]:
    """The expression for the paths that an update event has changed."""
    change = "$updateDescription"
    updated = {"$objectToArray": {"$ifNull": [f"{change}.updatedFields", {}]}}
    return {
        "$concatArrays": [
            {"$map": {"input": updated, "as": "field", "in": "$$field.k"}},
            {"$ifNull": [f"{change}.removedFields", []]},
            {"$map": {"input": {"$ifNull": [f"{change}.truncatedArrays", []]}, "as": "array", "in": "$$array.field"}},
        ]
    }
