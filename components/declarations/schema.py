"""The base class of all declarations, and the types of their fields.

A check returns the value or raises ValueError with the reason. If the reason is empty, the message uses only the
field's description.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError
from pydantic import ValidationInfo as Info
from pydantic.fields import FieldInfo

from components.errors import DeclarationError
from components.extended_json import encoded
from components.key import Key
from components.names import meant

IN_FILE: Final = "in_file"
"""A key of the validation context: the declaration is from service.toml, so code is an import path, no artifact."""

STORED: Final = "stored"
"""A key of the validation context: the declaration was checked in the process that made it."""

MOST: Final = 2**63 - 1
"""The largest whole number that MongoDB stores."""

PATH: Final = 'an import path "package.module:attribute"'

_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

D = TypeVar("D", bound="Declaration")
C = TypeVar("C", bound=type[Any])


class Declaration(BaseModel):
    """Base class: unknown fields are errors, values are not coerced, and a declaration cannot change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    def dump(self) -> dict[str, Any]:
        """Return the declaration as it is stored: plain JSON."""
        return self.model_dump()


def absent(value: Any) -> bool:
    """Return whether the dump leaves out a field that the first release did not have."""
    return value is None or value in ({}, [])


def usual(default: Any) -> Callable[[Any], bool]:
    """Return what makes the dump leave out a field at this default, which the first release did not have."""
    return lambda value: bool(value == default)


def whole(
    what: str, default: int | None, example: int, *, least: int = 1, most: int = MOST, also: str = "", new: bool = False
) -> Any:
    """Return the field of a whole number of something.

    also: the end of its description. new: the dump leaves out the default, since the first release had no such field.
    """
    bounds = f"at least {least:,}" if most == MOST else f"from {least:,} to {most:,}"
    return Field(
        default=default,
        ge=least,
        le=most,
        exclude_if=usual(default) if new else None,
        description=f"a whole number of {what}, {bounds}{also}",
        examples=[example],
    )


def keywords(what: str, example: Mapping[str, Any], *, new: bool = False) -> Any:
    """Return the field of a section of arguments; `new` as for `whole`."""
    excluded = absent if new else None
    return Field(default_factory=dict, exclude_if=excluded, description=f"a section of {what}", examples=[example])


def flag(whether: str, *, new: bool = False) -> Any:
    """Return the field of what is true or false, and by default false; `new` as for `whole`."""
    excluded = usual(default=False) if new else None
    description = f"true or false: whether {whether}"
    return Field(default=False, exclude_if=excluded, description=description, examples=[True])


def made(kind: type[D], owner: str, given: Mapping[str, Any], *, stored: bool = False, also: Iterable[str] = ()) -> D:
    """Return the declaration of `owner` ("trainer 'lenet'"); raises DeclarationError, which names the field.

    stored: another process has checked it already, so a time zone that this machine lacks is not an error.
    also: further arguments that the owner has.
    """
    try:
        return kind.model_validate(given, context={STORED: stored})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raised = detail.get("ctx", {}).get("error")
        cause = getattr(raised, "__cause__", None)
        refusal = type(cause) if isinstance(cause, DeclarationError) else DeclarationError
        raise refusal(f"{owner}: {_reason(kind, detail, str(raised or ''), also)}") from None


def _reason(kind: type[Declaration], detail: Any, reason: str, also: Iterable[str]) -> str:
    path = [str(part) for part in detail["loc"] if part != "[key]"]
    if not path:
        return reason or str(detail["msg"])
    if detail["type"] == "extra_forbidden":
        within = section_at(kind, path[:-1]) or kind
        names = [*(also if len(path) == 1 else ()), *within.model_fields]
        near = meant(path[-1], names) or f"; the arguments are {', '.join(names)}"
        at = f"{'.'.join(path[:-1])}: " if path[1:] else ""
        return f"{at}there is no argument {path[-1]!r}{near}"
    _, field = field_at(kind, path) or ("", kind.model_fields[path[0]])
    right = f"it must be {field.description}" + (f", for example {field.examples[0]!r}" if field.examples else "")
    wrong = "it is missing" if detail["type"] == "missing" else f"got {detail['input']!r}"
    return f"{'.'.join(path)}: {reason or right}; {wrong}"


def field_at(root: type[BaseModel], path: Sequence[str | int]) -> tuple[str, FieldInfo] | None:
    """Return the innermost field of a path that has a description, with its name; None if there is none."""
    for cut in range(len(path), 0, -1):
        section, name = section_at(root, path[: cut - 1]), str(path[cut - 1])
        field = None if section is None else section.model_fields.get(name)
        if field is not None and field.description:
            return name, field
    return None


def section_at(root: type[BaseModel], path: Iterable[str | int]) -> type[BaseModel] | None:
    """Return the declaration that a path leads to, None if it leads to none."""
    section, parts = root, iter(path)
    for part in parts:
        field = section.model_fields.get(str(part))
        inner = None if field is None else held(field)
        if inner is None:
            return None
        section, several = inner
        if several and next(parts, None) is None:
            return None
    return section


def held(field: FieldInfo) -> tuple[type[BaseModel], bool] | None:
    """Return the declaration that a field holds, and whether it may hold several, by their names or places."""
    for part in (field.annotation, *get_args(field.annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part, get_origin(field.annotation) in (dict, list)
    return None


def documented(declaration: type[Declaration]) -> Callable[[C], C]:
    """Decorate a class that passes `**options` to a declaration, so that help() shows them in its signature."""

    def with_signature(cls: C) -> C:
        own = inspect.signature(cls.__init__)
        kept = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD][1:]
        names = {parameter.name for parameter in kept}
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.get_default(call_default_factory=True),
                annotation=field.annotation,
            )
            for name, field in declaration.model_fields.items()
            if name not in names
        ]
        cls.__signature__ = own.replace(parameters=[*kept, *options])
        return cls

    return with_signature


def _seconds(value: Any) -> Any:
    """Return a duration in seconds; a number is in seconds already, a string has a unit ("100ms", "5s", "1d")."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise ValueError("a duration is a number of seconds or a string with its unit: ms, s, m, h or d")
        return float(match[1]) * _SECONDS[match[2]]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError("")
    return value


def _code(value: Any, info: Info) -> Any:
    """Check code: an import path, or the slot of an artifact, which service.toml cannot have."""
    if isinstance(value, str) or value is None:
        return value
    if (info.context or {}).get(IN_FILE) or not isinstance(value, Mapping) or "$artifact" not in value:
        raise ValueError("")
    return dict(value)


def _filter(value: Any, info: Info) -> Any:
    """Return a filter as JSON: dates, ids, bytes and infinity become Extended JSON."""
    if not isinstance(value, Mapping):
        raise ValueError("")  # noqa: TRY004 (pydantic turns only this one into a message)
    try:
        return encoded(value)
    except DeclarationError as error:
        if (info.context or {}).get(IN_FILE):  # daemon.config.filters reports it with its path
            return {}
        raise ValueError(str(error)) from error


def _key(value: Any, *, target: bool = False) -> Any:
    """Check a key, without the table."""
    if not isinstance(value, str | list | tuple | Mapping):
        raise ValueError("")  # noqa: TRY004 (pydantic turns only this one into a message)
    try:
        Key.parse(value, target=target)
    except DeclarationError as error:
        raise ValueError(str(error).removeprefix("key: ")) from error
    return list(value) if isinstance(value, tuple) else value


def _example_key(value: Any, info: Info) -> Any:
    """Check a trainer's or validation's key: the model's inputs and, last, the target, which may be one of them."""
    if isinstance(value, Mapping) and (info.context or {}).get(IN_FILE):
        raise ValueError("")
    return _key(value, target=True)


Duration = Annotated[float, BeforeValidator(_seconds)]
Code = Annotated[str | dict[str, Any], PlainValidator(_code)]
Filter = Annotated[dict[str, Any], PlainValidator(_filter)]
KeyShape = Annotated[str | list[str] | dict[str, str], PlainValidator(_key)]
ExampleKey = Annotated[str | list[str] | dict[str, str], PlainValidator(_example_key)]
