"""The plan's numbers, its order of samples and its keyed draws."""

from __future__ import annotations

import json
import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from vit_dist.config.config import Config
from vit_dist.config.fields import AugmentConfig, BatchConfig, RunConfig, ScheduleConfig, TrainConfig
from vit_dist.config.output_fields import CheckpointConfig, EvaluateConfig, LogConfig
from vit_dist.config.values import Length
from vit_dist.errors import UserError
from vit_dist.plan.keys import Purpose, key, keys, uniform
from vit_dist.plan.permutation import order_chunk, permute
from vit_dist.plan.plan import Plan, Slots, evaluation_slots

SPLITS = [
    # samples, global_size, micro_size, world size
    (30, 21, 4, 1),
    (30, 21, 4, 3),
    (7, 20, 6, 2),
    (50, 8, 8, 4),
    (1, 3, 2, 2),
    (64, 16, 4, 2),
    (33, 10, 32, 3),
]


def plan_of(
    samples: int,
    *,
    global_size: int = 8,
    micro_size: int = 4,
    world: int = 1,
    duration: str = "3 epochs",
    seed: int = 0,
    every: str = "1 epochs",
    **schedule: Any,
) -> Plan:
    config = Config(
        run=RunConfig(seed=seed),
        batch=BatchConfig(global_size=global_size, micro_size=micro_size),
        schedule=ScheduleConfig(**{"warmup": "0%", **schedule}),
        train=TrainConfig(duration=duration),
        evaluate=EvaluateConfig(every=every),
        checkpoint=CheckpointConfig(every=every),
        log=LogConfig(every="2 updates"),
    )
    return Plan.from_config(config, samples, world)


def global_batch(plan: Plan, position: int) -> list[Slots]:
    """Return the micro-batches of all ranks, in order."""
    numbers = sorted(number for rank in range(plan.world_size) for number in plan.micro_batches_of(rank))
    assert numbers == list(range(plan.micro_batches_per_rank * plan.world_size))
    return [plan.slots(position, number) for number in numbers]


def real(slots: list[Slots]) -> list[tuple[int, int]]:
    """Return (epoch, index) of each real sample, in slot order."""
    return [
        (epoch, index)
        for micro_batch in slots
        for epoch, index, weight in zip(
            micro_batch.epoch.tolist(), micro_batch.index.tolist(), micro_batch.weight.tolist(), strict=True
        )
        if weight
    ]


def order_of_epoch(plan: Plan, epoch: int) -> list[int]:
    """Return the order of an epoch by the permutation alone."""
    return list(permute(np.arange(plan.samples), plan.samples, key(plan.seed, Purpose.ORDER, epoch)).tolist())


def order_walked(samples: int, seed: int, epoch: int) -> list[int]:
    """Return the order of an epoch by a plan whose global batches are an epoch each."""
    plan = plan_of(samples, global_size=samples, micro_size=samples + samples % 2, seed=seed, duration="2000 epochs")
    return [index for sample_epoch, index in real([plan.slots(epoch, 0)]) if sample_epoch == epoch]


def chi_square(actual: Any, expected: float) -> float:
    return float(((np.asarray(actual) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 10, 16, 17, 255, 256, 257, 1797, 70_000])
def test_permutation_is_a_bijection(length: int) -> None:
    for order_key in (key(0, Purpose.ORDER, 0), key(7, Purpose.ORDER, 3), 0):
        images = permute(np.arange(length), length, order_key)
        assert images.dtype == np.int64
        assert np.array_equal(np.sort(images), np.arange(length))


def test_permutation_of_a_place_does_not_depend_on_other_places() -> None:
    whole = permute(np.arange(1797), 1797, 5)
    for places in ([0], [1796, 3, 3], range(100, 200)):
        assert permute(np.array(places), 1797, 5).tolist() == whole[list(places)].tolist()


def test_permutation_is_uniform_over_seeds() -> None:
    seeds = 3000
    orders = np.stack([permute(np.arange(10), 10, key(seed, Purpose.ORDER, 0)) for seed in range(seeds)])
    places = [np.bincount(orders[:, place], minlength=10) for place in range(10)]
    # 81 degrees of freedom: beyond 126 once in a thousand times, and the seeds are fixed.
    assert chi_square(places, seeds / 10) < 126
    # All six orders of three: 5 degrees of freedom, 20.5 once in a thousand times.
    orders_of_three = Counter(
        tuple(permute(np.arange(3), 3, key(seed, Purpose.ORDER, 0)).tolist()) for seed in range(seeds)
    )
    assert len(orders_of_three) == 6
    assert chi_square(list(orders_of_three.values()), seeds / 6) < 20.5


def test_the_order_of_many_samples_has_no_trend() -> None:
    places = np.arange(70_000)
    images = permute(places, 70_000, key(0, Purpose.ORDER, 0))
    bound = 4 / math.sqrt(70_000)
    assert abs(np.corrcoef(places, images)[0, 1]) < bound
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < bound
    assert (images == places).sum() < 10


def test_order_differs_by_seed_and_epoch() -> None:
    orders = {tuple(order_walked(1797, seed, epoch)) for seed in (0, 1, 2**40) for epoch in (0, 1, 1000)}
    assert len(orders) == 9
    # Independent orders agree in one place on average.
    first, second = order_walked(1797, 0, 0), order_walked(1797, 0, 1)
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def test_order_is_pinned() -> None:
    # Literal values: a change of any means that no old run can be repeated or resumed.
    assert order_walked(10, 0, 0) == [5, 4, 2, 0, 3, 1, 6, 7, 9, 8]
    assert order_walked(10, 1, 1) == [1, 4, 9, 3, 0, 5, 8, 6, 2, 7]
    assert order_walked(1797, 0, 3)[:5] == [559, 1302, 692, 815, 1670]


@pytest.mark.parametrize(("samples", "global_size", "micro_size", "world"), SPLITS)
def test_stream_holds_every_sample_of_every_epoch_once_in_its_order(
    samples: int, global_size: int, micro_size: int, world: int
) -> None:
    plan = plan_of(samples, global_size=global_size, micro_size=micro_size, world=world, duration="4 epochs", seed=5)
    walked = [pair for position in range(plan.updates) for pair in real(global_batch(plan, position))]
    assert walked == [(epoch, index) for epoch in range(4) for index in order_of_epoch(plan, epoch)]


def test_stream_crosses_chunks_and_epochs() -> None:
    plan = plan_of(70_000, global_size=30_000, micro_size=10_000, duration="150000 samples")
    assert plan.updates == 5
    walked = [pair for position in range(5) for pair in real(global_batch(plan, position))]
    assert [index for _, index in walked] == [index for e in range(3) for index in order_of_epoch(plan, e)][:150_000]
    assert Counter(epoch for epoch, _ in walked) == {0: 70_000, 1: 70_000, 2: 10_000}


def test_jumping_to_a_position_equals_reading_up_to_it() -> None:
    walking, jumping = (plan_of(40_000, global_size=9000, micro_size=4000, duration="3 epochs") for _ in range(2))
    walked = [real(global_batch(walking, position)) for position in range(walking.updates)]
    for position in (13, 4, 0, 8):
        order_chunk.cache_clear()
        assert real(global_batch(jumping, position)) == walked[position]


@pytest.mark.parametrize(("samples", "global_size", "micro_size", "world"), SPLITS)
def test_fillers_have_weight_zero_and_repeat_a_real_sample(
    samples: int, global_size: int, micro_size: int, world: int
) -> None:
    plan = plan_of(
        samples, global_size=global_size, micro_size=micro_size, world=world, duration=f"{5 * global_size - 1} samples"
    )
    assert plan.updates == 5
    for position in range(5):
        slots = global_batch(plan, position)
        of_batch = set(real(slots))
        weights = np.concatenate([micro_batch.weight for micro_batch in slots])
        assert weights.dtype == np.float32
        assert set(weights.tolist()) <= {0.0, 1.0}
        assert weights.sum() == plan.weight(position) == global_size - (position == 4)
        assert len(weights) - global_size == plan.fillers
        for micro_batch in slots:
            assert micro_batch.index.shape == micro_batch.epoch.shape == micro_batch.weight.shape == (micro_size,)
            assert set(zip(micro_batch.epoch.tolist(), micro_batch.index.tolist(), strict=True)) <= of_batch
            # What is real comes first.
            assert (np.diff(micro_batch.weight) <= 0).all()


def test_weights_of_the_last_short_batch() -> None:
    plan = plan_of(50, global_size=8, micro_size=4, world=2, duration="3 epochs")
    assert (plan.updates, plan.weight(17), plan.weight(18)) == (19, 8, 6)
    assert [micro_batch.weight.tolist() for micro_batch in global_batch(plan, 18)] == [[1, 1, 1, 1], [1, 1, 0, 0]]
    tiny = plan_of(50, global_size=8, micro_size=4, world=2, duration="17 samples")
    assert [micro_batch.weight.tolist() for micro_batch in global_batch(tiny, 2)] == [[1, 0, 0, 0], [0, 0, 0, 0]]
    assert len({int(index) for micro_batch in global_batch(tiny, 2) for index in micro_batch.index}) == 1
    with pytest.raises(AssertionError, match="position is past the end of the run"):
        tiny.slots(3, 0)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("shards", [None, [12, 11, 7]])
def test_the_weight_of_a_global_batch_is_that_of_its_slots(repeats: int, shards: list[int] | None) -> None:
    weights = np.random.default_rng(3).random(30).astype(np.float32)
    config = Config(
        batch=BatchConfig(global_size=21, micro_size=4),
        train=TrainConfig(duration="200 samples"),
        augment=AugmentConfig(repeats=repeats),
    )
    plan = Plan.from_config(config, 30, 3, None if shards is None else np.asarray(shards), weights)
    for position in range(plan.updates):
        slots = [slot.weight.astype(np.float64).sum() for slot in global_batch(plan, position)]
        assert plan.weight(position) == math.fsum(slots) != plan.weight((position + 1) % plan.updates)
    nothing = Plan.from_config(config, 30, 3, None, np.zeros(30, np.float32))
    assert nothing.weight(0) == 1.0


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro_size", [2, 4, 8, 32])
def test_the_plan_gives_the_same_stream_for_every_world_and_micro_size(world: int, micro_size: int) -> None:
    alone = plan_of(30, global_size=21, micro_size=22, duration="80 samples")
    plan = plan_of(30, global_size=21, micro_size=micro_size, world=world, duration="80 samples")
    windows = [plan.micro_batches_of(rank) for rank in range(world)]
    assert [len(window) for window in windows] == [math.ceil(math.ceil(21 / micro_size) / world)] * world
    for position in range(4):
        assert real(global_batch(plan, position)) == real(global_batch(alone, position))
        assert plan.weight(position) == (21, 21, 21, 17)[position]


@pytest.mark.parametrize(
    ("duration", "total", "updates"),
    [
        ("3 epochs", 150, 19),
        ("2.5 epochs", 125, 16),
        ("7 updates", 56, 7),
        ("100 samples", 100, 13),
        ("0.01 epochs", 1, 1),
    ],
)
def test_the_length_of_the_run_follows_its_duration(duration: str, total: int, updates: int) -> None:
    plan = plan_of(50, duration=duration)
    assert (plan.total_samples, plan.updates, plan.epochs) == (total, updates, total / 50)
    assert plan.samples_at(updates) == plan.samples_at(updates + 9) == total
    assert plan.samples_at(updates - 1) == 8 * (updates - 1)


def test_the_plan_holds_the_number_of_micro_batches_per_rank() -> None:
    plan = plan_of(50, global_size=10, micro_size=2, world=3)
    assert (plan.micro_batches, plan.micro_batches_per_rank, plan.fillers) == (5, 2, 2)
    assert [list(plan.micro_batches_of(rank)) for rank in range(3)] == [[0, 3], [1, 4], [2, 5]]
    idle = plan_of(50, global_size=8, micro_size=8, world=3)
    assert (idle.micro_batches, idle.micro_batches_per_rank, idle.fillers) == (1, 1, 16)


def test_the_plan_holds_the_lengths_of_the_schedule() -> None:
    # 150 samples in 19 updates of 8: 10 % is 15 samples, 20 % is 30.
    assert plan_of(50, warmup="10%").warmup == 2
    assert plan_of(50, warmup="0%").warmup == 0
    assert plan_of(50, warmup="5 updates").warmup == 5
    assert plan_of(50, warmup="1 epochs").warmup == 7
    assert plan_of(50, warmup="100%").warmup == 19
    # Without a cooldown of its own, wsd's is 20 %, and others have none.
    linear = {"name": "LinearLR", "args": {}}
    for schedule in ({"name": "cosine"}, {"name": "constant"}, linear):
        assert plan_of(50, **schedule).cooldown == 0
        assert plan_of(50, **schedule, cooldown="20%").cooldown == 4
    assert plan_of(50, name="wsd").cooldown == 4
    assert plan_of(50, name="wsd", cooldown="0%").cooldown == 0
    assert plan_of(50, name="wsd", warmup="10%", cooldown="1 epochs").cooldown == 7
    assert plan_of(50, name="wsd", warmup="9 updates", cooldown="10 updates").cooldown == 10


@pytest.mark.parametrize(
    ("text", "updates"),
    [
        ("5 updates", Fraction(5)),
        ("0 updates", Fraction(0)),
        ("1 epochs", Fraction(25, 4)),
        ("0.1 epochs", Fraction(5, 8)),
        ("20 samples", Fraction(5, 2)),
        ("10%", Fraction(15, 8)),
        ("100%", Fraction(75, 4)),
    ],
)
def test_lengths_in_updates_are_exact(text: str, updates: Fraction) -> None:
    # 150 samples in 19 updates of 8, the last of them short.
    assert plan_of(50).in_updates(Length.parse(text)) == updates


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ({"warmup": "20 updates"}, "schedule.warmup: a warmup of 20 updates"),
        ({"cooldown": "20 updates"}, "schedule.cooldown: a warmup of 0 and cooldown of 20 updates"),
        (
            {"name": "wsd", "warmup": "9 updates", "cooldown": "11 updates"},
            "schedule.cooldown: a warmup of 9 and cooldown of 11 updates",
        ),
        (
            {"name": "StepLR", "args": {"step_size": "1%"}, "warmup": "11 updates", "cooldown": "9 updates"},
            "schedule.warmup: a warmup of 11 and cooldown of 9 updates",
        ),
        ({"name": "wsd", "warmup": "16 updates"}, "schedule.warmup: a warmup of 16 and cooldown of 4 updates"),
    ],
)
def test_a_warmup_and_a_cooldown_longer_than_the_run_are_refused(schedule: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as error:
        plan_of(50, **schedule)
    assert str(error.value) == f"{text} is longer than the run of 19: shorten it"


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("1 epochs", [7, 13, 19]),
        ("0.5 epochs", [4, 7, 10, 13, 16, 19]),
        ("3 updates", [3, 6, 9, 12, 15, 18, 19]),
        ("20 samples", [3, 5, 8, 10, 13, 15, 18, 19]),
        ("30%", [6, 12, 17, 19]),
        ("8 samples", list(range(1, 20))),
        ("3 samples", list(range(1, 20))),
        ("9 epochs", [19]),
    ],
)
def test_due_updates_of_each_interval(every: str, expected: list[int]) -> None:
    plan = plan_of(50, every=every)
    assert plan.updates == 19
    for length in (plan.evaluate_every, plan.checkpoint_every):
        assert [position for position in range(1, 20) if plan.due(position, length)] == expected
    assert [position for position in range(1, 20) if plan.due(position, plan.log_every)] == [*range(2, 19, 2), 19]


def test_lengths_are_exact() -> None:
    plan = plan_of(1000, every="0.1 epochs", duration="3 epochs")
    assert plan.evaluate_every == 100
    thirds = plan_of(7, every="33%", duration="1 epochs")
    assert thirds.evaluate_every == Fraction(231, 100)
    plain = json.loads(json.dumps(thirds.to_dict()))
    assert plain["evaluate_every"] == "231/100"
    assert (plain["samples"], plain["updates"], plain["seed"]) == (7, 1, 0)


def test_keys_are_pinned() -> None:
    # Literal values, worked out with Python's own integers.
    assert key(0) == 0xF6C78EB1892A7202
    assert key(0, Purpose.ORDER, 0) == 0x4EBAFAACF224C60A
    assert key(7, Purpose.SHIFT, 3, 12345) == 0x78FA043828CD2F6B
    draws = uniform(keys(0, Purpose.FLIP, 0, np.arange(4)))
    assert (draws * 2**24).astype(int).tolist() == [1507795, 3612938, 7624809, 226535]
    draws = uniform(keys(3, Purpose.DROP_PATH, 1, np.array([5])), 2, 2)
    assert (draws * 2**24).astype(int).tolist() == [[[13654863, 4933915], [8063229, 4274138]]]
    # What a purpose is called in a key is part of the stream.
    assert [purpose.value for purpose in Purpose] == list(range(1, 20))


def test_keys_of_an_array_equal_the_keys_of_its_items() -> None:
    epochs, ids = np.array([0, 0, 1, 4]), np.array([3, 70_000, 3, 2**40])
    expected = [key(9, Purpose.FLIP, e, i) for e, i in zip(epochs.tolist(), ids.tolist(), strict=True)]
    assert keys(9, Purpose.FLIP, epochs, ids).tolist() == expected
    assert keys(9, Purpose.FLIP, epochs[:, None], ids)[2, 1] == key(9, Purpose.FLIP, 1, 70_000)


def test_a_key_depends_on_every_part() -> None:
    assert key(1, 2) != key(2, 1)
    assert len({key(), key(0), key(0, 0), key(0, 0, 0)}) == 4
    grid = keys(np.arange(50)[:, None, None], np.arange(1, 9)[None, :, None], np.arange(250))
    assert len(np.unique(grid)) == grid.size == 100_000


def test_uniform_draws() -> None:
    draws = uniform(keys(0, Purpose.DROP_PATH, 0, np.arange(20_000)), 3, 2)
    assert draws.shape == (20_000, 3, 2)
    assert draws.dtype == np.float32
    assert 0 <= draws.min() < 1e-4
    assert 1 - 1e-4 < draws.max() < 1
    scaled = draws.astype(np.float64) * 2**24
    assert np.array_equal(scaled, np.floor(scaled))
    flat = draws.reshape(-1, 6).astype(np.float64)
    # Five standard errors of the mean of 120,000 draws and of their variance.
    assert abs(flat.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / flat.size)
    assert abs(flat.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / flat.size)
    between = np.corrcoef(flat.T) - np.eye(6)
    assert np.abs(between).max() < 5 / math.sqrt(20_000)
    cells = np.bincount((flat * 64).astype(int).ravel(), minlength=64)
    # 63 degrees of freedom: beyond 104 once in a thousand times.
    assert chi_square(cells, flat.size / 64) < 104


def test_draws_of_purposes_epochs_seeds_and_neighbours_are_independent() -> None:
    ids = np.arange(20_000)
    streams = [uniform(keys(0, purpose, 0, ids)) for purpose in Purpose]
    streams += [uniform(keys(0, Purpose.FLIP, 1, ids)), uniform(keys(1, Purpose.FLIP, 0, ids))]
    streams += [uniform(keys(0, Purpose.FLIP, 0, ids + 1))]
    between = np.corrcoef(np.stack(streams)) - np.eye(len(streams))
    assert np.abs(between).max() < 5 / math.sqrt(len(ids))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_evaluation_covers_each_sample_once(batch_size: int, world: int) -> None:
    for length in (1, 3, 7, 8, 28, 29, 100):
        passes = [list(evaluation_slots(length, batch_size, rank, world)) for rank in range(world)]
        assert {len(batches) for batches in passes} == {math.ceil(math.ceil(length / batch_size) / world)}
        seen: list[int] = []
        for slots in (slots for batches in passes for slots in batches):
            assert slots.index.shape == slots.weight.shape == slots.epoch.shape == (batch_size,)
            assert slots.weight.dtype == np.float32
            assert not slots.epoch.any()
            assert slots.index.min() >= 0
            assert slots.index.max() < length
            seen += slots.index[slots.weight == 1].tolist()
            assert set(slots.weight.tolist()) <= {0.0, 1.0}
        assert sorted(seen) == list(range(length))


def augmented(
    samples: int,
    augment: AugmentConfig,
    *,
    global_size: int = 8,
    micro_size: int = 4,
    world: int = 1,
    duration: str = "3 epochs",
) -> Plan:
    config = Config(
        augment=augment,
        batch=BatchConfig(global_size=global_size, micro_size=micro_size),
        schedule=ScheduleConfig(warmup="0%"),
        train=TrainConfig(duration=duration),
    )
    return Plan.from_config(config, samples, world)


REPEATED = [
    # samples, repeats, global_size, micro_size, world size
    (30, 2, 12, 4, 1),
    (30, 2, 12, 4, 3),
    (50, 3, 48, 16, 2),
    (31, 3, 20, 8, 1),
    (31, 4, 10, 2, 2),
    (7, 2, 10, 4, 1),
    (100, 3, 17, 32, 2),
]


@pytest.mark.parametrize(("samples", "repeats", "global_size", "micro_size", "world"), REPEATED)
def test_repeats_put_copies_of_a_sample_into_one_global_batch(
    samples: int, repeats: int, global_size: int, micro_size: int, world: int
) -> None:
    shape = {"global_size": global_size, "micro_size": micro_size, "world": world}
    plan = augmented(samples, AugmentConfig(repeats=repeats), **shape, duration="40 updates")
    assert (plan.repeats, plan.updates, plan.total_samples) == (repeats, 40, 40 * global_size)
    distinct = math.ceil(global_size / repeats)
    walked: list[tuple[int, int]] = []
    for position in range(40):
        batch = real(global_batch(plan, position))
        assert len(batch) == len(set(batch)) == global_size == plan.weight(position)
        copies: dict[tuple[int, int], list[int]] = {}
        for epoch, index in batch:
            copies.setdefault((epoch // repeats, index), []).append(epoch % repeats)
        assert len(copies) == distinct
        walked += copies
        # The slots are dealt out to the samples in turn: the last copies are the ones that are missing.
        counts = [len(range(place, global_size, distinct)) for place in range(distinct)]
        assert max(counts) == repeats
        assert list(copies.values()) == [list(range(count)) for count in counts]
        for first, second in zip(batch[::2], batch[1::2], strict=False):
            assert (first[0] // repeats, first[1]) != (second[0] // repeats, second[1])
    # Over all copies, the samples come in the order of the epochs, as without copies.
    epochs = len(walked) // samples + 1
    assert walked == [(e, i) for e in range(epochs) for i in order_of_epoch(plan, e)][: len(walked)]
    for epoch in range(epochs - 1):
        assert sorted(index for sample_epoch, index in walked if sample_epoch == epoch) == list(range(samples))


def test_every_sample_has_equally_many_copies_if_repeats_divide_the_batch() -> None:
    plan = augmented(20, AugmentConfig(repeats=3), global_size=12, duration="20 updates")
    seen = Counter(pair for position in range(20) for pair in real(global_batch(plan, position)))
    assert set(seen.values()) == {1}
    # 240 slots are 80 samples, thrice each: 4 passes.
    assert sorted(seen) == [(epoch, index) for epoch in range(12) for index in range(20)]


@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_repeats_are_the_same_for_every_split_and_start(repeats: int) -> None:
    alone = augmented(30, AugmentConfig(repeats=repeats), global_size=21, micro_size=22, duration="200 samples")
    walked = [real(global_batch(alone, position)) for position in range(10)]
    assert [len(batch) for batch in walked] == [21] * 9 + [11]
    for micro_size, world in ((2, 1), (4, 3), (8, 2), (32, 2)):
        shape = {"global_size": 21, "micro_size": micro_size, "world": world}
        plan = augmented(30, AugmentConfig(repeats=repeats), **shape, duration="200 samples")
        for position in (9, 3, 0, 6):
            assert real(global_batch(plan, position)) == walked[position]
            for micro_batch in global_batch(plan, position):
                fillers = zip(micro_batch.epoch.tolist(), micro_batch.index.tolist(), strict=True)
                assert set(fillers) <= set(walked[position])


def test_one_repeat_changes_nothing() -> None:
    # Literal values, from before there were copies.
    assert order_walked(10, 0, 0) == [5, 4, 2, 0, 3, 1, 6, 7, 9, 8]
    plan = augmented(10, AugmentConfig(repeats=1), global_size=4, micro_size=6)
    batches = [real(global_batch(plan, position)) for position in range(4)]
    assert batches[0] == [(0, 5), (0, 4), (0, 2), (0, 0)]
    assert batches[1] == [(0, 3), (0, 1), (0, 6), (0, 7)]
    assert batches[2][:2] == [(0, 9), (0, 8)]
    assert [epoch for epoch, _ in batches[2]] == [0, 0, 1, 1]
    plain = plan_of(10, global_size=4, micro_size=6)
    assert batches == [real(global_batch(plain, position)) for position in range(4)]
    assert plan.slots(3, 0).image_size == 0
    twice = augmented(10, AugmentConfig(repeats=2), global_size=4, micro_size=4)
    assert real([twice.slots(0, 0), twice.slots(1, 0)]) == [
        (0, 5), (0, 4), (1, 5), (1, 4), (0, 2), (0, 0), (1, 2), (1, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(("size", "largest"), [(1, 1), (2, 1), (3, 1), (8, 4), (9, 4)])
def test_repeats_that_leave_fewer_than_two_samples_are_refused(size: int, largest: int) -> None:
    plan = augmented(50, AugmentConfig(repeats=largest), global_size=size)
    distinct = {(epoch // largest, index) for epoch, index in real(global_batch(plan, 0))}
    assert len(distinct) >= min(size, 2)
    for repeats in (largest + 1, size + 1):
        with pytest.raises(UserError) as error:
            augmented(50, AugmentConfig(repeats=repeats), global_size=size)
        assert str(error.value) == f"augment.repeats: {repeats} copies are more than half of batch.global_size {size}"


@pytest.mark.parametrize(
    ("sizes", "ends"),
    [
        ((), ()),
        # 150 samples in 19 updates of 8: 40 % is 60 samples, 7.5 updates.
        (("16 for 40%",), ((8, 16),)),
        (("16 for 40%", "32 for 5 updates"), ((8, 16), (13, 32))),
        (("16 for 1 epochs", "48 for 10 samples", "32 for 0.5 epochs"), ((7, 16), (8, 48), (11, 32))),
        (("32 for 100%",), ((19, 32),)),
        (("16 for 1 samples", "32 for 1 samples", "48 for 8 samples"), ((1, 16), (1, 32), (2, 48))),
    ],
)
def test_image_sizes_of_the_plan_follow_each_other(sizes: tuple[str, ...], ends: tuple[tuple[int, int], ...]) -> None:
    plan = augmented(50, AugmentConfig(sizes=sizes))
    assert plan.updates == 19
    assert plan.sizes == ends
    assert json.loads(json.dumps(plan.to_dict()))["sizes"] == [list(end) for end in ends]
    start = 0
    for end, side in (*ends, (19, 0)):
        for position in range(start, end):
            assert plan.size_at(position) == side
            assert {micro_batch.image_size for micro_batch in global_batch(plan, position)} == {side}
        start = max(start, end)
    # Which samples a batch holds has nothing to do with it.
    plain = augmented(50, AugmentConfig())
    for position in (0, 7, 18):
        assert real(global_batch(plan, position)) == real(global_batch(plain, position))


def test_sizes_longer_than_the_run_are_refused() -> None:
    for sizes in (("16 for 60%", "32 for 50%"), ("16 for 21 updates",), ("16 for 4 epochs",)):
        with pytest.raises(UserError) as error:
            augmented(50, AugmentConfig(sizes=sizes))
        updates = {2: 21, 1: 25 if "epochs" in sizes[0] else 21}[len(sizes)]
        assert str(error.value) == (f"augment.sizes: {updates} updates are longer than the run of 19: shorten them")
