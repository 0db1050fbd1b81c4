"""The stream of batches: plan and source → micro-batches on the device; a position says where it stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from vit_dist.config.fields import AugmentConfig
from vit_dist.data.ahead import Ahead
from vit_dist.data.augmentation.batch import BatchAugmentation, pixels_in
from vit_dist.data.augmentation.transforms import EvaluationTransform, training_transform
from vit_dist.data.bad_samples import BadSamples
from vit_dist.data.batch import Batch
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.reader import HostBatch, OnBadSample, Reader
from vit_dist.data.sources.source import decoded
from vit_dist.data.sources.splits import Subset
from vit_dist.data.text.captioner import Captioner
from vit_dist.data.text.tokenizer import Tokenizer
from vit_dist.data.transfer import Copied, ahead, copy_batch
from vit_dist.data.workers import Workers
from vit_dist.plan.keys import Ints, Purpose, key, keys, uniform
from vit_dist.plan.plan import Plan, Slots, evaluation_slots
from vit_dist.run_folder.predictions import InputExamples, Pixels
from vit_dist.runtime.copies import BatchWait, Copies
from vit_dist.runtime.marks import AUGMENTATION, DATA_WAIT, mark
from vit_dist.runtime.runtime import Runtime

_WAY_ON = "; to go on without it: the same command with --data.on_bad_sample skip"
_ALL = "vit-dist check finds all such images, and lists them for --data.leave_out"


class Stream:
    """The training batches of one rank, from a position on. Its workers live as long as it does.

    bad: the samples that could not be read.
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
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """Build the stream; its workers start with the first window.

        timeout, on_bad_sample: as in `DataConfig`; skip draws another sample, by key. classes: number of classes in the
        data, needed for mixup and CutMix. drop_path_depth: blocks of the model that take keyed drop-path draws.
        tokenizer: of the images' captions, which are read where it is given. Raises UserError for a transform that
        cannot be built.
        """
        self.plan = plan
        self.preprocessing = preprocessing
        self.runtime = runtime
        self.classes = classes
        self.drop_path_depth = drop_path_depth
        self._wait = BatchWait(runtime.device)
        self._augmentation = BatchAugmentation(augment, preprocessing, plan.seed, classes)
        crop = _evaluation_transform(subset, preprocessing)
        transform = training_transform(augment, preprocessing.mean, preprocessing.image_size, crop)
        self.bad = BadSamples(runtime.rank, "another is drawn in its place")
        captioner = None
        if tokenizer is not None:
            assert subset.captions is not None
            captioner = Captioner(subset.captions, tokenizer, plan.seed)
        self._reader = Reader(
            subset,
            transform,
            plan.seed,
            preprocessing.image_size,
            channels=len(preprocessing.mean),
            largest_side=max([preprocessing.image_size, *(side for _, side in plan.sizes)]),
            on_bad_sample="replace" if on_bad_sample == "skip" else "fail",
            way_on=f"{_WAY_ON} (without the file, or with another, it is a new run); {_ALL}",
            captioner=captioner,
        )
        self._workers = _workers(self._reader, workers, timeout, runtime)
        self.workers = self._workers.count
        self.copies = Copies(runtime.device, ahead=reads_in_a_thread(self._reader, self._workers))
        self._copied: Iterator[Copied] | None = None
        self._position = 0

    @property
    def wait_seconds(self) -> float:
        """Return the time so far in which training waited for batches: the device on CUDA, else the host."""
        return self._wait.seconds()

    def window(self, position: int) -> Iterator[Batch]:
        """Yield this rank's micro-batches of the global batch at `position`.

        The first call decides where the stream starts; the positions that follow are consecutive, and each window is
        read to its end.
        """
        if self._copied is None:
            self._copied = ahead(self._copies_from(position), self.copies)
            self._position = position
        assert position == self._position, f"window {position} was requested, the next in order is {self._position}"
        self._position = -1  # no window is next until this one has been read to its end
        for micro_batch in self.plan.micro_batches_of(self.runtime.rank):
            self._wait.start()
            with mark(DATA_WAIT):
                copied = next(self._copied)
            self.bad.add(copied.bad.values())
            copied.receive(self.copies)
            self._wait.arrived()
            with mark(AUGMENTATION):
                batch = self._augmented(copied, position, micro_batch)
            self._wait.ready()
            yield batch
        self._position = position + 1

    def inputs(self, position: int, names: Sequence[str], count: int = 16) -> InputExamples:
        """Return the first `count` slots (an even number) of the global batch at `position`, as the model sees them.

        names: of the classes. The stream goes on as if they had not been read.
        """
        slots = self.plan.slots(position, 0)
        few = replace(slots, index=slots.index[:count], epoch=slots.epoch[:count], weight=slots.weight[:count])
        copied = self._copy(self._reader.read(few), position, 0)
        copied.receive(self.copies)
        batch = self._augmented(copied, position, 0)
        real = batch.weights > 0
        targets = batch.targets[real]
        shares = targets if targets.ndim == 2 else F.one_hot(targets, max(self.classes, 2)).float()
        parts, classes = shares.topk(2)
        metadata: dict[str, Any] = {"position": position, "classes": list(names)}
        if (captioner := self._reader.captioner) is not None:
            metadata["captions"] = captioner.texts(batch.ids[real.cpu()].numpy(), few.epoch[real.cpu().numpy()])
        return InputExamples(
            self.preprocessing.denormalise(batch.images[real]).cpu().numpy(),
            classes.cpu().numpy(),
            parts.cpu().numpy(),
            metadata,
        )

    def close(self) -> None:
        """End the workers."""
        if isinstance(self._copied, Ahead):
            self._copied.close()
        self._copied = None
        self._workers.close()
        self.bad.close()

    def _copies_from(self, start: int) -> Iterator[Copied]:
        """Copy this rank's micro-batches from a position on to the device. On CUDA it runs in a thread."""
        reads = self._workers.read(self.plan.slots(*place) for place in self._places(start))
        for read, place in zip(reads, self._places(start), strict=True):
            yield self._copy(read, *place)

    def _places(self, start: int) -> Iterator[tuple[int, int]]:
        """Yield (position, micro-batch) of this rank's micro-batches, to the end of the run."""
        for position in range(start, self.plan.updates):
            for micro_batch in self.plan.micro_batches_of(self.runtime.rank):
                yield position, micro_batch

    def _copy(self, read: HostBatch, position: int, micro_batch: int) -> Copied:
        """Copy a micro-batch to the device in two transfers, together with what is drawn for it."""
        pixels, labels, ids, epoch, weights, bad, captions = read
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
        if captions is not None:
            drawn |= {"tokens": captions.tokens, "caption_ids": captions.ids}
        return copy_batch(
            pixels, drawn, self.copies, self.runtime.to_device, ids=ids, bad=bad, side=side, erased_pixels=erased_pixels
        )

    def _augmented(self, copied: Copied, position: int, micro_batch: int) -> Batch:
        """Augment a micro-batch on the device."""
        augmentation, tensors = self._augmentation, copied.tensors
        images = augmentation.images(copied.pixels, tensors, copied.side, copied.erased_pixels)
        images, targets = augmentation.mix(images, tensors["labels"], tensors)
        return Batch(
            images=images,
            targets=targets,
            weights=tensors["weights"],
            ids=copied.ids,
            drop_path=tensors.get("drop_path"),
            seed=key(self.plan.seed, Purpose.FORWARD, position, micro_batch) >> 1,
            tokens=tensors.get("tokens"),
            caption_ids=tensors.get("caption_ids"),
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
        leave_out: OnBadSample = "leave out" if on_bad_sample == "skip" else "fail"
        self.reader = evaluation_reader(subset, preprocessing, leave_out, _WAY_ON)
        self._workers: Workers | None = _workers(self.reader, workers, timeout, runtime)
        self.copies = Copies(runtime.device, ahead=reads_in_a_thread(self.reader, self._workers))

    def close(self) -> None:
        """End the workers."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        self.bad.close()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield (images, targets, weights) on the device, and ids on the host."""
        assert self._workers is not None, "closed"
        workers = self._workers
        batches = ahead(self._copied(workers), self.copies)
        try:
            for copied in batches:
                self.bad.add(copied.bad.values())
                labels, weights = copied.tensors["labels"], copied.tensors["weights"]
                copied.receive(self.copies)
                yield self.preprocessing.normalise(copied.pixels), labels, weights, copied.ids
        finally:
            if isinstance(batches, Ahead):
                batches.close()
            workers.close()  # else they stay beside the training's until the next pass

    def _copied(self, workers: Workers) -> Iterator[Copied]:
        for pixels, labels, ids, _, weights, bad, _ in workers.read(self._slots):
            arrays = {"labels": labels.numpy(), "weights": weights.numpy()}
            yield copy_batch(pixels, arrays, self.copies, self.runtime.to_device, ids=ids, bad=bad)


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


def reads_in_a_thread(reader: Reader, workers: Workers) -> bool:
    """Return whether a thread may read the batches: not files and transforms, which need not expect several threads."""
    return reader.transform is None or workers.count > 0
