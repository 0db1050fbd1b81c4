"""Read micro-batches: slots → uint8 pixels, labels, ids and weights on the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_dist.data.augmentation.transforms import Crop, TrainingTransform, Transform
from vit_dist.data.sources.crop import OpenedCrop
from vit_dist.data.sources.decode import EncodedImage, ImageError
from vit_dist.data.sources.source import decoded, is_named, read_encoded, read_image, sample_name
from vit_dist.data.sources.splits import Subset
from vit_dist.data.text.captioner import Captioner, CaptionTokens
from vit_dist.errors import UserError, one_line, visible
from vit_dist.plan.keys import Purpose, key
from vit_dist.plan.plan import Slots

# What becomes of a sample that cannot be read: the run ends; another is drawn in its place; its weight is 0.
OnBadSample = Literal["fail", "replace", "leave out"]
_MOST_REPLACEMENTS = 100
# Files that are read ahead of decoding, and decoded ahead of augmentation: so many, or so many bytes.
_GROUP, _GROUP_BYTES = 16, 4 * 2**20


class _Ahead(NamedTuple):
    """A file, what its header says and, if it has been decoded, its crop."""

    encoded: EncodedImage
    opened: OpenedCrop
    crop: Crop | None = None


class HostBatch(NamedTuple):
    """One micro-batch on the host.

    pixels: uint8 [slots, channels, height, width]; valid until the next batch is asked for. labels, ids, epochs:
    int64 [slots]. weights: float32 [slots]. bad: what was wrong, by slot, where a sample of weight above 0 could not
    be read. captions: of the slots, where they are read.
    """

    pixels: Tensor
    labels: Tensor
    ids: Tensor
    epochs: Tensor
    weights: Tensor
    bad: Mapping[int, str]
    captions: CaptionTokens | None = None


class Reader:
    """Reads the micro-batches of a split.

    channels: of the images. largest_side: the side of the largest images that are asked for, in pixels; 0: image_size.
    """

    def __init__(
        self,
        subset: Subset,
        transform: Transform | None,
        seed: int,
        image_size: int,
        *,
        channels: int,
        largest_side: int = 0,
        on_bad_sample: OnBadSample = "fail",
        way_on: str = "",
        captioner: Captioner | None = None,
    ) -> None:
        """Build it.

        transform: of decoded images, or None to hand out the source's decoded pixels as they are. way_on: what the
        error for a bad file ends with. captioner: of the source's images, where their captions are read too.
        """
        self.subset = subset
        self.transform = transform
        self.seed = seed
        self.image_size = image_size
        self.channels = channels
        self.largest_side = largest_side or image_size
        self.on_bad_sample = on_bad_sample
        self.way_on = way_on
        self.captioner = captioner
        self._cropping: TrainingTransform | None = None  # where images are decoded no further than their random crops
        if isinstance(transform, TrainingTransform) and transform.crop_min and hasattr(subset.source, "encoded"):
            self._cropping = transform

    def shape(self, side: int = 0) -> tuple[int, int, int]:
        """Return [channels, height, width] of the images at a side; 0: the largest."""
        held = decoded(self.subset.source)
        if held is not None and not (self.transform and self.transform.sized):
            _, channels, height, width = held.shape
            return channels, height, width
        return self.channels, side or self.largest_side, side or self.largest_side

    def read(self, slots: Slots) -> HostBatch:
        """Read a micro-batch. Raises UserError."""
        if self.transform is None:
            held = decoded(self.subset.source)
            assert held is not None
            held = np.ascontiguousarray(held[self.subset.indices[slots.index]])
            return self.batch(torch.from_numpy(held), slots, {})
        return self.read_each(slots)

    def read_each(self, slots: Slots) -> HostBatch:
        """Read a micro-batch sample by sample. Raises UserError."""
        pixels = np.empty((len(slots.index), *self.shape(slots.image_size or self.image_size)), np.uint8)
        slots, bad = self.read_into(pixels, slots)
        return self.batch(torch.from_numpy(pixels), slots, bad)

    def captions(self, slots: Slots) -> CaptionTokens | None:
        """Return the captions of slots, if they are read. Raises UserError."""
        return None if self.captioner is None else self.captioner(self.subset.indices[slots.index], slots.epoch)

    def batch(
        self, pixels: Tensor, slots: Slots, bad: Mapping[int, str], captions: CaptionTokens | None = None
    ) -> HostBatch:
        """Return the micro-batch of slots whose pixels have been read, and captions too, unless they are None."""
        of_slots = (self.subset.labels[slots.index], self.subset.indices[slots.index], slots.epoch, slots.weight)
        labels, ids, epochs, weights = map(torch.from_numpy, of_slots)
        return HostBatch(pixels, labels, ids, epochs, weights, bad, captions or self.captions(slots))

    def read_into(
        self,
        pixels: NDArray[np.uint8],
        slots: Slots,
        begin: Callable[[int], None] = lambda index: None,
        unreadable: Mapping[int, str] | None = None,
    ) -> tuple[Slots, dict[int, str]]:
        """Read and transform images into `pixels`; slots that repeat a sample with the same key are made once.

        begin: called with each sample's index in the source before it is read. unreadable: what is known to be wrong
        with samples, by their index. Return the slots as they are then, and what was wrong, by slot. Raises UserError.
        """
        places, weights, side = slots.index.copy(), slots.weight.copy(), slots.image_size or self.image_size
        read_one = partial(self._read_slot, side=side, begin=begin, known=unreadable or {})
        ahead: dict[tuple[int, int], _Ahead] = {}
        rows: dict[tuple[int, int], int] = {}
        bad: dict[int, str] = {}
        for row, (place, epoch) in enumerate(zip(slots.index.tolist(), slots.epoch.tolist(), strict=True)):
            if row % _GROUP == 0:
                ahead = self._read_ahead(slots, row, side, begin, unreadable or {})
            first = rows.setdefault((place, epoch), row)
            if first == row:
                places[row], problem = read_one(pixels[row], place, epoch, ahead=ahead.pop((place, epoch), None))
            else:
                pixels[row], places[row], problem = pixels[first], places[first], bad.get(first)
            if problem is not None:
                bad[row] = problem
        if self.on_bad_sample == "leave out":
            weights[list(bad)] = 0
        counted = {row: problem for row, problem in bad.items() if slots.weight[row] > 0}
        return Slots(places, slots.epoch, weights, slots.image_size), counted

    def _read_ahead(
        self, slots: Slots, start: int, side: int, begin: Callable[[int], None], known: Mapping[int, str]
    ) -> dict[tuple[int, int], _Ahead]:
        """Read files and headers of a few samples, from row `start` on: (place, epoch) → what was read.

        One after the other they take half the time that they take in turn with decoding, which uses up the processor's
        cache; and so, where crops are augmented here, does that. What is wrong with one is found, and said, when it is
        read by itself.
        """
        found: dict[tuple[int, int], _Ahead] = {}
        size = 0
        for row in range(start, min(start + _GROUP, len(slots.index))):
            place, epoch = int(slots.index[row]), int(slots.epoch[row])
            index = int(self.subset.indices[place])
            if self._cropping is None or (place, epoch) in found or index in known:
                continue
            begin(index)
            with contextlib.suppress(Exception):
                drawn = key(self.seed, Purpose.SAMPLE, epoch, index)
                found[place, epoch] = ahead = self._open(self._cropping, index, drawn, side)
                size += len(ahead.encoded.content)
            if size > _GROUP_BYTES:
                break
        if self._cropping is None or not self._cropping.steps:
            return found
        decoded_ahead: dict[tuple[int, int], _Ahead] = {}
        for (place, epoch), ahead in found.items():
            index = int(self.subset.indices[place])
            begin(index)
            with contextlib.suppress(Exception):
                drawn = key(self.seed, Purpose.SAMPLE, epoch, index)
                crop = self._cropping.crop(ahead.encoded, ahead.opened, drawn, side)
                decoded_ahead[place, epoch] = ahead._replace(crop=crop)
        return decoded_ahead

    def _open(self, cropping: TrainingTransform, index: int, drawn: int, side: int) -> _Ahead:
        encoded = read_encoded(self.subset.source, index)
        return _Ahead(encoded, cropping.open(encoded, drawn, side))

    def _read_slot(
        self,
        pixels: NDArray[np.uint8],
        place: int,
        epoch: int,
        side: int,
        begin: Callable[[int], None],
        known: Mapping[int, str],
        ahead: _Ahead | None,
    ) -> tuple[int, str | None]:
        """Read a sample or, if it is bad and to be replaced, the first good one of those drawn for it by key.

        Return the place of the sample that was read, and what was wrong with the one asked for, if anything. Raises
        UserError.
        """
        problem = self._read_sample(pixels, place, epoch, side, begin, known, ahead)
        if problem is None:
            return place, None
        if self.on_bad_sample == "fail":
            raise UserError(problem + (self.way_on if is_named(self.subset.source) else ""))
        if self.on_bad_sample == "leave out":
            pixels[:] = 0
            return place, problem
        index = int(self.subset.indices[place])
        for attempt in range(_MOST_REPLACEMENTS):
            drawn = key(self.seed, Purpose.REPLACEMENT, epoch, index, attempt) % len(self.subset)
            if self._read_sample(pixels, drawn, epoch, side, begin, known) is None:
                return drawn, problem
        raise UserError(f"{problem}; nor can {_MOST_REPLACEMENTS} images be read that were drawn in its place")

    def _read_sample(
        self,
        pixels: NDArray[np.uint8],
        place: int,
        epoch: int,
        side: int,
        begin: Callable[[int], None],
        known: Mapping[int, str],
        ahead: _Ahead | None = None,
    ) -> str | None:
        """Read and transform one sample; return what is wrong with it, if anything.

        ahead: what was read of it already. Raises UserError for what is wrong with the transform.
        """
        assert self.transform is not None
        source, index = self.subset.source, int(self.subset.indices[place])
        begin(index)
        if index in known:
            return known[index]
        drawn = key(self.seed, Purpose.SAMPLE, epoch, index)
        try:
            if self._cropping is not None:
                encoded, opened, crop = ahead or self._open(self._cropping, index, drawn, side)
                crop = crop or self._cropping.crop(encoded, opened, drawn, side)
                made = self._cropping.augment(crop, drawn, side)
            else:
                made = self.transform(read_image(source, index), drawn, side)
        except ImageError as error:
            return str(error)
        except UserError:
            raise
        except Exception as error:  # a transform of the user's own may raise anything
            name, reason = (
                visible(sample_name(source, index, "image")),
                f"{type(error).__name__}: {one_line(error, 200)}",
            )
            return f"{name}: cannot be transformed ({reason})"
        if made.shape != pixels.shape:
            name = visible(sample_name(source, index, "image"))
            return f"{name}: is {list(made.shape)}, others are {list(pixels.shape)}: make them alike"
        pixels[:] = made.numpy()
        return None
