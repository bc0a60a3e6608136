"""Records which rows the model works on, in a file that outlives the process, and finds the row that killed it.

    FOLDER/LISTENER.flight     a slot for each stage: the rows that it works on now, 16 bytes each; also for the stage
                               that writes, because a thread that the model has left behind may kill a moment later
    FOLDER/LISTENER.suspects   JSON: the rows that were at work when a process died, and how often each died *alone*;
                               and what these deaths say of the model (`Toll`)

The file is mapped into memory, so a note costs only a copy of bytes, and the kernel keeps it if the process is killed.
A note of a row that is alone holds its deaths so far: they are counted also on a disk that has become full.
The next process reads the notes of the previous one:

* rows of a batch become *suspects*, which are predicted alone from then on. If that would take long, because the model
  takes long whatever it gets, some of them are predicted together, but with no other row; of those that die together
  each is then predicted alone;
* a row that was alone counts one death more. After two deaths alone it is *guilty*: it gets a dead letter without
  another attempt. A SIGKILL that the supervisor did not send may have any reason, so it counts half;
* a guilty row that is judged again (another input, another version, `retry`) is tried alone; one more death suffices.

The folder belongs to the worker. If it cannot be written (no room, read-only), no row is suspected, and the log says
so.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal

import structlog
from bson import ObjectId

from components import private_files
from components.errors import PredictdError
from daemon.handlers.predict.records import Guilt, Row

log = structlog.get_logger(__name__)

Ended = Literal["", "crashed", "killed", "timed_out"]
"""How the previous process ended: "" in order, or unknown; "killed" by a SIGKILL that the supervisor did not send."""

UserStage = Literal["prepare", "predict"]
NotedStage = Literal["prepare", "predict", "write"]

GUILTY_DEATHS: Final = 2.0
KNOWN_ROWS: Final = 5_000
USUAL_ROWS: Final = 4_096
"""There is room for so many rows, so that `max_batch` may grow while the process runs."""
SAVE_SECONDS: Final = 1.0
"""If the process dies, what was acquitted for so long is predicted alone once more."""

_WEIGHTS: Final[dict[Ended, float]] = {"": 0.5, "killed": 0.5, "crashed": 1.0, "timed_out": 1.0}
_STAGES: Final[tuple[NotedStage, ...]] = ("prepare", "predict", "write")
_HEADER: Final = struct.Struct("<IB3x")
_ALONE: Final = struct.Struct("<16sqd")
_NAME: Final = 16


@dataclass(slots=True)
class _Suspect:
    deaths: float = 0.0
    stage: str = ""
    cause: Ended = ""
    input: str = ""
    generation: int = 0
    guilty: bool = False
    offender: bool = False
    narrowed: bool = False
    """It died among suspects only."""


@dataclass(frozen=True, slots=True)
class Toll:
    """What the deaths of the process say of the model, for the breaker (`triage`).

    `deaths` counts those with rows at work since a row was last predicted; `asks` is set while rows are predicted that
    had an output before; `why` is the reason of the open breaker, `pause` the time until its next probe.
    """

    deaths: float = 0.0
    asks: bool = False
    why: str | None = None
    pause: float = 0.0

    @classmethod
    def read(cls, found: Any) -> Toll:
        """What the file holds. Raises ValueError, TypeError or KeyError."""
        why = None if found["why"] is None else str(found["why"])
        return cls(float(found["deaths"]), found["asks"] is True, why, min(60.0, float(found["pause"])))


class NoSuspects:
    """Suspects no row and notes nothing."""

    cap: int | None = None
    hung = False
    """Whether the previous process was ended because it hung."""
    toll = Toll()
    settled = 0
    """About how many rows this process has learned something: from the previous one's end, and by predicting them."""

    def __len__(self) -> int:
        return 0

    def working(
        self,
        stage: NotedStage,  # noqa: ARG002
        rows: Sequence[Row],  # noqa: ARG002
        generation: int,  # noqa: ARG002
        *,
        alone: bool,  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        """The rows are in the hands of user code."""
        return nullcontext()

    def deaths(self, name: Hashable) -> float | None:  # noqa: ARG002
        """How often the row died alone; None if it is not suspected."""
        return None

    def narrowed(self, name: Hashable) -> bool:  # noqa: ARG002
        """Whether a suspect must be predicted alone, and not among others."""
        return True

    def guilt(self, row: Row, generation: int) -> Guilt | None:  # noqa: ARG002
        """The row's guilt, if it must not be predicted again; else None."""
        return None

    def passed(self, name: Hashable) -> None:
        """The row was predicted alone, and the process lives."""

    def sentenced(self, name: Hashable) -> None:
        """The dead letter of a guilty row is stored."""

    def note(self, **changes: Any) -> None:
        """Changes the toll, also for the next process."""

    def blame(self) -> None:
        """This process fails, and a row at work may have damaged it: what is at work now stays noted."""

    def close(self) -> None:
        """The process ends in order: nothing is at work."""


class Suspects(NoSuspects):
    """The suspects of one listener. `rows` is the largest number of rows of a batch; `ended` is how the previous
    process ended. Of a batch that is larger than it, and than USUAL_ROWS, the first rows are noted.
    """

    def __init__(self, folder: Path, listener: str, ended: Ended, rows: int) -> None:
        """Raises OSError if the file cannot be written in the folder."""
        private_files.make_folder(folder)
        self._listener = listener
        self._slot = _HEADER.size + max(rows, USUAL_ROWS) * _NAME
        self._notes = folder / f"{listener}.suspects"
        self._known, self.cap, self.toll = self._read()
        self._blames = False
        self.hung = ended == "timed_out"
        self._saved_at = 0.0
        flight = folder / f"{listener}.flight"
        self._learn(flight, ended)
        self._map = _mapped(flight, self._slot * len(_STAGES))
        self._save()

    def __len__(self) -> int:
        return len(self._known)

    @contextmanager
    def working(self, stage: NotedStage, rows: Sequence[Row], generation: int, *, alone: bool) -> Iterator[None]:
        """A stage works on these rows within the block. If the process dies in it, the next process suspects them.

        An error that leaves the block ends the process too: what the rows themselves raise is caught within it, so user
        code has damaged what it shares with predictd.
        """
        at = _STAGES.index(stage) * self._slot
        names = b"".join([_mark(row.name) for row in rows])[: self._slot - _HEADER.size]
        if alone and rows:
            deaths = self.deaths(rows[0].name) or 0.0
            names = names[:_NAME] + _ALONE.pack(_digest(rows[0].input), generation, deaths)
        self._map[at + _HEADER.size : at + _HEADER.size + len(names)] = names
        self._map[at : at + _HEADER.size] = _HEADER.pack(1 if alone else len(names) // _NAME, alone)  # written last
        blamed = True
        try:
            yield
            blamed = False
        except PredictdError:  # such as a stop, of which there need be no other reason
            blamed = self._blames
            raise
        finally:
            if not blamed:
                self._map[at : at + _HEADER.size] = _HEADER.pack(0, 0)

    def deaths(self, name: Hashable) -> float | None:
        """How often the row died alone; None if it is not suspected."""
        suspect = self._known.get(_mark(name))
        return None if suspect is None else suspect.deaths

    def narrowed(self, name: Hashable) -> bool:
        """Whether a suspect must be predicted alone, and not among others."""
        suspect = self._known.get(_mark(name))
        return suspect is None or suspect.narrowed or suspect.deaths > 0 or suspect.guilty or suspect.offender

    def guilt(self, row: Row, generation: int) -> Guilt | None:
        """The row's guilt, if this input was guilty under this generation and has no dead letter yet."""
        known = self._known.get(_mark(row.name)) if self._known else None
        if known is None or not known.guilty:
            return None
        if (known.input, known.generation) != (_digest(row.input).hex(), generation):
            known.guilty, known.offender = False, True  # its input or generation changed: one more attempt, alone
            return None
        how = {"timed_out": "did not return in time", "killed": "was killed by SIGKILL"}.get(known.cause, "crashed")
        message = f"the process {how} each time that this row alone was in stage {known.stage}"
        if known.cause == "timed_out":
            return Guilt("TimedOut", f"{message}; raise limits.stage_seconds if it only needs more time")
        return Guilt("WorkerDied", message)

    def passed(self, name: Hashable) -> None:
        """The row was predicted alone, and the process lives."""
        passed = self._known.pop(_mark(name), None)
        self.settled += passed is not None
        if passed is not None and (not self._known or time.monotonic() - self._saved_at > SAVE_SECONDS):
            self._save()

    def sentenced(self, name: Hashable) -> None:
        """The dead letter of a guilty row is stored."""
        known = self._known.get(_mark(name))
        if known is not None and known.guilty:
            known.guilty, known.offender = False, True
            self.settled += 1
            self._save()

    def blame(self) -> None:
        """This process fails, and a row at work may have damaged it: what is at work now stays noted."""
        self._blames = True

    def note(self, **changes: Any) -> None:
        """Changes the toll, also for the next process."""
        toll = replace(self.toll, **changes)
        if toll != self.toll:
            self.toll = toll
            self._save()

    def close(self) -> None:
        """The process ends in order: nothing is at work."""
        self._map[:] = bytes(len(self._map))

    def _learn(self, flight: Path, ended: Ended) -> None:
        """Adds the rows that were at work when the previous process ended."""
        if self.toll.asks:
            ended = ""  # known rows were at work, for which these stood by
        left = list(_left(flight))
        if left:
            self.toll = replace(self.toll, deaths=self.toll.deaths + _WEIGHTS[ended])
        for stage, alone, names, about in left:
            self.settled += len(names)
            for name in names:
                before = name in self._known
                known = self._known.setdefault(name, _Suspect())
                if not alone:
                    known.narrowed = before
                    continue
                known.deaths = max(known.deaths, min(about[2], GUILTY_DEATHS))
                known.deaths += GUILTY_DEATHS if known.offender and _WEIGHTS[ended] == 1.0 else _WEIGHTS[ended]
                known.stage, known.cause = stage, ended
                known.input, known.generation = about[0].hex(), about[1]
                known.guilty = known.deaths >= GUILTY_DEATHS
                if known.guilty:
                    known.deaths = 0.0
            if ended == "timed_out" and not alone and len(names) > 1:
                self.cap = max(1, min(self.cap or len(names), len(names)) // 2)
            log.warning(
                "rows that were at work when the process ended are predicted one by one",
                listener=self._listener, rows=len(names), stage=stage, ended=ended or "unknown",
            )  # fmt: skip
        if any(known.guilty and known.cause == "timed_out" for known in self._known.values()):
            self.cap = None  # the cause is one row, not the size of the batch
        for name in list(self._known)[:-KNOWN_ROWS]:
            del self._known[name]

    def _read(self) -> tuple[dict[bytes, _Suspect], int | None, Toll]:
        try:
            document = json.loads(self._notes.read_bytes())
            known = {bytes.fromhex(name): _Suspect(**about) for name, about in document["rows"].items()}
            cap = document["cap"] if isinstance(document["cap"], int) else None
            return known, cap, Toll.read(document["toll"]) if "toll" in document else Toll()
        except FileNotFoundError:
            return {}, None, Toll()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.warning("the file of suspects cannot be read", file=str(self._notes), reason=str(error))
            return {}, None, Toll()

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        rows = {name.hex(): asdict(known) for name, known in self._known.items()}
        document = {"cap": self.cap, "toll": asdict(self.toll), "rows": rows}
        try:
            private_files.write(self._notes, json.dumps(document).encode())
        except OSError as error:
            log.warning("the file of suspects cannot be saved", file=str(self._notes), reason=str(error))


def _mapped(path: Path, size: int) -> mmap.mmap:
    descriptor = private_files.create(path, os.O_RDWR)
    try:
        os.ftruncate(descriptor, size)
        os.posix_fallocate(descriptor, 0, size)  # without room on the disk for a page, a later write would be a SIGBUS
        mapped = mmap.mmap(descriptor, size)
        mapped[:] = bytes(size)  # not cut off before: a full disk may give its room to somebody else
        return mapped
    finally:
        os.close(descriptor)


def _left(flight: Path) -> Iterator[tuple[NotedStage, bool, list[bytes], tuple[bytes, int, float]]]:
    """The rows each stage had at work: the stage, whether its row was alone, the rows' names; of a lone row its input,
    its generation, and how often it had died before.
    """
    try:
        data = flight.read_bytes()
    except OSError:
        return
    size = len(data) // len(_STAGES)
    for place, stage in enumerate(_STAGES):
        slot = data[place * size : (place + 1) * size]
        if len(slot) < _HEADER.size + _NAME + _ALONE.size:
            return
        count, alone = _HEADER.unpack_from(slot)
        count = min(count, (len(slot) - _HEADER.size) // _NAME)
        if count:
            at = range(_HEADER.size, _HEADER.size + count * _NAME, _NAME)
            names = [slot[each : each + _NAME] for each in at]
            yield stage, bool(alone), names[:1] if alone else names, _ALONE.unpack_from(slot, _HEADER.size + _NAME)


def _mark(name: Hashable) -> bytes:
    """16 bytes that stand for a row of this identity."""
    if isinstance(name, ObjectId):
        return name.binary + b"\0\0\0\0"
    if isinstance(name, bytes):
        return _digest(b"b" + name)
    return _digest(f"{type(name).__name__} {name}".encode("utf-8", "surrogatepass"))


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_NAME).digest()


def fewest_first(suspects: NoSuspects, names: Iterable[Hashable], together: int) -> list[Hashable]:
    """The rows to try next: some that may be tried together, else the one with the fewest deaths. A row is tried again
    only after all others, so that a killer delays as few as possible.
    """
    names = list(names)
    some = [name for name in names if not suspects.narrowed(name)][:together] if together > 1 else []
    return some or [min(names, key=lambda name: (suspects.deaths(name) or 0.0, suspects.narrowed(name)))]
