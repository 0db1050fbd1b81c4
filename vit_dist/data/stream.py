"""Plan + source → micro-batches on the device. Its whole state is the position."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from vit_dist.config.schema import AugmentConfig
from vit_dist.data.augmentation.draws import affine, erasures, flips, mixes, shifts
from vit_dist.data.augmentation.ops import erase, erase_with_noise, flip, mix, mix_targets, shift, warp
from vit_dist.data.augmentation.transforms import EvaluationTransform, training_transform
from vit_dist.data.batch import Batch
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.reader import HostBatch, Reader, loader, raise_if_error
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import Subset
from vit_dist.plan.keys import Ints, Purpose, key, keys, uniform
from vit_dist.plan.plan import Plan, Slots, evaluation_slots
from vit_dist.run_folder.predictions import InputExamples, Pixels
from vit_dist.runtime.runtime import Runtime


class Stream:
    """The training stream of one rank, from a position on. Workers live as long as it does.

    wait_seconds: the time so far in which the caller waited for images to be ready.
    """

    def __init__(
        self,
        subset: Subset,
        plan: Plan,
        preprocessing: Preprocessing,
        augment: AugmentConfig,
        runtime: Runtime,
        *,
        workers: int,
        classes: int = 0,
        drop_path_depth: int = 0,
    ) -> None:
        """Build the stream; its workers start with the first window.

        classes: number of classes in the data, needed for mixup and CutMix. drop_path_depth: blocks of the model that
        take keyed drop-path draws. Raises UserError for a transform that cannot be built.
        """
        self.plan = plan
        self.preprocessing = preprocessing
        self.augment = augment
        self.runtime = runtime
        self.classes = classes
        self.drop_path_depth = drop_path_depth
        self.wait_seconds = 0.0
        in_memory = isinstance(subset.source, MemorySource)
        cut = None if in_memory else EvaluationTransform(preprocessing.crop)
        transform = training_transform(augment, preprocessing.mean, preprocessing.image_size, cut)
        self.workers = workers if transform is not None else 0
        self._reader = Reader(subset, transform, plan.seed, preprocessing.image_size)
        self._reads: Iterator[HostBatch | str] | None = None

    def window(self, position: int) -> Iterator[Batch]:
        """This rank's micro-batches of the global batch at `position`. Call it for consecutive positions."""
        if self._reads is None:
            self._reads = iter(loader(self._reader, self._slots(position), self.workers, self.runtime))
        for micro_batch in self.plan.micro_batches_of(self.runtime.rank):
            start = time.perf_counter()
            batch = self._batch(raise_if_error(next(self._reads)), position, micro_batch)
            self.wait_seconds += time.perf_counter() - start
            yield batch

    def inputs(self, position: int, names: Sequence[str], count: int = 16) -> InputExamples:
        """The first `count` slots, an even number, of the global batch at `position`, as the model sees them.

        names: of the classes.
        """
        slots = self.plan.slots(position, 0)
        few = replace(slots, index=slots.index[:count], epoch=slots.epoch[:count], weight=slots.weight[:count])
        read = raise_if_error(self._reader[few])
        batch = self._batch(read, position, 0)
        real = batch.weights > 0
        targets = batch.targets[real]
        shares = targets if targets.ndim == 2 else F.one_hot(targets, max(self.classes, 2)).float()
        parts, classes = shares.topk(2)
        return InputExamples(
            self.preprocessing.denormalise(batch.images[real]).cpu().numpy(),
            classes.cpu().numpy(),
            parts.cpu().numpy(),
            {"position": position, "classes": list(names)},
        )

    def close(self) -> None:
        """Ends the workers."""
        self._reads = None

    def _slots(self, start: int) -> Iterator[Slots]:
        for position in range(start, self.plan.updates):
            for micro_batch in self.plan.micro_batches_of(self.runtime.rank):
                yield self.plan.slots(position, micro_batch)

    def _batch(self, read: HostBatch, position: int, micro_batch: int) -> Batch:
        pixels, labels, ids, epoch, weights = read
        index, epochs = ids.numpy(), epoch.numpy()
        to_device = self.runtime.to_device
        images = self._images(
            to_device(pixels), epochs, index, self.plan.size_at(position) or self.preprocessing.image_size
        )
        targets = to_device(labels)
        if self.augment.mixup or self.augment.cutmix:
            first_pair = micro_batch * self.plan.micro_size // 2
            seed, side = self.plan.seed, (images.shape[2], images.shape[3])
            drawn = mixes(self.augment, seed, position, first_pair, weights.numpy(), side)
            kept, cut, boxes = (to_device(torch.from_numpy(one)) for one in (drawn.kept, drawn.cut, drawn.boxes))
            images = mix(images, kept, cut, boxes)
            targets = mix_targets(targets, self.classes, kept)
        drop_path = None
        if self.drop_path_depth:
            of = keys(self.plan.seed, Purpose.DROP_PATH, epochs, index)
            drop_path = to_device(torch.from_numpy(uniform(of, self.drop_path_depth, 2)))
        return Batch(
            images=images,
            targets=targets,
            weights=to_device(weights),
            ids=ids,
            drop_path=drop_path,
            seed=key(self.plan.seed, Purpose.FORWARD, position, micro_batch) >> 1,
        )

    def _images(self, pixels: Tensor, epoch: Ints, index: Ints, side: int) -> Tensor:
        """Moved, normalised, erased: each by its sample's key."""
        augment, seed, to_device = self.augment, self.plan.seed, self.runtime.to_device
        if augment.rotate or augment.translate or augment.scale:
            maps = affine(augment, seed, epoch, index, (pixels.shape[2], pixels.shape[3]))
            pixels = warp(pixels, to_device(torch.from_numpy(maps)))
        else:
            if augment.shift:
                moved = to_device(torch.from_numpy(shifts(augment, seed, epoch, index)))
                pixels = shift(pixels, moved, augment.shift)
            if augment.flip:
                pixels = flip(pixels, to_device(torch.from_numpy(flips(augment, seed, epoch, index))))
        images = self.preprocessing.normalise(pixels, side)
        if augment.erasing:
            shape = (images.shape[1], side, side)
            drawn = erasures(augment, keys(seed, Purpose.ERASE, epoch, index), shape)
            if len(drawn.rows):
                rows, boxes = to_device(torch.from_numpy(drawn.rows)), to_device(torch.from_numpy(drawn.boxes))
                if augment.erasing_mode == "pixel":
                    noise = to_device(torch.from_numpy(drawn.noise))
                    images = erase_with_noise(images, rows, boxes, noise, drawn.pixels)
                else:
                    images = erase(images, rows, boxes, to_device(torch.from_numpy(drawn.colour)))
        return images


class EvaluationStream:
    """One split, pass after pass: every sample once, equally many fixed shapes on every rank."""

    def __init__(
        self, subset: Subset, preprocessing: Preprocessing, runtime: Runtime, *, batch_size: int, workers: int
    ) -> None:
        self.length = len(subset)
        self.preprocessing = preprocessing
        self.runtime = runtime
        slots = list(evaluation_slots(self.length, batch_size, runtime.rank, runtime.world_size))
        reader = _evaluation_reader(subset, preprocessing)
        workers = workers if reader.transform is not None else 0
        self._reads: DataLoader[HostBatch | str] | None = loader(reader, slots, workers, runtime)

    def close(self) -> None:
        """Ends the workers."""
        self._reads = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(images, targets, weights) on the device, and ids on the host."""
        assert self._reads is not None, "closed"
        to_device = self.runtime.to_device
        for read in self._reads:
            pixels, labels, ids, _, weights = raise_if_error(read)
            images = self.preprocessing.normalise(to_device(pixels))
            yield images, to_device(labels), to_device(weights), ids


def pictures(subset: Subset, places: Ints, preprocessing: Preprocessing) -> Pixels:
    """The samples at places of a split as evaluation reads them, before they are normalised: uint8 [m, c, h, w]."""
    if not len(places):
        return np.zeros((0, len(preprocessing.mean), preprocessing.image_size, preprocessing.image_size), np.uint8)
    slots = Slots(places, np.zeros_like(places), np.ones(len(places), np.float32))
    return raise_if_error(_evaluation_reader(subset, preprocessing)[slots])[0].numpy()


def _evaluation_reader(subset: Subset, preprocessing: Preprocessing) -> Reader:
    in_memory = isinstance(subset.source, MemorySource)
    return Reader(subset, None if in_memory else EvaluationTransform(preprocessing.crop), 0, preprocessing.image_size)
