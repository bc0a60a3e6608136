"""Vectors in memory, each under a row's key, and those of them that are nearest to another.

The search is exact: it compares every vector. Vectors belong to a *generation*; those of two are never compared.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, Literal

import numpy as np

from components.raw_value import identity

BLOCK: Final = 4096
"""Vectors are held in blocks of so many: a block that is added copies none of the others."""

Array = np.ndarray[Any, Any]


class Full(Exception):
    """No more vectors fit."""


class Vectors:
    """At most `most` vectors of one length. They are dense: the last one takes the place of one that is removed."""

    def __init__(self, length: int, measure: Literal["cosine", "dot"], most: int) -> None:
        self._length, self._cosine, self.most = length, measure == "cosine", most
        self._keys: list[Any] = []
        self._places: dict[Hashable, int] = {}
        self._vectors: list[Array] = []
        self._generations: list[Array] = []

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, key: Any, vector: Array, generation: int) -> None:
        """Hold this vector for a row, in place of the one before. Raises Full."""
        name = identity(key)
        place = self._places.get(name)
        if place is None:
            place = len(self._keys)
            if place >= self.most:
                raise Full
            if place == len(self._vectors) * BLOCK:
                self._vectors.append(np.empty((BLOCK, self._length), np.float32))
                self._generations.append(np.empty(BLOCK, np.int64))
            self._keys.append(key)
            self._places[name] = place
        block, row = divmod(place, BLOCK)
        self._vectors[block][row] = self._measured(vector)
        self._generations[block][row] = generation

    def remove(self, key: Any) -> None:
        """Forget a row's vector, if it has one."""
        place = self._places.pop(identity(key), None)
        if place is None:
            return
        last = len(self._keys) - 1
        moved = self._keys.pop()
        if place != last:
            (block, row), (from_block, from_row) = divmod(place, BLOCK), divmod(last, BLOCK)
            self._vectors[block][row] = self._vectors[from_block][from_row]
            self._generations[block][row] = self._generations[from_block][from_row]
            self._keys[place] = moved
            self._places[identity(moved)] = place
        while len(self._vectors) > 1 and len(self._keys) <= (len(self._vectors) - 1) * BLOCK:
            self._vectors.pop()
            self._generations.pop()

    def nearest(self, vector: Array, generation: int, n: int) -> list[tuple[Any, float]]:
        """Return the keys of the `n` nearest vectors of this generation with their scores, the nearest first."""
        wanted = self._measured(np.asarray(vector, np.float32))
        scores = [_products(block[:rows], wanted) for block, rows in self._filled(self._vectors)]
        ours = [block[:rows] == generation for block, rows in self._filled(self._generations)]
        if not scores:
            return []
        score, places = np.concatenate(scores), np.flatnonzero(np.concatenate(ours))
        if 0 < n < len(places):
            places = places[np.argpartition(-score[places], n - 1)[:n]]
        places = places[np.argsort(-score[places], kind="stable")]
        return [(self._keys[place], float(score[place])) for place in places]

    def count(self, generation: int) -> int:
        """Return how many vectors are of this generation."""
        return sum(int(np.count_nonzero(block[:rows] == generation)) for block, rows in self._filled(self._generations))

    def _filled(self, blocks: list[Array]) -> list[tuple[Array, int]]:
        """Return each block with how many of its rows are in use."""
        return [(block, min(BLOCK, len(self._keys) - place * BLOCK)) for place, block in enumerate(blocks)]

    def _measured(self, vector: Array) -> Array:
        """Return the vector as it is held: of cosine, with the length 1, so that a product is the cosine."""
        wide = vector.astype(np.float64)  # the length may be more than float32 can hold
        norm = np.linalg.norm(wide) if self._cosine else 0.0
        return np.asarray(wide / norm, np.float32) if norm else vector


def _products(vectors: Array, wanted: Array) -> Array:
    """Return the dot product of each vector with another."""
    with np.errstate(over="ignore", invalid="ignore"):
        products = vectors @ wanted
    if np.isfinite(products).all():
        return np.asarray(products)
    return np.asarray(vectors.astype(np.float64) @ wanted.astype(np.float64))
