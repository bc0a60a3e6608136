"""Transactions for the writes of a batch: a listener has sessions of its own for them.

A transaction *at V* begins at the snapshot that the batch was read at (`atClusterTime`). Snapshot isolation is its
guard: if a row was changed or deleted after V, MongoDB answers WriteConflict and nothing of the transaction lands. A
transaction *from V* begins at a snapshot of now, not before V, and its updates are chosen from what it reads there.

- MongoDB writes a record of the session when a transaction commits. A record that is newer than V is a conflict too, so
  a transaction takes the session whose last one is the oldest.
- A session stays in front until a transaction in it has committed. So the next one ends a transaction that was left
  open, and the result of a commit that was not answered is known before it reads.
- The worker's change stream drops the events of these sessions, and a successor ends what its predecessor left open
  (`sessions`). So they are used for nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from bson import Binary
from bson.timestamp import Timestamp
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import DocumentTooLarge, OperationFailure
from pymongo.read_concern import ReadConcern

from components.raw_value import RAW, UNDECODABLE, fields
from daemon.store.connection import TRANSACTION

SESSIONS: Final = 32
"""Enough that the oldest is older than V: the transactions of the batches between their read and their write."""


class Update(NamedTuple):
    """One update: the filter of its row, and the change."""

    query: Mapping[str, Any]
    change: Mapping[str, Any]


class Aborted(Exception):  # it is a result of a transaction
    """Nothing of the transaction landed, as far as is known. `row`: one row's own update is the reason, so that a
    repetition would end likewise.
    """

    def __init__(self, reason: str, *, row: bool = False) -> None:
        super().__init__(reason)
        self.row = row


class ConflictShare:
    """The recent share of transactions that met a conflict; it decides if another one is worth its cost."""

    LIMIT: Final = 0.4  # a failed transaction costs about two thirds of what it saves
    WEIGHT: Final = 0.2
    FADE: Final = 0.95  # for each batch that did not try, so that some try again

    def __init__(self) -> None:
        self._share = 0.0

    def worth_trying(self) -> bool:
        if self._share < self.LIMIT:
            return True
        self._share *= self.FADE
        return False

    def note(self, *, conflict: bool) -> None:
        self._share += self.WEIGHT * (conflict - self._share)


class _Snapshot(ReadConcern):
    """The driver has no argument for the cluster time of a transaction's snapshot."""

    def __init__(self, name: str, time: Timestamp) -> None:
        super().__init__("snapshot")
        self._time = {name: time}

    @property
    def document(self) -> dict[str, Any]:
        return {**super().document, **self._time}


@dataclass(slots=True)
class _Own:
    session: ClientSession
    used: Timestamp | None = None


class Transactions:
    """The transactions of one listener; used by one thread at a time."""

    def __init__(self, table: Collection[dict[str, Any]]) -> None:
        self._table = table
        client = table.database.client
        self._ring = deque(_Own(client.start_session(causal_consistency=False)) for _ in range(SESSIONS))

    @property
    def sessions(self) -> tuple[Binary, ...]:
        """The `lsid.id`s of the sessions."""
        return tuple(each.session.session_id["id"] for each in self._ring)

    def at(self, time: Timestamp, updates: Sequence[Update]) -> Timestamp:
        """Makes these updates in a transaction that begins at `time`. Returns the cluster time after the commit; raises
        Aborted.
        """
        used = self._ring[0].used
        if used is not None and used > time:
            raise Aborted("every session is newer than the snapshot")
        return self._run(_Snapshot("atClusterTime", time), lambda _: updates)

    def after(self, time: Timestamp, choose: Callable[[ClientSession], Sequence[Update]]) -> Timestamp:
        """Makes the updates that `choose` returns in a transaction that begins now, not before `time`. `choose` reads
        in the transaction. Returns the cluster time after the commit; raises Aborted.
        """
        return self._run(_Snapshot("afterClusterTime", time), choose)

    def _run(self, concern: ReadConcern, choose: Callable[[ClientSession], Sequence[Update]]) -> Timestamp:
        own = self._ring[0]
        try:
            with own.session.start_transaction(**{**TRANSACTION, "read_concern": concern}):
                self._send(choose(own.session), own.session)
        except OperationFailure as error:
            raise Aborted(str(error)) from error
        except (DocumentTooLarge, *UNDECODABLE) as error:
            raise Aborted(str(error), row=True) from error
        self._ring.rotate(-1)
        own.used = own.session.operation_time
        assert own.used is not None  # the server answered
        return own.used

    def _send(self, updates: Sequence[Update], session: ClientSession) -> None:
        """Sends the updates; raises Aborted if one of them is refused or matches nothing."""
        if not updates:
            return
        statements = [{"q": update.query, "u": update.change} for update in updates]
        command = {"update": self._table.name, "updates": statements, "ordered": False}
        reply = fields(self._table.database.command(command, session=session, codec_options=RAW).raw)
        if "writeErrors" in reply:
            raise Aborted("MongoDB refuses an update", row=True)
        if reply["n"].value() != len(updates):
            raise Aborted("a row is not there")
