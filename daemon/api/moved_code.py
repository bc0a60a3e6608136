"""Code that has only moved: a comment or a cell above it, and the lines of the script have other numbers.

The daemon goes on with the code as it was applied: to it, moved code would be a changed declaration, with a training
and a prediction of each row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from components.artifacts import Artifact, fits
from components.declarations import parsed
from components.errors import ArtifactRefused
from components.serialization import Declared
from daemon.store.connection import reaching
from daemon.store.registry.artifacts import Artifacts
from daemon.store.registry.components import Catalog, Component


def unmoved(parts: list[Declared], known: Catalog, blobs: Artifacts) -> list[Declared]:
    """Return declarations with the artifacts that they were applied with, if none of their code has more than moved.

    All of them or none: a class whose lines have other numbers is another class, and parts of a model may share one.
    """
    found = [_Part(part, known.of(part.kind).get(part.name), blobs) for part in parts]
    moved = [part.unmoved() for part in found]
    return [part.same() for part in found] if any(part.changed for part in found) else moved


class _Part:
    """One declaration, and how it was applied before."""

    def __init__(self, part: Declared, before: Component[Any] | None, blobs: Artifacts) -> None:
        self._part, self._before, self._blobs = part, before, blobs
        self._made = {_key(artifact.slot): artifact for artifact in part.artifacts}
        self._kept: list[Artifact] = []
        self.changed = False

    def same(self) -> Declared:
        """Return it with the slots that name the same artifacts as before: an older release wrote no `unplaced`."""
        return self._with(self._same)

    def unmoved(self) -> Declared:
        """Return it also with the artifacts of before for code that has only moved. Sets `changed` if other code
        differs.
        """
        return self._with(self._moved)

    def _with(self, slot: Callable[[Any, Any], Any]) -> Declared:
        part, self._kept = self._part, []
        if not part.artifacts:
            return part
        dumped = part.declaration.dump()
        taken = _replaced(dumped, {} if self._before is None else self._before.declaration.dump(), slot)
        if taken == dumped:
            return part
        return replace(part, declaration=parsed(part.kind, part.name, taken), artifacts=[*part.artifacts, *self._kept])

    def _same(self, new: Any, old: Any) -> Any:
        if new["$artifact"] == old.get("$artifact") and "unplaced" not in old and fits(old):
            return {**old, "tensors": new["tensors"]}
        return new

    def _moved(self, new: Any, old: Any) -> Any:
        if new["$artifact"] == old.get("$artifact"):
            return self._same(new, old)
        data = self._stored(old) if new["unplaced"] == old.get("unplaced") and fits(old) else None
        if data is None:
            self.changed = True
            return new
        slot = {**old, "tensors": new["tensors"]}
        self._kept.append(replace(self._made[_key(new)], pickle=data, slot=slot))
        return slot

    def _stored(self, slot: Mapping[str, Any]) -> bytes | None:
        sizes = {} if self._before is None else self._before.sizes
        try:
            with reaching():
                return self._blobs.blob(slot["$artifact"], sizes.get(slot["$artifact"]))
        except ArtifactRefused:  # damaged or gone: the code as it is now mends that
            return None


def _replaced(new: Any, old: Any, slot: Callable[[Any, Any], Any]) -> Any:
    """Return a dumped declaration with other slots; `slot` gets the new one, and what was in its place or {}."""
    if isinstance(new, list):
        before = old if isinstance(old, list) and len(old) == len(new) else [None] * len(new)
        return [_replaced(*pair, slot) for pair in zip(new, before, strict=True)]
    if not isinstance(new, Mapping):
        return new
    old = old if isinstance(old, Mapping) else {}
    if "$artifact" in new:
        return slot(new, old)
    return {name: _replaced(value, old.get(name), slot) for name, value in new.items()}


def _key(slot: Mapping[str, Any]) -> tuple[Any, Any]:
    return slot["$artifact"], slot["tensors"]
