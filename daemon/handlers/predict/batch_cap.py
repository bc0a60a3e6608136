"""How many rows a batch may hold, so that it fits the listener's latency budget."""

from __future__ import annotations


class BatchCap:
    """How many rows a batch may hold, from the measured cost t(n) = a*n + b seconds and a latency budget.

    The line is fitted by least squares whose weights fade (each observation weighs `FADING` of its successor), so it
    follows a machine that grows slow. Where the fixed cost b alone eats the budget, small batches would not help: the
    cap then is where a*n equals b, at which half of the time is spent on rows.
    """

    FADING = 0.9
    FIRST = 4

    def __init__(self, budget: float, ceiling: int) -> None:
        self._budget = budget
        self._ceiling = ceiling
        self._sums = dict.fromkeys(("prepare", "predict"), (0.0, 0.0, 0.0, 0.0, 0.0))  # of 1, n, t, n*n, n*t
        self._warm = False

    @property
    def value(self) -> int:
        """Rows, at least 1 and at most the ceiling; few until something is known, for a row may take seconds."""
        known = [sums for sums in self._sums.values() if sums[0]]
        return min((self._fitting(*sums) for sums in known), default=min(self._ceiling, self.FIRST))

    def _fitting(self, w: float, n: float, t: float, nn: float, nt: float) -> int:
        spread = w * nn - n * n
        a = (w * nt - n * t) / spread if spread > 1e-9 * w * nn else t / n
        a = max(min(a, t / n), 1e-9)
        b = max((t - a * n) / w, 0.0)
        return int(max(1.0, min(self._ceiling, max((self._budget - b) / a, b / a))))

    def observe(self, rows: int, seconds: float, stage: str = "predict") -> None:
        """A batch of that many rows took that long in this stage; the slower one counts."""
        if rows < 1:
            return
        if not self._warm and rows <= self.FIRST:  # what only the first call takes says nothing about the next one
            self._warm = stage == "predict"
            return
        w, n, t, nn, nt = (self.FADING * value for value in self._sums[stage])
        self._sums[stage] = (w + 1, n + rows, t + seconds, nn + rows * rows, nt + rows * seconds)

    def halve(self, rows: int) -> None:
        """A batch of that many rows ran out of memory: never again as many."""
        self._ceiling = max(1, min(self._ceiling, rows // 2))
