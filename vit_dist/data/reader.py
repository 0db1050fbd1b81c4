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
from vit_dist.data.sources.source import decoded, read_image, sample_name
from vit_dist.data.sources.splits import Subset
from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints, Keys, Purpose, keys
from vit_dist.plan.plan import Slots
from vit_dist.runtime.runtime import Runtime

HostBatch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
_GRACE_SECONDS = 60


class Reader(Dataset[HostBatch | str]):
    """A data set of micro-batches: slots → (pixels uint8, labels, ids, epochs, weights), all on the host.

    A UserError comes back as its text: raised in a worker, it would arrive inside torch's traceback.
    """

    def __init__(self, subset: Subset, transform: Transform | None, seed: int, image_size: int) -> None:
        """Build it; transform: of decoded images, or None to hand out the source's decoded pixels as they are."""
        self.subset = subset
        self.transform = transform
        self.seed = seed
        self.image_size = image_size

    def __getitem__(self, slots: Slots) -> HostBatch | str:
        ids = self.subset.indices[slots.index]
        held = decoded(self.subset.source)
        if self.transform is None:
            assert held is not None
            pixels = torch.from_numpy(held[ids])
        else:
            sample_keys = keys(self.seed, Purpose.SAMPLE, slots.epoch, ids)
            try:
                pixels = self._transformed(self.transform, ids, sample_keys, slots.image_size or self.image_size)
            except UserError as error:
                return str(error)
        labels = torch.from_numpy(self.subset.labels[slots.index])
        return pixels, labels, torch.from_numpy(ids), torch.from_numpy(slots.epoch), torch.from_numpy(slots.weight)

    def _transformed(self, transform: Transform, ids: Ints, sample_keys: Keys, side: int) -> Tensor:
        """Read and transform images; slots that repeat a sample with the same key are made once. Raises UserError."""
        source = self.subset.source
        by_key: dict[int, Tensor] = {}
        rows: list[Tensor] = []
        for index, sample_key in zip(ids.tolist(), sample_keys.tolist(), strict=True):
            if sample_key not in by_key:
                by_key[sample_key] = transform(read_image(source, index), sample_key, side)
            rows.append(by_key[sample_key])
            if rows[-1].shape != rows[0].shape:
                name = sample_name(source, index, "image")
                raise UserError(f"{name}: is {list(rows[-1].shape)}, others are {list(rows[0].shape)}: make them alike")
        return torch.stack(rows)


def worker_count(workers: int | str, runtime: Runtime) -> int:
    """Return `data.workers` as a number: auto is one for each core that this process may use, 16 at most."""
    return min(runtime.cores, 16) if isinstance(workers, str) else workers


def raise_if_error(read: HostBatch | str) -> HostBatch:
    """Return what a reader read. Raises the UserError whose text came in its place."""
    if isinstance(read, str):
        raise UserError(read)
    return read


def loader(reader: Reader, slots: Iterable[Slots], workers: int, runtime: Runtime) -> DataLoader[HostBatch | str]:
    """Build a loader of micro-batches in the order of `slots`; its `workers` processes live as long as it does."""
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
    """Keep a worker alive after a stop signal sent to every process, until the run has saved."""

    def end_later(number: int, frame: FrameType | None) -> None:
        timer = threading.Timer(_GRACE_SECONDS, os._exit, [0])
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_later)
