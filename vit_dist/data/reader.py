"""Read micro-batches in worker processes: slots → uint8 pixels, labels, ids and weights on the host."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from types import FrameType

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vit_dist.data.augmentation.transforms import Transform
from vit_dist.data.sources.source import FileSource, MemorySource
from vit_dist.data.sources.splits import Subset
from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints, Keys, Purpose, keys
from vit_dist.plan.plan import Slots
from vit_dist.runtime.runtime import Runtime

HostBatch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


_GRACE_SECONDS = 60


class Reader(Dataset[HostBatch | str]):
    """Reads one micro-batch: slots → (pixels uint8, labels, ids, epochs, weights), all on the host.

    A person's mistake comes back as its text: raised in a worker, it would arrive inside torch's traceback.
    """

    def __init__(self, subset: Subset, transform: Transform | None, seed: int, image_size: int) -> None:
        """transform: of decoded images; None for images in memory as they are."""
        self.subset = subset
        self.transform = transform
        self.seed = seed
        self.image_size = image_size

    def __getitem__(self, slots: Slots) -> HostBatch | str:
        ids = self.subset.indices[slots.index]
        source = self.subset.source
        if self.transform is None:
            assert isinstance(source, MemorySource)
            pixels = torch.from_numpy(source.pixels[ids])
        else:
            of = keys(self.seed, Purpose.SAMPLE, slots.epoch, ids)
            try:
                pixels = self._transformed(source, self.transform, ids, of, slots.image_size or self.image_size)
            except UserError as error:
                return str(error)
        labels = torch.from_numpy(source.labels[ids])
        return pixels, labels, torch.from_numpy(ids), torch.from_numpy(slots.epoch), torch.from_numpy(slots.weight)

    def _transformed(
        self, source: MemorySource | FileSource, transform: Transform, ids: Ints, of: Keys, side: int
    ) -> Tensor:
        """Slots that repeat a sample of the same key are made once. Raises UserError."""
        made: dict[int, Tensor] = {}
        rows = []
        for index, sample_key in zip(ids.tolist(), of.tolist(), strict=True):
            if sample_key not in made:
                made[sample_key] = transform(source.image(index), sample_key, side)
            rows.append(made[sample_key])
        return torch.stack(rows)


def worker_count(asked: int | str, runtime: Runtime) -> int:
    """`data.workers` as a number: auto is one for each core that this process may use, 16 at most."""
    return min(runtime.cores, 16) if isinstance(asked, str) else asked


def raise_if_error(read: HostBatch | str) -> HostBatch:
    """What a reader read. Raises the UserError whose text came instead."""
    if isinstance(read, str):
        raise UserError(read)
    return read


def loader(reader: Reader, slots: Iterable[Slots], workers: int, runtime: Runtime) -> DataLoader[HostBatch | str]:
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
