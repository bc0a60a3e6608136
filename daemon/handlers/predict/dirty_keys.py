"""The keys that wait for a corridor.

`DirtyKeys` holds the keys of rows whose output may be out of date. It has two lanes, live and scan. A key waits once,
no matter how many events named it, so ten updates of a row cost one prediction; and while a batch holds it, it waits
until that batch is written, so a row is never in two batches at once.

This module knows nothing of MongoDB or models; of threads only its locks.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Literal

from bson.timestamp import Timestamp

from components.raw_value import identity, size
from daemon.handlers.predict.progress import Stretch

Lane = Literal["live", "scan"]


@dataclass(slots=True)
class DirtyKey:
    """A row whose output may be out of date, and the stretches that wait for it."""

    key: Any
    lane: Lane
    newest: Timestamp | None = None
    stretches: list[Stretch[Any]] = field(default_factory=list)
    post_image: Mapping[str, Any] | None = None
    """The row as the newest event left it, if that event brought it along."""
    name: Hashable = None
    """The identity of the key, by default found from it."""
    owed: bool = False
    """Whether the scan that named it stands in for events that were dropped."""

    def __post_init__(self) -> None:
        if self.name is None:
            self.name = identity(self.key)

    def wait_for(self, stretches: Iterable[Stretch[Any]]) -> None:
        """These stretches wait for the row as well.

        Of each source only the earliest stretch has to wait, because the position cannot pass that one. So a row that
        changes a thousand times while it waits takes no more memory than one that changes once.
        """
        for stretch in stretches:
            same = next((known for known in self.stretches if known.lock is stretch.lock), None)
            later = stretch if same is None or same.number <= stretch.number else same
            if same is None:
                self.stretches.append(stretch)
            else:
                if later is same:
                    self.stretches[self.stretches.index(same)] = stretch
                with later.lock:
                    later.unfinished -= 1

    def advance(self, newest: Timestamp | None, post_image: Mapping[str, Any] | None = None) -> None:
        """The row must not be read before this time."""
        if newest is not None and (self.newest is None or newest > self.newest):
            self.newest, self.post_image = newest, post_image

    def take_over(self, other: DirtyKey) -> None:
        """Merges another dirty key of the same row into this one."""
        stretches, other.stretches = other.stretches, []
        self.wait_for(stretches)
        self.advance(other.newest)
        self.owed |= other.owed

    def finish(self) -> None:
        """The row was judged and its write is acknowledged: no stretch waits for it any more."""
        for stretch in self.stretches:
            stretch.finish()
        self.stretches = []


@dataclass(frozen=True, slots=True)
class Batch:
    """Keys that are judged together. `after` is the cluster time before which they must not be read."""

    keys: tuple[DirtyKey, ...]
    purpose: Literal["", "alone", "probe"] = ""
    """"alone": its rows are suspected of killing processes; "probe": it tests whether a failing model works again."""
    taken: tuple[DirtyKey, ...] = ()
    """All keys with which the batch began; `keys` are those that are still in it."""

    @property
    def after(self) -> Timestamp | None:
        """The newest event among the keys (rule R3a: a batch is not read at an earlier snapshot)."""
        return max((key.newest for key in self.keys if key.newest is not None), default=None)

    def post_image(self, at: Timestamp) -> Mapping[str, Any] | None:
        """The only row of the batch as it was at this time, if an event has brought it. Asked once: a later attempt has
        to read what the row is then.
        """
        images = [key.post_image if key.newest == at else None for key in self.keys]
        for key in self.keys:
            key.post_image = None
        return images[0] if len(images) == 1 else None


SCAN_SHARE: Final = 8
"""A scan may fill one in so many rows of a batch while live rows come: several batches are in flight at once, and a
live row waits for those before it.
"""

LIVE_SECONDS: Final = 1.0

KEY_BYTES: Final = 4 * 1024 * 1024
"""The keys of one batch may take so many bytes: they go into one command, and a command takes 16 MB. A larger key makes
a batch of its own.
"""

WAITING_BYTES: Final = 64 * 1024 * 1024
"""The waiting live keys may take so many bytes."""


class DirtyKeys:
    """Coalesced dirty keys in two lanes; `take` drains the waiting keys, live ones first.

    A key that becomes dirty while a batch holds it waits until `landed` says that the batch is written. Its row would
    be read before that batch's write, so its own write would meet a race, or repeat the same prediction. `overlap`
    lets it be taken at once: so do two processes, of which neither knows the other's batches.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic, *, overlap: bool = False) -> None:
        self.limit = limit
        self._clock = clock
        self._overlap = overlap
        self._held: dict[Hashable, DirtyKey] = {}  # by a batch
        self._behind: dict[Hashable, DirtyKey] = {}  # dirty again, and waiting for that batch
        self._live_at = -math.inf
        lock = threading.RLock()
        self._ready, self._left = threading.Condition(lock), threading.Condition(lock)
        self._lanes: dict[Lane, dict[Hashable, DirtyKey]] = {"live": {}, "scan": {}}
        self._live_bytes = 0
        self._closed = False
        self._woken = False

    def put(
        self,
        key: Any,
        lane: Lane,
        stretches: Iterable[Stretch[Any]],
        newest: Timestamp | None = None,
        *,
        owed: bool = False,
    ) -> bool:
        """Marks a row as dirty.

        Returns False, and marks nothing, if the live lane is full: the caller then orders a scan. The scan lane has no
        limit, because a scan waits for room itself. A key in the scan lane moves to the live lane when an event names
        it.
        """
        with self._ready:
            if lane == "live":
                self._live_at = self._clock()
            if not self._put(key, lane, stretches, newest, owed=owed):
                return False
            self._ready.notify()
            return True

    def put_live(
        self,
        keys: Sequence[Any],
        times: Sequence[Timestamp],
        stretch: Stretch[Any],
        post_image: Mapping[str, Any] | None = None,
    ) -> int:
        """Marks rows as dirty, each as `put` does. Returns how many it marked until the live lane was full.
        `post_image` is what the only row was at its time; it is kept if no other row waits.
        """
        done = 0
        with self._ready:
            self._live_at = self._clock()
            if any(self._lanes.values()):
                post_image = None
            for key, newest in zip(keys, times, strict=True):
                if not self._put(key, "live", [stretch], newest, post_image):
                    break
                done += 1
            self._ready.notify()
        return done

    def _put(
        self,
        key: Any,
        lane: Lane,
        stretches: Iterable[Stretch[Any]],
        newest: Timestamp | None,
        post_image: Mapping[str, Any] | None = None,
        *,
        owed: bool = False,
    ) -> bool:
        name = identity(key)
        live, scan = self._lanes["live"], self._lanes["scan"]
        known = live.get(name) or scan.get(name) or self._behind.get(name)
        if known is None and name in self._held:
            known = self._behind[name] = DirtyKey(key, lane, name=name)
        elif known is None:
            if lane == "live" and (len(live) >= self.limit or self._live_bytes >= WAITING_BYTES):
                return False
            known = DirtyKey(key, lane, name=name)
            self._wait(name, known)
        elif lane == "live" and known.lane == "scan":
            known.lane = "live"
            if name in scan:
                self._wait(name, scan.pop(name))
        known.wait_for(stretches)
        known.advance(newest, post_image)
        known.owed |= owed
        return True

    def put_back(self, dirty: DirtyKey, newest: Timestamp | None = None) -> None:
        """Makes a key dirty again whose write met a race or that was not read; the limit does not apply."""
        stretches, dirty.stretches = dirty.stretches, []
        name = dirty.name
        with self._ready:
            self._let_go(dirty)
            live, scan = self._lanes["live"], self._lanes["scan"]
            known = live.get(name) or scan.pop(name, None) or DirtyKey(dirty.key, dirty.lane, name=name)
            if dirty.lane == "live":
                known.lane = "live"
            known.owed |= dirty.owed
            self._wait(name, known)
            known.wait_for(stretches)
            for time_ in (newest, dirty.newest):
                known.advance(time_)
            self._ready.notify()

    def take(self, cap: int, seconds: float | None = None) -> Batch | None:
        """Waits for the first key, then takes all waiting keys at once, up to the cap. None once closed.

        The batch is empty if no key came for `seconds`, or after a call of `wake`.

        Scan keys fill the rest of the cap. While live keys come, they fill only a part of it, so that live keys do not
        wait behind full batches.
        """
        with self._ready:
            self._ready.wait_for(lambda: self._closed or self._woken or any(self._lanes.values()), seconds)
            self._woken = False
            if self._closed:
                return None
            taken, held = self._drain("live", cap, 0)
            room = cap - len(taken)
            if self._clock() - self._live_at < LIVE_SECONDS:
                room = min(room, max(1, cap // SCAN_SHARE))
            taken += self._drain("scan", room, held)[0]
            self._live_bytes -= held
            return Batch(tuple(taken), taken=tuple(taken))

    def landed(self, batch: Batch) -> None:
        """The batch is written, or dropped: those of its keys that became dirty meanwhile may be taken."""
        with self._ready:
            for dirty in batch.taken:
                self._let_go(dirty)
            self._ready.notify()
            self._left.notify_all()

    def let_pass(self, seconds: float) -> None:
        """Waits until the only key that waits or is in a batch is written, at most so long; not at all if there are
        others. One that has become dirty again while a batch holds it is no other.
        """
        with self._left:
            self._left.wait_for(lambda: len(self._held) + sum(map(len, self._lanes.values())) != 1, seconds)

    def take_live(self) -> list[DirtyKey]:
        """Empties the live lane. The caller finishes these keys once something else, such as a scan, covers their
        rows.
        """
        with self._ready:
            taken = list(self._lanes["live"].values())
            self._lanes["live"], self._live_bytes = {}, 0
        return taken

    def wake(self) -> None:
        """Makes a waiting `take` return."""
        with self._ready:
            self._woken = True
            self._ready.notify_all()

    def close(self) -> None:
        """No more batches: `take` returns None from now on."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def depth(self) -> dict[Lane, int]:
        """The number of waiting keys in each lane."""
        with self._ready:
            behind = Counter(dirty.lane for dirty in self._behind.values())
            return {lane: len(keys) + behind[lane] for lane, keys in self._lanes.items()}

    def _let_go(self, dirty: DirtyKey) -> None:
        name = dirty.name
        if self._held.get(name) is dirty:
            del self._held[name]
            if name in self._behind:
                self._wait(name, self._behind.pop(name))

    def _wait(self, name: Hashable, dirty: DirtyKey) -> None:
        if dirty.lane == "live" and name not in self._lanes["live"]:
            self._live_bytes += size(name)
        self._lanes[dirty.lane][name] = dirty

    def _drain(self, lane: Lane, rows: int, held: int) -> tuple[list[DirtyKey], int]:
        """Takes the first keys of a lane, at most `rows`, until the batch holds `KEY_BYTES`. Returns them, and the
        bytes that the batch then holds.
        """
        waiting, names = self._lanes[lane], []
        for name in islice(waiting, rows):
            more = size(name)
            if held and held + more > KEY_BYTES:
                break
            held += more
            names.append(name)
        taken = [waiting.pop(name) for name in names]
        if not self._overlap:
            self._held.update(zip(names, taken, strict=True))
        return taken, held
