"""Has images decoded by a process of their own, which has no key, no address of a database, no file and no network
(`components.image_decoder`): what a hostile picture makes of a decoder ends there.

Each thread that decodes has its own such process, from its first image on. One that ends or does not answer is
replaced. An image on which two end, or one hangs, raises DecodeError, as one that is broken does.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from PIL import Image

from components import images
from components.errors import DecodeError, PredictdError
from components.image_decoder import LENGTH, READY

DECODE_SECONDS: Final = 10.0
START_SECONDS: Final = 60.0
PIPE_BYTES: Final = 1 << 20
_HEAD: Final = 64 * 1024 * 1024
_KEPT: Final = ("HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "_PREDICTD_FAMILY")
"""The variables that the decoder gets: where Python finds modules, and the mark by which it ends with its worker."""

_own = threading.local()


class _Ended(Exception):
    """The decoder has ended, or answers with what is none."""


class _Hangs(Exception):
    """The decoder has not answered in time."""


class _Decoder:
    """One process."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "components.image_decoder", *images.accepted()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: os.environ[name] for name in _KEPT if name in os.environ},
            cwd="/",
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        for pipe in (self._to, self._from):
            with suppress(OSError):  # without the larger pipe it takes longer
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.close = weakref.finalize(self, _end, self._process, os.getpid())
        try:
            ready = self._read(len(READY), time.monotonic() + START_SECONDS) == READY
        except (_Ended, _Hangs):
            ready = False
        if not ready:
            self.close()
            raise PredictdError(
                'security.decode = "apart": the process that decodes images does not start or cannot be confined '
                "(its reason is in the log); mend that, or leave the key out"
            )

    def decode(self, data: bytes) -> Image.Image:
        """Raises DecodeError, _Ended and _Hangs."""
        end = time.monotonic() + DECODE_SECONDS
        self._write(LENGTH.pack(len(data)) + data, end)
        length = LENGTH.unpack(self._read(LENGTH.size, end))[0]
        if length > _HEAD:
            raise _Ended
        try:
            head = json.loads(self._read(length, end))
            if "error" in head:
                raise DecodeError(str(head["error"]))
            width, height = map(int, head["size"])
            size = int(head["bytes"])
            if not (0 < width * height <= images.MAX_PIXELS and 0 <= size <= 8 * width * height):
                raise _Ended
            return _image(head, (width, height), self._read(size, end))
        except (ValueError, TypeError, LookupError, RecursionError):
            raise _Ended from None

    def _write(self, data: bytes, end: float) -> None:
        rest = memoryview(data)
        while rest:
            _await(self._to, select.POLLOUT, end)
            try:
                rest = rest[os.write(self._to, rest) :]
            except OSError:
                raise _Ended from None

    def _read(self, size: int, end: float) -> bytearray:
        found = bytearray(size)
        rest = memoryview(found)
        while rest:
            _await(self._from, select.POLLIN, end)
            count = os.readv(self._from, [rest])
            if not count:
                raise _Ended
            rest = rest[count:]
        return found


def _await(descriptor: int, event: int, end: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
        raise _Hangs


def use(formats: Iterable[str], where: str) -> None:
    """From now on, decode only these formats in this process, and `where` is "here" or "apart". Raises PredictdError if
    the decoder cannot be confined on this machine.
    """
    images.narrow(formats, decode if where == "apart" else None)
    if where == "apart":
        _decoder()


def _decoder() -> _Decoder:
    """This thread's decoder. Raises PredictdError if it cannot be confined here."""
    decoder: _Decoder | None = getattr(_own, "decoder", None)
    if decoder is None or decoder.owner != os.getpid():  # a forked process has its own
        _own.decoder = decoder = _Decoder()
    return decoder


def decode(data: bytes) -> Image.Image:
    """What `images.decode` returns for these bytes, decoded elsewhere; the image is a plain `Image`."""
    for attempt in (1, 2):
        decoder = _decoder()
        try:
            return decoder.decode(data)
        except _Hangs:
            _replace()
            raise DecodeError(f"the image of {len(data):,} bytes was not decoded in {DECODE_SECONDS:g} s") from None
        except _Ended:
            _replace()
            if attempt == 2:  # the first may have been ended by somebody else
                raise DecodeError(f"the image of {len(data):,} bytes ends the process that decodes it") from None
    raise AssertionError


def _replace() -> None:
    _own.decoder.close()
    _own.decoder = None


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """In a forked process only its copies of the pipes are closed."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(OSError):
            pipe.close()
    if os.getpid() == owner:
        process.kill()
        process.wait()


def _image(head: Mapping[str, Any], size: tuple[int, int], pixels: bytearray) -> Image.Image:
    """Raises ValueError and the like if the head or the pixels are none."""
    image = Image.frombytes(str(head["mode"]), size, pixels)
    if head["palette"] is not None:
        mode, colours = head["palette"]
        image.putpalette(bytes.fromhex(colours), str(mode))
    image.format = str(head["format"])
    image.info = {str(name): _value(value) for name, value in head["info"].items()}
    return image


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        if "bytes" in value:
            return bytes.fromhex(value["bytes"])
        return tuple(_value(each) for each in value["tuple"])
    return value if not isinstance(value, float) or math.isfinite(value) else 0.0
