"""Plan + source → micro-batches on the device. Its whole state is the position."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vit_dist.config import AugmentConfig
from vit_dist.data.device import flip, normalise, shift
from vit_dist.data.sources import FileSource, MemorySource, Subset
from vit_dist.data.transforms import EvaluationTransform, Transform, training_transform
from vit_dist.plan import Ints, Keys, Plan, Purpose, Slots, evaluation_slots, key, keys, uniform
from vit_dist.runtime import Runtime
from vit_dist.state import Batch
from vit_dist.values import UserError

Read = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

_GRACE_SECONDS = 60


@dataclass(frozen=True)
class Form:
    """What images become: their side in pixels, mean and std per channel, and the model's keyed drop-path depth."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    drop_path_depth: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Form:
        """Of plain values, as JSON holds them."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


class Reader(Dataset[Read | str]):
    """Reads one micro-batch: slots → (pixels uint8, labels, ids, epochs, weights), all on the host.

    A person's mistake comes back as its text: raised in a worker, it would arrive inside torch's traceback.
    """

    def __init__(self, subset: Subset, transform: Transform | None, seed: int) -> None:
        """transform: of decoded images; None for images in memory."""
        self.subset = subset
        self.transform = transform
        self.seed = seed

    def __getitem__(self, slots: Slots) -> Read | str:
        ids = self.subset.indices[slots.index]
        source = self.subset.source
        if isinstance(source, MemorySource):
            pixels = torch.from_numpy(source.pixels[ids])
        else:
            try:
                pixels = self._decoded(source, ids, keys(self.seed, Purpose.SAMPLE, slots.epoch, ids))
            except UserError as error:
                return str(error)
        labels = torch.from_numpy(source.labels[ids])
        return pixels, labels, torch.from_numpy(ids), torch.from_numpy(slots.epoch), torch.from_numpy(slots.weight)

    def _decoded(self, source: FileSource, ids: Ints, of: Keys) -> Tensor:
        """Slots that repeat a sample of the same key are decoded once."""
        assert self.transform is not None
        seen: dict[int, Tensor] = {}
        rows = []
        for index, sample_key in zip(ids.tolist(), of.tolist(), strict=True):
            if sample_key not in seen:
                seen[sample_key] = self.transform(source.image(index), sample_key)
            rows.append(seen[sample_key])
        return torch.stack(rows)


class Stream:
    """The training stream of one rank, from a position on. Workers live as long as it does.

    wait_seconds: the time so far in which the caller waited for images to be ready.
    """

    def __init__(
        self, subset: Subset, plan: Plan, form: Form, augment: AugmentConfig, runtime: Runtime, *, workers: int
    ) -> None:
        self.plan = plan
        self.form = form
        self.augment = augment
        self.runtime = runtime
        self.wait_seconds = 0.0
        in_memory = isinstance(subset.source, MemorySource)
        self.workers = 0 if in_memory else workers
        transform = None if in_memory else training_transform(augment, form.image_size)
        self._reader = Reader(subset, transform, plan.seed)
        self._reads: Iterator[Read | str] | None = None
        self._mean = torch.tensor(form.mean, device=runtime.device)
        self._std = torch.tensor(form.std, device=runtime.device)

    def window(self, position: int) -> Iterator[Batch]:
        """This rank's micro-batches of the global batch at `position`. Call it for consecutive positions."""
        if self._reads is None:
            self._reads = iter(loader(self._reader, self._slots(position), self.workers, self.runtime))
        for micro_batch in self.plan.micro_batches_of(self.runtime.rank):
            start = time.perf_counter()
            batch = self._batch(whole_read(next(self._reads)), position, micro_batch)
            self.wait_seconds += time.perf_counter() - start
            yield batch

    def close(self) -> None:
        """Ends the workers."""
        self._reads = None

    def _slots(self, start: int) -> Iterator[Slots]:
        for position in range(start, self.plan.updates):
            for micro_batch in self.plan.micro_batches_of(self.runtime.rank):
                yield self.plan.slots(position, micro_batch)

    def _batch(self, read: Read, position: int, micro_batch: int) -> Batch:
        host_pixels, labels, ids, epoch, weights = read
        to_device = self.runtime.to_device
        pixels = to_device(host_pixels)
        of = partial(keys, self.plan.seed)
        index, epochs = ids.numpy(), epoch.numpy()
        if self.augment.shift:
            span = 2 * self.augment.shift + 1
            draws = np.floor(uniform(of(Purpose.SHIFT, epochs, index), 2) * span).astype(np.int64)
            pixels = shift(pixels, to_device(torch.from_numpy(draws - self.augment.shift)), self.augment.shift)
        if self.augment.flip:
            chosen = uniform(of(Purpose.FLIP, epochs, index)) < self.augment.flip
            pixels = flip(pixels, to_device(torch.from_numpy(chosen)))
        drop_path = None
        if self.form.drop_path_depth:
            draws32 = uniform(of(Purpose.DROP_PATH, epochs, index), self.form.drop_path_depth, 2)
            drop_path = to_device(torch.from_numpy(draws32))
        return Batch(
            images=normalise(pixels, self.form.image_size, self._mean, self._std),
            targets=to_device(labels),
            weights=to_device(weights),
            ids=ids,
            drop_path=drop_path,
            seed=key(self.plan.seed, Purpose.FORWARD, position, micro_batch) >> 1,
        )


class EvaluationStream:
    """One split, pass after pass: every sample once, equally many fixed shapes on every rank."""

    def __init__(self, subset: Subset, form: Form, runtime: Runtime, *, batch_size: int, workers: int) -> None:
        self.length = len(subset)
        self.form = form
        self.runtime = runtime
        slots = list(evaluation_slots(self.length, batch_size, runtime.rank, runtime.world_size))
        in_memory = isinstance(subset.source, MemorySource)
        reader = Reader(subset, None if in_memory else EvaluationTransform(form.image_size), 0)
        self._reads: DataLoader[Read | str] | None = loader(reader, slots, 0 if in_memory else workers, runtime)
        self._mean = torch.tensor(form.mean, device=runtime.device)
        self._std = torch.tensor(form.std, device=runtime.device)

    def close(self) -> None:
        """Ends the workers."""
        self._reads = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images, targets, weights) on the device."""
        assert self._reads is not None, "closed"
        to_device = self.runtime.to_device
        for read in self._reads:
            pixels, labels, _, _, weights = whole_read(read)
            images = normalise(to_device(pixels), self.form.image_size, self._mean, self._std)
            yield images, to_device(labels), to_device(weights)


def whole_read(read: Read | str) -> Read:
    """What a reader read. Raises the UserError whose text came instead."""
    if isinstance(read, str):
        raise UserError(read)
    return read


def loader(reader: Reader, slots: Iterable[Slots], workers: int, runtime: Runtime) -> DataLoader[Read | str]:
    """Micro-batches in the order of `slots`, read by `workers` processes that live as long as the loader."""
    return DataLoader(
        reader,
        batch_size=None,
        sampler=slots,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=runtime.device.type == "cuda",
        worker_init_fn=_outlive_stop_signals,
    )


def _outlive_stop_signals(worker: int) -> None:
    """A stop signal sent to every process must not take the images away before the run has saved."""

    def end_later(number: int, frame: FrameType | None) -> None:
        timer = threading.Timer(_GRACE_SECONDS, os._exit, [0])
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_later)
