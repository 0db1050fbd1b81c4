"""The stream: the same samples and pixels whatever the workers, the split and the start."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vit_dist.config.config import Config
from vit_dist.config.fields import AugmentConfig, BatchConfig, RunConfig, ScheduleConfig, TrainConfig
from vit_dist.data.augmentation.batch import pixels_in
from vit_dist.data.augmentation.draws import affine, erasures, mixes
from vit_dist.data.augmentation.ops import erase_with_noise, flip, mix, mix_targets, normalise, shift, warp
from vit_dist.data.augmentation.transforms import EvaluationTransform, TrainingTransform
from vit_dist.data.batch import Batch
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.decode import EncodedImage
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import Subset, all_of
from vit_dist.data.stream import EvaluationStream, Stream
from vit_dist.data.stream import pictures as pictures_at
from vit_dist.errors import UserError
from vit_dist.plan.keys import Purpose, key, keys, uniform
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime

SIDE, DEPTH, GLOBAL, SEED = 13, 3, 11, 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING = Preprocessing(SIDE, MEAN, STD)
AUGMENT = AugmentConfig(crop_min=0.35, flip=0.5, shift=2)
# Of 60 samples: 54 … 64, over the end of an epoch.
BORDER = 5


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    yield runtime
    runtime.end()


@pytest.fixture(scope="module")
def pictures(image_folder: Path) -> dict[str, Subset]:
    return read_folder(image_folder).splits


def as_rank(runtime: Runtime, rank: int, world: int) -> Any:
    """Return the part of a runtime that a stream uses, as one rank of a larger world."""
    return SimpleNamespace(rank=rank, world_size=world, device=runtime.device, to_device=runtime.to_device)


def plan_of(
    micro_size: int, world: int = 1, *, samples: int = 60, seed: int = SEED, duration: str = "2 epochs"
) -> Plan:
    config = Config(
        run=RunConfig(seed=seed),
        batch=BatchConfig(global_size=GLOBAL, micro_size=micro_size),
        schedule=ScheduleConfig(warmup="0%"),
        train=TrainConfig(duration=duration),
    )
    return Plan.from_config(config, samples, world)


def streams_of(subset: Subset, runtime: Runtime, plan: Plan, *, workers: int = 0) -> list[Stream]:
    """Return a stream for each rank of the plan's world."""
    world = plan.world_size
    return [
        Stream(
            subset, plan, PREPROCESSING, AUGMENT, as_rank(runtime, rank, world), workers=workers, drop_path_depth=DEPTH
        )
        for rank in range(world)
    ]


def global_batch(streams: list[Stream], position: int) -> list[Batch]:
    """Return the micro-batches of all ranks, in their order in the global batch."""
    windows = [list(stream.window(position)) for stream in streams]
    assert len({len(window) for window in windows}) == 1
    return [batch for of_all_ranks in zip(*windows, strict=True) for batch in of_all_ranks]


def samples(batches: list[Batch]) -> dict[str, Tensor]:
    """Return the real slots of a global batch, in order."""
    drop_paths = [batch.drop_path for batch in batches if batch.drop_path is not None]
    joined = {
        "images": torch.cat([batch.images for batch in batches]),
        "targets": torch.cat([batch.targets for batch in batches]),
        "ids": torch.cat([batch.ids for batch in batches]),
        "drop_path": torch.cat(drop_paths),
    }
    weights = torch.cat([batch.weights for batch in batches])
    return {name: values[weights == 1] for name, values in joined.items()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert equality to the bit."""
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(actual[name], values), name


@pytest.fixture(scope="module")
def reference(pictures: dict[str, Subset], runtime: Runtime) -> list[dict[str, Tensor]]:
    """Read the whole run on one rank whose micro-batches hold a global batch."""
    plan = plan_of(12)
    streams = streams_of(pictures["train"], runtime, plan)
    return [samples(global_batch(streams, position)) for position in range(plan.updates)]


def decoded_crop(transform: TrainingTransform, encoded: EncodedImage, drawn: int, side: int) -> Tensor:
    return transform.decode(encoded, transform.open(encoded, drawn, side), drawn, side)


def test_the_stream_is_determined_by_its_keys(pictures: dict[str, Subset], reference: list[dict[str, Tensor]]) -> None:
    slots = plan_of(12).slots(BORDER, 0)
    index, epoch = slots.index[:GLOBAL], slots.epoch[:GLOBAL]
    assert set(epoch.tolist()) == {0, 1}
    source = pictures["train"].source
    assert isinstance(source, FileSource)
    crop = TrainingTransform(AugmentConfig(crop_min=0.35), MEAN, SIDE, None)
    cropped = [
        decoded_crop(crop, source.encoded(i), key(SEED, Purpose.SAMPLE, e, i), SIDE)
        for e, i in zip(epoch.tolist(), index.tolist(), strict=True)
    ]
    offsets = torch.from_numpy(np.floor(uniform(keys(SEED, Purpose.SHIFT, epoch, index), 2) * 5).astype(np.int64) - 2)
    mirrored = torch.from_numpy(uniform(keys(SEED, Purpose.FLIP, epoch, index)) < 0.5)
    assert {int(offset) for offset in offsets.flatten()} == {-2, -1, 0, 1, 2}
    assert 0 < mirrored.sum() < GLOBAL
    images = normalise(
        flip(shift(torch.stack(cropped), offsets, 2), mirrored), SIDE, torch.tensor(MEAN), torch.tensor(STD)
    )
    expected = {
        "images": images,
        "targets": torch.from_numpy(source.labels[index]),
        "ids": torch.from_numpy(index),
        "drop_path": torch.from_numpy(uniform(keys(SEED, Purpose.DROP_PATH, epoch, index), DEPTH, 2)),
    }
    assert_same(reference[BORDER], expected)


def test_run_sees_every_sample_of_every_epoch_once(reference: list[dict[str, Tensor]]) -> None:
    assert [len(batch["ids"]) for batch in reference] == [11] * 10 + [10]
    ids = torch.cat([batch["ids"] for batch in reference])
    for epoch in (ids[:60], ids[60:]):
        assert sorted(epoch.tolist()) == list(range(60))
    assert ids[:60].tolist() != ids[60:].tolist()
    # The same picture is cropped anew in the next epoch.
    images = torch.cat([batch["images"] for batch in reference])
    for sample in (0, 17, 59):
        first, second = images[ids == sample]
        assert not torch.equal(first, second)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro_size", [2, 4, 8])
def test_the_stream_does_not_depend_on_micro_batches_and_ranks(
    pictures: dict[str, Subset], runtime: Runtime, reference: list[dict[str, Tensor]], micro_size: int, world: int
) -> None:
    plan = plan_of(micro_size, world)
    streams = streams_of(pictures["train"], runtime, plan)
    for position in (BORDER, BORDER + 1):
        batches = global_batch(streams, position)
        assert len(batches) == plan.micro_batches_per_rank * world
        for batch in batches:
            assert batch.images.shape == (micro_size, 3, SIDE, SIDE)
            assert batch.images.dtype == batch.weights.dtype == torch.float32
            assert batch.targets.dtype == batch.ids.dtype == torch.int64
            assert batch.drop_path is not None
            assert batch.drop_path.shape == (micro_size, DEPTH, 2)
        assert sum(float(batch.weights.sum()) for batch in batches) == plan.weight(position)
        assert_same(samples(batches), reference[position])


def test_workers_change_nothing(
    pictures: dict[str, Subset], runtime: Runtime, reference: list[dict[str, Tensor]]
) -> None:
    streams = streams_of(pictures["train"], runtime, plan_of(4), workers=2)
    assert streams[0].workers == 2
    # A jump, to the run's last and short batch.
    for position in (8, 9, 10):
        assert_same(samples(global_batch(streams, position)), reference[position])


@pytest.mark.parametrize("position", [1, BORDER, 10])
def test_jumping_to_a_position_equals_reading_up_to_it(
    pictures: dict[str, Subset], runtime: Runtime, reference: list[dict[str, Tensor]], position: int
) -> None:
    streams = streams_of(pictures["train"], runtime, plan_of(4, 2))
    assert_same(samples(global_batch(streams, position)), reference[position])


def test_fillers_repeat_a_sample_of_the_batch(pictures: dict[str, Subset], runtime: Runtime) -> None:
    batches = global_batch(streams_of(pictures["train"], runtime, plan_of(4, 2)), BORDER)
    assert [batch.weights.tolist() for batch in batches] == [[1] * 4, [1] * 4, [1, 1, 1, 0], [0] * 4]
    assert torch.equal(batches[2].images[3], batches[2].images[0])
    for slot in range(4):
        assert torch.equal(batches[3].images[slot], batches[0].images[0])


def test_the_seed_of_a_forward_pass_depends_on_its_micro_batch(pictures: dict[str, Subset], runtime: Runtime) -> None:
    alone, many = (
        [batch.seed for batch in global_batch(streams_of(pictures["train"], runtime, plan_of(4, world)), BORDER)]
        for world in (1, 3)
    )
    assert alone == many == [key(SEED, Purpose.FORWARD, BORDER, number) >> 1 for number in range(3)]
    assert all(0 <= seed < 2**63 for seed in alone)


def test_another_seed_draws_another_stream(
    pictures: dict[str, Subset], runtime: Runtime, reference: list[dict[str, Tensor]]
) -> None:
    other = samples(global_batch(streams_of(pictures["train"], runtime, plan_of(12, seed=SEED + 1)), 0))
    assert other["ids"].tolist() != reference[0]["ids"].tolist()
    assert not torch.equal(other["drop_path"], reference[0]["drop_path"])


def in_memory(length: int = 30) -> MemorySource:
    generator = np.random.default_rng(0)
    pixels = generator.integers(1, 256, (length, 1, 9, 9), dtype=np.uint8)
    return MemorySource(pixels, generator.integers(0, 5, length))


@pytest.mark.parametrize("size", [9, 12])
def test_the_stream_of_a_memory_source_does_not_depend_on_micro_batches_and_ranks(runtime: Runtime, size: int) -> None:
    preprocessing = Preprocessing(size, (0.5,), (0.25,))
    actual = []
    for micro_size, world in ((12, 1), (2, 1), (4, 3)):
        plan = plan_of(micro_size, world, samples=30, duration="6 updates")
        streams = [
            Stream(
                all_of(in_memory()),
                plan,
                preprocessing,
                AugmentConfig(shift=1, flip=0.5),
                as_rank(runtime, r, world),
                workers=9,
            )
            for r in range(world)
        ]
        # Small enough to be read where it is needed.
        assert [stream.workers for stream in streams] == [0] * world
        rows = [batch for position in range(6) for batch in global_batch(streams, position)]
        assert all(batch.drop_path is None for batch in rows)
        weights = torch.cat([batch.weights for batch in rows])
        actual.append(
            [torch.cat([getattr(b, name) for b in rows])[weights == 1] for name in ("ids", "targets", "images")]
        )
    assert actual[0][2].shape == (66, 1, size, size)
    for other in actual[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, actual[0], strict=True))


def test_ids_of_a_subset_are_indices_in_its_source(runtime: Runtime) -> None:
    source = in_memory()
    subset = all_of(source).take(np.arange(29, 9, -1))
    stream = Stream(
        subset,
        plan_of(12, samples=20, duration="1 updates"),
        Preprocessing(9, (0.0,), (1.0,)),
        AugmentConfig(),
        runtime,
        workers=0,
    )
    (batch,) = stream.window(0)
    ids = batch.ids.numpy()
    assert ids.min() >= 10
    assert len(set(ids[:GLOBAL].tolist())) == GLOBAL
    assert batch.targets.tolist() == source.labels[ids].tolist()
    np.testing.assert_allclose(batch.images.numpy(), source.pixels[ids] / 255, rtol=1e-6)


def test_flips_and_shifts_have_the_configured_frequency(runtime: Runtime) -> None:
    source = MemorySource(np.zeros((400, 1, 5, 5), np.uint8), np.zeros(400, np.int64))
    # One bright pixel, off the middle: where it goes tells the draw.
    source.pixels[:, 0, 2, 1] = 255
    config = Config(batch=BatchConfig(400, 400), schedule=ScheduleConfig(warmup="0%"), train=TrainConfig("1 updates"))
    augment = AugmentConfig(flip=0.25, shift=1)
    stream = Stream(
        all_of(source), Plan.from_config(config, 400, 1), Preprocessing(5, (0.0,), (1.0,)), augment, runtime, workers=0
    )
    (batch,) = stream.window(0)
    _, _, rows, columns = torch.nonzero(batch.images, as_tuple=True)
    assert len(rows) == 400
    down = torch.bincount(rows, minlength=5).tolist()
    assert down[0] == down[4] == 0
    assert all(90 < count < 180 for count in down[1:4])
    # Unmirrored columns 0, 1, 2; mirrored 4, 3, 2.
    across = torch.bincount(columns, minlength=5).tolist()
    assert 0.15 < (across[3] + across[4]) / (across[0] + across[1] + across[3] + across[4]) < 0.35


def test_wait_seconds_exclude_the_callers_time(pictures: dict[str, Subset], runtime: Runtime) -> None:
    (stream,) = streams_of(pictures["train"], runtime, plan_of(4))
    assert stream.wait_seconds == 0
    start, spent = time.perf_counter(), 0.0
    waited = [0.0]
    for position in range(2):
        for _ in stream.window(position):
            begin = time.perf_counter()
            while time.perf_counter() - begin < 0.01:
                pass
            spent += time.perf_counter() - begin
            waited.append(stream.wait_seconds)
    assert len(waited) == 7
    assert all(before < after for before, after in itertools.pairwise(waited))
    assert stream.wait_seconds <= time.perf_counter() - start - spent


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [4, 64])
def test_evaluation_sees_every_sample_once_and_never_augments(
    pictures: dict[str, Subset], runtime: Runtime, batch_size: int, world: int
) -> None:
    subset = pictures["val"]
    source = subset.source
    assert isinstance(source, FileSource)
    transform = EvaluationTransform(0.875)
    pixels = torch.stack([transform(source.image(i), 0, SIDE) for i in range(21)])
    expected = normalise(pixels, SIDE, torch.tensor(MEAN), torch.tensor(STD))
    streams = [
        EvaluationStream(subset, PREPROCESSING, as_rank(runtime, rank, world), batch_size=batch_size, workers=0)
        for rank in range(world)
    ]
    assert {stream.length for stream in streams} == {21}
    # Twice, since one stream serves all evaluations of a run.
    for _ in range(2):
        passes = [list(stream) for stream in streams]
        batches = [batch for of_all_ranks in zip(*passes, strict=True) for batch in of_all_ranks]
        assert len(batches) == world * math.ceil(math.ceil(21 / batch_size) / world)
        assert all(len(part) == batch_size for batch in batches for part in batch)
        images, targets, weights, _ = (torch.cat(values) for values in zip(*batches, strict=True))
        assert weights.sum() == 21
        assert torch.equal(images[weights == 1], expected)
        assert torch.equal(targets[weights == 1], torch.from_numpy(source.labels))


def test_workers_of_an_evaluation_end_with_its_pass(pictures: dict[str, Subset], runtime: Runtime) -> None:
    stream = EvaluationStream(pictures["val"], PREPROCESSING, runtime, batch_size=4, workers=2)
    for _ in range(2):
        batches = iter(stream)
        next(batches)
        assert len(multiprocessing.active_children()) == 2
        assert sum(1 for _ in batches) == 5
        assert not multiprocessing.active_children()
    stream.close()


def test_evaluation_of_a_subset_reads_its_samples_in_order(runtime: Runtime) -> None:
    source = in_memory()
    subset = all_of(source).take(np.array([7, 3, 21]))
    stream = EvaluationStream(subset, Preprocessing(9, (0.0,), (1.0,)), runtime, batch_size=2, workers=0)
    images, targets, weights, ids = (torch.cat(values) for values in zip(*stream, strict=True))
    assert weights.tolist() == [1, 1, 1, 0]
    assert ids[:3].tolist() == [7, 3, 21]
    assert targets[:3].tolist() == source.labels[[7, 3, 21]].tolist()
    np.testing.assert_allclose(images[:3].numpy(), source.pixels[[7, 3, 21]] / 255, rtol=1e-6)


def test_a_bad_image_in_a_worker_gives_a_one_line_error(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.png").write_bytes(b"x")
    split = read_folder(tmp_path).splits["train"]
    stream = EvaluationStream(split, Preprocessing(8, (0.5,) * 3, (0.5,) * 3), runtime, batch_size=2, workers=1)
    way_on = "to go on without it: the same command with --data.on_bad_sample skip"
    message = f"^{tmp_path}/dog/a.png: cannot be decoded [^\n]*: mend or remove the file; {way_on}$"
    with pytest.raises(UserError, match=message):
        list(stream)
    stream.close()


EVERYTHING = AugmentConfig(
    crop_min=0.35, flip=0.5, shift=2, rotate=20, translate=0.1, scale=0.2, erasing=0.7, erasing_mode="pixel",
    mixup=0.8, cutmix=1.0, mix_prob=0.8,
)  # fmt: skip


def augmented_plan(
    augment: AugmentConfig, micro_size: int, world: int = 1, *, samples: int = 60, duration: str = "2 epochs"
) -> Plan:
    config = Config(
        run=RunConfig(seed=SEED),
        augment=augment,
        batch=BatchConfig(global_size=GLOBAL, micro_size=micro_size),
        schedule=ScheduleConfig(warmup="0%"),
        train=TrainConfig(duration=duration),
    )
    return Plan.from_config(config, samples, world)


def augmented_streams(
    subset: Subset, runtime: Runtime, plan: Plan, augment: AugmentConfig, preprocessing: Preprocessing = PREPROCESSING
) -> list[Stream]:
    world = plan.world_size
    return [
        Stream(
            subset,
            plan,
            preprocessing,
            augment,
            as_rank(runtime, rank, world),
            workers=0,
            classes=5,
            drop_path_depth=DEPTH,
        )
        for rank in range(world)
    ]


def test_device_augmentation_is_determined_by_its_keys(pictures: dict[str, Subset], runtime: Runtime) -> None:
    plan = augmented_plan(EVERYTHING, 12)
    (batch,) = global_batch(augmented_streams(pictures["train"], runtime, plan, EVERYTHING), BORDER)
    slots = plan.slots(BORDER, 0)
    source = pictures["train"].source
    assert isinstance(source, FileSource)
    crop = TrainingTransform(AugmentConfig(crop_min=0.35), MEAN, SIDE, None)
    pixels = torch.stack(
        [
            decoded_crop(crop, source.encoded(i), key(SEED, Purpose.SAMPLE, e, i), SIDE)
            for e, i in zip(slots.epoch.tolist(), slots.index.tolist(), strict=True)
        ]
    )
    maps = affine(EVERYTHING, SEED, slots.epoch, slots.index, (SIDE, SIDE))
    images = normalise(warp(pixels, torch.from_numpy(maps)), SIDE, torch.tensor(MEAN), torch.tensor(STD))
    drawn = erasures(EVERYTHING, keys(SEED, Purpose.ERASE, slots.epoch, slots.index), (3, SIDE, SIDE))
    assert 4 < len(drawn.rows) < 12
    boxes, noise = torch.from_numpy(drawn.boxes), torch.from_numpy(drawn.noise)
    images = erase_with_noise(images, torch.from_numpy(drawn.rows), boxes, noise, pixels_in(drawn.boxes))
    mixed = mixes(EVERYTHING, SEED, BORDER, 0, slots.weight, (SIDE, SIDE))
    assert mixed.cut.any()
    assert (mixed.kept[~mixed.cut] < 1).any()
    # The partner of slot 10 is a filler.
    assert mixed.kept[5] == 1
    kept = torch.from_numpy(mixed.kept)
    images = mix(images, kept, torch.from_numpy(mixed.cut), torch.from_numpy(mixed.boxes))
    assert torch.equal(batch.images, images)
    labels = torch.from_numpy(source.labels[slots.index])
    assert torch.equal(batch.targets, mix_targets(labels, 5, kept))
    assert batch.targets[10].tolist() == [float(label == labels[10]) for label in range(5)]


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_leaves_the_rest_of_an_image_unchanged(runtime: Runtime, mode: str) -> None:
    subset, preprocessing = all_of(in_memory()), Preprocessing(9, (0.5,), (0.25,))
    augment = AugmentConfig(erasing=0.6, erasing_mode=mode)  # type: ignore[arg-type]
    actual, plain = (
        torch.cat([b.images for b in global_batch(augmented_streams(subset, runtime, plan, chosen, preprocessing), 0)])
        for chosen in (augment, AugmentConfig())
        for plan in [augmented_plan(chosen, 4, samples=30)]
    )
    differ = (actual != plain).any(1)
    erased = differ.flatten(1).any(1)
    assert 3 < erased[:11].sum() < 11
    for image, mask in zip(actual, differ, strict=True):
        y, x = mask.nonzero(as_tuple=True)
        if len(y):
            # Of an erased rectangle all pixels differ, but where by chance a pixel was just that.
            box = image[0, y.min() : y.max() + 1, x.min() : x.max() + 1]
            assert mask.sum() > 0.9 * box.numel()
            alike = len(box.unique())
            assert alike == box.numel() if mode == "pixel" else alike == 1
            assert (box == 0).all() == (mode == "const")


def test_copies_of_a_sample_are_augmented_independently(pictures: dict[str, Subset], runtime: Runtime) -> None:
    augment = AugmentConfig(crop_min=0.35, flip=0.5, repeats=3)
    plan = augmented_plan(augment, 12)
    batch = samples(global_batch(augmented_streams(pictures["train"], runtime, plan, augment), 2))
    ids = batch["ids"].tolist()
    assert [len(set(ids)), ids[:4], ids[8:]] == [4, ids[4:8], ids[:3]]
    assert len({image.numpy().tobytes() for image in batch["images"]}) == 11
    assert len({draws.numpy().tobytes() for draws in batch["drop_path"]}) == 11
    assert batch["targets"][:4].tolist() == batch["targets"][4:8].tolist()
    for micro_size, world in ((2, 1), (4, 3)):
        split = augmented_plan(augment, micro_size, world)
        streams = augmented_streams(pictures["train"], runtime, split, augment)
        assert_same(samples(global_batch(streams, 2)), batch)


@pytest.mark.parametrize("memory", [False, True])
def test_image_sizes_follow_the_configured_order(pictures: dict[str, Subset], runtime: Runtime, memory: bool) -> None:
    subset = all_of(in_memory(60)) if memory else pictures["train"]
    augment = AugmentConfig(
        crop_min=0.0 if memory else 0.35, sizes=("16 for 2 updates", "32 for 1 updates"), erasing=0.5, cutmix=1.0
    )
    preprocessing = Preprocessing(9, (0.5,), (0.25,)) if memory else PREPROCESSING
    plan = augmented_plan(augment, 12, duration="5 updates")
    sides = [batch.images.shape[2:] for p in range(5) for batch in global_batch(augmented_streams(
        subset, runtime, plan, augment, preprocessing), p)]  # fmt: skip
    assert sides == [(side, side) for side in (16, 16, 32, preprocessing.image_size, preprocessing.image_size)]
    # Files are cropped to the size; what is in memory is resized.
    plain = AugmentConfig(crop_min=augment.crop_min, sizes=augment.sizes)
    (batch,) = global_batch(augmented_streams(subset, runtime, plan, plain, preprocessing), 2)
    slots = plan.slots(2, 0)
    if memory:
        source = subset.source
        assert isinstance(source, MemorySource)
        pixels = torch.from_numpy(source.pixels[slots.index])
    else:
        assert isinstance(subset.source, FileSource)
        crop = TrainingTransform(AugmentConfig(crop_min=0.35), MEAN, SIDE, None)
        file = subset.source.encoded
        pixels = torch.stack(
            [decoded_crop(crop, file(i), key(SEED, Purpose.SAMPLE, 0, i), 32) for i in slots.index.tolist()]
        )
        assert pixels.shape[2:] == (32, 32)
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    assert torch.equal(batch.images, normalise(pixels, 32, mean, std))
    # A jump finds the size of its place.
    (late,) = global_batch(augmented_streams(subset, runtime, plan, plain, preprocessing), 4)
    assert late.images.shape[2:] == (preprocessing.image_size, preprocessing.image_size)


def test_grey_images_in_memory_take_every_automatic_augmentation(runtime: Runtime) -> None:
    subset, preprocessing = all_of(in_memory()), Preprocessing(9, (0.5,), (0.25,))
    plain = augmented_streams(
        subset, runtime, augmented_plan(AugmentConfig(), 12, samples=30), AugmentConfig(), preprocessing
    )
    (untouched,) = global_batch(plain, 0)
    for augment in (AugmentConfig(auto="rand-m9-mstd0.5-inc1"), AugmentConfig(auto="trivial", color_jitter=0.3)):
        streams = augmented_streams(subset, runtime, augmented_plan(augment, 12, samples=30), augment, preprocessing)
        (batch,) = global_batch(streams, 0)
        assert batch.images.shape == (12, 1, 9, 9)
        assert torch.equal(batch.ids, untouched.ids)
        assert (batch.images != untouched.images).flatten(1).any(1).sum() > 6


MIXED = AugmentConfig(flip=0.5, shift=2, erasing=0.7, erasing_mode="pixel", mixup=0.8, cutmix=1.0, mix_prob=0.8)
CROPPED = AugmentConfig(
    crop_min=0.35, flip=0.5, shift=2, erasing=0.7, erasing_mode="pixel", mixup=0.8, cutmix=1.0, mix_prob=0.8,
    color_jitter=0.3, repeats=2, sizes=("16 for 1 updates",),
)  # fmt: skip


def as_seen(batch: Batch, preprocessing: Preprocessing, count: int) -> Tensor:
    """Return the real images among the first `count` slots, denormalised to 0 … 255, not rounded."""
    images = batch.images[:count][batch.weights[:count] > 0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (255 * (images * std + mean)).clamp(0, 255)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(
    ("size", "micro_size", "shown"), [(11, 12, 11), (11, 4, 4), (21, 20, 16), (37, 40, 16), (1, 2, 1)]
)
@pytest.mark.parametrize("memory", [False, True])
def test_input_examples_are_the_first_images_that_the_model_sees(
    pictures: dict[str, Subset], runtime: Runtime, memory: bool, size: int, micro_size: int, shown: int, world: int
) -> None:
    subset = all_of(in_memory(60)) if memory else pictures["train"]
    preprocessing = Preprocessing(9, (0.5,), (0.25,)) if memory else PREPROCESSING
    names = [f"class {number}" for number in range(5)]
    for augment in (AugmentConfig(), AugmentConfig(cutmix=1.0), MIXED if memory else CROPPED, EVERYTHING):
        if memory and augment is EVERYTHING:
            augment = AugmentConfig(rotate=20, translate=0.1, scale=0.2, erasing=0.7, mixup=0.8)
        augment = replace(augment, repeats=min(augment.repeats, size))
        config = Config(
            run=RunConfig(seed=SEED),
            augment=augment,
            batch=BatchConfig(global_size=size, micro_size=micro_size),
            schedule=ScheduleConfig(warmup="0%"),
            train=TrainConfig(duration="8 updates"),
        )
        plan = Plan.from_config(config, 60, world)
        for position in (0, 6):
            stream, untouched = (augmented_streams(subset, runtime, plan, augment, preprocessing)[0] for _ in range(2))
            inputs = stream.inputs(position, names)
            first = next(iter(untouched.window(position)))
            seen = as_seen(first, preprocessing, 16)
            assert inputs.pixels.dtype == np.uint8
            assert inputs.pixels.shape == seen.shape == (shown, *first.images.shape[1:])
            assert np.abs(inputs.pixels - seen.numpy()).max() <= 0.5 + 1e-3
            assert inputs.metadata == {"position": position, "classes": names}
            targets = first.targets[:shown]
            if targets.ndim == 1:
                assert inputs.classes[:, 0].tolist() == targets.tolist()
                assert inputs.parts.tolist() == [[1, 0]] * shown
                assert inputs.captions() == [names[label] for label in targets.tolist()]
                continue
            assert (inputs.classes.shape, inputs.parts.shape) == ((shown, 2), (shown, 2))
            np.testing.assert_array_equal(inputs.parts, np.sort(targets.numpy())[:, :-3:-1])
            np.testing.assert_array_equal(inputs.parts, np.take_along_axis(targets.numpy(), inputs.classes, 1))
            np.testing.assert_allclose(inputs.parts.sum(1), 1, rtol=1e-6)
            if position == 0 and size == 37 and augment is not EVERYTHING:
                assert (inputs.parts[:, 1] > 0.01).sum() > 3


def test_captions_of_inputs_name_the_mixed_classes(runtime: Runtime) -> None:
    subset, preprocessing, augment = all_of(in_memory(60)), Preprocessing(9, (0.5,), (0.25,)), AugmentConfig(mixup=1.0)
    plan = augmented_plan(augment, 12)
    (stream,) = augmented_streams(subset, runtime, plan, augment, preprocessing)
    inputs = stream.inputs(0, list("abcde"))
    (batch,) = augmented_streams(subset, runtime, plan, augment, preprocessing)[0].window(0)
    labels, targets = subset.source.labels[batch.ids], batch.targets
    mixed = 0
    for slot in range(GLOBAL):
        other = slot ^ 1
        part = float(targets[slot, labels[slot]])
        if labels[slot] == labels[other] or part > 0.995 or part < 0.005:
            continue
        mixed += 1
        pair = [(part, labels[slot]), (1 - part, labels[other])]
        (high, first), (low, second) = sorted(pair, reverse=True)
        assert inputs.captions()[slot] == f"{'abcde'[first]} {high:.0%}, {'abcde'[second]} {low:.0%}"
    assert mixed >= 4
    # The partner of slot 10 is a filler: it is not mixed.
    assert inputs.captions()[10] == "abcde"[labels[10]]


@pytest.mark.parametrize("memory", [False, True])
def test_drawing_inputs_changes_nothing(pictures: dict[str, Subset], runtime: Runtime, memory: bool) -> None:
    subset = all_of(in_memory(60)) if memory else pictures["train"]
    preprocessing, augment = (Preprocessing(9, (0.5,), (0.25,)), MIXED) if memory else (PREPROCESSING, EVERYTHING)
    plan = augmented_plan(augment, 4)
    (plain,), (drawn,) = (augmented_streams(subset, runtime, plan, augment, preprocessing) for _ in range(2))
    names = [str(number) for number in range(5)]
    for position in range(3, 6):
        states = (torch.get_rng_state(), np.random.get_state()[1], random.getstate())
        waited = drawn.wait_seconds
        first = drawn.inputs(3, names)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])
        assert random.getstate() == states[2]
        assert drawn.wait_seconds == waited
        if position == 3:
            start = first
        # The same at any time, and the stream goes on as if nobody had looked.
        assert np.array_equal(first.pixels, start.pixels)
        assert first.captions() == start.captions()
        for batch, other in zip(plain.window(position), drawn.window(position), strict=True):
            assert torch.equal(batch.images, other.images)
            assert torch.equal(batch.targets, other.targets)
            assert torch.equal(batch.ids, other.ids)
            assert batch.seed == other.seed


@pytest.mark.parametrize("memory", [False, True])
def test_pictures_equal_the_images_of_evaluation(pictures: dict[str, Subset], runtime: Runtime, memory: bool) -> None:
    subset = all_of(in_memory()).take(np.array([7, 3, 21, 0, 29])) if memory else pictures["val"]
    preprocessing = Preprocessing(12, (0.5,), (0.25,)) if memory else PREPROCESSING
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    stream = EvaluationStream(subset, preprocessing, runtime, batch_size=len(subset), workers=0)
    (images, _, weights, ids) = next(iter(stream))
    assert weights.all()
    places = np.array([4, 0, 3, 0])
    actual = pictures_at(subset, places, preprocessing)
    assert actual.dtype == np.uint8
    assert torch.equal(normalise(torch.from_numpy(actual), preprocessing.image_size, mean, std), images[places])
    assert np.array_equal(actual[1], actual[3])
    if memory:
        assert np.array_equal(actual, subset.source.pixels[[29, 7, 0, 7]])  # type: ignore[union-attr]
        assert ids[places].tolist() == [29, 7, 0, 7]
    else:
        assert actual.shape == (4, 3, SIDE, SIDE)
    none = pictures_at(subset, np.zeros(0, np.int64), preprocessing)
    assert (none.shape, none.dtype) == (
        (0, len(preprocessing.mean), preprocessing.image_size, preprocessing.image_size),
        np.uint8,
    )


@pytest.mark.parametrize("later", [3, 5])
def test_windows_must_be_read_in_order(pictures: dict[str, Subset], runtime: Runtime, later: int) -> None:
    (stream,) = streams_of(pictures["train"], runtime, plan_of(4))
    assert len(list(stream.window(3))) == 3
    with pytest.raises(AssertionError, match=f"^window {later} was requested, the next in order is 4"):
        next(stream.window(later))
    assert len(list(stream.window(4))) == 3


def test_a_window_must_be_read_to_its_end(pictures: dict[str, Subset], runtime: Runtime) -> None:
    (stream,) = streams_of(pictures["train"], runtime, plan_of(4))
    next(stream.window(3))
    for position in (3, 4):
        with pytest.raises(AssertionError, match=f"^window {position} was requested"):
            next(stream.window(position))
