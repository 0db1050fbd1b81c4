"""The order of samples that lie in shards: shards in keyed order, samples shuffled within a window of shards."""

from __future__ import annotations

import numpy as np

from vit_dist.plan.keys import Ints, Purpose, key
from vit_dist.plan.permutation import CHUNK, permute

_SHARDS, _FIRST_WINDOW = 0, 1


class BlockOrder:
    """The order of a split whose samples lie in shards, a pure function of the seed; any place is reached directly.

    All shards, in an order that the seed decides, make a line of samples. Each epoch cuts it into one part for each
    lane, of as many samples as the epoch has slots of that lane: so an epoch takes every sample once, and the cuts move
    by less than a global batch from one epoch to the next. A lane takes its shards in an order that is new in each
    epoch, and mixes the samples of a window of them. Memory: of the order of the number of shards.
    """

    def __init__(self, sizes: Ints, *, seed: int, global_size: int, lanes: int, window: int) -> None:
        """sizes: samples of each shard, int64 [shards], in the order of the split. lanes: must divide global_size.

        window: number of shards whose samples are mixed with each other, over all lanes.
        """
        assert global_size % lanes == 0
        self.seed = seed
        self.lanes = lanes
        self.samples = int(sizes.sum())
        self.lane_window = -(-window // lanes)
        self.global_size = global_size
        self.lane_size = global_size // lanes
        filled = np.flatnonzero(sizes)
        order = filled[permute(np.arange(len(filled), dtype=np.int64), len(filled), key(seed, Purpose.LANES))]
        # Of each shard in the line: the place in the split of its first sample; where it begins, and where all end.
        self.firsts: Ints = (np.cumsum(sizes) - sizes)[order]
        self.line: Ints = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[order])])
        self._parts: dict[int, _Part] = {}

    def indices(self, places: Ints) -> Ints:
        """Return the samples at these places of the stream, as places in the split, int64 [places]."""
        found = np.empty_like(places)
        epoch, lane = places // self.samples, places % self.global_size // self.lane_size
        for e, number in sorted(set(zip(epoch.tolist(), lane.tolist(), strict=True))):
            here = (epoch == e) & (lane == number)
            found[here] = self._part(e, number).indices(self._before(places[here], number))
        return found

    def bounds(self, epoch: int, lane: int) -> tuple[int, int]:
        """Return where the part of a lane begins and ends in the line, in an epoch."""
        start, end = np.asarray([epoch * self.samples, (epoch + 1) * self.samples], np.int64)

        def of_lanes_below(number: int) -> int:
            return int(self._of_first_lanes(end, number) - self._of_first_lanes(start, number))

        return of_lanes_below(lane), of_lanes_below(lane + 1)

    def _of_first_lanes(self, place: Ints, lanes: int) -> Ints:
        """Return how many of the slots before a place of the stream belong to the first `lanes` lanes."""
        batch, slot = np.divmod(place, self.global_size)
        width: Ints = batch * (lanes * self.lane_size) + np.minimum(slot, lanes * self.lane_size)
        return width

    def _before(self, places: Ints, lane: int) -> Ints:
        """Return how many slots of a lane stand before each place, from the start of the place's epoch on."""

        def of_lane(place: Ints) -> Ints:
            return self._of_first_lanes(place, lane + 1) - self._of_first_lanes(place, lane)

        return of_lane(places) - of_lane(places // self.samples * self.samples)

    def _part(self, epoch: int, lane: int) -> _Part:
        part = self._parts.get(lane)
        if part is None or part.epoch != epoch:
            part = self._parts[lane] = _Part(self, epoch, lane)
        return part


class _Part:
    """One lane's samples in one epoch: pieces, which are whole shards but for the first and the last."""

    def __init__(self, order: BlockOrder, epoch: int, lane: int) -> None:
        self.epoch = epoch
        self._key = (order.seed, Purpose.ORDER, epoch, lane)
        self._chunk_size = max(256, CHUNK // order.lanes)
        self._chunk: tuple[int, Ints] = (-1, np.empty(0, np.int64))
        start, end = order.bounds(epoch, lane)
        first = int(np.searchsorted(order.line, start, "right")) - 1
        last = int(np.searchsorted(order.line, end, "left"))
        begins = np.maximum(order.line[first:last], start)
        sizes = np.minimum(order.line[first + 1 : last + 1], end) - begins
        count = last - first
        shuffled = permute(np.arange(count, dtype=np.int64), count, key(*self._key, _SHARDS))
        self._firsts = (order.firsts[first:last] + begins - order.line[first:last])[shuffled]
        self._ends = np.cumsum(sizes[shuffled])
        self._begins = self._ends - sizes[shuffled]
        windows = -(-count // order.lane_window)
        self._window_ends = self._ends[count * np.arange(1, windows + 1) // windows - 1]

    def indices(self, ranks: Ints) -> Ints:
        """Return the samples that come at these ranks of the lane's epoch, as places in the split."""
        found = np.empty_like(ranks)
        numbers = ranks // self._chunk_size
        for number in np.unique(numbers).tolist():
            here = numbers == number
            if self._chunk[0] != number:
                first = number * self._chunk_size
                last = min(first + self._chunk_size, int(self._ends[-1]))
                self._chunk = number, self._compute(np.arange(first, last, dtype=np.int64))
            found[here] = self._chunk[1][ranks[here] - number * self._chunk_size]
        return found

    def _compute(self, ranks: Ints) -> Ints:
        found = np.empty_like(ranks)
        windows = np.searchsorted(self._window_ends, ranks, "right")
        for window in np.unique(windows).tolist():
            here = windows == window
            start = int(self._window_ends[window - 1]) if window else 0
            length = int(self._window_ends[window]) - start
            mixed = start + permute(ranks[here] - start, length, key(*self._key, _FIRST_WINDOW + window))
            piece = np.searchsorted(self._ends, mixed, "right")
            found[here] = self._firsts[piece] + mixed - self._begins[piece]
        return found
