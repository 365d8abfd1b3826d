"""How much later than forecast items are done, learned from those that were done."""

from __future__ import annotations

_QUANTILE = 0.98  # of the items are done no later than is told
_STEP = 0.1  # of what a batch takes, by which one item moves the estimate at most
_MOST = 2.0  # batches: what comes later still has other reasons, which pass


class Lag:
    """Seconds between forecast and outcome that few items exceed: a quantile, by stochastic approximation.

    A forecast is of work that could be divided at will. In truth an item waits for the end of a batch that began
    before it came, runs as long as the others of its own, and shares the machine with who brings and takes them.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def learn(self, late: float, batch: float) -> None:
        """An item was done `late` seconds after it was forecast; `batch`: seconds that a batch usually takes."""
        step = _STEP * batch * (_QUANTILE if late > self.seconds else _QUANTILE - 1)
        self.seconds = max(0.0, min(_MOST * batch, self.seconds + step))
