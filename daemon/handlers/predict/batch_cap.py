"""The number of rows that a batch may hold within the listener's latency budget."""

from __future__ import annotations


class BatchCap:
    """The number of rows that a batch may hold, from the measured cost t(n) = a*n + b seconds and a latency budget.

    The line is fitted by least squares with fading weights (each observation weighs `FADING` of its successor), so it
    follows a machine that becomes slow. If the fixed cost b alone exceeds the budget, small batches would not help: the
    cap is then the n at which a*n equals b, so that rows take half of the time.
    """

    FADING = 0.9
    FIRST = 4

    def __init__(self, budget: float, ceiling: int) -> None:
        self._budget = budget
        self._declared = self._ceiling = ceiling
        self.begin()

    def begin(self) -> None:
        """Nothing is known of the cost: another version, which may be slower, is live."""
        self._sums = dict.fromkeys(("prepare", "predict"), (0.0, 0.0, 0.0, 0.0, 0.0))  # of 1, n, t, n*n, n*t
        self._warm = False

    @property
    def value(self) -> int:
        """Rows, at least 1 and at most the ceiling; at most `FIRST` before the model itself was measured, however quick
        its preprocess is, because a row may take seconds.
        """
        if not self._sums["predict"][0]:
            return min(self._ceiling, self.FIRST)
        return min(self._fitting(*sums) for sums in self._sums.values() if sums[0])

    def _fitting(self, w: float, n: float, t: float, nn: float, nt: float) -> int:
        spread = w * nn - n * n
        a = (w * nt - n * t) / spread if spread > 1e-9 * w * nn else t / n
        a = max(min(a, t / n), 1e-9)
        b = max((t - a * n) / w, 0.0)
        return int(max(1.0, min(self._ceiling, max((self._budget - b) / a, b / a))))

    def tune(self, budget: float, ceiling: int) -> None:
        """Takes up another budget and ceiling. A ceiling that is as it was stays halved."""
        self._budget = budget
        if ceiling != self._declared:
            self._declared = self._ceiling = ceiling

    def observe(self, rows: int, seconds: float, stage: str = "predict") -> None:
        """Records the seconds that a batch of so many rows took in a stage. The slower of the two stages sets the
        cap.
        """
        if rows < 1:
            return
        if not self._warm and rows <= self.FIRST:  # the first call is slower than the next ones
            self._warm = stage == "predict"
            return
        w, n, t, nn, nt = (self.FADING * value for value in self._sums[stage])
        self._sums[stage] = (w + 1, n + rows, t + seconds, nn + rows * rows, nt + rows * seconds)

    def halve(self, rows: int) -> None:
        """A batch of so many rows ran out of memory: from now on the cap is at most half of that."""
        self._ceiling = max(1, min(self._ceiling, rows // 2))
