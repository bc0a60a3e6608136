"""A change stream that is read as far as a test asks."""

from __future__ import annotations

import threading
from typing import Any

from bson.timestamp import Timestamp
from pymongo.database import Database

from daemon.listeners import change_stream as stream
from daemon.store.rows.positions import Position, cluster_time


class Hurried(threading.Event):
    """Never waits, and knows for how long it was to."""

    def __init__(self) -> None:
        super().__init__()
        self.delays: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.delays.append(timeout or 0.0)
        return self.is_set()


def just_after(time: Timestamp) -> Timestamp:
    return Timestamp(time.time, time.inc + 1)


class Listening:
    """A stream that is read as far as asked."""

    def __init__(
        self,
        database: Database[dict[str, Any]],
        *,
        chained: tuple[str, ...] = (),
        position: Position | None = None,
        **more: Any,
    ) -> None:
        self.database = database
        self.stop = Hurried()
        self.position = position or Position(just_after(cluster_time(database)))
        subscription = stream.Subscription("s", ("rows",), chained, **more)
        self._events = stream.watch(database, subscription, self.position, self.stop)

    def heard(self) -> list[stream.Event]:
        """Whatever comes until all has come that was written before, without the Reached in between."""
        end = cluster_time(self.database)
        self.database["noise"].insert_one({})  # moves the place of a stream that has nothing to say
        heard: list[stream.Event] = []
        for event in self._events:
            if isinstance(event, stream.Reached):
                self.position = event.position
                if event.position.cluster_time > end:
                    break
            else:
                heard.append(event)
            assert len(heard) < 1000, heard[-5:]
        return heard

    def close(self) -> None:
        """Ends the stream now: a garbage collection would, while this thread holds a lock of the driver's."""
        self._events.close()

    def changed(self) -> list[Any]:
        """The `_id`s of the rows that changed."""
        return [key for event in self.heard() if isinstance(event, stream.Changed) for key in event.keys]
