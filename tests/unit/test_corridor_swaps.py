"""What a corridor runs when a version is swapped in just while it asks what is live."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from bson.timestamp import Timestamp

from components import Key, ObjectModel
from daemon.handlers.predict.batch_cap import BatchCap
from daemon.handlers.predict.corridor import Corridor
from daemon.handlers.predict.dirty_keys import DirtyKeys
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.records import Row, Seen, Snapshot
from daemon.health.measures import Measures, WorkerMeasures


def live(version: int) -> Live:
    return Live(ObjectModel("m", str), version, version, Key.parse("x"), (None,))


class OneRow:
    """A row that holds an output of generation 9."""

    def read(self, keys: Any, after: Any, max_bytes: int) -> Snapshot:
        row = Row(keys[0], ("x",), b"input", Seen(Timestamp(1, 1), 9, b"other", present=True))
        return Snapshot(Timestamp(2, 1), (row,), (), ())

    def exist(self, name: Hashable, input_: bytes, generation: int) -> bool:
        return True

    def settled(self, name: Hashable, input_: bytes, generation: int, scanned: bool) -> bool:
        return False


def test_a_swap_during_the_question_is_not_taken_back() -> None:
    """The answer is what was live when it was asked for; the next batch runs what is live by then."""
    row: Any = OneRow()

    def reload(before: Live) -> Live:
        corridor.live = live(2)  # as a worker's own reload does
        answer = corridor.live
        corridor.live = live(3)  # a promotion, before the answer has arrived
        return answer

    dirty = DirtyKeys(10)
    corridor = Corridor(
        "L", live=live(1), reload=reload, outputs=row, letters=row, dirty=dirty, cap=BatchCap(1.0, 10),
        measures=Measures(WorkerMeasures(), "L"), batch_bytes=1 << 20,
    )  # fmt: skip
    dirty.put("k", "live", [])
    batch = dirty.take(10)
    assert batch is not None
    assert corridor.read(batch).live.version == 2
    assert corridor.live.version == 3
