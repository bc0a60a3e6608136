"""Images that are decoded by a process of their own: the same images, and what hostile bytes and code reach there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image, ImageCms

from components import images, images_apart
from components.errors import DecodeError

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")


def noise(mode: str, size: tuple[int, int] = (37, 23)) -> Image.Image:
    raw = Image.effect_noise(size, 60)
    if mode in {"1", "L"}:
        return raw.convert(mode)
    if mode in {"I;16", "I", "F"}:
        return raw.convert("I").point(lambda value: value * 200).convert(mode)
    image = Image.merge("RGB", [raw, raw.rotate(180), raw]).convert(mode if mode != "LA" else "L")
    if mode == "LA":
        image.putalpha(raw)
    return image


def files() -> Iterator[tuple[str, bytes]]:
    """A file of every format and mode that Pillow writes, with what belongs to it."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in images.FORMATS:
        for mode in MODES:
            for about in ({}, {"icc_profile": profile, "exif": exif, "dpi": (72, 72)}, {"transparency": 3}):
                buffer = BytesIO()
                try:
                    noise(mode).save(buffer, format=kind, **about)
                    images.decode(buffer.getvalue())
                except (OSError, ValueError, TypeError, KeyError, DecodeError):
                    continue
                yield f"{kind} {mode} {','.join(about)}", buffer.getvalue()


@pytest.fixture(autouse=True)
def apart() -> Iterator[None]:
    yield
    images.narrow([])
    if getattr(images_apart._own, "decoder", None) is not None:
        images_apart._replace()


def helper() -> psutil.Process:
    """The process that decodes for this thread."""
    return psutil.Process(images_apart._own.decoder._process.pid)


def seen(image: Image.Image) -> dict[str, Any]:
    """All that a model can tell of an image, but for its class."""
    kept = {name: image.info.get(name) for name in ("icc_profile", "transparency", "gamma", "loop", "duration")}
    return {
        "mode": image.mode,
        "size": image.size,
        "format": image.format,
        "pixels": image.tobytes(),
        "palette": image.getpalette("RGB") if image.mode == "P" else None,
        "rgba": image.convert("RGBA").tobytes() if image.mode not in {"I;16", "F"} else None,
        "orientation": image.getexif().get(0x0112),
        **kept,
    }


def test_an_image_is_the_same_wherever_it_is_decoded() -> None:
    """Its pixels, mode, palette, transparency, orientation and colour profile; of every format and mode."""
    found = list(files())
    assert len(found) > 60
    here = [seen(images.decode(data)) for _, data in found]
    images_apart.use([], "apart")
    for (name, data), before in zip(found, here, strict=True):
        assert seen(images.decode(data)) == before, name


def test_errors_are_the_same() -> None:
    hostile = [b"", b"hello world", b"\x89PNG\r\n\x1a\n", *(data[: len(data) // 2] for _, data in list(files())[::7])]
    hostile += [b"II*\0" + os.urandom(400), b"GIF89a" + os.urandom(400), bytes(images.MAX_BYTES + 1)]

    def outcome(data: bytes) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return images.decode(data).tobytes()
        except DecodeError as error:
            return str(error)

    here = [outcome(data) for data in hostile]
    images_apart.use([], "apart")
    assert [outcome(data) for data in hostile] == here
    images_apart.use(["jpeg"], "apart")
    images_apart._replace()
    with pytest.raises(DecodeError, match=r"no image of a known format \(JPEG\)"):
        images.decode(png())


def png() -> bytes:
    buffer = BytesIO()
    noise("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def test_one_that_was_ended_by_somebody_costs_nothing() -> None:
    images_apart.use([], "apart")
    for _ in range(3):
        helper().kill()
        assert images.decode(png()).size == (37, 23)


@pytest.mark.parametrize("reply", ["exit", "garbage", "huge", "lies", "hang"])
def test_a_picture_that_takes_over_its_decoder_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reply: str
) -> None:
    """It ends the process, has it answer with nonsense, or hang; the next picture gets another one."""
    says = {
        "exit": "os._exit(3)",
        "garbage": "os.write(1, os.urandom(4096))",
        "huge": "os.write(1, (1 << 60).to_bytes(8, 'big'))",
        "lies": (
            'head = b\'{"mode": "RGB", "size": [9, 9], "format": "PNG", "info": {}, "palette": null, '
            "\"bytes\": 5}'; os.write(1, len(head).to_bytes(8, 'big') + head + b'12345')"
        ),
        "hang": "time.sleep(3600)",
    }[reply]
    (tmp_path / "hostile.py").write_text(
        "import os, time\nfrom components import image_decoder as real\nbefore = real._answer\n"
        f"def answer(data, answers):\n    if b'hostile' in data:\n        {says}\n    before(data, answers)\n"
        "real._answer = answer\nreal.confine = lambda: None\nreal.main()\n"
    )
    start = subprocess.Popen
    monkeypatch.setattr(
        images_apart.subprocess,
        "Popen",
        lambda command, **more: start([sys.executable, str(tmp_path / "hostile.py"), *command[4:]], **more),
    )
    monkeypatch.setattr(images_apart, "DECODE_SECONDS", 2.0)
    images_apart.use([], "apart")
    for _ in range(2):
        with pytest.raises(DecodeError, match=r"ends the process|was not decoded in"):
            images.decode(png() + b"hostile")
        assert images.decode(png()).size == (37, 23)


def test_its_process_has_no_secret_and_no_way_out(tmp_path: Path) -> None:
    """Neither a file, a socket, a signal nor another process; nor what this process has in its environment."""
    tried = """
import ctypes, errno, os, signal, socket, subprocess, sys, threading
from components.image_decoder import confine
parent = os.getppid()
assert "MONGO_URI" not in os.environ
confine()
def refused(what, call):
    try:
        call()
    except OSError as error:
        assert error.errno in (errno.EPERM, errno.ENOSYS), (what, error)
    except RuntimeError:
        pass
    else:
        raise SystemExit(f"{what} is possible")
refused("open", lambda: os.open("/etc/passwd", os.O_RDONLY))
refused("write", lambda: open(sys.argv[1], "w"))
refused("environment", lambda: open(f"/proc/{parent}/environ", "rb"))
refused("socket", lambda: socket.socket())
refused("unix socket", lambda: socket.socket(socket.AF_UNIX))
refused("fork", os.fork)
refused("run", lambda: subprocess.run(["/bin/true"]))
refused("exec", lambda: os.execv("/bin/true", ["true"]))
refused("signal", lambda: os.kill(parent, 0))
refused("pidfd", lambda: os.pidfd_open(parent))
refused("links", lambda: os.readlink("/proc/self/exe"))
refused("listing", lambda: os.listdir("/"))
libc = ctypes.CDLL(None, use_errno=True)
for name, arguments in (("ptrace", (16, parent, 0, 0)), ("process_vm_readv", (parent, 0, 0, 0, 0, 0)),
                        ("mount", (b"a", b"/", b"tmpfs", 0, 0)), ("unshare", (0x10000000,)),
                        ("memfd_create", (b"x", 0)),
                        ("setrlimit", (0, 0)), ("prctl", (4, 1, 0, 0, 0)), ("open", (b"/etc/passwd", 0))):
    assert getattr(libc, name)(*arguments) == -1 and ctypes.get_errno() == errno.EPERM, name
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
os.write(1, b"held")
"""
    ran = subprocess.run(
        [sys.executable, "-P", "-c", tried, str(tmp_path / "written")], capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.returncode) == ("held", 0), ran.stderr
    os.environ["PREDICTD_TEST_SECRET"] = "s3cret"
    try:
        images_apart.use([], "apart")
        assert set(helper().environ()) <= set(images_apart._KEPT)
        assert "s3cret" not in Path(f"/proc/{helper().pid}/environ").read_text()
        status = Path(f"/proc/{helper().pid}/status").read_text()
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status
        assert {each.fd for each in helper().open_files()} == set()
        assert {path.name for path in Path(f"/proc/{helper().pid}/fd").iterdir()} <= {"0", "1", "2"}
    finally:
        del os.environ["PREDICTD_TEST_SECRET"]


def test_threads_and_forked_processes_have_their_own() -> None:
    images_apart.use([], "apart")
    data, gate = [png(), b"x" * 50], threading.Barrier(4)

    def decode(_: int) -> tuple[int, tuple[int, int]]:
        gate.wait(60)
        with pytest.raises(DecodeError):
            images.decode(data[1])
        return helper().pid, images.decode(data[0]).size

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(decode, range(4)))
    assert len({pid for pid, _ in found} | {helper().pid}) == 5
    assert {size for _, size in found} == {(37, 23)}
    own, child = helper().pid, os.fork()
    if child == 0:
        well = images.decode(data[0]).size == (37, 23) and helper().pid != own
        images_apart._replace()
        os._exit(0 if well else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert helper().is_running()
    assert images.decode(data[0]).size == (37, 23)


def test_it_ends_with_the_process_that_it_decodes_for() -> None:
    """Killed, too: its standard input ends."""
    code = (
        "import sys, time\nfrom components import images_apart\nimages_apart.use([], 'apart')\n"
        "print(images_apart._own.decoder._process.pid, flush=True)\ntime.sleep(3600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    for _ in range(600):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    raise AssertionError("it is still there")


def test_a_machine_that_cannot_confine_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import platform\nplatform.machine = lambda: 'riscv64'\nfrom components import image_decoder\n"
        "image_decoder.main()\n"
    )
    start = subprocess.Popen
    monkeypatch.setattr(
        images_apart.subprocess,
        "Popen",
        lambda command, **more: start([sys.executable, str(tmp_path / "other.py"), *command[4:]], **more),
    )
    with pytest.raises(Exception, match=r'security\.decode = "apart"'):
        images_apart.use([], "apart")
