"""The stream of batches: plan and source → micro-batches on the device; a position says where it stands."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from vit_dist.config.fields import AugmentConfig
from vit_dist.data.augmentation.batch import BatchAugmentation, pixels_in
from vit_dist.data.augmentation.transforms import EvaluationTransform, training_transform
from vit_dist.data.bad_samples import BadSamples
from vit_dist.data.batch import Batch
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.reader import HostBatch, OnBadSample, Reader
from vit_dist.data.sources.source import decoded
from vit_dist.data.sources.splits import Subset
from vit_dist.data.transfer import copy_together
from vit_dist.data.workers import Workers
from vit_dist.plan.keys import Ints, Purpose, key, keys, uniform
from vit_dist.plan.plan import Plan, Slots, evaluation_slots
from vit_dist.run_folder.predictions import InputExamples, Pixels
from vit_dist.runtime.runtime import Runtime

_WAY_ON = "; to go on without it: the same command with --data.on_bad_sample skip"


class Stream:
    """The training batches of one rank, from a position on. Its workers live as long as it does.

    wait_seconds: time so far in which the caller waited for images. bad: the samples that could not be read.
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
        timeout: float = 300.0,
        on_bad_sample: str = "fail",
        classes: int = 0,
        drop_path_depth: int = 0,
    ) -> None:
        """Build the stream; its workers start with the first window.

        timeout, on_bad_sample: as in `DataConfig`; skip draws another sample, by key. classes: number of classes in the
        data, needed for mixup and CutMix. drop_path_depth: blocks of the model that take keyed drop-path draws. Raises
        UserError for a transform that cannot be built.
        """
        self.plan = plan
        self.preprocessing = preprocessing
        self.runtime = runtime
        self.classes = classes
        self.drop_path_depth = drop_path_depth
        self.wait_seconds = 0.0
        self._augmentation = BatchAugmentation(augment, preprocessing, plan.seed, classes)
        crop = _evaluation_transform(subset, preprocessing)
        transform = training_transform(augment, preprocessing.mean, preprocessing.image_size, crop)
        self.bad = BadSamples(runtime.rank, "another is drawn in its place")
        self._reader = Reader(
            subset,
            transform,
            plan.seed,
            preprocessing.image_size,
            channels=len(preprocessing.mean),
            largest_side=max([preprocessing.image_size, *(side for _, side in plan.sizes)]),
            on_bad_sample="replace" if on_bad_sample == "skip" else "fail",
            way_on=f"{_WAY_ON} (without the file, or with another, it is a new run)",
        )
        self._workers = _workers(self._reader, workers, timeout, runtime)
        self.workers = self._workers.count
        self._reads: Iterator[HostBatch] | None = None
        self._position = 0

    def window(self, position: int) -> Iterator[Batch]:
        """Yield this rank's micro-batches of the global batch at `position`.

        The first call decides where the stream starts; the positions that follow are consecutive, and each window is
        read to its end.
        """
        if self._reads is None:
            self._reads = self._workers.read(self._slots(position))
            self._position = position
        assert position == self._position, f"window {position} was requested, the next in order is {self._position}"
        self._position = -1  # no window is next until this one has been read to its end
        for micro_batch in self.plan.micro_batches_of(self.runtime.rank):
            start = time.perf_counter()
            read = next(self._reads)
            self.bad.add(read.bad.values())
            batch = self._batch(read, position, micro_batch)
            self.wait_seconds += time.perf_counter() - start
            yield batch
        self._position = position + 1

    def inputs(self, position: int, names: Sequence[str], count: int = 16) -> InputExamples:
        """Return the first `count` slots (an even number) of the global batch at `position`, as the model sees them.

        names: of the classes. The stream goes on as if they had not been read.
        """
        slots = self.plan.slots(position, 0)
        few = replace(slots, index=slots.index[:count], epoch=slots.epoch[:count], weight=slots.weight[:count])
        batch = self._batch(self._reader.read(few), position, 0)
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
        """End the workers."""
        self._reads = None
        self._workers.close()
        self.bad.close()

    def _slots(self, start: int) -> Iterator[Slots]:
        for position in range(start, self.plan.updates):
            for micro_batch in self.plan.micro_batches_of(self.runtime.rank):
                yield self.plan.slots(position, micro_batch)

    def _batch(self, read: HostBatch, position: int, micro_batch: int) -> Batch:
        """Copy a micro-batch to the device, in two transfers, and augment it there."""
        pixels, labels, ids, epoch, weights, _ = read
        index, epochs = ids.numpy(), epoch.numpy()
        side = self.plan.size_at(position) or self.preprocessing.image_size
        augmentation = self._augmentation
        drawn = augmentation.draw(epochs, index, (pixels.shape[2], pixels.shape[3]), side)
        erased_pixels = pixels_in(drawn["erased_boxes"]) if "erased_noise" in drawn else 0
        drawn |= augmentation.draw_mixes(weights.numpy(), position, micro_batch * self.plan.micro_size // 2, side)
        if self.drop_path_depth:
            draws = uniform(keys(self.plan.seed, Purpose.DROP_PATH, epochs, index), self.drop_path_depth, 2)
            drawn["drop_path"] = draws
        drawn |= {"labels": labels.numpy(), "weights": weights.numpy()}
        copied = copy_together(drawn, self.runtime.to_device)
        images = augmentation.images(self.runtime.to_device(pixels), copied, side, erased_pixels)
        images, targets = augmentation.mix(images, copied["labels"], copied)
        return Batch(
            images=images,
            targets=targets,
            weights=copied["weights"],
            ids=ids,
            drop_path=copied.get("drop_path"),
            seed=key(self.plan.seed, Purpose.FORWARD, position, micro_batch) >> 1,
        )


class EvaluationStream:
    """A split, read anew in each pass: every sample once, in equally many batches of one shape on every rank.

    bad: this rank's samples that could not be read; their weight is 0.
    """

    def __init__(
        self,
        subset: Subset,
        preprocessing: Preprocessing,
        runtime: Runtime,
        *,
        batch_size: int,
        workers: int,
        timeout: float = 300.0,
        on_bad_sample: str = "fail",
    ) -> None:
        """Build it; workers start with each pass, and end with it. timeout, on_bad_sample: as in `DataConfig`."""
        self.length = len(subset)
        self.preprocessing = preprocessing
        self.runtime = runtime
        self.bad = BadSamples(runtime.rank, "left out")
        self._slots = list(evaluation_slots(self.length, batch_size, runtime.rank, runtime.world_size))
        reader = evaluation_reader(subset, preprocessing, "leave out" if on_bad_sample == "skip" else "fail", _WAY_ON)
        self._workers: Workers | None = _workers(reader, workers, timeout, runtime)

    def close(self) -> None:
        """End the workers."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        self.bad.close()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield (images, targets, weights) on the device, and ids on the host."""
        assert self._workers is not None, "closed"
        to_device, workers = self.runtime.to_device, self._workers
        try:
            for pixels, labels, ids, _, weights, bad in workers.read(self._slots):
                self.bad.add(bad.values())
                copied = copy_together({"labels": labels.numpy(), "weights": weights.numpy()}, to_device)
                yield self.preprocessing.normalise(to_device(pixels)), copied["labels"], copied["weights"], ids
        finally:
            workers.close()  # else they stay beside the training's until the next pass


def pictures(subset: Subset, places: Ints, preprocessing: Preprocessing) -> Pixels:
    """Return the samples at `places` of a split as evaluation reads them, before normalisation: uint8 [m, c, h, w]."""
    if not len(places):
        return np.zeros((0, len(preprocessing.mean), preprocessing.image_size, preprocessing.image_size), np.uint8)
    slots = Slots(places, np.zeros_like(places), np.ones(len(places), np.float32))
    return evaluation_reader(subset, preprocessing, "fail").read(slots).pixels.numpy()


def evaluation_reader(
    subset: Subset, preprocessing: Preprocessing, on_bad_sample: OnBadSample, way_on: str = ""
) -> Reader:
    """Return the reader of a split as evaluation, and only the model's preprocessing, has it."""
    return Reader(
        subset,
        _evaluation_transform(subset, preprocessing),
        0,
        preprocessing.image_size,
        channels=len(preprocessing.mean),
        on_bad_sample=on_bad_sample,
        way_on=way_on,
    )


def _evaluation_transform(subset: Subset, preprocessing: Preprocessing) -> EvaluationTransform | None:
    """Return the transform without augmentation; None for decoded images, which are taken as they are."""
    if decoded(subset.source) is not None:
        return None
    return preprocessing.transform()


def _workers(reader: Reader, count: int, timeout: float, runtime: Runtime) -> Workers:
    count = count if reader.transform is not None else 0  # images in memory need none
    return Workers(reader, count, timeout=timeout, stop_requested=lambda: runtime.flags.stop)
