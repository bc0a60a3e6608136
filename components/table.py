"""A table: a MongoDB collection with its fields and their datatypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from components.datatypes import Datatype, datatype
from components.declarations import TableDeclaration, made
from components.errors import DeclarationError

_LONGEST = 255 - 64
"""Bytes of a collection's name in a database whose name is as long as MongoDB permits."""


@dataclass(frozen=True)
class Table:
    """A collection (`identifier` is its name) with the datatypes of its `fields`, by spec.

    Rows may also hold fields that are not declared; models receive these as the driver decodes them.
    Raises DeclarationError (UnknownDatatype for an invalid spec) that names the field.
    """

    identifier: str
    fields: Mapping[str, str]
    datatypes: Mapping[str, Datatype] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = self.identifier
        if (
            not isinstance(name, str)
            or "$" in name
            or "\0" in name
            or name.startswith(("system.", "_predictd."))
            or not all(name.split("."))
            or len(name.encode()) > _LONGEST
        ):
            raise DeclarationError(f"table {name!r}: no collection can have this name, or it is reserved")
        fields = dict(self.fields) if isinstance(self.fields, Mapping) else self.fields
        declared = made(TableDeclaration, f"table {name!r}", {"fields": fields})
        object.__setattr__(self, "fields", MappingProxyType(declared.fields))
        known = {path: datatype(spec) for path, spec in declared.fields.items()}
        object.__setattr__(self, "datatypes", MappingProxyType(known))

    def __reduce__(self) -> tuple[type[Table], tuple[str, dict[str, str]]]:
        return type(self), (self.identifier, dict(self.fields))  # a mappingproxy cannot be pickled
