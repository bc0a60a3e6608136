"""Vectors in memory, each under a row's key, and those of them that are nearest to another.

The search compares every vector. It is exact as long as their numbers fit as float32; beyond that each is rounded to
one byte, and the search is approximate. Vectors belong to a *generation*; those of two are never compared.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, Literal

import numpy as np

from components.raw_value import identity

BLOCK: Final = 4096
"""Vectors are held in blocks of so many: a block that is added copies none of the others."""
KEY_BYTES: Final = 256
"""About what a key takes beside its vector."""
AT_ONCE: Final = 1 << 17
"""Rounded numbers that are widened at once: they fit the processor's cache."""

Array = np.ndarray[Any, Any]


class Full(Exception):
    """No more vectors fit."""


class Vectors:
    """Vectors of one length, in at most `most_bytes`. They are dense: the last one takes the place of one that is
    removed. `exact` says that none is rounded.
    """

    def __init__(self, length: int, measure: Literal["cosine", "dot"], most_bytes: int) -> None:
        self._length, self._cosine, self._most_bytes, self.exact = length, measure == "cosine", most_bytes, True
        self._keys: list[Any] = []
        self._places: dict[Hashable, int] = {}
        self._blocks: list[Array] = []

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def most(self) -> int:
        """How many fit."""
        return self._fit(np.float32 if self.exact else np.int8)

    @property
    def fit_exactly(self) -> bool:
        """Whether those that are rounded would fit with room to spare as they were given."""
        return not self.exact and len(self) < self._fit(np.float32) * 3 // 4

    def put(self, key: Any, vector: Array, generation: int) -> None:
        """Hold this vector for a row, in place of the one before. Raises Full."""
        name = identity(key)
        place = self._places.get(name)
        if place is None:
            place = len(self._keys)
            if place >= self.most and self.exact:
                self._round()
            if place >= self.most:
                raise Full
            if place == len(self._blocks) * BLOCK:
                self._blocks.append(np.empty(BLOCK, self._row(np.float32 if self.exact else np.int8)))
            self._keys.append(key)
            self._places[name] = place
        block, row = divmod(place, BLOCK)
        measured = self._measured(vector)
        scale, numbers = (1.0, measured) if self.exact else _rounded(measured)
        self._blocks[block][row] = (numbers, scale, generation)

    def remove(self, key: Any) -> None:
        """Forget a row's vector, if it has one."""
        place = self._places.pop(identity(key), None)
        if place is None:
            return
        last = len(self._keys) - 1
        moved = self._keys.pop()
        if place != last:
            (block, row), (from_block, from_row) = divmod(place, BLOCK), divmod(last, BLOCK)
            self._blocks[block][row] = self._blocks[from_block][from_row]
            self._keys[place] = moved
            self._places[identity(moved)] = place
        while len(self._blocks) > 1 and len(self._keys) <= (len(self._blocks) - 1) * BLOCK:
            self._blocks.pop()

    def nearest(self, vector: Array, generation: int, n: int) -> list[tuple[Any, float]]:
        """Return the keys of the `n` nearest vectors of this generation with their scores, the nearest first."""
        wanted = self._measured(np.asarray(vector, np.float32))
        scores = [_scores(rows, wanted) for rows in self._filled()]
        if not scores:
            return []
        ours = np.concatenate([rows["generation"] == generation for rows in self._filled()])
        score, places = np.concatenate(scores), np.flatnonzero(ours)
        if 0 < n < len(places):
            places = places[np.argpartition(-score[places], n - 1)[:n]]
        places = places[np.argsort(-score[places], kind="stable")]
        return [(self._keys[place], float(score[place])) for place in places]

    def count(self, generation: int) -> int:
        """Return how many vectors are of this generation."""
        return sum(int(np.count_nonzero(rows["generation"] == generation)) for rows in self._filled())

    def _filled(self) -> list[Array]:
        """Return the rows of each block that are in use."""
        return [block[: len(self._keys) - place * BLOCK] for place, block in enumerate(self._blocks)]

    def _row(self, kind: type) -> np.dtype[Any]:
        return np.dtype(
            [("numbers", kind, (self._length,)), ("scale", np.float32), ("generation", np.int64)], align=True
        )

    def _fit(self, kind: type) -> int:
        return self._most_bytes // (np.dtype(kind).itemsize * self._length + KEY_BYTES)

    def _round(self) -> None:
        """Round what is held, block by block: it never takes more memory than before."""
        self.exact = False
        for place, rows in enumerate(self._filled()):
            block = np.empty(BLOCK, self._row(np.int8))
            rounded = block[: len(rows)]
            rounded["generation"] = rows["generation"]
            rounded["scale"], rounded["numbers"] = _rounded(rows["numbers"])
            self._blocks[place] = block

    def _measured(self, vector: Array) -> Array:
        """Return the vector as it is held: of cosine, with the length 1, so that a product is the cosine."""
        wide = vector.astype(np.float64)  # the length may be more than float32 can hold
        norm = np.linalg.norm(wide) if self._cosine else 0.0
        return np.asarray(wide / norm, np.float32) if norm else vector


def _rounded(vectors: Array) -> tuple[Array, Array]:
    """Return a factor for each vector, and its numbers divided by that as whole ones from -127 to 127."""
    scale = np.maximum(np.abs(vectors).max(axis=-1), np.finfo(np.float32).tiny) / np.float32(127)
    return scale, np.rint(vectors / scale[..., None]).astype(np.int8)


def _scores(rows: Array, wanted: Array) -> Array:
    """Return the dot product of each of the rows with a vector."""
    numbers = rows["numbers"]
    if numbers.dtype == np.float32:
        return _products(numbers, wanted)
    step = max(1, AT_ONCE // len(wanted))
    products = [_products(numbers[at : at + step].astype(np.float32), wanted) for at in range(0, len(numbers), step)]
    return np.concatenate(products) * rows["scale"].astype(np.float64)


def _products(vectors: Array, wanted: Array) -> Array:
    """Return the dot product of each vector with another."""
    with np.errstate(over="ignore", invalid="ignore"):
        products = vectors @ wanted
    if np.isfinite(products).all():
        return np.asarray(products)
    return np.asarray(vectors.astype(np.float64) @ wanted.astype(np.float64))
