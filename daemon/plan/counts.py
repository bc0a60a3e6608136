"""How many rows and outputs a plan concerns: counted on the server, or estimated from a sample of a large table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pymongo.collection import Collection as Table
from pymongo.errors import ExecutionTimeout

from components.declarations import ModelDeclaration
from components.extended_json import decoded
from daemon.plan.declared import Declared
from daemon.plan.effects import Effect
from daemon.store.connection import Data
from daemon.store.registry.trust import Trust
from daemon.store.registry.versions import Versions

COUNT_MS: Final = 20_000
SAMPLE_ROWS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Count:
    """A number of rows. `about`: it is estimated from a sample."""

    rows: int
    about: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What is counted for one listener: the rows of its table, its outputs now, those that it would lose, the rows that
    it would predict. A count that the server did not finish is None.

    `nothing`: the table has rows, and none of them matches the listener.
    `untrained`: its model would work with weights that no training made; `worse`: it works with better ones now.
    """

    scanned: Count | None = Count(0)
    outputs: Count | None = Count(0)
    lost: Count | None = Count(0)
    predicted: Count | None = Count(0)
    untrained: bool = False
    worse: bool = False
    nothing: bool = False


def count(
    database: Data, service: str, trust: Trust, before: Declared, after: Declared, found: Iterable[Effect]
) -> dict[str, Facts]:
    """The facts of each listener that these effects name. Raises PyMongoError."""
    by_listener: dict[str, set[Effect]] = {}
    for effect in found:
        if effect.kind in ("scans", "removes", "predicts", "stops", "untrained"):
            by_listener.setdefault(effect.target, set()).add(effect)
    narrowed = {name for name, several in by_listener.items() if any(each.kind == "removes" for each in several)}
    return {
        name: _Counting(database, service, trust, before, after, name).facts(several, narrowed)
        for name, several in by_listener.items()
    }


@dataclass(frozen=True)
class _Counting:
    """Counts for one listener."""

    database: Data
    service: str
    trust: Trust
    before: Declared
    after: Declared
    name: str

    def facts(self, effects: Collection[Effect], narrowed: Collection[str]) -> Facts:
        """What these effects need. `narrowed` are the listeners that may lose outputs."""
        name, old, new = self.name, self.before.listeners.get(self.name), self.after.listeners.get(self.name)
        kinds = {each.kind for each in effects}
        has_output = {f"_outputs.{name}.value": {"$exists": True}}
        outputs = _count(self.database[old.table], has_output) if old is not None else Count(0)
        if new is None:
            return Facts(outputs=outputs)
        table, lost = self.database[new.table], Count(0) if "removes" not in kinds else outputs
        matching = {"$and": list(self._matching(name, narrowed))}
        if "removes" in kinds and not self._moved(name) and outputs != Count(0):
            lost = _count(table, {**has_output, "$nor": [matching]})
        anew = any(each.kind == "predicts" and each.all_rows for each in effects)
        only = [] if anew else [{f"_outputs.{name}.value": {"$exists": False}}]
        predicted = _count(table, {"$and": [matching, *only]}) if "predicts" in kinds else Count(0)
        scanned = Count(table.estimated_document_count(maxTimeMS=COUNT_MS)) if "scans" in kinds else Count(0)
        untrained, worse = self._untrained() if "untrained" in kinds else (False, False)
        nothing = new.where != {} and predicted == Count(0) and scanned not in (None, Count(0)) and "predicts" in kinds
        nothing = nothing and (anew or _count(table, matching) == Count(0))
        return Facts(scanned, outputs, lost, predicted, untrained, worse, nothing)

    def _matching(self, name: str, narrowed: Collection[str]) -> Iterator[Mapping[str, Any]]:
        """The conditions that a row must meet to have this listener's output after the edit."""
        listener = self.after.listeners[name]
        yield from ({path: {"$exists": True}} for path in listener.parsed_key.fields)
        if listener.where:
            yield decoded(listener.where)
        for above in listener.parsed_key.upstream:
            if above in narrowed:
                yield from self._matching(above, narrowed)

    def _moved(self, name: str) -> bool:
        """Whether the listener, or one that its input comes from, leaves its table: then all its outputs go."""
        old, new = self.before.listeners.get(name), self.after.listeners.get(name)
        if old is None or new is None:
            return False
        return old.table != new.table or any(self._moved(above) for above in new.parsed_key.upstream)

    def _untrained(self) -> tuple[bool, bool]:
        """Whether the listener's model would work untrained, and whether what works now is better than that."""
        old, name = self.before.listeners.get(self.name), self.after.listeners[self.name].model
        declared = self.after.models.get(name)
        taught = name in self.after.trainers or name in self.before.trainers
        learns = declared is not None and (declared.type == "torch" or taught)
        if declared is None or not learns or self._will_be_trained(name, declared):
            return False, False
        live = None if old is None else Versions(self.database, self.service, old.model).live()
        if old is None or live is None:
            return name in self.after.trainers, False
        waits = not live.trained and old.model in self.before.trainers  # it has not learned yet either
        untrained = live.trained or name in self.after.trainers
        return untrained, untrained and not waits

    def _will_be_trained(self, model: str, declared: ModelDeclaration) -> bool:
        """Whether the version that would go live has learned: see `daemon.store.registry.model_loader`."""
        live = Versions(self.database, self.service, model).live()
        versions = Versions(self.database, self.service, model, self.trust)
        alike = versions.alike(declared, None if live is None else live.number)
        return alike[0].trained if alike else declared.begins_trained


def _count(table: Table[dict[str, Any]], query: Mapping[str, Any]) -> Count | None:
    """How many rows match; from a sample if that takes too long, None if that takes too long, too."""
    try:
        return Count(table.count_documents(query, maxTimeMS=COUNT_MS))
    except ExecutionTimeout:
        pass
    try:
        total = table.estimated_document_count(maxTimeMS=COUNT_MS)
        stages: list[Mapping[str, Any]] = [{"$sample": {"size": SAMPLE_ROWS}}, {"$match": query}, {"$count": "n"}]
        found = next(iter(table.aggregate(stages, maxTimeMS=COUNT_MS)), {"n": 0})
        return Count(round(found["n"] * total / min(SAMPLE_ROWS, max(1, total))), about=True)
    except ExecutionTimeout:
        return None
