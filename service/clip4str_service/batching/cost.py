"""What a batch costs, learned from batches that ran: so many seconds for each item, so many for the batch."""

from __future__ import annotations

from math import sqrt

_FORGETTING = 0.95  # the weight of a batch when the next one was run: the last twenty or so count
_EVIDENCE = 5  # batches
_OUTLIER = 4.0  # typical deviations, beyond which a duration is believed only in part
_STEADY = 0.05  # of a duration: no smaller deviation makes an outlier
_ADAPTING = 0.8  # the typical deviation's own forgetting: what seemed an outlier is believed when it persists
_DEVIATIONS = 2.0  # between the expected and the optimistic
_THRIFT = 1.05  # times the cost of an item: that is little more
_SAME = 1e-6  # items: sizes whose second moment is less tell nothing of what an item costs


class Cost:
    """seconds(n) = per_item * n + per_batch, both >= 0: weighted recursive least squares with forgetting.

    Least squares with two unknowns have a closed form in the means and the second moments about them, which are
    what is kept. A batch weighs 1 / n: its duration is the less certain the more items it has. One that took much
    longer or shorter than others do pulls the estimate by a bounded step.
    """

    def __init__(self) -> None:
        self.per_item = 0.0
        self.per_batch = 0.0
        self._batches = 0
        self._usual = 0.0
        self._weight = 0.0
        self._mean_items = 0.0
        self._mean_seconds = 0.0
        self._items_items = 0.0  # the sum over batches of weight * (items - their mean)²
        self._items_seconds = 0.0
        self._deviation = 0.0  # in seconds / sqrt(items)

    @property
    def known(self) -> bool:
        """Whether enough batches have run to tell."""
        return self._batches >= _EVIDENCE

    @property
    def usual(self) -> float:
        """The items in a batch, on average."""
        return self._usual

    def economic(self, items: int) -> float:
        """The size of a batch which costs little more for each of its items than a batch of so many."""
        each = self.per_item + self.per_batch / max(1, items)
        return self.per_batch / (_THRIFT * each - self.per_item) if self.known and each else 1.0

    def seconds(self, items: float) -> float:
        """What a batch of so many items is expected to take; 0.0 while that is not known."""
        return self.per_item * items + self.per_batch if self.known else 0.0

    def at_least(self, items: float) -> float:
        """Likewise, but the less the sizes that ran tell of this size, the less."""
        if not self.known:
            return 0.0
        gap = items - self._mean_items
        error = self._deviation * sqrt(1 / self._weight + gap * gap / (self._items_items + _SAME))
        return max(0.0, self.per_item * items + self.per_batch - _DEVIATIONS * error)

    def learn(self, items: int, seconds: float) -> None:
        """Takes a batch into account."""
        expected = self.per_item * items + self.per_batch
        surprise = seconds - expected
        if self.known:
            limit = _OUTLIER * max(self._deviation * sqrt(items), _STEADY * expected)
            surprise = max(-limit, min(limit, surprise))
        if self._batches:
            self._deviation += (1 - _ADAPTING) * (abs(surprise) / sqrt(items) - self._deviation)
        self._batches += 1
        self._usual += (items - self._usual) / min(self._batches, 1 / (1 - _FORGETTING))
        self._fit(items, expected + surprise)

    def _fit(self, items: int, seconds: float) -> None:
        trust = 1 / items
        self._weight = _FORGETTING * self._weight + trust
        more_items = items - self._mean_items
        self._mean_items += more_items * trust / self._weight
        self._mean_seconds += (seconds - self._mean_seconds) * trust / self._weight
        self._items_items = _FORGETTING * self._items_items + trust * more_items * (items - self._mean_items)
        self._items_seconds = _FORGETTING * self._items_seconds + trust * more_items * (
            seconds - self._mean_seconds
        )
        slope = self._items_seconds / (self._items_items + _SAME)
        self.per_item = max(0.0, min(slope, self._mean_seconds / self._mean_items))
        self.per_batch = max(0.0, self._mean_seconds - self.per_item * self._mean_items)
