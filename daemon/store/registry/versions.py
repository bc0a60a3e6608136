"""Which version of a model is live, and how another one becomes so.

The document of the model's declaration names the live version (`live`). One transaction changes it, signs the
promotion, raises the generation of each of the model's listeners, marks the versions, and asks the workers to reload.
So no generation ever has two versions.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError

from components.errors import DeclarationError, Fenced, NotApplied, PredictdError, SignatureRefused
from daemon.store import names
from daemon.store.connection import TRANSACTION
from daemon.store.documents import read_one
from daemon.store.registry.components import signatures
from daemon.store.registry.stored_versions import StoredVersions
from daemon.store.registry.version import Version
from daemon.store.service import notify as bells
from daemon.store.service import requests

ANY: Final = -1  # any live version is replaced


class Versions(StoredVersions):
    """The versions of one model, and its promotions."""

    def promote(
        self,
        number: int,
        *,
        reason: str,
        live: int | None = ANY,
        job: tuple[Any, int] | None = None,
        back: bool = False,
    ) -> bool:
        """Makes a version the live one, and asks the workers to swap. False if `live`, the version to replace, is no
        longer live.

        If `live` is None, no version may be live yet. `job` is (id, epoch) of the running job that promotes: raises
        Fenced if it no longer runs under this epoch. `back`: this is a rollback. Raises NotApplied, and
        DeclarationError if the version was made for another declaration of the model.
        """
        with self._database.client.start_session() as session:
            done: bool = session.with_transaction(
                lambda _: self._promote(session, number, reason=reason, live=live, job=job, back=back), **TRANSACTION
            )
        if done:
            with suppress(PyMongoError):  # the promotion is done; without the notification it is noticed a little later
                bells.ring(self._database, self._service)
        return done

    def _promote(
        self,
        session: ClientSession,
        number: int,
        *,
        reason: str,
        live: int | None,
        job: tuple[Any, int] | None,
        back: bool,
    ) -> bool:
        component = read_one(self._components, {"_id": self._component, "state": "applied"}, session=session)
        if component is None:
            raise NotApplied(f"model {self._model!r} is not applied")
        before = component.get("live")
        if live not in (ANY, before):
            return False
        found = self._promotable(number, signatures(component), session)
        if job is not None:
            running = {"_id": job[0], "epoch": job[1], "state": "running"}
            if (
                not self._database[names.JOBS]
                .update_one(running, {"$set": {"promoted": number}}, session=session)
                .matched_count
            ):
                raise Fenced(
                    f"job {job[0]} is no longer this process's; {self._model} version {number} is not promoted"
                )
        self._components.update_one({"_id": self._component}, {"$set": {"live": number}}, session=session)
        old = self.document(before, session) if isinstance(before, int) else None
        others = {**self._of, "state": "live", "number": {"$ne": number}}
        self._collection.update_many(others, {"$set": {"state": "retired"}}, session=session)
        replaced = found.get("replaced") if back or before == number else before
        promotion = self._signed.promotion(found, replaced, old, component["revision"])
        change = {"state": "live", "reason": reason, "replaced": replaced, "promotion": promotion}
        self._collection.update_one(
            {"_id": self._id(number)}, {"$set": change, "$currentDate": {"promoted_at": True}}, session=session
        )
        # Removed listeners too: if one is applied again, it must not get a generation that had another version.
        whole = {"$type": ["int", "long"], "$lt": 1 << 53, "$not": {"$type": "array"}}
        mine = {"service": self._service, "kind": "listener", "model": self._model, "generation": whole}
        self._components.update_many(mine, {"$inc": {"generation": 1}}, session=session)
        applied = self._components.find({**mine, "state": "applied"}, {"name": 1}, session=session)
        requests.reload(self._database, self._service, [str(each.get("name")) for each in applied], session)
        return True

    def _promotable(self, number: int, of: frozenset[Any], session: ClientSession) -> dict[str, Any]:
        found = read_one(self._collection, {"_id": self._id(number)}, session=session)
        if found is None:
            raise NotApplied(
                f"model {self._model!r} has no version {number}; `predictd versions {self._model}` lists them"
            )
        version = Version.from_document(found)
        if version is None or not version.loadable:
            raise DeclarationError(
                f"{self._model} version {number}: its weights are no longer stored (trainer's keep = N)"
            )
        if version.signature not in of:
            raise DeclarationError(
                f"{self._model} version {number} was made for another declaration of the model (its code or its "
                "arguments); restore that declaration, and it is promoted with it"
            )
        self._signed.check(found)
        return found

    def is_live(self, number: int) -> bool:
        """Whether a version is live, and believed; if it is not believed, a promotion is the remedy."""
        with suppress(SignatureRefused):
            live = self.live()
            return live is not None and live.number == number
        return False

    def rollback(self, reason: str) -> Version:
        """Promotes the version that was live before the live one; its outputs come back. Raises as `way_back` does."""
        return self.back(*self.way_back(), reason)

    def way_back(self) -> tuple[int, int]:
        """The live version, and the one that was live before it. Raises NotApplied if there is none."""
        live = self.live()
        if live is None:
            raise NotApplied(f"model {self._model!r} has no live version yet")
        if live.replaced is None:
            raise NotApplied(
                f"{self._model} version {live.number} is the first that was live: there is nothing to go back to"
            )
        return live.number, live.replaced

    def back(self, live: int, before: int, reason: str) -> Version:
        """Promotes `before` if `live` is live; repeated, it changes nothing. Raises PredictdError if a third one is."""
        if not self.promote(before, reason=reason, live=live, back=True) and not self.is_live(before):
            raise PredictdError(
                f"another version of {self._model} went live meanwhile; look at `predictd versions {self._model}`"
            )
        back = self.get(before)
        assert back is not None
        return back
