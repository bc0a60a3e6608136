"""A training: train on pinned rows, measure, store a candidate, decide, promote.

    pin        the live version (the first one is made here if needed), the rows, the validations  -> pins, on disk
    train      `components.torch.loop`, or an own loop, from its checkpoint if there is one        -> the best weights
    measure    the candidate, loaded anew from its weights, and the live version, on the same rows
    store      the candidate, with its lineage and all traces                                      -> a version
    decide     `daemon.handlers.promote`; promote, reject, or leave it to a person                 -> the result
               one that would be promoted is rehearsed first

A second attempt of the same job does not repeat a training whose candidate is stored, nor a decision that was made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from components.builders import build_trainer
from components.declarations import TrainerDeclaration
from components.errors import DeclarationError, NotApplied, TrainingError
from components.examples import Examples
from components.model import Model
from components.trained import Trained
from components.training_loop import run as run_own
from daemon.handlers import promote
from daemon.handlers.train import checkpoint_folder, folds, split
from daemon.job import pins as pinning
from daemon.job.context import Context
from daemon.job.evaluation import Evaluation, chosen, of_model
from daemon.job.judges import LOSS, Judges
from daemon.job.measurer import Compared, Measurer
from daemon.job.pins import Pins
from daemon.job.rehearsal import refusal
from daemon.store.registry.components import signature
from daemon.store.registry.version import Version
from daemon.store.rows.datasets import NAME_SHOWN, Pinned, pinned
from daemon.store.service.jobs import Job

HISTORY_KEPT: Final = 2000
TRACE_KEPT: Final = 200_000
"""Points of all traces together that go into a version's document, which MongoDB limits to 16 MB."""

T = TypeVar("T")


def train(context: Context, job: Job) -> dict[str, Any]:
    """Does the job; returns its result. Raises Stopped, Stopping, Fenced, and PredictdError if a person must act."""
    training = Training(context, job)
    candidate = training.stored()
    if candidate is None:
        candidate = training.learn()
    return training.settle(candidate)


class Training:
    """One training job at work."""

    def __init__(self, context: Context, job: Job) -> None:
        self._context = context
        self._job = job
        self._model = job.model
        context.voice.doing("building the model")
        self._declared, self._known = context.declared("trainer", job.target)
        self._declaration: TrainerDeclaration = self._declared.declaration
        if self._declaration.model != job.model:  # the job's document is not signed
            raise NotApplied(f"trainer {job.target!r} is of model {self._declaration.model!r}, not {job.model!r}")
        served, self._live = context.live(self._model)
        self._component = context.declared("model", self._model)[0]
        """The model as it is declared. While the version before serves, a training begins with its initial weights."""
        kind = self._component.declaration.type
        if kind != "torch" and self._declaration.type == "torch":
            raise DeclarationError(
                f"trainers.{self._model}: a model of type {kind!r} cannot be trained by torch's loop; set type = "
                '"loop" (in Python: a LoopTrainer)'
            )
        self._versions = context.loader.versions(self._model)
        self._base = self._live.model
        """The model that a training begins with, as it is declared."""
        if served.signature != self._component.signature:
            self._base = context.patience("model", lambda: context.loader.initial(self._component))
        self._measurer = Measurer(context, self._component, self._trainer_of, self._trainer_of(self._base))
        self._validations = of_model(context, self._known, self._model)
        self._judging = Judges(
            context,
            self._model,
            self._declaration,
            self._validations,
            self._known,
            self._base,
            lambda model, evaluation, valid: self._measurer.measured(model, evaluation, valid)[1],
        )

    def _trainer_of(self, model: Model) -> Any:
        """The trainer, whose code refers to the module of `model`."""
        return build_trainer(
            self._model, self._declaration, self._context.loader.resolve(self._declared), lambda: model
        )

    def stored(self) -> Version | None:
        """The candidate of an earlier attempt."""
        mine = self._context.patience("versions", lambda: self._versions.believed(job=self._job.id))
        return mine[-1][0] if mine else None

    # ---- learning -------------------------------------------------------------------------------------------------

    def learn(self) -> Version:
        """Trains, measures, and stores the candidate."""
        from components.torch.checkpoints import Checkpoints
        from components.torch.loader import Cached

        context, declaration, voice = self._context, self._declaration, self._context.voice
        folder = checkpoint_folder(context.assignment.state_dir, self._job.id)
        pins = pinning.load(folder, self._identity)
        if pins is None:
            pins = self._pin()
            pinning.save(folder, pins)
        model, parent = self._begun_with(pins.parent)
        rows = context.rows(declaration.table, declaration.key, pins.train, self._known)
        valid = (
            None if pins.valid is None else context.rows(declaration.table, declaration.key, pins.valid, self._known)
        )
        self._measurer.trainer = trainer = self._trainer_of(model)
        self._measurer.begin(model, rows)
        evaluation = Evaluation(context, self._validations, self._known, pins.datasets, model, Cached)
        apart = f", {len(pins.valid)} kept apart" if pins.valid is not None else ""
        voice.say(
            f"learns from {len(pins.train)} rows{apart}, beginning with version {parent.number}, on {voice.threads} "
            "threads"
        )
        voice.doing("training", total=None if declaration.max_epochs else declaration.max_iterations)
        started = time.monotonic()
        loop: Callable[..., Trained] = run_own
        if declaration.type == "torch":
            from components.torch.loop import train as loop_of_torch

            loop = partial(loop_of_torch, chances=pins.chances or None)
        trained = loop(
            model,
            trainer,
            rows,
            valid,
            evaluate=(lambda: dict(evaluation(model).metrics)) if evaluation else None,
            checkpoints=Checkpoints(folder),
            report=self._take_report,
            stopped=context.stopped,
            greater_is_better=lambda name: evaluation.greater.get(name, not name.endswith("/loss")),
        )
        seconds = time.monotonic() - started
        voice.say(f"{trained.step} steps in {seconds:.1f} s, the best weights are those of step {trained.best_step}")
        if trained.bad_rows:
            voice.say(
                f"{len(trained.bad_rows)} of {len(pins.train)} rows were passed over, because they cannot be prepared"
            )
        voice.doing("measuring the new weights")
        self._measurer.objective = trained.objective
        measured, metrics = self._measurer.served(model, rows, evaluation, valid)
        self._measurer.refuse_changed_globals(parent)
        compared = self._measurer.live(evaluation, valid)
        voice.doing("storing the new version")
        data = self._data(pins, trained, time.monotonic() - started, evaluation.greater, compared)
        points = max(2, TRACE_KEPT // (len(trained.metric_values) + 1))
        candidate = self._store(
            *model.packed(),
            parent=parent.number,
            data=data,
            metrics=metrics,
            metric_values={name: thinned(values, points) for name, values in trained.metric_values.items()},
            metric_steps=thinned(trained.metric_steps, points),
            history=thinned(trained.history, HISTORY_KEPT),
        )
        for validation, found in measured.validations.items():
            self._note(candidate, validation, found, evaluation.contents(validation))
        return candidate

    def _data(
        self, pins: Pins, trained: Trained, seconds: float, greater: Mapping[str, bool], compared: Compared
    ) -> dict[str, Any]:
        """The lineage of a version, as it is stored with it."""
        from components.torch.bad_rows import NAMED

        return {
            "query": json.dumps(
                {name: getattr(self._declaration, name) for name in ("table", "where", "limit", "key", "folds")}
            ),
            "rows": len(pins.train),
            "valid_rows": None if pins.valid is None else len(pins.valid),
            "at": pins.at,
            "steps": trained.step,
            "best_step": trained.best_step,
            "seconds": round(seconds, 3),
            "bad_rows": len(trained.bad_rows),
            "first_bad_rows": {str(n): reason for n, reason in enumerate(trained.bad_rows[:NAMED], 1)},
            "threads": self._context.voice.threads,
            "greater": dict(greater),
            "compared": {"version": compared.version, "trained": compared.trained, "metrics": dict(compared.metrics)},
        }

    @property
    def _identity(self) -> str:
        """Of what a checkpoint must be to go on from it."""
        return signature(
            [self._component.signature, self._declaration, [each.declaration for each in self._validations]]
        )

    def _pin(self) -> Pins:
        context, declaration = self._context, self._declaration
        context.voice.doing("choosing the rows")
        fields = list(dict(context.fields(declaration.table, declaration.key, self._known)))
        parts = folds(declaration, self._known.tables[declaration.table].declaration.fields)

        def choose(where: Mapping[str, Any], limit: int | None, valued: str | None = None) -> Pinned:
            return context.patience(
                "rows", lambda: pinned(context.database, declaration.table, where, fields, limit, valued)
            )

        found = choose(parts.train, declaration.limit, declaration.drawn_by)
        places, valid_ids = list(range(len(found.ids))), None
        if parts.fraction is not None:
            places, apart = split(places, parts.fraction, declaration.seed)
            valid_ids = [found.ids[place] for place in apart]
        elif parts.valid is not None:
            valid_ids = list(choose(parts.valid, None).ids) or None
        train_ids = [found.ids[place] for place in places]
        if not train_ids:
            raise TrainingError(
                f"there is nothing to learn from: no row of table {declaration.table!r} matches "
                f"{json.dumps(parts.train)} and has {', '.join(filter(None, [*fields, declaration.drawn_by]))}"
            )
        datasets = chosen(context, self._validations, self._known)
        chances = self._chances(train_ids, [found.values[place] for place in places]) if declaration.drawn_by else []
        return Pins(self._identity, self._live.version.number, train_ids, valid_ids, datasets, found.at, chances)

    def _chances(self, ids: Sequence[Any], values: Sequence[Any]) -> list[float]:
        from components.torch.order import chances

        classes, field = self._declaration.balanced_by is not None, str(self._declaration.drawn_by)
        return chances(values, classes=classes, field=field, name=lambda place: repr(ids[place])[:NAME_SHOWN])

    def _begun_with(self, parent: int) -> tuple[Any, Version]:
        loaded = self._live
        if parent != loaded.version.number:  # another version was live when the training began
            loaded = self._measurer.version(parent)
        if loaded.version.signature != self._component.signature:  # its weights are of another declaration
            return self._base, loaded.version
        return loaded.model, loaded.version

    def _take_report(self, progress: Mapping[str, Any]) -> None:
        voice = self._context.voice
        if "message" in progress:
            voice.say(str(progress["message"]))
            return
        voice.progress(**progress)
        if progress.get("metrics"):
            found = ", ".join(f"{name} {value:.6g}" for name, value in progress["metrics"].items())
            voice.say(f"step {progress['step']}: {found}")

    # ---- storing --------------------------------------------------------------------------------------------------

    def _store(self, weights: bytes | None, content_hash: str | None, **about: Any) -> Version:
        def store() -> Version:  # called again if the answer was lost: then it is stored already
            return self.stored() or self._versions.add(
                weights,
                content_hash,
                signature=self._component.signature,
                object_signature=self._context.loader.made_from(self._component),
                source=self._context.loader.source(self._component),
                origin=f"training {self._job.id}",
                trained=True,
                job=self._job.id,
                **about,
            )

        self._context.job()  # a cancelled job leaves no candidate
        return self._context.patience("versions", store)

    def _note(
        self, version: Version, validation: str, metrics: Mapping[str, float], contents: Mapping[str, str]
    ) -> None:
        number, job = version.number, self._job.id
        self._context.patience("versions", lambda: self._versions.validated(number, validation, metrics, job, contents))

    # ---- deciding -------------------------------------------------------------------------------------------------

    def settle(self, candidate: Version) -> dict[str, Any]:
        """Decides about the candidate and applies the decision; returns the job's result."""
        voice = self._context.voice
        voice.doing("deciding")
        compared = Compared(**candidate.data["compared"])
        if candidate.state != "candidate":  # an earlier attempt has decided
            return self._result(candidate, candidate.state != "rejected", candidate.reason or "", compared)
        while True:
            live = self._context.patience("versions", self._versions.live)
            if live is not None and live.number == candidate.number:  # the answer of its promotion was lost
                return self._result(candidate, promoted=True, reason=live.reason or "", compared=compared)
            if live is not None and live.number != compared.version:
                voice.say(f"version {live.number} went live in the meantime")
                compared = self._measurer.live(*self._judges(self._pins()))
            decision = self._decided(candidate, compared)
            if decision.promote and (breach := refusal(self._context, self._model, self._model_of(candidate.number))):
                decision = promote.Decision(False, "rejected", f"it must not go live: {breach}", decision.metric)
            if self._done(candidate, decision, compared):
                break
        voice.say(f"version {candidate.number} is {'live' if decision.promote else decision.state}: {decision.reason}")
        self._context.patience("versions", lambda: self._versions.prune(self._declaration.keep))
        return self._result(candidate, decision.promote, decision.reason, compared)

    def _pins(self) -> Pins:
        """The rows of this training, as far as they are still known."""
        folder = checkpoint_folder(self._context.assignment.state_dir, self._job.id)
        return pinning.load(folder, self._identity) or self._pin()

    def _judges(self, pins: Pins) -> tuple[Evaluation, Examples | None]:
        """What to measure another live version by: the same rows."""
        context, declaration = self._context, self._declaration
        valid = (
            None if pins.valid is None else context.rows(declaration.table, declaration.key, pins.valid, self._known)
        )
        return Evaluation(context, self._validations, self._known, pins.datasets, self._base), valid

    def _decided(self, candidate: Version, compared: Compared) -> promote.Decision:
        """The decision; before a promotion that it allows, both are measured on the rows of the last one too."""
        greater = {**candidate.data["greater"], LOSS: False}
        live = promote.Measured(compared.version, compared.trained, compared.metrics, greater)
        new = promote.Measured(candidate.number, trained=True, metrics=candidate.metrics, greater=greater)
        decision = promote.decide(self._declaration, live, new)
        if self._declaration.promote_fall == "any" or decision.state == "rejected":
            return decision
        pins = self._pins()
        if decision.promote and live.trained:
            loads = [partial(self._model_of, number) for number in (compared.version, candidate.number)]
            for on, before, after in self._judging.measure(pins, greater, *loads):
                decision = promote.decide(self._declaration, replace(live, kept=before), replace(new, kept=after), on)
                if decision.held:
                    break
        anew = not (decision.promote and live.trained)
        self._judging.keep(candidate.number, pins, candidate.metrics, anew=anew)
        return decision

    def _model_of(self, number: int) -> Model:
        return self._measurer.version(number).model

    def _done(self, candidate: Version, decision: promote.Decision, compared: Compared) -> bool:
        """Applies the decision; False if another version went live in the meantime."""
        versions, patience, number = self._versions, self._context.patience, candidate.number
        if decision.promote:
            return patience(
                "versions",
                lambda: versions.promote(
                    number, reason=decision.reason, live=compared.version, job=self._context.fence
                ),
            )
        self._context.job()
        if decision.state == "rejected":
            patience("versions", lambda: versions.reject(number, decision.reason))
        else:
            patience("versions", lambda: versions.hold(number, decision.reason, held=decision.held))
        return True

    def _result(self, candidate: Version, promoted: bool, reason: str, compared: Compared) -> dict[str, Any]:
        return {
            "version": candidate.number,
            "promoted": promoted,
            "reason": reason,
            "metrics": dict(candidate.metrics),
            "live_version": compared.version,
            "live_metrics": dict(compared.metrics),
            "steps": candidate.data["steps"],
            **{name: found for name in ("bad_rows", "first_bad_rows") if (found := candidate.data.get(name))},
        }


def thinned(points: Sequence[T], most: int) -> list[T]:
    """At most `most` of the points, evenly chosen, with the first and the last."""
    if len(points) <= most:
        return list(points)
    return [points[round(n * (len(points) - 1) / (most - 1))] for n in range(most)]
