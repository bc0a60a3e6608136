"""A key: which fields of a row become the model's arguments.

* `"img"`: one field, the only positional argument;
* `["left", "right"]`: several fields, in order;
* `{"title": "text", "img": "image"}`: fields and the names of their arguments.

A field may be a dotted path. `_outputs.embed.value` is the output of listener `embed` on the same table, so one
listener can read the output of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from components.errors import DeclarationError
from components.names import check_field

KeySpec: TypeAlias = "str | Sequence[str] | Mapping[str, str]"


class Arguments(NamedTuple):
    """The arguments that a model is called with for one row."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Key:
    """The fields that a listener reads; `names` are the arguments' names, or None if they are positional."""

    fields: tuple[str, ...]
    names: tuple[str, ...] | None = None
    target: bool = False
    """Whether the last field is a target: it may be one of the other fields too."""

    @classmethod
    def parse(cls, spec: KeySpec, *, target: bool = False) -> Key:
        """Return the key of a declaration; raises DeclarationError."""
        if isinstance(spec, str):
            return cls((spec,), None, target)
        if isinstance(spec, Mapping):
            return cls(tuple(spec), tuple(spec.values()), target)
        if isinstance(spec, (list, tuple)):
            return cls(tuple(spec), None, target)
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
        once = self.inputs.fields if self.target and len(self.fields) > 1 else self.fields
        if len(set(once)) < len(once):
            raise DeclarationError(f"key: a field occurs twice in {list(self.fields)}")
        for path in self.fields:
            inside = [other for other in self.fields if other.startswith(f"{path}.")]
            if inside:
                raise DeclarationError(f"key: {inside[0]!r} is inside {path!r}; name only one of the two")

    @property
    def spec(self) -> str | list[str] | dict[str, str]:
        """The key in the form that a declaration holds."""
        if self.names is not None:
            return dict(zip(self.fields, self.names, strict=True))
        return self.fields[0] if len(self.fields) == 1 else list(self.fields)

    @property
    def inputs(self) -> Key:
        """The part of a key with a target that holds the model's arguments. A single field is both."""
        if len(self.fields) == 1:
            return Key(self.fields, self.names)
        return Key(self.fields[:-1], None if self.names is None else self.names[:-1])

    @property
    def upstream(self) -> tuple[str, ...]:
        """The listeners whose outputs this key reads."""
        paths = (path.split(".") for path in self.fields)
        return tuple(dict.fromkeys(parts[1] for parts in paths if parts[0] == "_outputs"))

    def arguments(self, values: Mapping[str, Any] | Sequence[Any]) -> Arguments:
        """Return the arguments of one row from its decoded values, by field, or in the order of `fields`."""
        ordered = tuple(values[path] for path in self.fields) if isinstance(values, Mapping) else tuple(values)
        if self.names is None:
            return Arguments(ordered)
        return Arguments((), dict(zip(self.names, ordered, strict=True)))
