"""What `predictd check` does beyond reading service.toml: import and build what it names, and meet its MongoDB.

The models are built in a child process (`python -P -m daemon.check`), so that torch never enters this one, and so that
code which hangs, crashes or leaves takes only the child along. The child says which model it begins with; when it dies or
runs out of time, that model is named and a fresh child goes on with the rest.

Parent to child: one JSON object on stdin. Child to parent: one JSON list a line on stdout, `["begin", MODEL]`,
`["problem", PATH, MESSAGE]`, `["done", MODEL]`. What the user's own code prints goes to stderr.
"""

from __future__ import annotations

import faulthandler
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO, Any

from components.errors import ConfigurationError, DeclarationError, ImportRefused, MongoUnavailable, Problem
from components.importing import ImportPolicy
from components.model import ObjectModel
from daemon.config import Config
from daemon.logs import masked

__all__ = ["BUILD_SECONDS", "MINIMUM_MONGODB", "build", "check", "meet"]

BUILD_SECONDS = 120.0
"""How long importing and building one model may take; importing torch alone takes up to 10 s."""

MINIMUM_MONGODB = (6, 0)
_CODE_KEYS = ("object", "preprocess", "preprocess_batch", "postprocess")
_DEVICES = ("cuda", "mps", "cpu")
_RIGHTS = ("find", "insert", "update", "remove", "createIndex", "changeStream")
_GRACE = 15.0
_TIMEOUT = "Timeout ("
"""What faulthandler begins with when a model has run out of time."""
_CRASHED_AT = re.compile(r'File "([^"]+)", line (\d+)')


def check(config: Config, *, mongo: bool, seconds: float = BUILD_SECONDS) -> list[Problem]:
    """Return what is wrong with what a valid file names: its models always, its MongoDB where `mongo` says so.

    `seconds` bounds the import and building of one model.
    """
    return [*build(config, seconds=seconds), *(meet(config) if mongo else [])]


def build(config: Config, *, seconds: float = BUILD_SECONDS) -> list[Problem]:
    """Return what keeps a model from being imported and built, each with its key, after trying all of them."""
    declared = config.declarations()
    problems: list[Problem] = []
    left = list(config.models)
    while left:
        order = {
            "import_root": str(config.service.import_root),
            "allow_imports": config.security.allow_imports,
            "models": {name: declared["models"][name] for name in left},
            "listeners": declared["listeners"],
            "seconds": seconds,
        }
        done, found = _child(order, seconds)
        problems += found
        if not done:
            break
        left = [name for name in left if name not in done]
    return problems


def _child(order: dict[str, Any], seconds: float) -> tuple[list[str], list[Problem]]:
    """Run one child; return the models that need no further look, and the problems. No model: no child could be had."""
    # Files and not pipes: a process that the user's code leaves behind would hold a pipe open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "daemon.check"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        try:
            child.communicate(json.dumps(order).encode(), timeout=seconds * len(order["models"]) + _GRACE)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end(child)
        reports = _reports(output)
        complaint = _text(errors)
    done = [report[1] for report in reports if report[0] == "done"]
    problems = [Problem(report[1], report[2]) for report in reports if report[0] == "problem"]
    begun = [report[1] for report in reports if report[0] == "begin" and report[1] not in done]
    if begun:
        done.append(begun[-1])
        problems.append(
            Problem(
                f"models.{begun[-1]}", _death(child.returncode, seconds, complaint, late=late or _TIMEOUT in complaint)
            )
        )
    elif child.returncode != 0 and len(done) < len(order["models"]):
        last = complaint.strip().splitlines()[-1:] or ["no message"]
        problems.append(Problem("models", f"the process that builds the models could not run: {last[0]}"))
        done = []
    return done, problems


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child with whatever it started, and reap it."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _reports(output: IO[bytes]) -> list[list[str]]:
    """Return the child's complete lines."""
    whole = _text(output).rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _death(code: int, seconds: float, complaint: str, *, late: bool) -> str:
    """Return in words how a child ended, and where it was."""
    place = _CRASHED_AT.search(complaint)
    where = f", at {place[1]} line {place[2]}" if place else ""
    if late:
        return f"importing or building it took more than {seconds:g} s{where}; move slow work out of the import and the constructor"
    if code < 0:
        name = signal.Signals(-code).name
        hint = (
            "it may have run out of memory" if name == "SIGKILL" else "a library that it uses may not fit this machine"
        )
        return f"importing or building it killed the process with {name}{where}; {hint}: try it by itself in python"
    return f"importing or building it ended the process with exit code {code}{where}; remove what calls exit() there"


# What the child does.


def main() -> None:
    """Build the models that stdin names and report on stdout."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as reports:
        os.dup2(2, 1)  # what the user's code prints must not be taken for a report
        order = json.load(sys.stdin)
        faulthandler.enable()
        sys.path.insert(0, order["import_root"])
        policy = ImportPolicy(tuple(order["allow_imports"]))
        for name, declared in order["models"].items():
            _report(reports, "begin", name)
            # Says where it hangs, and needs neither the interpreter's lock nor the parent, which may be gone.
            faulthandler.dump_traceback_later(order["seconds"], exit=True)
            listeners = {key: one for key, one in order["listeners"].items() if one["model"] == name}
            for problem in _model_problems(name, declared, listeners, policy):
                _report(reports, "problem", problem.path, problem.message)
            _report(reports, "done", name)


def _report(reports: IO[str], *report: str) -> None:
    reports.write(json.dumps(report) + "\n")
    reports.flush()


def _model_problems(
    name: str, declared: Mapping[str, Any], listeners: Mapping[str, Any], policy: ImportPolicy
) -> Iterator[Problem]:
    """Yield what is wrong with one model and with the keys of its listeners."""
    code: dict[str, Any] = {}
    for key in _CODE_KEYS:
        if declared[key] is None:
            continue
        path = f"models.{name}.{key}"
        try:
            code[key] = policy.resolve(declared[key])
        except ImportRefused as error:
            yield Problem(path, str(error))
            continue
        except (Exception, SystemExit) as error:  # noqa: BLE001 - importing runs the user's code, which may raise anything
            yield Problem(path, f'importing "{declared[key]}" failed: {_said(error)}')
            continue
        if key != "object" and not callable(code[key]):
            yield Problem(
                path, f'"{declared[key]}" is a {type(code[key]).__name__}; name a function or a callable object'
            )
    if "object" in code:
        yield from _object_problems(name, declared, code)
    yield from _key_problems(declared, listeners, code)


def _object_problems(name: str, declared: Mapping[str, Any], code: dict[str, Any]) -> Iterator[Problem]:
    """Yield what keeps a model from being built; `code["object"]` is the built object afterwards."""
    base = f"models.{name}"
    source, arguments = code["object"], declared["arguments"]
    if isinstance(source, type) or (inspect.isroutine(source) and (arguments or declared["type"] == "torch")):
        mismatch = _mismatch(source, (), arguments)
        if mismatch:
            yield Problem(
                f"{base}.arguments", f'"{declared["object"]}" cannot be built with these arguments: {mismatch}'
            )
            return
        try:
            code["object"] = source(**arguments)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's constructor may raise anything
            yield Problem(f"{base}.object", f'building "{declared["object"]}" failed: {_said(error)}')
            return
    elif arguments:
        yield Problem(
            f"{base}.arguments",
            f'"{declared["object"]}" is built already and takes none; remove them, or name its class',
        )
        return
    steps = {key: code[key] for key in _CODE_KEYS if callable(code.get(key)) or key == "object"}
    try:
        if declared["type"] == "object":
            ObjectModel(name, batched=declared["batched"], **steps)
        else:
            _torch_model(name, declared, steps)
    except DeclarationError as error:
        message = str(error).removeprefix(f"model {name!r}: ")
        key, colon, rest = message.partition(": ")
        named = bool(colon) and key in declared
        if "none of the devices" in message:
            key, rest, named = "device", message, True
        yield Problem(f"{base}.{key}" if named else base, rest if named else message)
    except Exception as error:  # noqa: BLE001 - moving a module or turning its dtype runs the user's module, which may raise anything
        yield Problem(base, f"the model cannot be set up: {_said(error)}")


def _torch_model(name: str, declared: Mapping[str, Any], steps: Mapping[str, Any]) -> None:
    """Build the TorchModel and choose its device."""
    from components.torch import TorchModel

    device = declared["device"]
    model = TorchModel(
        name,
        **steps,
        preferred_devices=_DEVICES if device == "auto" else (device,),
        forward_method=declared["forward_method"],
        dtype=declared["dtype"],
    )
    str(model.device)


def _key_problems(
    declared: Mapping[str, Any], listeners: Mapping[str, Any], code: Mapping[str, Any]
) -> Iterator[Problem]:
    """Yield the listeners whose key does not give what the model's first step takes."""
    steps = ["preprocess", "preprocess_batch"]
    if declared["type"] == "object" and declared["preprocess"] is None:
        steps = [] if declared["batched"] else ["object"]
    for listener, one in listeners.items():
        key = one["key"]
        args = () if isinstance(key, dict) else (key,) if isinstance(key, str) else tuple(key)
        kwargs = {argument: field for field, argument in key.items()} if isinstance(key, dict) else {}
        for step in steps:
            mismatch = _mismatch(code[step], args, kwargs) if callable(code.get(step)) else ""
            if mismatch:
                yield Problem(
                    f"listeners.{listener}.key", f'"{declared[step]}" cannot be called with this key: {mismatch}'
                )


def _mismatch(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return why `function` cannot be called so, empty where it can or where nobody can tell."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return f"{error}; it takes {signature}"
    return ""


def _said(error: BaseException) -> str:
    """Return an exception in one line, with the place in the user's code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({trace.tb_frame.f_code.co_filename} line {trace.tb_lineno})" if trace is not None else ""
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f": {lines[0]}" if lines else "") + place


# MongoDB.


def meet(config: Config) -> list[Problem]:
    """Return what about MongoDB would keep `predictd run` from working: takes seconds at most, changes nothing."""
    if config.mongo.embedded:
        return list(_embedded_problems())
    return list(_server_problems(config.mongo.uri, config.mongo.database))


def _embedded_problems() -> Iterator[Problem]:
    from daemon.store.embedded import find_mongod

    try:
        mongod = find_mongod()
        shown = subprocess.run([mongod, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except MongoUnavailable as error:
        yield Problem("mongo.uri", str(error))
        return
    except (OSError, subprocess.SubprocessError) as error:
        yield Problem(
            "mongo.uri", f"mongod does not start here ({error}); install another, or name a replica set of your own"
        )
        return
    version = re.search(r"v(\d+)\.(\d+)", shown)
    if version is not None and (int(version[1]), int(version[2])) < MINIMUM_MONGODB:
        yield Problem(
            "mongo.uri",
            f"{mongod} is MongoDB {version[1]}.{version[2]}; predictd needs 6.0 or later: put a newer mongod first on PATH",
        )


def _server_problems(uri: str, database: str) -> Iterator[Problem]:
    from daemon.store import connection

    try:
        with warnings.catch_warnings(record=True) as ignored:
            warnings.simplefilter("always")
            client = connection.open_client(uri)
    except ConfigurationError as error:
        yield from error.problems
        return
    for warning in ignored:
        yield Problem(
            "mongo.uri", f"the driver would ignore an option: {masked(str(warning.message))}; correct or remove it"
        )
    with client:
        try:
            connection.check(client)
        except MongoUnavailable as error:
            yield Problem("mongo.uri", f"{error}{_remedy(str(error))}")
            return
        try:
            with connection.reaching():
                version = client.server_info()["versionArray"]
                client[database].list_collection_names()
                status = client.admin.command("connectionStatus", showPrivileges=True)["authInfo"]
        except MongoUnavailable as error:
            yield Problem("mongo.uri", f"{error}{_remedy(str(error))}")
            return
    if tuple(version[:2]) < MINIMUM_MONGODB:
        yield Problem(
            "mongo.uri", f"the server is MongoDB {version[0]}.{version[1]}; predictd needs 6.0 or later: upgrade it"
        )
    yield from _right_problems(status, database)


def _remedy(message: str) -> str:
    """Return what to do about a MongoDB that did not answer, where the message does not say it yet."""
    if "no primary answers" in message or "no answer within" in message:
        return "; is it running, is mongo.uri right (host, port, replicaSet), does a firewall stand between?"
    if "(code 13)" in message:
        return "; give mongo.uri the credentials of such a user"
    return ""


def _right_problems(status: Mapping[str, Any], database: str) -> Iterator[Problem]:
    """Yield the rights on the database that the user lacks; without users (no access control) everybody may everything."""
    users = [user["user"] for user in status["authenticatedUsers"]]
    if not users:
        return
    held: set[str] = set()
    for privilege in status["authenticatedUserPrivileges"]:
        resource = privilege["resource"]
        if resource.get("anyResource") or (resource.get("db") in {"", database} and resource.get("collection") == ""):
            held.update(privilege["actions"])
    missing = [right for right in _RIGHTS if right not in held]
    if missing:
        yield Problem(
            "mongo.uri",
            f"user `{users[0]}` lacks rights on database `{database}` ({', '.join(missing)}); grant it readWrite: "
            f'db.grantRolesToUser("{users[0]}", [{{ role: "readWrite", db: "{database}" }}])',
        )


if __name__ == "__main__":
    main()
