"""The order of samples that lie in shards: every sample once an epoch, few shards at a time, any place directly."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest

from vit_dist.config.config import Config
from vit_dist.errors import UserError
from vit_dist.plan.blocks import BlockOrder
from vit_dist.plan.plan import Plan

GENERATOR = np.random.default_rng(0)
CASES = [
    # sizes of shards, global_size, lanes, window
    (np.asarray([5]), 4, 1, 16),
    (np.asarray([5]), 4, 4, 16),
    (np.asarray([3, 0, 4, 1, 0, 9]), 6, 3, 2),
    (np.full(10, 7), 8, 2, 4),
    (np.full(12, 8), 8, 8, 4),
    (GENERATOR.integers(0, 40, 37), 12, 4, 8),
    (GENERATOR.integers(1, 40, 37), 12, 1, 8),
    (GENERATOR.integers(1, 900, 50), 64, 16, 16),
]


def order_of(sizes: Any, size: int, lanes: int, window: int, seed: int = 0) -> BlockOrder:
    return BlockOrder(np.asarray(sizes, np.int64), seed=seed, global_size=size, lanes=lanes, window=window)


def epochs(order: BlockOrder, count: int) -> Any:
    """Return the samples of the first epochs, int64 [count, samples]."""
    return order.indices(np.arange(count * order.samples)).reshape(count, -1)


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_takes_every_sample_once(case: Any) -> None:
    order = order_of(*case)
    for epoch in epochs(order, 5):
        assert np.array_equal(np.sort(epoch), np.arange(order.samples))


@pytest.mark.parametrize("case", CASES)
def test_a_place_does_not_depend_on_how_it_is_reached(case: Any) -> None:
    walked = epochs(order_of(*case), 3).ravel()
    jumping = order_of(*case)
    places = np.random.default_rng(1).integers(0, len(walked), 50)
    for few in np.split(places, 25):
        assert np.array_equal(jumping.indices(few), walked[few])


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = [epochs(order_of(*CASES[5], seed=seed), 2) for seed in range(3)]
    rows = {tuple(epoch.tolist()) for order in orders for epoch in order}
    assert len(rows) == 6


def shard_of(order: BlockOrder, sizes: Any, indices: Any) -> Any:
    return np.searchsorted(np.cumsum(sizes), indices, "right")


@pytest.mark.parametrize(("lanes", "window"), [(1, 4), (4, 4), (4, 8), (8, 16)])
def test_a_lane_has_few_shards_at_a_time_and_begins_each_once(lanes: int, window: int) -> None:
    sizes, size = GENERATOR.integers(20, 60, 80), 16
    order = order_of(sizes, size, lanes, window)
    places = np.arange(order.samples, 2 * order.samples)
    shards = shard_of(order, sizes, order.indices(places))
    opened = 0
    for lane in range(lanes):
        of_lane = shards[places % size // (size // lanes) == lane]
        last = {shard: place for place, shard in enumerate(of_lane.tolist())}
        held: set[int] = set()
        most = 0
        for place, shard in enumerate(of_lane.tolist()):
            opened += shard not in held
            held.add(shard)
            most = max(most, len(held))
            if last[shard] == place:
                held.remove(shard)
        assert most <= -(-window // lanes)
    assert len(sizes) <= opened <= len(sizes) + lanes - 1


def test_lanes_keep_their_shards_from_epoch_to_epoch() -> None:
    sizes, size, lanes = np.full(64, 25), 16, 4
    order = order_of(sizes, size, lanes, 8)
    of_epochs = []
    for epoch in range(3):
        places = np.arange(epoch * order.samples, (epoch + 1) * order.samples)
        shards = shard_of(order, sizes, order.indices(places))
        of_epochs.append([set(shards[places % size // 4 == lane].tolist()) for lane in range(lanes)])
    for lane in range(lanes):
        assert len(set.intersection(*(each[lane] for each in of_epochs))) >= 15
    dealt = sorted(of_epochs[0][0])
    assert dealt != list(range(dealt[0], dealt[0] + len(dealt)))  # by key, not in their order


def test_samples_of_a_window_are_mixed() -> None:
    sizes = np.full(4, 500)
    mixed = order_of(sizes, 10, 1, 4).indices(np.arange(2000))
    shards = shard_of(order_of(sizes, 10, 1, 4), sizes, mixed)
    follows = np.mean(shards[1:] == shards[:-1])
    assert abs(follows - 0.25) < 0.05  # a neighbour is of the same shard as often as chance has it
    assert abs(np.corrcoef(mixed[1:], mixed[:-1])[0, 1]) < 0.1
    alone = shard_of(order_of(sizes, 10, 1, 1), sizes, order_of(sizes, 10, 1, 1).indices(np.arange(2000)))
    assert np.mean(alone[1:] == alone[:-1]) > 0.99


def config(**fields: Any) -> Config:
    return Config.load("folder", {"run.auto": [], "schedule.warmup": "0%", "train.duration": "3 epochs", **fields})


def test_a_plan_of_shards_has_lane_by_slot_at_any_world_size() -> None:
    sizes = np.full(40, 30, np.int64)
    fields = {"batch.global_size": 32, "batch.micro_size": 8, "data.lanes": 8, "data.shard_window": 8}
    plans = [Plan.from_config(config(**fields), 1200, world, sizes) for world in (1, 2, 4)]
    expected = order_of(sizes, 32, 8, 8)
    for position in (0, 17, 37, 38, 111):
        for plan in plans:
            slots = [plan.slots(position, number) for number in range(4)]
            places = np.arange(32 * position, min(32 * (position + 1), plan.total_samples))
            indices = np.concatenate([each.index[each.weight > 0] for each in slots])
            assert np.array_equal(indices, expected.indices(places))
            drawn = np.concatenate([each.epoch[each.weight > 0] for each in slots])
            assert np.array_equal(drawn, places // 1200)
    assert "shards" not in plans[0].to_dict()


def test_repeated_augmentation_has_copies_of_the_samples_of_shards() -> None:
    sizes = np.full(6, 10, np.int64)
    fields = {"batch.global_size": 12, "batch.micro_size": 12, "augment.repeats": 3, "train.duration": "60 updates"}
    plan = Plan.from_config(config(**fields), 60, 1, sizes)
    seen: Counter[int] = Counter()
    for position in range(15):  # 60 samples, three copies of each
        counts = Counter(plan.slots(position, 0).index.tolist())
        assert set(counts.values()) == {3}
        seen.update(counts)
    assert set(seen.values()) == {3}
    assert len(seen) == 60


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.lanes": 5, "batch.global_size": 32}, "data.lanes: 5 do not divide batch.global_size 32: set 4"),
        ({"data.lanes": 2, "augment.repeats": 2}, "data.lanes: augment.repeats puts copies"),
        ({"data.lanes": 0}, "data.lanes: must be"),
        ({"data.shard_window": 101}, "data.shard_window: must be"),
    ],
)
def test_lanes_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        config(**fields)


def test_a_hundred_thousand_shards_of_any_number_of_samples_take_the_same_memory() -> None:
    peaks = []
    for samples in (10**5, 10**7, 10**9):
        tracemalloc.start()
        order = order_of(np.full(10**5, samples // 10**5), 1024, 64, 64)
        far = order.indices(np.arange(7 * samples + samples // 2, 7 * samples + samples // 2 + 256))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(np.unique(far)) == 256
        assert int(far.max()) < samples
    assert max(peaks) < 1.5 * min(peaks)
    assert max(peaks) < 20 * 2**20
