"""What is left after a soak, compared with the oracle: rows, dead letters, jobs, versions, processes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from harness.daemons import eventually
from harness.trainings import Site

from daemon.engine.child import LEAVE_SECONDS
from faults.models import DEATHS
from faults.soak_service import MODEL, oracles

PATIENCE = 300.0


def settle(site: Site, patience: float = PATIENCE) -> list[str]:
    """Waits until the jobs have ended and the rows are as the oracle says, and then stay so; returns what differs."""
    try:
        eventually("every job has ended", lambda: all(job.ended for job in site.jobs.listed(0)), patience)
    except AssertionError as late:
        return [str(late)]
    end = time.monotonic() + patience
    while (found := row_differences(site)) and time.monotonic() < end:
        time.sleep(1)
    time.sleep(3)
    return found or row_differences(site)


def row_differences(site: Site) -> list[str]:
    """Each row, and each dead letter, that is not as the oracle says, with its listener."""
    return [f"{oracle.listener}: {each}" for oracle in oracles(site) for each in oracle.differences()]


def job_differences(site: Site) -> list[str]:
    """Each training that made no version or two, each version of no training, and two live versions."""
    versions = site.versions(MODEL).listed()
    made = Counter(str(version.job) for version in versions if version.trained)
    trainings = {job.id: job for job in site.jobs.listed(0, target=MODEL)}
    validations = Counter((entry["job"], entry["validation"]) for version in versions for entry in version.validations)
    live = [version.number for version in versions if version.state == "live"]
    return [
        *(f"training {name} made {count} versions" for name, count in made.items() if count > 1),
        *(f"version of a training that is not known: {name}" for name in made if name not in trainings),
        *(
            f"training {name} is done and made no version"
            for name, job in trainings.items()
            if job.state == "done" and not made[name]
        ),
        *(f"a validation is noted {n} times: {name}" for name, n in validations.items() if n > 1),
        *([f"live versions: {live}"] if len(live) != 1 else []),
    ]


def left_behind(family: list[psutil.Process], deaths: Path, child: str) -> Iterator[str]:
    """Each process that outlives the last daemon or one that was killed.

    `deaths` is a path that all have in their environment; `child` is how long the children of its models sleep.
    """
    psutil.wait_procs(family, 10)
    end = time.monotonic() + 3 * LEAVE_SECONDS
    while (alive := list(_started_with(deaths))) and time.monotonic() < end:
        time.sleep(0.5)
    for process in alive:
        yield f"process {process.pid} outlives its daemon: {process.info['cmdline']}"
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] == ["sleep", child]:
            yield f"process {process.pid}, a child of a model, outlives the daemon"


def _started_with(deaths: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()  # none of a zombie
        with suppress(psutil.Error):
            if any(word.startswith("daemon.") for word in words) and process.environ().get(DEATHS) == str(deaths):
                yield process
