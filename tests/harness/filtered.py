"""Runs a command under the filter of system calls of a unit file: `python -m harness.filtered UNIT COMMAND...`.

It needs libseccomp, which systemd uses too, and `systemd-analyze`, which knows the sets (`@system-service`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def allowed(unit: str) -> set[str]:
    """The system calls that a unit lets through."""
    listed = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    plain = re.sub(r"\x1b\[[0-9;]*m", "", listed)
    sets = {
        block.split()[0]: [line.strip() for line in block.splitlines()[1:] if line.strip() and "#" not in line]
        for block in re.split(r"\n(?=@)", plain)
        if block.startswith("@")
    }

    def calls(name: str) -> set[str]:
        return set().union(*map(calls, sets[name])) if name.startswith("@") else {name}

    found: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.+)$", unit, re.MULTILINE):
        named = set().union(*map(calls, line.removeprefix("~").split()))
        found = found - named if line.startswith("~") else found | named
    return found | calls("@default")


def main() -> None:
    """Sets the filter and becomes the command."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(_ERRNO | errno.EPERM))
    for name in allowed(Path(sys.argv[1]).read_text(encoding="utf-8")):
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            assert library.seccomp_rule_add(context, ctypes.c_uint32(_ALLOW), number, 0) == 0, name
    assert library.seccomp_load(context) == 0
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
