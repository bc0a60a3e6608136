"""The program that decodes images for a process that does not do it itself: `python -P -m components.image_decoder`.

Its arguments are formats of `images.FORMATS`. Standard input brings images, each after its length (8 bytes,
big-endian); standard output takes for each the length of a head, the head (JSON), and pixels:

    {"mode", "size", "format", "info", "palette", "bytes": how many pixels follow}      or      {"error": why not}

It has neither the key nor the address of a database, and cannot get them. Once it has imported all that it needs, it
gives up every system call but those that compute, and read and write what is open: no file, no socket, no signal, no
other process.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import struct
import sys
import warnings
from io import BytesIO
from typing import Any, BinaryIO, Final

from PIL import Image

from components import images
from components.errors import DecodeError

LENGTH: Final = struct.Struct(">Q")
READY: Final = b"+"
"""Comes first, once the program is confined."""
MEMORY: Final = 3 * 1024**3
"""Bytes of address space: an image of 64 million pixels takes 256 MB, its decoder as much again."""

_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUALS, _HAS, _RETURN = 0x20, 0x15, 0x45, 0x06
_THREAD = 0x00010000
_CLONE3 = 435

_MACHINES: Final = {
    "x86_64": (
        0xC000003E,
        56,
        "0 1 3 5 8 9 10 11 12 13 14 15 19 20 25 28 35 39 60 231 186 202 228 230 131 24 219 318 324 334 273 204",
    ),
    "aarch64": (
        0xC00000B7,
        220,
        (
            "63 64 57 80 62 222 226 215 214 134 135 139 65 66 216 233 101 172 93 94 178 98 113 115 132 124 128 278 283 "
            "293 99 123"
        ),
    ),
}
"""Of each machine its number among architectures, `clone`, and what is allowed: read, write, close, fstat, lseek, mmap,
mprotect, munmap, brk, rt_sigaction, rt_sigprocmask, rt_sigreturn, readv, writev, mremap, madvise, nanosleep, getpid,
exit, exit_group, gettid, futex, clock_gettime, clock_nanosleep, sigaltstack, sched_yield, restart_syscall, getrandom,
membarrier, rseq, set_robust_list, sched_getaffinity. Decoders of WebP and AVIF use threads, so `clone` may make a
thread, and nothing else.
"""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def confine() -> None:
    """Gives up all system calls but a few. Raises OSError if this machine's kernel cannot do that."""
    if platform.machine() not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no filter of system calls is known for {platform.machine()}")
    machine, clone, allowed = _MACHINES[platform.machine()]
    program = [(_LOAD, 0, 0, 4), (_EQUALS, 1, 0, machine), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    for number in map(int, allowed.split()):
        program += [(_EQUALS, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    program += [(_EQUALS, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]  # libc then uses `clone`
    program += [(_EQUALS, 0, 3, clone), (_LOAD, 0, 0, 16), (_HAS, 0, 1, _THREAD), (_RETURN, 0, 0, _ALLOW)]
    program += [(_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    code = b"".join(struct.pack("HBBI", *each) for each in program)
    library = ctypes.CDLL(None, use_errno=True)
    holder = _Program(len(program), code)
    if library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or library.prctl(_SECCOMP, _FILTER, ctypes.byref(holder), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"the system calls cannot be filtered: {os.strerror(number)}")


def main() -> None:
    """Prepares, confines itself, and decodes until its input ends."""
    images.narrow(sys.argv[1:])
    warnings.simplefilter("ignore")
    for name, most in (("AS", MEMORY), ("CORE", 0), ("FSIZE", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    _prepare()
    confine()
    requests, answers = os.fdopen(0, "rb"), os.fdopen(1, "wb")
    answers.write(READY)
    answers.flush()
    while len(length := requests.read(LENGTH.size)) == LENGTH.size:
        _answer(requests.read(LENGTH.unpack(length)[0]), answers)


def _prepare() -> None:
    """Decodes an image of each format, so that nothing needs to be imported later."""
    for name in images.accepted():
        buffer = BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, format=name)
        _described(images.decode(buffer.getvalue()))
    for broken in (b"", b"\x89PNG\r\n\x1a\n", b"II*\0" + bytes(64)):
        try:
            images.decode(broken)
        except DecodeError as error:
            str(error)


def _answer(data: bytes, answers: BinaryIO) -> None:
    pixels = b""
    try:
        head, pixels = _described(images.decode(data))
    except DecodeError as error:
        head = {"error": str(error)}
    except MemoryError:
        head = {"error": f"the image of {len(data):,} bytes needs more memory than a decoder may use"}
    text = json.dumps(head).encode()
    answers.write(LENGTH.pack(len(text)) + text)
    answers.write(pixels)
    answers.flush()


def _described(image: Image.Image) -> tuple[dict[str, Any], bytes]:
    info = dict(image.info)
    try:
        if exif := image.getexif():
            info["exif"] = exif.tobytes()
    except Exception:  # noqa: BLE001 - what a camera wrote may be anything
        info.pop("exif", None)
    pixels = image.tobytes()
    palette = image.palette
    return {
        "mode": image.mode,
        "size": image.size,
        "format": image.format,
        "info": {str(name): value for name, each in info.items() if (value := _plain(each)) is not None},
        "palette": None if palette is None else [palette.mode, bytes(palette.palette).hex()],
        "bytes": len(pixels),
    }, pixels


def _plain(value: Any) -> Any:
    """A value of `Image.info` as JSON, which `images_apart` reads; None if it is left out."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, tuple):
        return {"tuple": [_plain(each) for each in value]}
    try:
        return value if isinstance(value, (bool, int, float)) else float(value)
    except (TypeError, ValueError, ArithmeticError):
        return None


if __name__ == "__main__":
    main()
