"""The local engine with real processes: what a process prints, reports and starts, and how it ends."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
import pytest
from harness.daemons import PATIENCE, TESTS, eventually
from harness.programs import Program
from structlog.testing import capture_logs

from daemon.engine import Ending, local
from daemon.engine.child import PARENT_GONE
from daemon.engine.local import LocalEngine

Scene = Callable[[LocalEngine], Awaitable[None]]


def play(scene: Scene, engine: Callable[[], LocalEngine] = LocalEngine) -> list[dict[str, Any]]:
    """Runs a scene with an engine in an event loop; what was logged meanwhile."""

    async def whole() -> None:
        async with asyncio.timeout(PATIENCE):
            await scene(engine())

    with pytest.MonkeyPatch.context() as patch, capture_logs() as logged:
        patch.setenv("PYTHONPATH", str(TESTS))
        asyncio.run(whole())
    return [dict(entry) for entry in logged]


async def until(probe: Callable[[], Any]) -> Any:
    while not (answer := probe()):  # noqa: ASYNC110  # what happens in other processes sets no event
        await asyncio.sleep(0.02)
    return answer


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_to_its_end(program: Program) -> tuple[Any, int, list[dict[str, Any]]]:
    """The process, its exit code, and the log."""
    ended: list[Any] = []

    async def scene(engine: LocalEngine) -> None:
        process = await engine.start(program, lambda: None)
        ended.extend((process, await process.wait()))

    logged = play(scene)
    return (*ended, logged)


def test_what_user_code_prints_is_neither_report_nor_log_line() -> None:
    """It is wrapped in lines of ours, under the worker's name, with its control characters for the formatter to
    escape.
    """
    process, code, logged = run_to_its_end(Program("prints_reports"))
    assert (process.report, code) == ({"state": "running"}, 0)
    for stream in ("stdout", "stderr"):
        entries = [entry for entry in logged if entry.get("stream") == stream]
        assert {entry["event"] for entry in entries} == {"worker output"}
        assert {entry["worker"] for entry in entries} == {"w"}
        assert [entry["text"] for entry in entries][:3] == [
            '{"state": "forged", "ending": "fenced"}',
            '{"event": "worker fenced", "level": "critical"}',
            "\x1b[31mred",
        ]
    assert "half a line" in [entry.get("text") for entry in logged]


def test_closed_streams_change_nothing() -> None:
    """Reports do not go through them."""
    process, code, _ = run_to_its_end(Program("closes_streams"))
    assert (process.report["reason"], code) == ("after all was closed", 0)


def test_output_is_bounded_in_length_and_lines_and_what_was_dropped_is_counted() -> None:
    """Every line is either logged or counted."""
    _, _, logged = run_to_its_end(Program("floods"))
    lines = [entry for entry in logged if entry["event"] == "worker output"]
    dropped = sum(entry["lines"] for entry in logged if entry["event"] == "worker output was dropped")
    assert lines[0]["text"] == "x" * 2000 + " [cut]"
    assert dropped > 0
    assert len(lines) + dropped == 5001


def test_a_report_that_is_none_is_logged_and_the_last_good_one_stays() -> None:
    """Whatever it is; the log has one line for many."""
    process, _, logged = run_to_its_end(Program("reports_garbage"))
    assert process.report == {"state": "running", "reason": "good"}
    refused = [entry for entry in logged if entry["event"] == "a report cannot be used"]
    assert len(refused) == 1


def test_user_code_that_writes_to_every_descriptor_forges_no_report() -> None:
    """Its lines are refused and logged, and half a line of its own does not spoil the report that follows."""
    states: list[str] = []

    async def scene(engine: LocalEngine) -> None:
        process = await engine.start(Program("forges_reports"), lambda: states.append(process.report["state"]))
        await process.wait()
        assert process.report == {"state": "failed", "reason": "last", "ending": "cannot_be_built"}

    (refused,) = [entry for entry in play(scene) if entry["event"] == "a report cannot be used"]
    assert states == ["running", "failed"]
    assert refused["reason"] == "user code has written to the descriptor for reports"


def test_an_error_in_who_listens_to_reports_does_not_end_the_supervisor() -> None:
    """It is logged as that of the report."""

    async def scene(engine: LocalEngine) -> None:
        def broken() -> None:
            raise TypeError("as the test ordered")

        process = await engine.start(Program("reports_and_stays"), broken)
        await until(lambda: process.report)
        process.kill()
        assert await process.wait() == -signal.SIGKILL

    assert any("as the test ordered" in str(entry.get("reason")) for entry in play(scene))


@pytest.mark.parametrize("code", [0, 64, 65, 70, 76])
def test_an_exit_code_is_no_ending(code: int) -> None:
    """Without a word in the last report a process has crashed."""
    process, ended, _ = run_to_its_end(Program("exits", more={"code": code}))
    assert ((process.report or {}).get("ending"), ended) == (None, code)


def test_the_last_report_says_why_a_process_ends() -> None:
    """It is read although the process ends right after it."""
    process, _, _ = run_to_its_end(Program("ends_well"))
    assert (process.report or {}).get("ending") == Ending.CANNOT_BE_BUILT


@pytest.mark.parametrize("end", ["kill", "sigkill", "stop"])
def test_what_a_process_started_ends_with_it(end: str) -> None:
    """Whether in its group, in a session of its own, forked or without a parent; its end does not wait for them."""

    async def scene(engine: LocalEngine) -> None:
        process = await engine.start(Program("has_children"), lambda: None)
        children = (await until(lambda: process.report))["children"]
        assert all(map(alive, children))
        began = time.monotonic()
        if end == "stop":
            await process.stop(20.0)
        else:
            process.kill() if end == "kill" else os.kill(process.pid, signal.SIGKILL)
            await process.wait()
        assert time.monotonic() - began < 6.0
        await until(lambda: not any(map(alive, children)))
        await until(lambda: not any(map(psutil.pid_exists, children)))  # reaped as well

    play(scene)


@pytest.mark.parametrize("does", ["has_children", "starts_one_and_leaves"])
def test_a_child_without_session_and_environment_ends_with_a_process_that_is_ended_or_leaves(does: str) -> None:
    """Its parent shows whose it is. `setproctitle` overwrites the environment, too."""

    async def scene(engine: LocalEngine) -> None:
        process = await engine.start(Program(does, more={"unmarked": True}), lambda: None)
        (child,) = (await until(lambda: process.report))["children"]
        if does == "has_children":
            assert alive(child)
            process.kill()
        await process.wait()
        await until(lambda: not alive(child))

    play(scene)


def test_zombies_of_a_process_that_runs_on_are_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has lost its parent is the supervisor's to reap."""
    monkeypatch.setattr(local, "REAP_IDLE_SECONDS", 0.2)

    async def scene(engine: LocalEngine) -> None:
        before = set(psutil.Process().children())
        process = await engine.start(Program("leaves_orphans"), lambda: None)
        await until(lambda: process.report)
        await until(lambda: {each.pid for each in set(psutil.Process().children()) - before} == {process.pid})
        process.kill()
        await process.wait()

    play(scene)


def test_children_end_with_a_process_whose_supervisor_is_gone() -> None:
    """It ends them before itself; here the supervisor is a program of its own, which is killed."""
    program = (
        "import asyncio, sys\n"
        "from daemon.engine.local import LocalEngine\n"
        "from harness.programs import Program\n"
        "async def main():\n"
        "    process = await LocalEngine().start(Program('has_children'), lambda: None)\n"
        "    while not process.report: await asyncio.sleep(0.02)\n"
        "    print(process.pid, *process.report['children'], flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )

    async def scene(_: LocalEngine) -> None:
        supervisor = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
        assert supervisor.stdout is not None
        pids = list(map(int, (await supervisor.stdout.readline()).split()))
        assert all(map(alive, pids))
        supervisor.kill()
        await supervisor.wait()
        await until(lambda: not any(map(alive, pids)))

    play(scene)


def test_what_a_killed_supervisor_left_stopped_is_ended_by_its_successor_at_the_place() -> None:
    """And not by a daemon of another place."""
    program = (
        "import asyncio, sys\n"
        "from daemon.engine.local import LocalEngine\n"
        "from harness.programs import Program\n"
        "async def main():\n"
        "    engine = LocalEngine()\n"
        "    engine.succeed(sys.argv[1])\n"
        "    process = await engine.start(Program('has_children'), lambda: None)\n"
        "    while not process.report: await asyncio.sleep(0.02)\n"
        "    print(process.pid, *process.report['children'], flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    here, elsewhere = (secrets.token_hex(16) for _ in range(2))
    command, environ = [sys.executable, "-c", program, here], {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ) as supervisor:
        assert supervisor.stdout is not None
        pids = list(map(int, supervisor.stdout.readline().split()))
        os.kill(pids[0], signal.SIGSTOP)
        supervisor.kill()
    try:
        LocalEngine().succeed(elsewhere)
        assert all(map(alive, pids))
        LocalEngine().succeed(here)
        eventually("they have ended", lambda: not any(map(alive, pids)))
    finally:
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("users", "found"), [(None, "3"), ("7", "7")])
def test_the_number_of_threads_is_in_the_environment_and_the_user_s_own_wins(
    monkeypatch: pytest.MonkeyPatch, users: str | None, found: str
) -> None:
    """For libraries that read it when they are imported."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if users is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", users)
    environ: dict[str, Any] = {}

    async def scene(engine: LocalEngine) -> None:
        program = Program("tells_about_itself", threads=3, more={"variables": ["OMP_NUM_THREADS"]})
        process = await engine.start(program, lambda: None)
        environ.update((await until(lambda: process.report))["told"]["environ"])
        process.kill()
        await process.wait()

    play(scene)
    assert environ == {"OMP_NUM_THREADS": found}


def test_a_process_has_no_descriptors_but_its_own_and_its_children_only_the_standard_ones() -> None:
    """Reports and log lines go by high numbers that close on exec."""
    told: dict[str, Any] = {}

    async def scene(engine: LocalEngine) -> None:
        process = await engine.start(Program("tells_about_itself"), lambda: None)
        told.update((await until(lambda: process.report))["told"])
        process.kill()
        await process.wait()

    play(scene)
    assert [n for n in told["descriptors"] if n > 2] == [n for n in told["descriptors"] if n >= 100]
    assert told["inherited"] == [0, 1, 2]


def test_a_process_ends_with_its_parent_though_its_code_has_damaged_the_interpreter() -> None:
    """What ends its own children fails then; it ends all the same."""

    async def scene(engine: LocalEngine) -> None:
        process: Any = await engine.start(Program("damages_the_interpreter"), lambda: None)
        await until(lambda: process.report)
        end = os.open(os.devnull, os.O_WRONLY)
        os.dup2(end, process._pipes.stdin)  # closes the pipe, as the end of the supervisor does
        os.close(end)
        assert await process.wait() == PARENT_GONE

    play(scene)
