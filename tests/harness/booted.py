"""A systemd that was really booted, with the unit of deploy/: in namespaces of its own, beside the machine's.

    with Booted(unit, program, files) as systemd:
        systemd.run("systemctl", "start", "predictd")

It needs root. The machine's files are read-only in it. What it writes to /etc, /opt, /run, /tmp and /var is in memory,
and is gone at its end.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import psutil

from harness.daemons import eventually

NOT_INSTALLED: Final = "systemd is not installed"

SYSTEMD: Final = "/lib/systemd/systemd"
CGROUPS: Final = Path("/sys/fs/cgroup")
TARGET: Final = "[Unit]\nDescription=nothing but what a test starts\nDefaultDependencies=no\nAllowIsolate=yes\n"
TARGETS: Final = ("nothing", "sysinit", "basic", "network-online", "multi-user", "shutdown", "umount")
# A systemd empties /tmp, sets the kernel's parameters and makes devices. So nothing of the machine can be written here,
# which is tried first, and no unit is known but those of the test.
BOOT: Final = r"""
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
cp -r "$FILES" /run/files
for place in / /dev /sys; do mount -o remount,bind,ro "$place"; done
mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys
for place in "$FILES" / /tmp /var /etc /dev /sys/kernel /proc/sys/kernel/sysrq; do
    if [ -w "$place" ]; then echo "$place can be written: nothing is booted"; exit 1; fi
done
for place in /tmp /var /opt /dev/shm; do mount -t tmpfs -o mode=755 tmpfs "$place"; done
chmod 1777 /tmp /dev/shm; mkdir -p /var/lib /var/log /var/cache /var/tmp /run/etc/upper /run/etc/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
mount -t tmpfs -o mode=755 tmpfs /etc/systemd/system
umount -R /sys/fs/cgroup
if [ "$HYBRID" = 1 ]; then
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd,xattr cgroup /sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
else
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
cp -r /run/files/. /
mount --make-rshared /  # among its own processes: a helper of systemd's mounts the credentials of a service
export container=predictd SYSTEMD_UNIT_PATH=/etc/systemd/system
exec "$SYSTEMD" --system --unit=nothing.target --log-target=console --show-status=0
"""


def absent() -> str | None:
    """Why no systemd can be booted here; None if one can."""
    if not Path(SYSTEMD).exists():
        return NOT_INSTALLED
    if os.geteuid() != 0:
        return "only root can boot a systemd in namespaces"
    tried = subprocess.run(
        ["unshare", "-pmCiuf", "--mount-proc", "sh", "-c", "mount --make-rprivate / && mount -o remount,bind,ro /"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if tried.returncode == 0 else f"no namespaces can be made here: {tried.stderr.strip()}"


class NotBooted(Exception):
    """The machine refuses a mount or a namespace that a booted systemd needs; the message says which."""


class Booted:
    """A systemd with these files, by their absolute names."""

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        self.log = folder / "systemd.log"
        root = folder / "root"
        targets = {f"/etc/systemd/system/{name}.target": TARGET for name in TARGETS}
        for name, text in {**targets, **files}.items():
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755 if text.startswith("#!") else 0o644)
        hybrid = (CGROUPS / "unified").is_dir()
        name = f"predictd-test-{os.getpid()}"
        self._groups = [CGROUPS / part / name for part in (("systemd", "unified") if hybrid else ("",))]
        for group in self._groups:
            group.mkdir(exist_ok=True)
        environ = {**os.environ, "FILES": str(root), "SYSTEMD": SYSTEMD, "HYBRID": str(int(hybrid))}
        enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in self._groups)
        inner = 'exec unshare -pmCiuf --mount-proc --kill-child sh -c "$BOOT"'
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", f"set -e; {enter}{inner}"],
                env={**environ, "BOOT": BOOT},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        try:
            eventually("systemd answers", lambda: self._process.poll() is not None or self._answers())
            if self._process.poll() is not None:
                raise NotBooted(self.log.read_text())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Its first process is killed, and with that all others of its namespace."""
        for child in psutil.Process(self._process.pid).children() if self._process.poll() is None else []:
            child.send_signal(signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for group in self._groups:
            eventually("its groups are empty", lambda group=group: not (group / "cgroup.procs").read_text())
            for folder in sorted(group.glob("**/"), key=lambda path: len(path.parts), reverse=True):
                eventually(f"{folder} goes", lambda folder=folder: _removed(folder))

    def _answers(self) -> bool:
        return self.run("systemctl", "is-system-running").stdout.strip() in {"running", "degraded"}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command beside it."""
        children = psutil.Process(self._process.pid).children()
        if not children:
            return subprocess.CompletedProcess(command, 1, "", "it has not started yet")
        enter = ["nsenter", f"--target={children[0].pid}", "--mount", "--pid", "--cgroup", "--root"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, check=False)

    def shows(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return not folder.exists()
    return True
