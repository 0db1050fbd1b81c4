"""Schedules: whole curves against formulas written another way, and their state in JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from vit_dist.config import BatchConfig, Config, ScheduleConfig, TrainConfig
from vit_dist.plan import Plan
from vit_dist.schedules import build_schedule, factor

UPDATES, PEAK = 50, 0.25


def built(**fields: Any) -> LambdaLR:
    """The schedule of a run of 50 updates at a peak of 0.25, over two groups."""
    schedule = ScheduleConfig(**fields)
    batch = BatchConfig(global_size=4, micro_size=4)
    config = Config(schedule=schedule, train=TrainConfig(duration=f"{UPDATES} updates"), batch=batch)
    plan = Plan.of(config, 30, 1)
    assert plan.updates == UPDATES
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (PEAK, PEAK)]
    return build_schedule(schedule, SGD(groups, lr=PEAK), plan)


def rates(schedule: LambdaLR, count: int = UPDATES) -> NDArray[np.float64]:
    """The rates that the next `count` updates are made with."""
    found = []
    for _ in range(count):
        first, second = (group["lr"] for group in schedule.optimizer.param_groups)
        assert first == second
        found.append(first)
        schedule.optimizer.step()
        schedule.step()
    return np.array(found)


def warmed(length: int, rest: NDArray[np.float64]) -> NDArray[np.float64]:
    return PEAK * np.concatenate([np.arange(1, length + 1) / max(length, 1), rest])


@pytest.mark.parametrize(("warmup", "length"), [("5 updates", 5), ("10%", 5), ("1 updates", 1), ("0 updates", 0)])
@pytest.mark.parametrize("end", [0.0, 0.1])
def test_cosine(warmup: str, length: int, end: float) -> None:
    found = rates(built(name="cosine", warmup=warmup, cooldown_end=end))
    rest = end + (1 - end) * np.cos(np.pi / 2 * np.arange(UPDATES - length) / (UPDATES - length)) ** 2
    np.testing.assert_allclose(found, warmed(length, rest), rtol=1e-12)
    assert found[0] == PEAK / max(length, 1)
    assert found.argmax() == max(length - 1, 0)
    assert PEAK * end < found[-1] < PEAK * (end + 0.005)


@pytest.mark.parametrize(("warmup", "length"), [("5 updates", 5), ("0%", 0)])
@pytest.mark.parametrize(("cooldown", "last"), [("20%", 10), ("3 updates", 3), ("0 updates", 0)])
@pytest.mark.parametrize("end", [0.0, 0.2])
def test_wsd(warmup: str, length: int, cooldown: str, last: int, end: float) -> None:
    found = rates(built(name="wsd", warmup=warmup, cooldown=cooldown, cooldown_end=end))
    stable = np.ones(UPDATES - length - last)
    falling = end + (1 - end) * (np.arange(last, 0, -1) / max(last, 1))
    np.testing.assert_allclose(found, warmed(length, np.concatenate([stable, falling])), rtol=1e-12)
    assert found[-1] == pytest.approx(PEAK * (end + (1 - end) / last if last else 1), rel=1e-12)


@pytest.mark.parametrize(("warmup", "length"), [("5 updates", 5), ("0 updates", 0), ("100%", 50)])
def test_constant(warmup: str, length: int) -> None:
    found = rates(built(name="constant", warmup=warmup))
    np.testing.assert_allclose(found, warmed(length, np.ones(UPDATES - length)), rtol=1e-12)
    assert found[-1] == PEAK


def test_past_the_end_the_rate_stays_where_it_ended() -> None:
    for name in ("cosine", "wsd"):
        schedule = built(name=name, warmup="0 updates", cooldown_end=0.125)
        rates(schedule)
        assert rates(schedule, 3).tolist() == [PEAK * 0.125] * 3


def test_factor_is_a_function_of_the_update_alone() -> None:
    config = Config(schedule=ScheduleConfig(warmup="4 updates"), train=TrainConfig(duration="8 updates"))
    plan = Plan.of(config, 100, 1)
    found = [factor(update, config=config.schedule, plan=plan) for update in range(8)]
    half = np.sqrt(0.5)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, 1, (1 + half) / 2, 0.5, (1 - half) / 2], rel=1e-12)


@pytest.mark.parametrize("name", ["cosine", "wsd", "constant"])
def test_state_goes_through_json_and_the_curve_goes_on(name: str) -> None:
    whole = rates(built(name=name, warmup="7 updates"))
    first = built(name=name, warmup="7 updates")
    rates(first, 20)
    state = json.loads(json.dumps(first.state_dict()))
    assert state["last_epoch"] == 20
    second = built(name=name, warmup="7 updates")
    second.load_state_dict(state)
    for group, lr in zip(second.optimizer.param_groups, second.get_last_lr(), strict=True):
        group["lr"] = lr
    assert rates(second, 30).tolist() == whole[20:].tolist()
