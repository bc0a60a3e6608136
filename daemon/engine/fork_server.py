"""The nursery: a process that imports the modules of workers and jobs once, and forks these on request.

    python -P -m daemon.engine.fork_server SOCKET PADDING

`SOCKET` is the descriptor of a SOCK_SEQPACKET socket; `daemon.engine.nursery` has its other side. The nursery ends when
the socket does; it ignores signals. `PADDING` reserves room for the command lines of its children, which overwrite its
own.

| message | holds |
|---|---|
| first, from the supervisor | `preload`: names of modules; `later`: further ones, imported while there is no request |
| first, to the supervisor | `ready`, and `complete` with the number of threads; or the process ends |
| a request | `id`, `module`, `name`, `mark`, `pass`, `environ`, `parent`, and five descriptors: `ChildEnds` |
| its answer | `id`, `pid`, and a pidfd: sent by the child itself, once it is the supervisor's |
| another answer | `id`, `stale`: a file that has changed since it was imported; or `id`, `error` |

What is imported here must do nothing: no thread, no client, no operation of torch, no CUDA. A thread of OpenBLAS is the
exception; it ends at a fork by OpenBLAS's own handler.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from components import random_numbers
from daemon.engine.child import CHANNEL
from daemon.engine.family import MARK

MESSAGE_BYTES: Final = 1024 * 1024
PADDING: Final = "." * 200
_ENDS: Final = 5
_ADOPTION_SECONDS: Final = 5.0
_PR_SET_NAME: Final = 15
_ARG_START, _ARG_END, _ENV_START, _ENV_END = 45, 46, 47, 48  # fields of /proc/self/stat, counted from the state

Stamp = tuple[int, int, int]


def main() -> None:
    """Imports, then forks until the socket ends."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Python 3.12 and later count OpenBLAS's thread, which does not matter.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    order = json.loads(control.recv(MESSAGE_BYTES))
    stamps = _imported(order["preload"])
    _send(control, {"ready": True})
    # No request waits for these; a child imports them itself if it needs them.
    while order["later"]:
        if not select.select([control], [], [], 0)[0]:
            stamps = _imported([order["later"].pop(0)])
        elif not _serve(control, stamps):
            return
    _send(control, {"complete": sum(1 for _ in Path("/proc/self/task").iterdir())})
    while _serve(control, stamps):
        pass


def _imported(names: Sequence[str]) -> dict[str, Stamp | None]:
    """Imports these modules. Returns the stamps of all files imported so far."""
    gc.disable()  # collections find nothing in what is imported, and take a sixth of the time
    for name in names:
        importlib.import_module(name)
    if threading.active_count() > 1:
        raise SystemExit(f"an import has started threads, which do not survive a fork: {threading.enumerate()}")
    gc.collect()
    gc.freeze()  # children share these pages, and their collections do not walk through them
    gc.enable()
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return {file: _stamp(file) for file in files if isinstance(file, str)}


def _serve(control: socket.socket, stamps: Mapping[str, Stamp | None]) -> bool:
    """Answers one request. False if there will be no other."""
    data, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, _ENDS)
    if not data:
        return False
    request = json.loads(data)
    changed = next((file for file, stamp in stamps.items() if _stamp(file) != stamp), None)
    if changed is not None:
        _send(control, {"id": request["id"], "stale": changed})
        return False
    middle = os.fork()
    if middle == 0:
        # The child loses its parent at once, so it becomes the supervisor's child.
        if os.fork() == 0:
            _be_child(control, request, descriptors)
        os._exit(0)
    os.waitpid(middle, 0)
    for descriptor in descriptors:
        os.close(descriptor)
    return True


def _send(control: socket.socket, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    with suppress(OSError):  # the supervisor has gone
        socket.send_fds(control, [json.dumps(message).encode()], descriptors)


def _stamp(file: str) -> Stamp | None:
    try:
        status = os.stat(file)  # noqa: PTH116  # thousands of files, before each fork
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


# ---- the child ------------------------------------------------------------------------------------------------------


def _be_child(control: socket.socket, request: Mapping[str, Any], descriptors: Sequence[int]) -> NoReturn:
    try:
        _settle(control, request, descriptors)
        pidfd = os.pidfd_open(os.getpid())
        _send(control, {"id": request["id"], "pid": os.getpid()}, [pidfd])
        os.close(pidfd)
        control.close()
    except BaseException as error:  # noqa: BLE001  # the supervisor must know
        _send(control, {"id": request["id"], "error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    _run(request["module"])


def _settle(control: socket.socket, request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """Gives this process the state of one that was started by exec."""
    deadline = time.monotonic() + _ADOPTION_SECONDS
    while os.getppid() != request["parent"]:
        if time.monotonic() > deadline:
            raise RuntimeError("the supervisor did not become its parent")
        time.sleep(0.0005)
    os.setsid()
    stdin, stdout, stderr, reports, log = descriptors
    for number, descriptor in enumerate((stdin, stdout, stderr)):
        os.dup2(descriptor, number)
    for path in list(Path("/proc/self/fd").iterdir()):
        if int(path.name) not in (0, 1, 2, reports, log, control.fileno()):
            with suppress(OSError):
                os.close(int(path.name))
    for signal_number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(signal_number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.environ[CHANNEL] = f"{reports},{log},{request['pass']}"
    time.tzset()
    _write_mark(request["mark"])
    _write_name(request["module"], request["name"])
    random_numbers.seed()


def _write_mark(mark: str) -> None:
    """Writes the mark into the memory that the kernel shows as this process's environment, which a fork does not
    renew.
    """
    start, end = _region(_ENV_START, _ENV_END)
    found = ctypes.string_at(start, end - start).find(f"{MARK}=".encode())
    if found < 0:
        raise RuntimeError(f"the nursery was started without {MARK}")
    ctypes.memmove(start + found + len(MARK) + 1, mark.encode(), len(mark))


def _write_name(module: str, name: str) -> None:
    """Writes its command line and name, which ps shows."""
    start, end = _region(_ARG_START, _ARG_END)
    line = b"\0".join(word.encode() for word in (sys.executable, "-P", "-m", module, name)) + b"\0"
    ctypes.memmove(start, line[: end - start - 1].ljust(end - start, b"\0"), end - start)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, f"{module.rpartition('.')[2]} {name}".encode(), 0, 0, 0)
    sys.argv[:] = [module, name]


def _region(first: int, last: int) -> tuple[int, int]:
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[first]), int(fields[last])


def _run(module: str) -> NoReturn:
    code = 0
    try:
        spec = importlib.util.find_spec(module)
        package = spec is not None and spec.submodule_search_locations is not None
        program = importlib.import_module(f"{module}.__main__" if package else module)
        sys.modules["__main__"] = program  # as after an exec: multiprocessing in user code reads it
        program.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  # as at the end of any program
        traceback.print_exc()
        code = 1
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
