"""Measure how fast training images are read, decoded and transformed, and whether devices would wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vit_dist.config.fields import AugmentConfig
from vit_dist.data.augmentation.transforms import TrainingTransform, training_transform
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.reader import HostBatch, Reader
from vit_dist.data.sources.decode import ImageError, decode
from vit_dist.data.sources.source import decoded, read_encoded, read_image
from vit_dist.data.sources.splits import Subset
from vit_dist.data.workers import Workers
from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints, Purpose, key
from vit_dist.plan.permutation import permute
from vit_dist.plan.plan import Slots

_AT_ONCE = 16
# Images that are timed at most, and for how long each of the two measurements goes on after its start.
_MOST_IMAGES, _SECONDS = 2048, 5.0


@dataclass(frozen=True)
class ReadingSpeed:
    """How fast training images are made on this machine.

    stages: name → CPU seconds of an image, of one worker. waiting: seconds of an image spent waiting for storage.
    workers: processes. rate: images/s of all of them together. images: how many were timed; bad: how many of them
    could not be read.
    """

    stages: Mapping[str, float]
    waiting: float
    workers: int
    rate: float
    images: int
    bad: int

    @property
    def core_seconds(self) -> float:
        """CPU seconds of an image."""
        return sum(self.stages.values())

    def possible(self, cores: int) -> float:
        """Return images/s of the workers if nothing else runs on these cores."""
        alone = max(1, self.workers) / (self.core_seconds + self.waiting)
        return min(alone, cores / self.core_seconds) if self.core_seconds else alone


def measure_reading(
    subset: Subset, augment: AugmentConfig, preprocessing: Preprocessing, *, workers: int, timeout: float
) -> ReadingSpeed | None:
    """Measure the reading of a split as training does it; None if its images are in memory and need no transform.

    Images are drawn by key. They are timed one by one first, in workers, and then read by the workers as fast as they
    can: by then the system has their files in memory, as it has those of a few images that are timed several times.
    Raises UserError if none can be read.
    """
    plain = None if decoded(subset.source) is not None else preprocessing.transform()
    transform = training_transform(augment, preprocessing.mean, preprocessing.image_size, plain)
    if transform is None:
        return None

    def reader(kind: type[Reader]) -> Reader:
        side, channels = preprocessing.image_size, len(preprocessing.mean)
        return kind(subset, transform, 0, side, channels=channels, on_bad_sample="leave out")

    timed = reader(_StageReader)
    assert isinstance(timed, _StageReader)
    timed.bare = _bare(augment, transform, preprocessing)
    places = permute(np.arange(min(_MOST_IMAGES, len(subset)), dtype=np.int64), len(subset), key(0, Purpose.SURVEY))
    rows: list[NDArray[np.float64]] = []
    bad = 0
    for batch, count in _reads(timed, _repeated(places, workers), workers, timeout):
        times = np.frombuffer(batch.pixels.numpy().tobytes(), np.float64).reshape(_AT_ONCE, len(_STAGES))[:count]
        good = np.asarray([row not in batch.bad for row in range(count)])
        rows.append(times[good])
        bad += int((~good).sum())
    times = np.concatenate(rows)
    if not len(times):
        raise UserError("--speed: none of the images drawn can be read: check them first, without --speed")
    means = dict(zip(_STAGES, times.mean(0).tolist(), strict=True))
    waiting = max(0.0, means.pop("waiting"))
    stages = {timed.names()[name]: max(0.0, value) for name, value in means.items() if name in timed.names()}
    return ReadingSpeed(stages, waiting, workers, _rate(reader(Reader), places, workers, timeout), len(times), bad)


def _bare(augment: AugmentConfig, transform: object, preprocessing: Preprocessing) -> TrainingTransform | None:
    """Return a training transform's crop alone, without its steps; None if it has none."""
    if not isinstance(transform, TrainingTransform) or not transform.crop_min:
        return None
    alone = replace(augment, auto="", color_jitter=0.0, transform="")
    return TrainingTransform(alone, preprocessing.mean, preprocessing.image_size, None)


def _rate(reader: Reader, places: Ints, workers: int, timeout: float) -> float:
    """Return images/s of all workers together, from the second batch of each on."""
    warm = max(1, workers)
    times = []
    images = 0
    for number, (_, count) in enumerate(_reads(reader, _repeated(places, workers), workers, timeout)):
        times.append(time.perf_counter())
        images += count if number >= warm else 0
    if len(times) > warm:
        return images / max(times[-1] - times[warm - 1], 1e-9)
    return float("nan")


def _repeated(places: Ints, workers: int) -> Ints:
    """Return the places, so often that every worker has four batches at least."""
    wanted = 4 * _AT_ONCE * max(1, workers)
    return np.tile(places, max(1, -(-wanted // len(places))))


def _reads(reader: Reader, places: Ints, workers: int, timeout: float) -> Iterator[tuple[HostBatch, int]]:
    """Yield (batch, how many of its images count) until all are read, or the time is over."""
    reading = Workers(reader, workers, timeout=timeout)
    begun: list[float] = []

    def slots() -> Iterator[Slots]:
        for start in range(0, len(places), _AT_ONCE):
            if begun and time.perf_counter() - begun[0] > _SECONDS:
                return
            part = places[start : start + _AT_ONCE]
            index = np.concatenate([part, np.repeat(part[-1:], _AT_ONCE - len(part))])
            # Copies of one sample with one key are made once: another epoch makes each anew.
            yield Slots(index, np.full(_AT_ONCE, start, np.int64), (np.arange(_AT_ONCE) < len(part)).astype(np.float32))

    try:
        for start, batch in enumerate(reading.read(slots())):
            begun.append(time.perf_counter())
            yield batch, min(_AT_ONCE, len(places) - start * _AT_ONCE)
    finally:
        reading.close()


_STAGES = ("read", "waiting", "decode", "transform")


class _StageReader(Reader):
    """Times the stages of reading in place of handing out pixels: float64 [slots, stages] as bytes, in seconds.

    bare: the crop of the transform without its further steps, if images are decoded no further than that.
    """

    bare: TrainingTransform | None = None
    _warm = False  # in this process: libraries are loaded by the first image

    def shape(self, side: int = 0) -> tuple[int, int, int]:
        """Return the shape of the times' bytes."""
        return 1, 1, 8 * len(_STAGES)

    def names(self) -> dict[str, str]:
        """Return the names of the stages that there are, for people."""
        if not hasattr(self.subset.source, "encoded"):
            return {"decode": "read and decode", "transform": "transform"}
        if self.bare is None:
            return {"read": "read", "decode": "decode", "transform": "transform"}
        assert isinstance(self.transform, TrainingTransform)
        steps = {"transform": "augment"} if self.transform.steps else {}
        return {"read": "read", "decode": "decode, crop and resize", **steps}

    def read(self, slots: Slots) -> HostBatch:
        """Time the slots."""
        return self.read_each(slots)

    def read_into(
        self,
        pixels: NDArray[np.uint8],
        slots: Slots,
        begin: Callable[[int], None] = lambda index: None,
        unreadable: Mapping[int, str] | None = None,
    ) -> tuple[Slots, dict[int, str]]:
        """Write the times of the slots of weight above 0; return the slots, and what is wrong, by slot."""
        bad: dict[int, str] = {}
        for row, (place, epoch) in enumerate(zip(slots.index.tolist(), slots.epoch.tolist(), strict=True)):
            if not slots.weight[row]:
                continue
            index = int(self.subset.indices[place])
            begin(index)
            times = np.zeros(len(_STAGES))
            try:
                if unreadable and index in unreadable:
                    raise ImageError(unreadable[index])
                drawn = key(self.seed, Purpose.SAMPLE, epoch, index)
                if not self._warm:
                    self._times(index, drawn)
                    self._warm = True
                times[:] = self._times(index, drawn)
            except ImageError as error:
                bad[row] = str(error)
            pixels[row, 0, 0] = np.frombuffer(times.tobytes(), np.uint8)
        return slots, bad

    def _times(self, index: int, drawn: int) -> tuple[float, float, float, float]:
        """Return the seconds of the stages of an image: CPU time, but for waiting. Raises ImageError."""
        source, transform, side = self.subset.source, self.transform, self.image_size
        assert transform is not None
        if not hasattr(source, "encoded"):
            start = time.thread_time()
            image = read_image(source, index)
            read = time.thread_time()
            transform(image, drawn, side)
            return 0.0, 0.0, read - start, time.thread_time() - read
        queued, wall, start = _queued(), time.perf_counter(), time.thread_time()
        encoded = read_encoded(source, index)
        wall, read = time.perf_counter() - wall, time.thread_time()
        waited = wall - (read - start) - (_queued() - queued)
        if self.bare is None:
            image = decode(encoded)
            middle = time.thread_time()
            transform(image, drawn, side)
            return read - start, waited, middle - read, time.thread_time() - middle
        assert isinstance(transform, TrainingTransform)
        self.bare.decode(encoded, self.bare.open(encoded, drawn, side), drawn, side)
        middle = time.thread_time()
        if not transform.steps:
            return read - start, waited, middle - read, 0.0
        transform.decode(encoded, transform.open(encoded, drawn, side), drawn, side)
        return read - start, waited, middle - read, time.thread_time() - middle - (middle - read)


def _queued() -> float:
    """Return the seconds that this thread has waited for a core, which others had; 0 where the system does not say."""
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
