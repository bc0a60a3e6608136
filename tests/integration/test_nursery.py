"""The nursery with real processes: what it forks is what an exec gives, and nothing depends on its being there."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.daemons import PATIENCE, TESTS, eventually
from harness.programs import Program
from structlog.testing import capture_logs

from daemon.engine import nursery as nurseries
from daemon.engine.child import LEAVE_SECONDS
from daemon.engine.local import LocalEngine
from daemon.engine.nursery import Nursery

Scene = Callable[[LocalEngine, Nursery], Awaitable[None]]


def arguments(process: psutil.Process) -> list[str]:
    """Its command line; none of a process that has ended and waits to be reaped."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs a scene with an engine whose nursery is ready, and has imported the programs of the tests and `mymodule` (in
    `tmp_path`); what was logged meanwhile.
    """
    (tmp_path / "mymodule.py").write_text("VERSION = 1\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(TESTS), str(tmp_path))))
    monkeypatch.setattr(nurseries, "PROGRAMS", ("harness.programs", "mymodule", "numpy"))

    def played(scene: Scene, *, torch: bool = False) -> list[dict[str, Any]]:
        async def whole() -> None:
            nursery = Nursery(os.environ, torch=torch)
            nursery.open()
            try:
                async with asyncio.timeout(PATIENCE):
                    await ready(nursery)
                    await scene(LocalEngine(nursery=nursery), nursery)
            finally:
                await nursery.close()
                for left in psutil.Process().children():  # what a scene that failed has not ended
                    if "harness.programs" in arguments(left):
                        left.kill()

        with capture_logs() as logged:
            asyncio.run(whole())
        return [dict(entry) for entry in logged]

    return played


async def until(probe: Callable[[], Any]) -> Any:
    while not (answer := probe()):  # noqa: ASYNC110  # what happens in other processes sets no event
        await asyncio.sleep(0.02)
    return answer


async def ready(nursery: Nursery) -> int:
    """Waits until the nursery serves; its process id."""
    await until(lambda: nursery._server is not None and nursery._server._complete)
    assert nursery.pid is not None
    return nursery.pid


async def told(engine: LocalEngine, **more: Any) -> tuple[dict[str, Any], Any]:
    """What a process says of itself, and the process."""
    process = await engine.start(Program("tells_about_itself", more=more), lambda: None)
    report = await until(lambda: process.report)
    return report["told"], process


def was_forked(process: Any) -> bool:
    """The environment in memory is the nursery's, but for its mark."""
    return b"daemon.engine.fork_server" not in Path(f"/proc/{process.pid}/cmdline").read_bytes() and isinstance(
        process._process, nurseries.Forked
    )


def test_a_forked_process_is_what_an_exec_gives(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent is the supervisor; session, descriptors, environment, signals, time zone, names are its own."""
    monkeypatch.setenv("NEW_VARIABLE", "old")

    async def scene(engine: LocalEngine, nursery: Nursery) -> None:
        monkeypatch.setenv("NEW_VARIABLE", "new")
        monkeypatch.setenv("TZ", "XYZ-3")
        forked, one = await told(engine, variables=["NEW_VARIABLE"])
        await nursery.close()
        executed, other = await told(engine, variables=["NEW_VARIABLE"])
        assert (was_forked(one), was_forked(other)) == (True, False)
        for name in ("parent", "environ", "timezone", "signals", "inherited", "niceness"):
            assert forked[name] == executed[name], name
        assert forked["parent"] == os.getpid()
        assert forked["environ"] == {"NEW_VARIABLE": "new"}
        assert forked["timezone"] == "XYZ"
        assert (forked["session"], forked["group"]) == (one.pid, one.pid)
        assert [n for n in forked["descriptors"] if n > 2] == [n for n in forked["descriptors"] if n >= 100]
        assert len(forked["descriptors"]) == 6
        assert psutil.Process(one.pid).cmdline()[:5] == psutil.Process(other.pid).cmdline()
        assert psutil.Process(one.pid).name() != "python"
        for process in (one, other):
            assert await process.stop(5.0) == -signal.SIGTERM

    play(scene)


def test_two_forked_processes_draw_different_random_numbers(play: Any) -> None:
    """Of the standard library, of numpy and of torch. Torch computes in them with all threads, and CUDA can be used."""

    async def scene(engine: LocalEngine, _: Nursery) -> None:
        first, one = await told(engine)
        second, other = await told(engine)
        assert was_forked(one)
        assert "torch" in first["modules"]
        assert all(a != b for a, b in zip(first["random"], second["random"], strict=True))
        assert len(first["random"]) == 3
        assert first["sum"] == second["sum"] == 512.0**3
        assert not first["bad_fork"]
        for process in (one, other):
            process.kill()
            await process.wait()

    play(scene, torch=True)


def test_threads_are_limited_in_a_process_whose_torch_was_imported_before_the_fork(play: Any) -> None:
    """A variable would come too late; the neighbour is not concerned."""

    async def scene(engine: LocalEngine, _: Nursery) -> None:
        usual, one = await told(engine)
        limited, other = await told(engine, threads=usual["torch_threads"] + 1)
        assert limited["torch_threads"] == usual["torch_threads"] + 1
        assert limited["blas_threads"] == [limited["torch_threads"]], "numpy's"
        assert usual["blas_threads"] != limited["blas_threads"]
        for process in (one, other):
            process.kill()
            await process.wait()

    play(scene, torch=True)


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_of_a_forked_process_is_the_kernel_s(play: Any, code: int) -> None:
    """Also while the nursery ends at the same time."""

    async def scene(engine: LocalEngine, nursery: Nursery) -> None:
        process = await engine.start(Program("exits", more={"code": code}), lambda: None)
        assert nursery.pid is not None
        os.kill(nursery.pid, signal.SIGKILL)
        assert await process.wait() == code

    play(scene)


def test_what_a_forked_process_started_ends_with_it(play: Any) -> None:
    """Also what it forked, which has the environment of the nursery in memory, with the mark of this process."""

    async def scene(engine: LocalEngine, _: Nursery) -> None:
        _, neighbour = await told(engine)
        process = await engine.start(Program("has_children"), lambda: None)
        children = (await until(lambda: process.report))["children"]
        os.kill(process.pid, signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
        await until(lambda: not any(map(psutil.pid_exists, children)))
        assert psutil.pid_exists(neighbour.pid)
        neighbour.kill()
        await neighbour.wait()

    play(scene)


def test_a_nursery_that_is_killed_takes_nobody_along_and_is_replaced(play: Any) -> None:
    """Its children go on, and their end is still seen."""

    async def scene(engine: LocalEngine, nursery: Nursery) -> None:
        _, process = await told(engine)
        first = await ready(nursery)
        os.kill(first, signal.SIGKILL)
        await until(lambda: nursery.pid not in (None, first))
        await ready(nursery)
        assert psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
        assert await process.stop(5.0) == -signal.SIGTERM
        _, another = await told(engine)
        assert was_forked(another)
        another.kill()
        await another.wait()

    play(scene)


SUPERVISOR = """
import asyncio, os, sys
from harness.programs import Program
from daemon.engine import nursery as nurseries
from daemon.engine.local import LocalEngine

async def main():
    nurseries.PROGRAMS = ("harness.programs",)
    nursery = nurseries.Nursery(os.environ, torch=False) if sys.argv[1] == "fork" else None
    if nursery:
        nursery.open()
    process = await LocalEngine(nursery=nursery).start(Program("holds_the_interpreter"), lambda: None)
    while not process.report:
        await asyncio.sleep(0.02)
    print("started", process.pid, *([nursery.pid] if nursery else []), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fork", "exec"])
def test_a_process_whose_code_holds_the_interpreter_ends_though_supervisor_and_nursery_were_killed(way: str) -> None:
    """No line of its Python code can run any more: the kernel ends it."""
    environ, command = {**os.environ, "PYTHONPATH": str(TESTS)}, [sys.executable, "-c", SUPERVISOR, way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as ran:
        assert ran.stdout is not None
        line = next(line for line in ran.stdout if line.startswith("started"))
        pid, *nursery = map(int, line.split()[1:])
        process = psutil.Process(pid)
        try:
            assert process.ppid() == ran.pid
            for each in (*nursery, ran.pid):
                os.kill(each, signal.SIGKILL)
            eventually("it has ended", lambda: not arguments(process), 3 * LEAVE_SECONDS)
        finally:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def test_a_nursery_ignores_signals_that_everybody_gets(play: Any) -> None:
    """As a terminal or a service manager sends them."""

    async def scene(engine: LocalEngine, nursery: Nursery) -> None:
        pid = await ready(nursery)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
        _, process = await told(engine)
        assert (nursery.pid, was_forked(process)) == (pid, True)
        process.kill()
        await process.wait()

    play(scene)


def test_an_edited_module_is_taken_up_at_once(play: Any, tmp_path: Path) -> None:
    """The process comes by exec, and the nursery is replaced by one that has imported the new file."""

    async def scene(engine: LocalEngine, nursery: Nursery) -> None:
        first = await ready(nursery)
        (tmp_path / "mymodule.py").write_text("VERSION = 2  # of another size\n")
        _, process = await told(engine)
        assert not was_forked(process)
        await until(lambda: nursery.pid not in (None, first))
        await ready(nursery)
        said, another = await told(engine)
        assert (was_forked(another), said["version"]) == (True, 2)
        for each in (process, another):
            each.kill()
            await each.wait()

    assert any("mymodule.py has changed" in str(entry.get("reason")) for entry in play(scene))


def test_a_nursery_that_does_not_answer_is_replaced(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process comes by exec; what the stopped one would have forked late never runs."""
    monkeypatch.setattr(nurseries, "ANSWER_SECONDS", 0.5)

    async def scene(engine: LocalEngine, nursery: Nursery) -> None:
        first = await ready(nursery)
        os.kill(first, signal.SIGSTOP)
        _, process = await told(engine)
        assert not was_forked(process)
        await until(lambda: nursery.pid not in (None, first))
        assert [each.pid for each in psutil.Process().children() if "harness.programs" in arguments(each)] == [
            process.pid
        ]
        process.kill()
        await process.wait()

    play(scene)


def test_a_nursery_that_cannot_import_leaves_the_work_to_exec(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again after a pause, and the log says why."""

    async def scene(engine: LocalEngine, nursery: Nursery) -> None:
        monkeypatch.setattr(nurseries, "PROGRAMS", ("no_such_module",))
        os.kill(await ready(nursery), signal.SIGKILL)
        await until(lambda: nursery._server is None)
        await until(lambda: nursery._server is None or not nursery._server.ready)
        _, process = await told(engine)
        assert not was_forked(process)
        process.kill()
        await process.wait()

    logged = play(scene)
    assert any("no_such_module" in str(entry.get("text")) for entry in logged)


def test_starts_at_the_same_moment_make_one_nursery(play: Any) -> None:
    """They wait for it while it imports."""

    async def scene(engine: LocalEngine, nursery: Nursery) -> None:
        os.kill(await ready(nursery), signal.SIGKILL)
        await until(lambda: nursery._server is not None and not nursery._server.ready)
        processes = [process for _, process in await asyncio.gather(*(told(engine) for _ in range(3)))]
        assert all(map(was_forked, processes))
        servers = [each for each in psutil.Process().children() if "daemon.engine.fork_server" in arguments(each)]
        assert [each.pid for each in servers] == [nursery.pid]
        for process in processes:
            process.kill()
            await process.wait()

    play(scene)


def test_a_nursery_without_torch_is_replaced_when_a_model_needs_it(play: Any) -> None:
    """The first such process waits for the new one."""

    async def scene(engine: LocalEngine, nursery: Nursery) -> None:
        first = await ready(nursery)
        process = await engine.start(Program("reports_and_stays", torch=True), lambda: None)
        assert was_forked(process)
        assert nursery.pid != first
        assert nursery._server is not None
        assert nursery._server.torch
        process.kill()
        await process.wait()

    play(scene)


def test_a_start_that_waits_for_a_nursery_that_is_closed_is_made_by_exec(play: Any) -> None:
    """So that a daemon that stops does not wait for imports."""

    async def scene(engine: LocalEngine, nursery: Nursery) -> None:
        os.kill(await ready(nursery), signal.SIGSTOP)
        nursery._replace(nursery._server, "as the test ordered")  # type: ignore[arg-type]
        starting = asyncio.create_task(engine.start(Program("reports_and_stays"), lambda: None))
        await asyncio.sleep(0)
        await engine.close()
        process = await starting
        assert not was_forked(process)
        process.kill()
        await process.wait()

    play(scene)
