"""Applier: writes a component as signed declarations into the registry, with its code blobs, then waits for the daemon.

*Applying the same component twice changes nothing*, although a trained model holds other weights than it was declared
with. Weights that a version of this very declaration has therefore count as the declared weights; only other weights
are a change.

A model brings three declarations, its own, its validation's and its trainer's. It is trained if its own or its
trainer's declaration changed, or if no earlier training succeeded.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from bson import ObjectId

from components.artifacts import Artifact, fits
from components.declarations import ModelDeclaration
from components.errors import DeclarationError, JobFailed, MongoUnavailable
from components.listener import Listener
from components.model import Model
from components.serialization import Declared, declare
from components.table import Table
from components.validation import Validation
from components.vector_index import VectorIndex
from daemon.api.component_loader import ComponentLoader
from daemon.api.connection import Connection
from daemon.api.declaration_checks import refuse_filters, refuse_keys, refuse_trainer
from daemon.api.moved_code import unmoved
from daemon.api.rehearsal import rehearse
from daemon.api.waiter import Watch, say, wait_for_job, wait_for_listener, wait_for_swap
from daemon.plan.judge import judged_part
from daemon.plan.plan import PlanHeld
from daemon.store import names
from daemon.store.connection import reaching
from daemon.store.registry.artifacts import Artifacts
from daemon.store.registry.components import Component
from daemon.store.registry.model_loader import packed
from daemon.store.registry.registry import Registry
from daemon.store.registry.versions import Versions
from daemon.store.rows import dead_letters
from daemon.store.rows.table_kind import refusal
from daemon.store.service import notify as bells
from daemon.store.service.jobs import Jobs

_TRIGGER: Final = {"by": "apply"}
_GO_ON: Final = "Nothing is applied. To apply it all the same: db.apply(..., confirm={!r})"


class Applier:
    """Applies components over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._at = connection
        self._confirm = ""

    def apply(self, component: Any, *, force: bool, wait: bool, confirm: str = "") -> None:
        """See `Datalayer.apply`."""
        self._confirm = confirm
        if isinstance(component, Model):
            self._apply_model(component, force=force, wait=wait)
        elif isinstance(component, (Table, Listener, Validation, VectorIndex)):
            [declared] = unmoved([declare(component)], self._at.catalog(), Artifacts(self._at.database))
            self._refuse_unservable(component)
            changed = self._publish([declared], None, force=force)
            if isinstance(component, Validation):
                self._measure(component.identifier, declared.declaration.model, changed, wait=wait)
            if wait and isinstance(component, Listener):
                wait_for_listener(self._at, component.identifier)
                if changed:
                    say(f"listener {component.identifier!r}: all rows of {component.table!r} are judged")
                self._tell_of_dead(component)
        else:
            kind = type(component).__name__
            how = {
                "TorchTrainer": "attach it to its model: model.trainer = ...",
                "Metric": "name it in a Validation",
                "Dataset": "name it in a Validation",
            }
            remedy = how.get(
                kind, "expected a Table, a TorchModel, an ObjectModel, a Listener, a Validation or a VectorIndex"
            )
            raise DeclarationError(f"a {kind} is not applied by itself; {remedy}")

    def _refuse_unservable(self, component: Table | Listener | Validation | VectorIndex) -> None:
        if isinstance(component, Listener):
            with reaching():
                reason = refusal(self._at.database[component.table])
            if reason is not None:
                raise DeclarationError(f"listener {component.identifier!r}: table {reason}")

    def _apply_model(self, model: Model, *, force: bool, wait: bool) -> None:
        name, known = model.identifier, self._at.catalog()
        before = known.models.get(name)
        own, *attached = unmoved([declare(model), *_attached(model)], known, Artifacts(self._at.database))
        parts = [self._as_declared(model, own, before), *attached]
        changed = self._publish(parts, model, force=force)
        if model.applied_trainer is None:
            if name in known.trainers and known.trainers[name].source == "api":
                with reaching():
                    self._at.registry().remove("trainer", name)
            if model.validation is not None:
                self._measure(model.validation.identifier, name, changed, wait=wait)
            if wait:
                self._swapped(name, known.models.get(name), anew=True)
                ComponentLoader(self._at).refresh(model)
            return
        job = self._training(name, asked=not changed.isdisjoint({f"model/{name}", f"trainer/{name}"}))
        if job is None and model.validation is not None:
            self._measure(model.validation.identifier, name, changed, wait=wait)
        if not wait:
            return
        try:
            ended = None if job is None else wait_for_job(self._at, job)
        except JobFailed as failed:
            raise JobFailed(f"{failed}{self._meanwhile(name)}") from None
        self._swapped(name, known.models.get(name), anew=False)
        ComponentLoader(self._at).refresh(model, job=ended)

    def _swapped(self, model: str, before: Component[ModelDeclaration] | None, *, anew: bool) -> None:
        """Waits until the model's listeners run its live version, and tells of it if that is another than before."""
        live = wait_for_swap(self._at, model, anew=anew)
        old = None if before is None else before.live
        if live is not None and live.number != old:
            instead = "" if old is None else f", in place of version {old}"
            say(f"model {model!r}: version {live.number} is live{instead} ({live.reason or live.origin})")

    def _measure(self, validation: str, model: str, changed: set[str], *, wait: bool) -> None:
        """Runs a new or changed validation once, if its model has a live version that it can measure."""
        if f"validation/{validation}" not in changed:
            return
        jobs, own = Jobs(self._at.database, self._at.service), str(ObjectId())
        with reaching():
            live = Versions(self._at.database, self._at.service, model).live()
        if live is None:
            return
        job = Watch(self._at, f"validation {validation}")(lambda: jobs.queue("validate", validation, _TRIGGER, own=own))
        if wait:
            wait_for_job(self._at, job)

    def _meanwhile(self, model: str) -> str:
        """After a failed training: names the live version if that is untrained, else ""."""
        live = None
        with suppress(MongoUnavailable), reaching():
            live = Versions(self._at.database, self._at.service, model).live()
        untrained = live is not None and not live.trained
        return f"; version {live.number} of {model!r}, which is live, is untrained" if live and untrained else ""

    def _tell_of_dead(self, listener: Listener) -> None:
        """Warns if rows have an error in place of an output: the listener has not failed, but users seldom expect
        this.
        """
        with suppress(MongoUnavailable), reaching():
            of = {"_id.listener": listener.identifier}
            count = self._at.database[names.DEAD_LETTERS].count_documents({"_id.service": self._at.service, **of})
            for dead in dead_letters.listed(self._at.database, self._at.service, of, 1):
                error = dead.get("error") or {}
                warnings.warn(
                    f"listener {listener.identifier!r}: {count:,} rows have an error in place of an output; that of "
                    f"row {dead['_id'].get('row')!r} is {error.get('type')}: {error.get('message')}",
                    stacklevel=4,
                )

    def _publish(self, parts: list[Declared], model: Model | None, *, force: bool) -> set[str]:
        """Stores the code, then the declarations that name it, then notifies the daemon. Returns the "kind/name" of
        each changed declaration.
        """
        for part in parts:
            refuse_filters(part)
        registry, blobs = self._at.registry(), Artifacts(self._at.database)
        known = self._at.catalog()  # raises before anything is written if the key is another service's
        refuse_keys(parts, known, model, ComponentLoader(self._at).code)
        if model is not None:
            refuse_trainer(model)
        made: list[Artifact] = [artifact for part in parts for artifact in part.artifacts]
        with reaching():
            for part in parts:
                if part.kind in ("table", "model", "listener", "index"):  # a trainer may name what comes with it
                    registry.refuse(part.kind, part.name, part.declaration, known)
            self._refuse_unconfirmed(registry, parts)
            blobs.put([blob for artifact in made for blob in artifact.blobs.items()])
        rehearse(self._at, parts, known, force=force)
        with reaching():
            declared = [(part.kind, part.name, part.declaration) for part in parts]
            sizes = {digest: len(data) for artifact in made for digest, data in artifact.blobs.items()}
            changed = registry.apply(declared, force=force, sizes=sizes)
            bells.ring(self._at.database, self._at.service)  # also if only a damaged blob was repaired
        return set(changed)

    def _refuse_unconfirmed(self, registry: Registry, parts: list[Declared]) -> None:
        """Raises PlanHeld if these parts would destroy outputs, and nobody has confirmed that."""
        declared = [(part.kind, part.name, part.declaration) for part in parts]
        plan = judged_part(self._at.database, registry, declared)
        if plan.held and plan.name != self._confirm:
            raise PlanHeld(plan, f"{plan.name} is held: {'; '.join(plan.held)}. {_GO_ON.format(plan.name)}")
        for each in plan.unmatched:
            warnings.warn(each, stacklevel=5)

    def _as_declared(self, model: Model, own: Declared, before: Component[ModelDeclaration] | None) -> Declared:
        """The declaration; if the model holds the weights of one of its versions, with the weights it was applied with
        before.
        """
        if before is None or not isinstance(own.declaration.object, Mapping):
            return own
        code = {
            name: _same_code(slot, before.declaration.code.get(name)) for name, slot in own.declaration.code.items()
        }
        if code == own.declaration.code:
            return own
        _, content = packed(model)
        with reaching():
            versions = Versions(self._at.database, self._at.service, model.identifier).listed(traces=False)
        ours = {each.content_hash for each in versions if each.signature == before.signature}
        return replace(own, declaration=own.declaration.model_copy(update=code)) if content in ours else own

    def _training(self, model: str, *, asked: bool) -> str | None:
        """The job that trains the model as it is now applied: a new one if `asked` or if none is there yet; None if the
        model is trained already.
        """
        jobs, own = Jobs(self._at.database, self._at.service), str(ObjectId())
        if not asked:
            known = self._at.catalog()
            with reaching():
                last = next(iter(jobs.listed(1, kind="train", target=model)), None)
                live = Versions(self._at.database, self._at.service, model).live()
            # Whoever applied it may have been killed before the training was queued: then the last one is an older one.
            applied = (known.models[model].applied_at, known.trainers[model].applied_at)
            if last is not None and all(at is None or (last.created_at or at) >= at for at in applied):
                if not last.ended:
                    return last.id
                if last.state == "done":
                    return None
            if live is not None and live.trained and live.signature == known.models[model].signature:
                return None
        job: str = Watch(self._at, f"model {model}")(lambda: jobs.queue("train", model, _TRIGGER, own=own))
        return job


def _attached(model: Any) -> list[Declared]:
    """The declarations of a model's validation and trainer, in this order, because the trainer may name the
    validation.
    """
    name, validation, found = model.identifier, model.validation, []
    if validation is not None:
        if not isinstance(validation, Validation):
            raise DeclarationError(
                f"model {name!r}: validation: expected a Validation, got {type(validation).__name__}"
            )
        if validation.model not in (None, name):
            raise DeclarationError(
                f"model {name!r}: its validation {validation.identifier!r} is of another model, {validation.model!r}"
            )
        found.append(declare(validation, model=model))
    if model.applied_trainer is not None:
        if not hasattr(model.applied_trainer, "select"):
            got = type(model.applied_trainer).__name__
            raise DeclarationError(f"model {name!r}: trainer: expected a TorchTrainer or a LoopTrainer, got {got}")
        found.append(declare(model.applied_trainer, model=model))
    return found


def _same_code(slot: Any, before: Any) -> Any:
    """The slot as it was before, if only its tensors differ. If the old slot was made with other library versions than
    these, the new slot with the old tensors.
    """
    if (
        not isinstance(slot, Mapping)
        or not isinstance(before, Mapping)
        or slot.get("$artifact") != before.get("$artifact")
    ):
        return slot
    return before if fits(before) else {**slot, "tensors": before.get("tensors")}
