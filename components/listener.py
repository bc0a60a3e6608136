"""A listener: binds a model to a key of a table, with an optional filter.

The key says which fields of a row become the model's arguments:

* `"img"`: one field, the only positional argument;
* `["left", "right"]`: several, in order;
* `{"title": "text", "img": "image"}`: field to argument name.

A field may be dotted. `_outputs.embed.value` is the output of listener `embed` on the same table, so listeners chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from components.errors import DeclarationError
from components.names import check_field, check_identifier

__all__ = ["Arguments", "Key", "KeySpec", "Listener"]

KeySpec: TypeAlias = "str | Sequence[str] | Mapping[str, str]"


class Arguments(NamedTuple):
    """What a model is called with for one row."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Key:
    """The fields that a listener reads; `names` are the arguments' names, None where they are positional."""

    fields: tuple[str, ...]
    names: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, spec: KeySpec) -> Key:
        """Read a key as it stands in a declaration; raises DeclarationError."""
        if isinstance(spec, str):
            return cls((spec,))
        if isinstance(spec, Mapping):
            return cls(tuple(spec), tuple(spec.values()))
        if isinstance(spec, (list, tuple)):
            return cls(tuple(spec))
        raise DeclarationError(f"key: expected a field, a list of fields or a table field = 'argument', got {spec!r}")

    def __post_init__(self) -> None:
        if not self.fields:
            raise DeclarationError("key: names no field; a model needs at least one argument")
        for path in self.fields:
            check_field(path, "key")
            parts = path.split(".")
            if parts[0] == "_outputs" and (len(parts) < 3 or parts[2] != "value"):
                raise DeclarationError(f"key: {path!r}: the output of another listener is '_outputs.LISTENER.value'")
            if any(part.isdigit() for part in parts):
                raise DeclarationError(f"key: {path!r}: a position in an array is no field; name the array")
        self._check_overlap()
        for name in self.names or ():
            if not isinstance(name, str) or not name.isidentifier():
                raise DeclarationError(f"key: {name!r} is no argument name")
        if self.names is not None and len(set(self.names)) < len(self.names):
            raise DeclarationError(f"key: two fields go to one argument in {list(self.names)}")

    def _check_overlap(self) -> None:
        if len(set(self.fields)) < len(self.fields):
            raise DeclarationError(f"key: a field stands twice in {list(self.fields)}")
        for path in self.fields:
            inside = [other for other in self.fields if other.startswith(f"{path}.")]
            if inside:
                raise DeclarationError(f"key: {inside[0]!r} lies inside {path!r}; name only one of the two")

    @property
    def spec(self) -> str | list[str] | dict[str, str]:
        """The key as it stands in a declaration."""
        if self.names is not None:
            return dict(zip(self.fields, self.names, strict=True))
        return self.fields[0] if len(self.fields) == 1 else list(self.fields)

    @property
    def upstream(self) -> tuple[str, ...]:
        """The listeners whose outputs this key reads."""
        paths = (path.split(".") for path in self.fields)
        return tuple(dict.fromkeys(parts[1] for parts in paths if parts[0] == "_outputs"))

    def arguments(self, values: Mapping[str, Any] | Sequence[Any]) -> Arguments:
        """Make the arguments of one row from its decoded values, by field, or in the order of `fields`."""
        ordered = tuple(values[path] for path in self.fields) if isinstance(values, Mapping) else tuple(values)
        if self.names is None:
            return Arguments(ordered)
        return Arguments((), dict(zip(self.names, ordered, strict=True)))


@dataclass(frozen=True)
class Listener:
    """Runs `model` on the rows of `table` that hold every field of `key` and match `where`; writes
    `_outputs.<identifier>`.

    `latency_budget`: seconds that one batch may take at most, which caps its size; `max_batch`: rows in a batch at
    most; `worker`: name of the process that runs it (default: one for each model); `scan_order`: "newest" or "oldest"
    rows first, when all rows are judged anew; `scan_rate`: rows a second at most while doing so, 0 for as many as go.
    Raises DeclarationError.
    """

    identifier: str
    table: str
    key: KeySpec
    model: str
    where: Mapping[str, Any] = field(default_factory=dict)
    latency_budget: float = 0.1
    max_batch: int = 256
    worker: str | None = None
    scan_order: str = "newest"
    scan_rate: float = 0.0
    parsed_key: Key = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_identifier(self.identifier, "listener")
        try:
            key = Key.parse(self.key)
        except DeclarationError as error:
            raise DeclarationError(f"listener {self.identifier!r}: {error}") from None
        if self.identifier in key.upstream:
            raise DeclarationError(f"listener {self.identifier!r}: key: reads its own output")
        if not isinstance(self.where, Mapping):
            raise DeclarationError(
                f"listener {self.identifier!r}: where: expected a MongoDB filter, got {self.where!r}"
            )
        if not self.latency_budget > 0:
            raise DeclarationError(
                f"listener {self.identifier!r}: latency_budget: expected seconds above 0, got {self.latency_budget}"
            )
        if self.max_batch < 1:
            raise DeclarationError(
                f"listener {self.identifier!r}: max_batch: expected at least 1 row, got {self.max_batch}"
            )
        if self.worker is not None:
            check_identifier(self.worker, "worker")
        if self.scan_order not in ("newest", "oldest"):
            raise DeclarationError(
                f"listener {self.identifier!r}: scan_order: expected 'newest' or 'oldest', got {self.scan_order!r}"
            )
        if not 0 <= self.scan_rate < float("inf"):
            raise DeclarationError(
                f"listener {self.identifier!r}: scan_rate: expected rows a second, or 0, got {self.scan_rate}"
            )
        object.__setattr__(self, "parsed_key", key)
