"""The comparison of ranks against values by hand: times, fields, and who is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.telemetry.test_meter import Watch
from vit_dist.config.config import Config
from vit_dist.config.fields import BatchConfig, TrainConfig
from vit_dist.config.output_fields import EvaluateConfig, LogConfig
from vit_dist.plan.plan import Plan
from vit_dist.telemetry.ranks import RankMeter, RankTimes, Stragglers, rank_fields


class ScriptedTimer:
    """Gives exposed times from a list, one for each timed update."""

    def __init__(self, exposed: Sequence[float], *, every_update: bool) -> None:
        self.every_update = every_update
        self.wanted: list[bool] = []
        self._exposed = iter(exposed)

    def time_next(self, wanted: bool) -> None:
        self.wanted.append(wanted)

    def read(self) -> float | None:
        return next(self._exposed) if self.every_update or self.wanted[-1] else None


def meter_of(exposed: Sequence[float], *, every_update: bool) -> tuple[RankMeter, Watch, ScriptedTimer]:
    timer, watch = ScriptedTimer(exposed, every_update=every_update), Watch()
    config = Config(
        batch=BatchConfig(global_size=4, micro_size=4), train=TrainConfig(duration="50 updates"),
        log=LogConfig(every="10 updates"), evaluate=EvaluateConfig(every="25 updates"),
    )  # fmt: skip
    return RankMeter(Plan.from_config(config, 30, 2), watch, timer), watch, timer  # type: ignore[arg-type]


def test_the_times_of_a_rank_add_up_to_its_updates() -> None:
    meter, watch, _ = meter_of([0.25, 0.75, 1.25], every_update=True)
    watch.now = 100.0
    meter.restart(10, 2.0)
    for position in (11, 12):
        meter.updated(position)
    watch.now = 104.0
    times = meter.times(12, 3.0)
    assert (times.updates, times.busy_seconds, times.data_wait_seconds) == (2, 1.0, 0.5)
    assert times.exposed_seconds == [0.25, 0.75]
    assert times.own_seconds == 1.5
    assert RankTimes(**times.to_json()) == times
    # What comes between two lines belongs to neither.
    watch.now = 200.0
    meter.restart(12, 3.0)
    meter.updated(13)
    watch.now = 202.0
    assert meter.times(13, 3.0) == RankTimes(times.host, 1, 0.75, 0.0, [1.25])


def test_on_a_gpu_only_the_update_before_a_line_is_timed() -> None:
    """There is a line every 10 updates and with each evaluation; it reads the timer, when the device has finished."""
    meter, watch, timer = meter_of([0.5, 0.25], every_update=False)
    meter.restart(7, 0.0)
    for position in (8, 9, 10):
        meter.updated(position)
    assert timer.wanted == [False, False, True]
    watch.now = 3.0
    assert meter.times(10, 0.0).exposed_seconds == [0.5]
    meter.restart(10, 0.0)
    meter.updated(11)
    assert timer.wanted[3:] == [False, False]
    # A run that is asked to stop writes a line of updates that were not timed.
    assert meter.times(11, 0.0).busy_seconds is None
    # A wait for data of which the device knew nothing.
    meter.restart(11, 0.0)
    for position in range(12, 21):
        meter.updated(position)
    watch.now = 12.0
    assert meter.times(20, 8.9).busy_seconds == 0.0
    meter.restart(23, 8.9)
    meter.updated(24)
    assert timer.wanted[-2:] == [False, True]


def times(busy: float | None, waits: float = 0.0, exposed: Sequence[float] = (0.0,), host: str = "a") -> RankTimes:
    return RankTimes(host, 100, busy, waits, exposed)


def test_the_fields_are_those_by_hand() -> None:
    ranks = [times(1.0, 0.5, [2.0, 0.5]), times(3.0, 0.0, [0.25, 1.0]), times(2.0, 1.0, [1.0, 1.0])]
    assert rank_fields(ranks, [0.125, 0.0, 0.25], 4.0) == {
        "busy_seconds_min": 1.0, "busy_seconds_mean": 2.0, "busy_seconds_max": 3.0,
        "data_wait_fraction_min": 0.0, "data_wait_fraction_mean": 0.125, "data_wait_fraction_max": 0.25,
        "communication_fraction": (0.25 + 0.5) / 2 / 4.0, "slowest_rank": 1,
    }  # fmt: skip
    waiting = [times(3.0), times(2.0, 1.5)]
    assert rank_fields(waiting, [0.0, 0.5], 4.0)["slowest_rank"] == 1
    unknown = rank_fields([times(1.0), times(None, 1.0, [])], [0.0, 0.25], 4.0)
    assert unknown.keys() == rank_fields(ranks, [0.0] * 3, 4.0).keys()
    assert {name for name, value in unknown.items() if value is not None} == {
        "data_wait_fraction_min", "data_wait_fraction_mean", "data_wait_fraction_max",
    }  # fmt: skip


def named(*lines: Sequence[RankTimes]) -> Iterator[list[str]]:
    """Yield what each line has named, after a first one that does not count."""
    stragglers = Stragglers()
    assert stragglers.take([times(9.0), times(1.0), times(1.0), times(1.0)][: len(lines[0])]) == []
    return map(stragglers.take, lines)


def test_a_rank_that_lags_twice_is_named_once_with_its_host_and_what_to_look_at() -> None:
    slow = [times(0.60), times(0.60), times(0.60), times(0.81, host="node-b")]
    text = (
        "process 3 on node-b is 35 % slower than the others (0.81 s an update, the others 0.60 s): "
        "its computing takes longer: look there for other programs, fewer CPU cores or a throttled GPU"
    )
    assert list(named(slow, slow, slow, slow)) == [[], [text], [], []]


def test_the_first_line_does_not_count() -> None:
    stragglers, slow = Stragglers(), [times(0.6), times(0.9)]
    assert [len(stragglers.take(slow)) for _ in range(4)] == [0, 0, 1, 0]


def test_waiting_for_images_is_told_from_computing() -> None:
    slow = [times(0.6, 0.01), times(0.65, 0.25)]
    [_, [text]] = named(slow, slow)
    assert text == (
        "process 1 on a is 48 % slower than the others (0.90 s an update, the others 0.61 s): "
        "0.25 s of it is waiting for images: look at its disk, its CPU cores and data.workers"
    )


def test_all_ranks_of_a_slow_host_are_named_in_one_sentence() -> None:
    fast, slow = times(0.5, host="a"), times(1.0, host="b")
    [_, [text]] = named([fast, fast, slow, slow], [fast, fast, slow, slow])
    assert text.startswith(
        "processes 2 and 3 on b are 100 % slower than the others (1.00 s an update, the others 0.50 "
    )
    [_, texts] = named(*[[fast, fast, fast, times(0.9, host="c"), slow, slow]] * 2)
    assert [text.partition(" on ")[0] for text in texts] == ["process 3", "processes 4 and 5"]
    [_, texts] = named([slow, slow, fast, slow], [slow, slow, fast, slow])
    assert texts == []


@pytest.mark.parametrize(
    "lines",
    [
        [[times(0.60), times(0.71)]] * 9,
        [[times(0.60), times(0.81)], [times(0.60), times(0.60)]] * 9,
        [[times(0.60), times(0.81)], [times(0.81), times(0.60)]] * 9,
        [[times(0.0060), times(0.0081)]] * 9,
        [[times(None), times(None)]] * 9,
        [[times(0.0), times(0.0)]] * 9,
    ],
    ids=["less than a fifth", "not in a row", "in turn", "a matter of two seconds", "unknown", "nothing"],
)
def test_equal_ranks_are_not_named(lines: list[list[RankTimes]]) -> None:
    assert [text for texts in named(*lines) for text in texts] == []


def test_short_updates_are_named_once_they_have_cost_enough() -> None:
    """Each line costs 100 · 0.021 s, so five lines are more than ten seconds."""
    lines = [[times(0.060), times(0.081)]] * 6
    assert [len(texts) for texts in named(*lines)] == [0, 0, 0, 0, 1, 0]
