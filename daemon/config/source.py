"""The source of a configuration: finds the file, reads its TOML and applies the environment.

`${VAR}` in a string is replaced by the value of the variable or of systemd's credential VAR (`$${` writes a plain
`${`). Among the arguments of an object that is built, it is a secret: it is checked with its value, and declared as a
reference (`components.secrets`).

`PREDICTD_SECTION__KEY` overrides a key of the file: a double underscore for each dot, upper case, hyphens as
underscores: `PREDICTD_LISTENERS__DIGIT__MAX_BATCH=64`. Its value is read as TOML, or as a plain string if it is not
TOML or the key is a string. It may set a key of a table, model or listener in the file, but not add one.
"""

from __future__ import annotations

import os
import pwd
import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from components.errors import ConfigurationError, Problem
from components.secrets import VARIABLE, hide, reference, value_of
from daemon.config.bounded_read import NotAFileError, content
from daemon.config.document import Keys, Source, dotted
from daemon.config.problems import section_of, suggestion
from daemon.config.sections import Config

PREFIX = "PREDICTD_"
SYSTEM_FILE = Path("/etc/predictd/service.toml")
DEEPEST = 50
_NO_OVERRIDE = ("PREDICTD_TEST_",)
_PLACE = re.compile(r"^(.*) \(at (line \d+, column \d+|end of document)\)$", re.DOTALL)


def find(explicit: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the configuration file: `-c FILE`, else $PREDICTD_CONFIG, else ./service.toml, else
    /etc/predictd/service.toml.

    A file that is named explicitly may be missing; `load` reports that. Raises ConfigurationError if no file is named
    or found.
    """
    if explicit is not None:
        return explicit
    if named := environ.get("PREDICTD_CONFIG"):
        return Path(named)
    for candidate in (Path("service.toml"), SYSTEM_FILE):
        if candidate.is_file():
            return candidate
    message = (
        f"there is no configuration file: looked for ./service.toml in {Path.cwd()} and for {SYSTEM_FILE}; "
        "write one with `predictd init`, or name yours with -c FILE or PREDICTD_CONFIG"
    )
    raise ConfigurationError([Problem("service.toml", message)])


def keyring_folder(environ: Mapping[str, str]) -> Path | None:
    """Return the folder in which this user's daemons record their key files; None if the environment names none."""
    for variable, below in (("XDG_STATE_HOME", "predictd/keys"), ("HOME", ".local/state/predictd/keys")):
        root = Path(environ.get(variable, ""))
        if root.is_absolute():  # the specification of XDG_STATE_HOME requires that a relative path is ignored
            return root / below
    return None


def read(path: Path, environ: Mapping[str, str], *, trusted: bool = True) -> Source:
    """Return the values of file and environment; raises ConfigurationError if the file cannot be read as TOML.

    If it is not `trusted` and belongs to another user than root, no variable is put into it: the file may name a server
    of that user, who would get its value.
    """
    source = Source(path.absolute())
    if not trusted:
        source.stranger = _stranger(path)
    source.data = _parsed(path)
    if not trusted:  # it may have been replaced in between
        source.stranger = source.stranger or _stranger(path)
    source.data = _expanded(source.data, (), environ, source)
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable != "PREDICTD_CONFIG" and not variable.startswith(_NO_OVERRIDE):
            _override(variable, environ[variable], source)
    return source


def _is_argument(path: Keys) -> bool:
    """Whether the value at `path` is among the arguments that an object is built with: there variables are secrets."""
    match path:
        case ("models", _, "arguments", _, *_):
            return True
        case ("trainers", _, "loader" | "optimizer_arguments" | "scheduler_arguments", _, *_):
            return True
        case ("validations", _, "metrics", _, "arguments", _, *_):
            return True
        case _:
            return False


def with_references(source: Source, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the data with a reference in place of each secret, so that what is made of the data holds none."""
    secret = {path: text for path, text in source.written.items() if _is_argument(path) and names_variable(text)}
    for path, variable in source.overridden.items():
        if _is_argument(path) and _value_at(source.data, path) == environ[variable]:
            hide(environ[variable])
            secret[path] = f"${{{variable}}}"
    data = deepcopy(source.data) if secret else source.data
    for path, text in secret.items():
        _value_at(data, path[:-1])[path[-1]] = reference(text)
    return data


def names_variable(text: str) -> bool:
    """Return whether a text names a variable: `$${` does not."""
    return any(name for _, name in VARIABLE.findall(text))


def _value_at(data: Any, path: Keys) -> Any:
    for key in path:
        data = data[key]
    return data


def uri_variables(path: Path, environ: Mapping[str, str]) -> frozenset[str]:
    """Return the names of the variables in `mongo.uri`, which may hold a password, unless an object is built with
    them.
    """
    source = read(path, environ)
    arguments = " ".join(text for at, text in source.written.items() if _is_argument(at))
    in_uri, in_arguments = (
        {name for _, name in VARIABLE.findall(text) if name}
        for text in (source.written.get(("mongo", "uri"), ""), arguments)
    )
    return frozenset((in_uri - in_arguments) | {f"{PREFIX}MONGO__URI"})


def _stranger(path: Path) -> int | None:
    """Return the owner of the file, or of a link on its way, if it is neither this user nor root."""
    try:
        owners = {path.stat().st_uid, path.lstat().st_uid}
    except OSError:  # reading it says why
        return None
    return next(iter(owners - {0, os.geteuid()}), None)


def _parsed(path: Path) -> dict[str, Any]:
    """Return the file's TOML."""
    text = _text(path)
    message = f"its values are nested deeper than {DEEPEST} levels"
    try:
        data = tomllib.loads(text)
        if not _is_nested_deeper(data, DEEPEST):
            return data
    except tomllib.TOMLDecodeError as error:
        match = _PLACE.match(str(error))
        what, place = (match[1], match[2]) if match else (str(error), "somewhere")
        if place == "end of document":
            place = f"line {len(text.splitlines())}, the end of the file"
        message = f"{place}: this is not TOML: {what}; strings need quotes, keys stand once, sections are [like.this]"
    except ValueError as error:  # a number of five thousand digits
        message = f"a value in it cannot be read: {error}"
    except RecursionError:
        pass
    raise ConfigurationError([Problem(str(path), message)])


def _text(path: Path) -> str:
    """Return the file's text."""
    try:
        return content(path).decode("utf-8-sig")
    except FileNotFoundError:
        message = "there is no such file; write one with `predictd init`, or name yours with -c FILE or PREDICTD_CONFIG"
    except IsADirectoryError:
        message = f"this is a directory; name the file in it, for example {path / 'service.toml'}"
    except PermissionError:
        message = (
            "this user may not read it; change its owner or mode (a file with secrets: 0640, group of the service)"
        )
    except UnicodeDecodeError as error:
        message = f"byte {error.start + 1} is not UTF-8 ({error.reason}); save the file as UTF-8"
    except (NotAFileError, TimeoutError) as error:
        message = str(error)
    except OSError as error:
        message = f"it cannot be read: {error.strerror or error}"
    raise ConfigurationError([Problem(str(path), message)])


def _is_nested_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        values = [list(each.values()) if isinstance(each, dict) else each for each in level]
        level = [item for each in values if isinstance(each, list) for item in each]
    return bool(level)


def _expanded(value: Any, path: Keys, environ: Mapping[str, str], source: Source) -> Any:
    """Return `value` with each `${VAR}` of its strings replaced; problems go to `source`."""
    if isinstance(value, dict):
        return {key: _expanded(item, (*path, key), environ, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, (*path, place), environ, source) for place, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    source.written[path] = value

    def replaced(match: re.Match[str]) -> str:
        if match[1]:
            return "${"
        name = match[2]
        if name is None or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            source.report(path, "`${` begins a variable's name: write `${NAME}`, or `$${` for a plain `${`")
        elif source.stranger is not None:
            source.report(
                path,
                f"the file belongs to {user(source.stranger)}, so this command does not put the variable {name} of "
                f"your environment into it; run it as that user, or set {PREFIX}"
                + "__".join(_spelled(str(key)) for key in path),
            )
        elif (value := value_of(name, environ)) is None:
            source.report(
                path,
                f"the environment variable {name} is not set; set it, or write the value here in place of ${{{name}}}",
            )
        elif not value:
            source.report(path, f"the environment variable {name} is set but empty; give it a value")
        else:
            return value
        return ""

    source.expanded[path] = VARIABLE.sub(replaced, value)
    _hide_secrets(path, value, environ)
    return source.expanded[path]


def _hide_secrets(path: Keys, text: str, environ: Mapping[str, str]) -> None:
    for _, name in VARIABLE.findall(text) if _is_argument(path) else ():
        if name and (value := value_of(name, environ)):
            hide(value)


def user(number: int) -> str:
    """Return how a message names a user."""
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"the user with the number {number}"


class _NotASettingError(Exception):
    """An environment variable that sets no key; the message is the reason."""


def _override(variable: str, text: str, source: Source) -> None:
    """Set the key of one PREDICTD_SECTION__KEY variable in the data; a problem names the variable."""
    try:
        path, is_text = _resolved(variable, source.data)
        if not text:
            source.broken.add(path)
            raise _NotASettingError(f"is set but empty; unset it, or give {dotted(path)} a value")
        where = source.data
        for place, key in enumerate(path[:-1], 1):
            where = where.setdefault(key, {})
            if not isinstance(where, dict):
                raise _NotASettingError(
                    f"{dotted(path[:place])} is a value, not a section: nothing can be set inside it"
                )
    except _NotASettingError as reason:
        source.problems.append(Problem(variable, str(reason)))
        return
    where[path[-1]] = _value(text, is_text=is_text)
    source.forget(path)
    source.overridden[path] = variable


def _resolved(variable: str, data: dict[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Return the path of the key that the variable sets, and whether that key is a string."""
    words = variable.removeprefix(PREFIX).split("__")
    model: type[BaseModel] = Config
    path: tuple[str, ...] = ()
    while words:
        key = _matching(words.pop(0), list(model.model_fields), "section" if model is Config else "key", path)
        path = (*path, key)
        inner = section_of(model.model_fields[key])
        if inner is None:
            is_text = model.model_fields[key].annotation is str and not words
            return (*path, *_inside(words, path, data)), is_text
        model, named = inner
        if named and words:
            path = (*path, _matching(words.pop(0), list(_at(data, path)), key.removesuffix("s"), path))
    raise _NotASettingError(f"{dotted(path)} is a section, not a key; name the key as well: {variable}__KEY=value")


def _inside(words: list[str], path: tuple[str, ...], data: dict[str, Any]) -> tuple[str, ...]:
    """Return the path within a key's own value (`arguments`, `fields`): existing names, else the word in lower case."""
    inner: tuple[str, ...] = ()
    for word in words:
        known = _at(data, (*path, *inner))
        inner = (*inner, next((key for key in known if _spelled(key) == word.upper()), word.lower()))
    return inner


def _at(data: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return the section at `path`, or an empty one if there is none."""
    for key in path:
        deeper = data.get(key)
        if not isinstance(deeper, dict):
            return {}
        data = deeper
    return data


def _spelled(key: str) -> str:
    """Return the key's spelling in a variable's name."""
    return key.upper().replace("-", "_").replace(".", "_")


def _matching(word: str, known: list[str], noun: str, path: tuple[str, ...]) -> str:
    """Return the known key for a word of a variable's name."""
    found = [key for key in known if _spelled(key) == word.upper()]
    if len(found) == 1:
        return found[0]
    where = f" in {dotted(path)}" if path else ""
    if found:
        raise _NotASettingError(f"could mean {' or '.join(found)}{where}; set this one in the file instead")
    raise _NotASettingError(
        f"sets nothing: there is no {noun} `{word.lower()}`{where} ({suggestion(word, known, noun)}); "
        f"a variable that overrides the file is {PREFIX}SECTION__KEY, for example {PREFIX}HTTP__LISTEN"
    )


def _value(text: str, *, is_text: bool) -> Any:
    """Return the TOML value of `text`, or `text` if it is not TOML; for a string key, only a quoted string is TOML."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    if set(parsed) != {"value"} or (is_text and not isinstance(parsed["value"], str)):
        return text
    return parsed["value"]
