"""A person who trains, promotes and rolls back the model of the soak at random."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from harness.torch_models import answered
from harness.trainings import Site
from pymongo import UpdateOne
from pymongo.errors import PyMongoError

from components.errors import PredictdError
from faults.soak_service import MODEL

LESSONS = 40


class Teacher(threading.Thread):
    """Does one thing every so many seconds; what MongoDB or predictd refuses is left."""

    def __init__(self, site: Site, seed: str, seconds: float) -> None:
        super().__init__(name="teacher", daemon=True)
        self._site, self._seconds = site, seconds
        self._choose = random.Random(f"{seed} teacher")
        self._end = threading.Event()
        self.done: Counter[str] = Counter()

    def stop(self) -> None:
        self._end.set()
        self.join(300)

    def run(self) -> None:
        while not self._end.wait(self._seconds):
            self._act()

    def _act(self) -> None:
        """A training mostly."""
        acts: dict[Callable[[], None], int] = {self._train: 6, self._roll_back: 2, self._promote: 2, self._validate: 1}
        with suppress(PyMongoError, PredictdError):
            self._choose.choices(list(acts), list(acts.values()))[0]()

    def write_lessons(self) -> None:
        """Rows from which another answer is learned."""
        answer = self._choose.randrange(1000)
        rows = [(f"x{n}", answered(f"x{n}", answer)) for n in range(LESSONS)]
        lessons: Any = self._site.data["lessons"]
        lessons.bulk_write([UpdateOne({"_id": x}, {"$set": {"x": x, "y": y}}, upsert=True) for x, y in rows])

    def _train(self) -> None:
        self.write_lessons()
        self._site.jobs.queue("train", MODEL, {"by": "the soak"})
        self.done["trainings asked for"] += 1

    def _validate(self) -> None:
        self._site.jobs.queue("validate", "exam", {"by": "the soak"})
        self.done["validations asked for"] += 1

    def _roll_back(self) -> None:
        self._site.versions(MODEL).rollback("the soak")
        self.done["rollbacks"] += 1

    def _promote(self) -> None:
        versions = self._site.versions(MODEL)
        number = self._choose.choice([each.number for each in versions.listed(traces=False) if each.loadable])
        if versions.promote(number, reason="the soak"):
            self.done["promotions by hand"] += 1
