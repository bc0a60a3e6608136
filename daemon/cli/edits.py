"""Commands about a changed service.toml: plan, apply, reload. The running daemon judges its own file; they ask over
HTTP.
"""

from __future__ import annotations

import http.client
import json
import os
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich.text import Text

from components.errors import ConfigurationError, DeclarationError, PredictdError, Problem
from daemon import config as configuration
from daemon.cli.command import (
    CONFIGURATION,
    HELD,
    ConfigFile,
    Json,
    err,
    hint,
    located,
    place,
    say,
    show,
    signing_key,
    token,
    warn,
)
from daemon.config import Config
from daemon.logs.text import escaped
from daemon.plan.judge import judged_at_start
from daemon.store.service.state_directory import http_address

RELOAD_SECONDS: Final = 300.0
"""Workers that are restarted drain first, for `service.stop_timeout` at most; before that, rows are counted."""


def plan(config: ConfigFile = None, json: Json = False) -> None:
    """Show what service.toml would change, and what that costs. Exit 78 if it would be refused, 79 if held."""
    found = _planned(configuration.find(config, os.environ))
    show(found, lambda one: Text(_screen(one)), json=json)
    raise typer.Exit(_code(found))


def apply(
    config: ConfigFile = None,
    confirm: Annotated[
        str, typer.Option(metavar="PLAN", help="The plan that may destroy what it says.", show_default=False)
    ] = "",
) -> None:
    """Apply service.toml, also if it is held: `--confirm PLAN` names the plan. Exit 79 if it is held all the same."""
    _reload(config, f"?confirm={quote(confirm, safe='')}" if confirm else "")


def reload(config: ConfigFile = None) -> None:
    """Reload service.toml in the running daemon, and print what was done. Exit 78 if it is invalid, 79 if held."""
    _reload(config, "")


def beside(config: Config, path: Path) -> int:
    """Says what a file that is good would change in the daemon that runs beside it, if one does; the exit code."""
    if http_address(config.service.state_dir) is None:
        return 0
    try:
        found = _planned(path)
    except ConfigurationError:
        raise
    except PredictdError as error:
        hint(f"what it would change is not known: {error}")
        return 0
    for line in _screen(found).splitlines() if found["verdict"] != "unchanged" else ():
        say(line)
    return _code(found)


def _planned(path: Path) -> dict[str, Any]:
    """The plan of the file at `path`: the running daemon makes it if that is its file; else it is compared here with
    what was accepted last.
    """
    config = located(path, quietly=True)
    with err.status("counting what this would change"):
        if http_address(config.service.state_dir) is not None:
            status, answer = _post(config, "/-/plan")
            found: dict[str, Any] = json.loads(answer) if status == HTTPStatus.OK else {}
            if found.get("file") == str(path.absolute()):
                return found
        return _compared(path)


def _compared(path: Path) -> dict[str, Any]:
    candidate = configuration.load(path, os.environ, trusted=False)
    key = signing_key(candidate)
    with place(path) as here:
        registry = here.registry(key)
        try:
            plan, _ = judged_at_start(here.database, registry, candidate, registry.trust)
        except DeclarationError as error:  # MongoDB refuses a filter
            raise ConfigurationError([Problem("listeners", str(error))]) from None
        return plan.document()


def _reload(path: Path | None, query: str) -> None:
    config = located(path, quietly=True)  # the daemon reports what is wrong
    with err.status("the daemon reads service.toml"):
        status, answer = _post(config, f"/-/reload{query}")
    if status == HTTPStatus.CONFLICT:
        *lines, why = answer.splitlines()
        for line in lines:
            say(line)
        warn(why)
        raise typer.Exit(HELD)
    _refuse(status, answer)
    say(answer)


def _refuse(status: int, answer: str) -> None:
    if status == HTTPStatus.BAD_REQUEST:
        raise ConfigurationError([Problem("", line) for line in answer.splitlines()])
    if status != HTTPStatus.OK:
        raise PredictdError(f"the daemon answers {status}: {answer}")


def _post(config: Config, path: str) -> tuple[int, str]:
    """The status and the text of the daemon's answer. Raises PredictdError if none runs, or does not answer."""
    folder = config.service.state_dir
    address = http_address(folder)
    if address is None:
        raise PredictdError(f"no daemon runs in {folder}; `predictd run` reads service.toml when it starts")
    bearer = token(config)
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    host, _, port = address.rpartition(":")
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - listening everywhere includes this machine
    host = host.strip("[]")
    # Not by a URL: a proxy of the environment must not come between.
    connection = http.client.HTTPConnection(here.get(host, host), int(port), timeout=RELOAD_SECONDS)
    try:
        connection.request("POST", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        raise PredictdError(
            f"the daemon of {folder} does not answer on {address} ({getattr(error, 'strerror', None) or error}); "
            "does it still run?"
        ) from None
    finally:
        connection.close()


def _code(found: dict[str, Any]) -> int:
    return {"held": HELD, "refused": CONFIGURATION}.get(found["verdict"], 0)


def _screen(found: dict[str, Any]) -> str:
    """A plan as lines: one for each changed key, and the verdict."""
    lines = [escaped(each["text"]) for each in found["changes"]]
    match found["verdict"]:
        case "unchanged":
            lines.append("nothing has changed")
        case "held":
            lines += [f"it would be held: {escaped(each)}" for each in found["held"]]
            lines.append(f"`predictd apply --confirm {found['name']}` applies it all the same")
        case "refused":
            lines.append("it would be refused: restart the service to change that")
        case _:
            lines.append("it would be applied")
    return "\n".join(lines)
