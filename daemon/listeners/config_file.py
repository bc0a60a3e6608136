"""Finds changes of service.toml: saved in place, replaced by an editor, or swapped by a link.

An editor writes a new file and renames it. Kubernetes swaps a link `..data` beside the file and never changes its name.
A link's target may be edited in another directory. So every directory that contains a link of the chain, or the file
itself, is watched. Events are not filtered by name: a change is a content that differs from the last one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import structlog
from watchfiles import awatch

from daemon.config.bounded_read import SECONDS, NotAFileError, content, within

log = structlog.get_logger(__name__)

_DEBOUNCE_MS = 1000
_STEP_MS = 250  # how often it looks for events, and how long they must be quiet
_LINKS_AT_MOST = 40  # the kernel's limit
_GONE_SECONDS = 2.0


async def changes(path: Path) -> AsyncIterator[None]:
    """Yields after each change of the file's content, after a moment without writes; runs until it is cancelled.

    A removed file counts as changed too; its reader reports the error.
    """
    seen = await asyncio.to_thread(_content, path)
    while True:
        watched = await asyncio.to_thread(_directories, path)
        if not watched:
            await asyncio.sleep(_GONE_SECONDS)
            continue
        try:
            # A watch is set before the file is read again, so no change falls between the two.
            async for _ in _events(watched):
                content = await asyncio.to_thread(_content, path)
                if content != seen:
                    seen = content
                    yield
                if await asyncio.to_thread(_directories, path) != watched:
                    break
        except OSError as error:  # a directory was removed before it could be watched
            log.debug("directory of the configuration is gone", error=str(error))
            await asyncio.sleep(_GONE_SECONDS)


async def _events(watched: frozenset[Path]) -> AsyncIterator[None]:
    """Yields once as soon as the watch is set, then once for each burst of events."""
    stop = asyncio.Event()
    events = awatch(
        *watched,
        watch_filter=None,
        debounce=_DEBOUNCE_MS,
        step=_STEP_MS,
        rust_timeout=60_000,
        recursive=False,
        stop_event=stop,
    )
    # A generator runs only if it is awaited. Awaiting it sets the watch, which then lasts while the item is handled.
    pending = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    try:
        while True:
            yield
            await pending
            pending = asyncio.ensure_future(anext(events))
    finally:
        stop.set()
        pending.cancel()
        await asyncio.wait([pending])


def directories(path: Path) -> frozenset[Path]:
    """Every existing directory that contains a link on the way to the file, or the file itself."""
    found: set[Path] = set()
    current, rest = Path("/"), list(path.absolute().parts[1:])
    links = 0
    while rest:
        part = rest.pop(0)
        if part == "..":
            current = current.parent
            continue
        here = current / part
        if here.is_symlink() and links < _LINKS_AT_MOST:
            links += 1
            found.add(current)
            target = here.readlink()
            if target.is_absolute():
                current, rest = Path("/"), [*target.parts[1:], *rest]
            else:
                rest = [*target.parts, *rest]
            continue
        if not rest:
            found.add(current)
        current = here
    return frozenset(directory for directory in found if directory.is_dir())


def _content(path: Path) -> bytes | None:
    try:
        return content(path)
    except (OSError, NotAFileError):
        return None


def _directories(path: Path) -> frozenset[Path]:
    """The same as `directories`; none if a file system does not answer."""
    try:
        return within(SECONDS, lambda: directories(path))
    except OSError:
        return frozenset()
