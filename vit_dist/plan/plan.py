"""The plan: (config, dataset length, world size) → every number of the run.

Integers in, integers out: no torch, no I/O. The samples of a global batch are a pure function of its position, so a
resume is a jump and every world size draws the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_dist.config.config import Config
from vit_dist.config.limits import UPDATES
from vit_dist.config.values import Length, parse_seconds, parse_size
from vit_dist.errors import UserError
from vit_dist.plan.blocks import BlockOrder
from vit_dist.plan.keys import Ints
from vit_dist.plan.permutation import CHUNK, order_chunk


@dataclass(frozen=True)
class Slots:
    """The slots of one micro-batch, [slots] each. `index` counts within the split.

    epoch: distinguishes a sample's appearances: pass over the split × copies of it in a batch + copy.
    image_size: side in pixels; 0: the run's own.
    """

    index: Ints
    epoch: Ints
    weight: NDArray[np.float32]
    image_size: int = 0


@dataclass(frozen=True)
class Plan:
    """Every number of a run. `*_every` are exact numbers of samples; warmup and cooldown are in updates.

    shards: the order of samples that lie in shards; None: any order of all samples, which is shuffled as a whole.
    weights: of the training samples in the loss, float32 [samples]; None: all 1.
    """

    samples: int
    total_samples: int
    updates: int
    global_size: int
    micro_size: int
    world_size: int
    micro_batches: int
    micro_batches_per_rank: int
    warmup: int
    cooldown: int
    evaluate_every: Fraction
    checkpoint_every: Fraction
    log_every: Fraction
    seed: int
    repeats: int = 1
    sizes: tuple[tuple[int, int], ...] = ()
    shards: BlockOrder | None = field(default=None, repr=False, compare=False)
    weights: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_config(
        cls,
        config: Config,
        samples: int,
        world_size: int,
        shards: Ints | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> Plan:
        """Plan the run of a config over `samples` training samples on `world_size` processes. Raises UserError.

        shards: of samples that lie in shards, how many are in each, in their order. weights: of the samples.
        """
        assert samples > 0
        assert world_size > 0
        size = config.batch.global_size
        total = math.ceil(_samples(Length.parse(config.train.duration), samples, size, 0))
        updates = math.ceil(total / size)

        if updates > UPDATES:
            raise UserError(f"train.duration: {updates:,} updates are more than a run can make: {UPDATES:,} at most")

        def in_samples(text: str) -> Fraction:
            return _samples(Length.parse(text), samples, size, total)

        schedule = config.schedule
        warmup = math.ceil(in_samples(schedule.warmup) / size)
        cooldown = math.ceil(in_samples(schedule.cooldown or ("20%" if schedule.name == "wsd" else "0%")) / size)
        if warmup + cooldown > updates:
            parts = f"warmup of {warmup}" + (f" and cooldown of {cooldown}" if cooldown else "")
            field = "cooldown" if cooldown > warmup else "warmup"
            raise UserError(f"schedule.{field}: a {parts} updates is longer than the run of {updates}: shorten it")
        every = config.checkpoint.every
        sizes, until = [], Fraction(0)
        for text in config.augment.sizes:
            side, length = parse_size(text)
            until += _samples(length, samples, size, total)
            sizes.append((math.ceil(until / size), side))
        if sizes and sizes[-1][0] > updates:
            raise UserError(f"augment.sizes: {sizes[-1][0]} updates are longer than the run of {updates}: shorten them")
        micro_batches = math.ceil(size / config.batch.slots)
        return cls(
            samples=samples,
            total_samples=total,
            updates=updates,
            global_size=size,
            micro_size=config.batch.slots,
            world_size=world_size,
            micro_batches=micro_batches,
            micro_batches_per_rank=math.ceil(micro_batches / world_size),
            warmup=warmup,
            cooldown=cooldown,
            evaluate_every=in_samples(config.evaluate.every),
            checkpoint_every=Fraction(total) if parse_seconds(every) else in_samples(every),
            log_every=in_samples(config.log.every),
            seed=config.run.seed,
            repeats=config.augment.repeats,
            sizes=tuple(sizes),
            shards=None if shards is None else _block_order(config, shards),
            weights=weights,
        )

    def in_updates(self, length: Length) -> Fraction:
        """Return a length in updates, exact."""
        return _samples(length, self.samples, self.global_size, self.total_samples) / self.global_size

    @property
    def epochs(self) -> float:
        """Return the length of the run in passes over the train split."""
        return self.total_samples / self.samples

    @property
    def fillers(self) -> int:
        """Return the number of slots of weight 0 in each full update, over all ranks."""
        return self.micro_batches_per_rank * self.world_size * self.micro_size - self.global_size

    def samples_at(self, position: int) -> int:
        """Return the number of samples drawn by the first `position` global batches."""
        return min(position * self.global_size, self.total_samples)

    def count(self, position: int) -> int:
        """Return the number of samples in the global batch at `position`; only the last of a run can be short."""
        return self.samples_at(position + 1) - self.samples_at(position)

    def weight(self, position: int) -> float:
        """Return the weight of the global batch at `position`, by which its loss is divided: 1 if all weigh nothing."""
        if self.weights is None:
            return self.count(position)
        count = self.count(position)
        index, _ = self._samples_of(np.arange(count, dtype=np.int64) + self.samples_at(position))
        weights = np.zeros((-(-count // self.micro_size), self.micro_size), np.float32)
        weights.reshape(-1)[:count] = self.weights[index]
        return math.fsum(part.sum(dtype=np.float64) for part in weights) or 1.0

    def due(self, position: int, every: Fraction) -> bool:
        """Return whether something done every `every` samples is due after update `position`; always after the last."""
        if position >= self.updates:
            return True
        return self.samples_at(position) // every > self.samples_at(position - 1) // every

    def micro_batches_of(self, rank: int) -> range:
        """Return the numbers of a rank's micro-batches in the global batch; those past its end are fillers."""
        return range(rank, self.micro_batches_per_rank * self.world_size, self.world_size)

    def slots(self, position: int, micro_batch: int) -> Slots:
        """Return the slots of a micro-batch of the global batch at `position`; short ones repeat their first sample."""
        first, end = self.samples_at(position), self.samples_at(position + 1)
        assert first < end, "position is past the end of the run"
        start = first + micro_batch * self.micro_size
        real = min(max(end - start, 0), self.micro_size)
        places = np.arange(start, start + self.micro_size, dtype=np.int64)
        places[real:] = start if real else first
        index, epoch = self._samples_of(places)
        weight = np.zeros(self.micro_size, np.float32)
        weight[:real] = 1
        return Slots(
            index, epoch, weight if self.weights is None else weight * self.weights[index], self.size_at(position)
        )

    def _samples_of(self, places: Ints) -> tuple[Ints, Ints]:
        """Return (index, epoch), as in `Slots`, of the samples at these places of the stream."""
        copy: Ints | int = 0
        if self.repeats > 1:
            # Copies of a sample are far apart in a batch: mixing slots 2k and 2k+1 must not mix it with itself.
            batch, within = np.divmod(places, self.global_size)
            distinct = math.ceil(self.global_size / self.repeats)
            copy, within = np.divmod(within, distinct)
            places = batch * distinct + within
        index = self._shuffled(places) if self.shards is None else self.shards.indices(places)
        return index, places // self.samples * self.repeats + copy

    def _shuffled(self, places: Ints) -> Ints:
        """Return the samples at these places of the stream, where each epoch is shuffled as a whole."""
        first, last = int(places.min()), int(places.max())
        epoch_start = first // self.samples * self.samples
        number, offset = divmod(first - epoch_start, CHUNK)
        if last < epoch_start + self.samples and last - first + offset < CHUNK:  # nearly always: all in one chunk
            chunk_start = epoch_start + number * CHUNK
            return order_chunk(self.seed, first // self.samples, self.samples, number)[places - chunk_start]
        epoch, in_epoch = np.divmod(places, self.samples)
        index = np.empty_like(places)
        chunk = in_epoch // CHUNK
        for e, c in sorted(set(zip(epoch.tolist(), chunk.tolist(), strict=True))):
            here = (epoch == e) & (chunk == c)
            index[here] = order_chunk(self.seed, e, self.samples, c)[in_epoch[here] % CHUNK]
        return index

    def size_at(self, position: int) -> int:
        """Return the side of the images of the global batch at `position`; 0: the run's own."""
        return next((side for end, side in self.sizes if position < end), 0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; exact lengths as text."""
        values = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("shards", "weights")
        }
        plain = {k: str(v) if isinstance(v, Fraction) else v for k, v in values.items()}
        return {**plain, "sizes": [list(size) for size in self.sizes]}


def evaluation_slots(length: int, batch_size: int, rank: int, world_size: int) -> Iterator[Slots]:
    """Yield one exact pass over `length` samples: each counts once; all ranks get equally many batches of one size."""
    batches = math.ceil(length / batch_size)
    for number in range(rank, math.ceil(batches / world_size) * world_size, world_size):
        index = np.arange(number * batch_size, (number + 1) * batch_size, dtype=np.int64)
        real = index < length
        yield Slots(np.where(real, index, 0), np.zeros_like(index), real.astype(np.float32))


def _block_order(config: Config, shards: Ints) -> BlockOrder:
    data = config.data
    size = config.batch.global_size
    return BlockOrder(shards, seed=config.run.seed, global_size=size, lanes=data.lanes, window=data.shard_window)


def _samples(length: Length, samples: int, global_size: int, total: int) -> Fraction:
    """Return a length in samples, exact."""
    unit = {
        "epochs": Fraction(samples),
        "updates": Fraction(global_size),
        "samples": Fraction(1),
        "%": Fraction(total, 100),
    }
    return length.amount * unit[length.unit]
