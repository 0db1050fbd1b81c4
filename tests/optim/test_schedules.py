"""Schedules: whole curves against formulas written another way, lengths, groups' scales, state in JSON, refusals."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, AdamW, Optimizer, lr_scheduler

from vit_dist.config.config import Config
from vit_dist.config.fields import BatchConfig, ScheduleConfig, TrainConfig
from vit_dist.errors import UserError
from vit_dist.optim.optimizers import MuonAndAdamW
from vit_dist.optim.schedules import Schedule, schedule_metric
from vit_dist.plan.plan import Plan

Floats = NDArray[np.float64]
# (count from the end of the warmup, updates between warmup and cooldown) → rate.
Formula = Callable[[Floats, int], Floats]

# Two epochs are 15 updates of 4 samples: an epoch is 7.5 of them.
UPDATES, SAMPLES, GLOBAL_SIZE, PEAK = 60, 30, 4, 0.25
MOMENTUM, BETAS = 0.75, (0.7, 0.99)
SCALES = (1.0, 0.3, 0.65**7)


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def falling(count: int) -> float:
    return 1 / (1 + count)


def halving(count: int) -> float:
    return 0.5**count


def waving(count: int) -> float:
    return 1.5 + math.sin(count)


def ratio(count: int) -> float:
    """Return a factor; the product of the first n of these is 1 / (n + 1)."""
    return count / (count + 1)


def here(name: str) -> str:
    return f"{__name__}:{name}"


def sgd(scales: Sequence[float] = SCALES) -> Optimizer:
    return SGD([{"params": [Parameter(torch.zeros(1))], "scale": scale} for scale in scales], 9.0, MOMENTUM)


def adamw(scales: Sequence[float] = SCALES) -> Optimizer:
    return AdamW([{"params": [Parameter(torch.zeros(1))], "scale": scale} for scale in scales], 9.0, BETAS)


def built(
    name: str,
    args: dict[str, Any] | None = None,
    *,
    optimizer: Optimizer | None = None,
    updates: int = UPDATES,
    warmup: str = "0 updates",
    **fields: Any,
) -> Schedule:
    """Build the schedule of a run of that many updates at a peak of 0.25."""
    schedule = ScheduleConfig(name=name, args=args or {}, warmup=warmup, **fields)
    batch = BatchConfig(global_size=GLOBAL_SIZE, micro_size=GLOBAL_SIZE)
    plan = Plan.from_config(
        Config(schedule=schedule, train=TrainConfig(duration=f"{updates} updates"), batch=batch), SAMPLES, 1
    )
    assert plan.updates == updates
    return Schedule(schedule, optimizer or sgd(), plan, PEAK)


def momentum(group: dict[str, Any]) -> float:
    if "betas" not in group:
        return float(group["momentum"])
    first, second = group["betas"]
    assert (type(group["betas"]), second) == (tuple, BETAS[1])
    return float(first)


def walk(schedule: Schedule, count: int = UPDATES) -> tuple[Floats, Floats]:
    """Return the rates [count, groups] and momenta [count] of the next `count` updates."""
    rates, momenta = [], []
    for _ in range(count):
        groups = schedule.optimizer.param_groups
        rates.append([group["lr"] for group in groups])
        assert len({momentum(group) for group in groups}) == 1
        momenta.append(momentum(groups[0]))
        schedule.step()
    return np.array(rates), np.array(momenta)


def rates_of(schedule: Schedule, count: int = UPDATES) -> Floats:
    """Return the rates of the first group, after a check that the other groups' are their parts of them."""
    rates, _ = walk(schedule, count)
    parts = [group["scale"] for group in schedule.optimizer.param_groups]
    np.testing.assert_allclose(rates, rates[:, :1] * parts, rtol=1e-15)
    return rates[:, 0]


def framed(inner: Floats, warmup: int = 0, cooldown: int = 0, end: float = 0.0, power: float = 1.0) -> Floats:
    """Return a curve with a warmup before it and a cooldown after it."""
    rising = inner[0] * np.arange(1, warmup + 1) / max(warmup, 1)
    bottom = end * PEAK
    fall: Floats = bottom + (inner[-1] - bottom) * np.linspace(1, 0, cooldown + 1)[:-1] ** power
    return np.concatenate([rising, inner, fall])


def joined(x: Floats, knots: Sequence[float], values: Sequence[float], *, curved: bool) -> Floats:
    """Interpolate values at knots by straight lines or by half cosines."""
    if not curved:
        return np.interp(x, knots, values)
    place = np.interp(x, knots, np.arange(len(knots)))
    left = np.minimum(place.astype(int), len(knots) - 2)
    start, end = np.array(values)[left], np.array(values)[left + 1]
    curve: Floats = end + (start - end) * np.cos(np.pi / 2 * (place - left)) ** 2
    return curve


def one_cycle(
    pct: float, first: float, top: float, last: float, *, three: bool = False, curved: bool = True
) -> Formula:
    """Return OneCycleLR's rates or momenta: from `first` to `top` and on to `last`, by way of `first` if `three`."""

    def rates(x: Floats, span: int) -> Floats:
        knots, values = [0.0, pct * span - 1, span - 1], [first, top, last]
        if three:
            knots[2:2], values[2:2] = [2 * pct * span - 2], [first]
        return joined(x, knots, values, curved=curved)

    return rates


def triangles(up: float, down: float, height: Callable[[Floats, Floats], Floats]) -> Formula:
    """Return CyclicLR's part of the way from base to max. height: a function of (cycle from 1, count)."""

    def rates(x: Floats, span: int) -> Floats:
        wave: Floats = np.interp(x % (up + down), [0, up, up + down], [0, 1, 0])
        return wave * height(1 + x // (up + down), x)

    return rates


def between(first: float, last: float, part: Formula) -> Formula:
    return lambda x, span: first + (last - first) * part(x, span)


def after(*children: tuple[int, Formula]) -> Formula:
    """Return SequentialLR's rates: each child from its start, with a count and a span of its own."""

    def rates(x: Floats, span: int) -> Floats:
        starts = [start for start, _ in children]
        spans = np.diff([*starts, span])
        parts = [
            child(x[(x >= start) & (x < start + length)] - start, int(length))
            for (start, child), length in zip(children, spans, strict=True)
        ]
        return np.concatenate(parts)

    return rates


def half_cosine(top: float, end: float, length: float | None = None) -> Formula:
    return lambda x, span: end + (top - end) * np.cos(np.pi / 2 * x / (length or span)) ** 2


def line(first: float, last: float, length: float | None = None) -> Formula:
    return lambda x, span: PEAK * np.interp(x, [0, length or span], [first, last])


def steps(gamma: float, *places: int) -> Formula:
    return lambda x, span: PEAK * gamma ** (x[:, None] >= np.array(places)).sum(1)


CYCLE = {"base_lr": 0.01, "step_size_up": "5 updates", "cycle_momentum": False}
# Of each: the schedule's name, its arguments, and its rates after the warmup.
CURVES: dict[str, tuple[str, dict[str, Any], Formula]] = {
    "cosine": ("cosine", {}, half_cosine(PEAK, 0.1 * PEAK)),
    "wsd": ("wsd", {}, steps(1)),
    "constant": ("constant", {}, steps(1)),
    "LambdaLR": ("LambdaLR", {"lr_lambda": here("falling")}, lambda x, span: PEAK / (1 + x)),
    "LambdaLR that waves": ("LambdaLR", {"lr_lambda": here("waving")}, lambda x, span: PEAK * (1.5 + np.sin(x))),
    "MultiplicativeLR": ("MultiplicativeLR", {"lr_lambda": here("ratio")}, lambda x, span: PEAK / (1 + x)),
    "StepLR": ("StepLR", {"step_size": "2 epochs"}, lambda x, span: PEAK * 0.1 ** (x // 15)),
    "StepLR, gamma": ("StepLR", {"step_size": "7 updates", "gamma": 0.5}, lambda x, span: PEAK * 0.5 ** (x // 7)),
    "MultiStepLR": ("MultiStepLR", {"milestones": ["8 updates", "2 epochs", "4 epochs"]}, steps(0.1, 8, 15, 30)),
    "MultiStepLR, twice": (
        "MultiStepLR",
        {"milestones": ["8 updates", "8 updates", "2 updates"], "gamma": 0.5},
        steps(0.5, 2, 8, 8),
    ),
    "ConstantLR": (
        "ConstantLR",
        {"total_iters": "10 updates"},
        lambda x, span: PEAK * np.where(x < 10, 1 / 3, 1.0),
    ),
    "ConstantLR, factor": (
        "ConstantLR",
        {"total_iters": "1 epochs", "factor": 0.125},
        lambda x, span: PEAK * np.where(x < 8, 0.125, 1.0),
    ),
    "LinearLR": ("LinearLR", {}, line(1 / 3, 1)),
    "LinearLR, down": ("LinearLR", {"start_factor": 1, "end_factor": 0.1}, line(1, 0.1)),
    "LinearLR, length": ("LinearLR", {"start_factor": 0.5, "total_iters": "10 updates"}, line(0.5, 1, 10)),
    "ExponentialLR": ("ExponentialLR", {"gamma": 0.9}, lambda x, span: PEAK * 0.9**x),
    "PolynomialLR": ("PolynomialLR", {}, line(1, 0)),
    "PolynomialLR, power": (
        "PolynomialLR",
        {"total_iters": "20 updates", "power": 2},
        lambda x, span: PEAK * np.maximum(0, 1 - x / 20) ** 2,
    ),
    "CosineAnnealingLR": ("CosineAnnealingLR", {"eta_min": 0.02}, half_cosine(PEAK, 0.02)),
    "CosineAnnealingLR, length": (
        "CosineAnnealingLR",
        {"T_max": "9 updates", "eta_min": 0.02},
        half_cosine(PEAK, 0.02, 9),
    ),
    "CyclicLR": ("CyclicLR", CYCLE, between(0.01, PEAK, triangles(5, 5, lambda c, x: x**0))),
    "CyclicLR, skewed": (
        "CyclicLR",
        CYCLE | {"max_lr": 2, "step_size_down": "1.5 epochs"},
        between(0.01, 2, triangles(5, 11.25, lambda c, x: x**0)),
    ),
    "CyclicLR, triangular2": (
        "CyclicLR",
        CYCLE | {"mode": "triangular2", "step_size_up": "3 updates"},
        between(0.01, PEAK, triangles(3, 3, lambda c, x: 2.0 ** (1 - c))),
    ),
    "CyclicLR, exp_range": (
        "CyclicLR",
        CYCLE | {"mode": "exp_range", "gamma": 0.95},
        between(0.01, PEAK, triangles(5, 5, lambda c, x: 0.95**x)),
    ),
    "CyclicLR, scale_fn of cycles": (
        "CyclicLR",
        CYCLE | {"scale_fn": here("falling")},
        between(0.01, PEAK, triangles(5, 5, lambda c, x: 1 / (1 + c))),
    ),
    "CyclicLR, scale_fn of updates": (
        "CyclicLR",
        CYCLE | {"scale_fn": here("falling"), "scale_mode": "iterations"},
        between(0.01, PEAK, triangles(5, 5, lambda c, x: 1 / (1 + x))),
    ),
    "OneCycleLR": ("OneCycleLR", {"cycle_momentum": False}, one_cycle(0.3, PEAK / 25, PEAK, PEAK / 25e4)),
    "OneCycleLR, linear": (
        "OneCycleLR",
        {"cycle_momentum": False, "anneal_strategy": "linear", "pct_start": 0.22, "div_factor": 5, "max_lr": 0.5}
        | {"final_div_factor": 10},
        one_cycle(0.22, 0.1, 0.5, 0.01, curved=False),
    ),
    "OneCycleLR, three": (
        "OneCycleLR",
        {"cycle_momentum": False, "three_phase": True, "final_div_factor": 10},
        one_cycle(0.3, PEAK / 25, PEAK, PEAK / 250, three=True),
    ),
    "OneCycleLR, three, linear": (
        "OneCycleLR",
        {"cycle_momentum": False, "three_phase": True, "anneal_strategy": "linear", "pct_start": 0.41},
        one_cycle(0.41, PEAK / 25, PEAK, PEAK / 25e4, three=True, curved=False),
    ),
    "ChainedScheduler": (
        "ChainedScheduler",
        {
            "schedulers": [
                {"name": "ConstantLR", "factor": 0.5, "total_iters": "10 updates"},
                {"name": "ExponentialLR", "gamma": 0.95},
                {"name": "MultiStepLR", "milestones": ["20 updates"], "gamma": 0.1},
            ]
        },
        lambda x, span: PEAK * 0.95**x * np.where(x < 10, 0.5, 1.0) * np.where(x < 20, 1.0, 0.1),
    ),
    "ChainedScheduler of one": (
        "ChainedScheduler",
        {"schedulers": [{"name": "LinearLR", "start_factor": 1, "end_factor": 0.5}]},
        line(1, 0.5),
    ),
    "SequentialLR": (
        "SequentialLR",
        {
            "schedulers": [
                {"name": "ConstantLR", "factor": 0.1, "total_iters": "5 updates"},
                {"name": "LambdaLR", "lr_lambda": here("falling")},
                {"name": "CosineAnnealingLR", "eta_min": 0.01},
            ],
            # 9 updates, and 19.25.
            "milestones": ["1.2 epochs", "77 samples"],
        },
        after(
            (0, lambda x, span: PEAK * np.where(x < 5, 0.1, 1.0)),
            (9, lambda x, span: PEAK / (1 + x)),
            (20, half_cosine(PEAK, 0.01)),
        ),
    ),
    "SequentialLR of cycles": (
        "SequentialLR",
        {
            "schedulers": [
                {"name": "OneCycleLR", "cycle_momentum": False},
                {"name": "CyclicLR", **CYCLE},
                {"name": "OneCycleLR", "cycle_momentum": False, "max_lr": 0.1, "three_phase": True},
            ],
            "milestones": ["25%", "25 updates"],
        },
        after(
            (0, one_cycle(0.3, PEAK / 25, PEAK, PEAK / 25e4)),
            (15, between(0.01, PEAK, triangles(5, 5, lambda c, x: x**0))),
            (25, one_cycle(0.3, 0.1 / 25, 0.1, 0.1 / 25e4, three=True)),
        ),
    ),
    "SequentialLR of one": (
        "SequentialLR",
        {"schedulers": [{"name": "ConstantLR", "factor": 0.1, "total_iters": "3 updates"}], "milestones": []},
        lambda x, span: PEAK * np.where(x < 3, 0.1, 1.0),
    ),
}
curves = pytest.mark.parametrize("case", CURVES)
# Of each: the schedule's name, its arguments, its momenta. They move against the rate, which is held above.
MOMENTA: dict[str, tuple[str, dict[str, Any], Formula]] = {
    "OneCycleLR": ("OneCycleLR", {}, one_cycle(0.3, 0.95, 0.85, 0.95)),
    "OneCycleLR, linear": (
        "OneCycleLR",
        {"anneal_strategy": "linear", "base_momentum": 0.5, "max_momentum": 0.9},
        one_cycle(0.3, 0.9, 0.5, 0.9, curved=False),
    ),
    "OneCycleLR, three": (
        "OneCycleLR",
        {"three_phase": True},
        lambda x, span: joined(x, [0, 0.3 * span - 1, 0.6 * span - 2, span - 1], [0.95, 0.85, 0.95, 0.95], curved=True),
    ),
    "CyclicLR": (
        "CyclicLR",
        CYCLE | {"cycle_momentum": True},
        between(0.9, 0.8, triangles(5, 5, lambda c, x: x**0)),
    ),
    "CyclicLR, triangular2": (
        "CyclicLR",
        CYCLE | {"cycle_momentum": True, "mode": "triangular2", "base_momentum": 0.3, "max_momentum": 0.7},
        between(0.7, 0.3, triangles(5, 5, lambda c, x: 2.0 ** (1 - c))),
    ),
    "CyclicLR, exp_range": (
        "CyclicLR",
        CYCLE | {"cycle_momentum": True, "mode": "exp_range", "gamma": 0.9},
        between(0.9, 0.8, triangles(5, 5, lambda c, x: 0.9**x)),
    ),
    "SequentialLR": (
        "SequentialLR",
        {
            "schedulers": [
                {"name": "ConstantLR", "total_iters": "3 updates"},
                {"name": "OneCycleLR"},
                {"name": "ExponentialLR", "gamma": 0.9},
            ],
            "milestones": ["10 updates", "30 updates"],
        },
        after(
            (0, lambda x, span: MOMENTUM + 0 * x),
            (10, one_cycle(0.3, 0.95, 0.85, 0.95)),
            (30, lambda x, span: MOMENTUM + 0 * x),
        ),
    ),
    "ChainedScheduler": (
        "ChainedScheduler",
        {"schedulers": [{"name": "CyclicLR", **CYCLE, "cycle_momentum": True}]},
        between(0.9, 0.8, triangles(5, 5, lambda c, x: x**0)),
    ),
}


def expected(formula: Formula, span: int = UPDATES) -> Floats:
    return formula(np.arange(span, dtype=np.float64), span)


@curves
def test_every_rate_of_the_curve_is_exact(case: str) -> None:
    name, args, formula = CURVES[case]
    end = 0.1 if name == "cosine" else 0.0
    for optimizer in (sgd(), adamw()):
        schedule = built(name, args, optimizer=optimizer, cooldown="0 updates", cooldown_end=end)
        rates, momenta = walk(schedule)
        np.testing.assert_allclose(rates[:, 0], expected(formula), rtol=1e-12)
        np.testing.assert_allclose(rates, rates[:, :1] * SCALES, rtol=1e-15)
        assert set(momenta.tolist()) == {MOMENTUM if isinstance(optimizer, SGD) else BETAS[0]}
        assert schedule.metric is None


@curves
def test_every_rate_with_warmup_and_cooldown_is_exact(case: str) -> None:
    name, args, formula = CURVES[case]
    for warmup, first, cooldown, last, power in (
        ("7 updates", 7, "9 updates", 9, 2.0),
        ("1 epochs", 8, "10%", 6, 0.5),
        ("1 updates", 1, "1 updates", 1, 1.0),
        ("0%", 0, "40 samples", 10, 1.0),
    ):
        schedule = built(name, args, warmup=warmup, cooldown=cooldown, cooldown_end=0.1, cooldown_power=power)
        actual = rates_of(schedule)
        inner = expected(formula, UPDATES - first - last)
        np.testing.assert_allclose(actual, framed(inner, first, last, 0.1, power), rtol=1e-12, err_msg=warmup)
        # Past the end it stays where it came to.
        np.testing.assert_allclose(rates_of(schedule, 5), 0.1 * PEAK, rtol=1e-15)


@pytest.mark.parametrize("end", [0.0, 0.2])
@pytest.mark.parametrize(("name", "cooldown", "last"), [("wsd", "", 12), ("wsd", "0%", 0), ("cosine", "", 0)])
def test_presets_end_at_their_configured_rate(name: str, cooldown: str, last: int, end: float) -> None:
    actual = rates_of(built(name, cooldown=cooldown, cooldown_end=end, warmup="4 updates"))
    inner = PEAK * np.ones(56 - last) if name == "wsd" else expected(half_cosine(PEAK, end * PEAK), 56)
    np.testing.assert_allclose(actual, framed(inner, 4, last, end), rtol=1e-12)
    assert actual.argmax() == 3
    assert actual[3] == PEAK


def test_a_warmup_may_be_the_whole_run() -> None:
    schedule = built("cosine", warmup="100%")
    np.testing.assert_allclose(rates_of(schedule), PEAK * np.arange(1, 61) / 60, rtol=1e-15)
    assert rates_of(schedule, 3).tolist() == [PEAK] * 3


@curves
def test_the_rate_is_constant_past_the_end(case: str) -> None:
    name, args, _ = CURVES[case]
    schedule = built(name, args, warmup="3 updates")
    rates, _ = walk(schedule)
    past, _ = walk(schedule, 20)
    stays = 0.0 * rates[-1] if name == "wsd" else rates[-1]
    np.testing.assert_array_equal(past, np.tile(stays, (20, 1)))


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("case", MOMENTA)
def test_momenta_are_cycled(case: str, optimizer: Callable[[], Optimizer]) -> None:
    name, args, formula = MOMENTA[case]
    own = MOMENTUM if optimizer is sgd else BETAS[0]

    def placed(span: int) -> Floats:
        momenta = expected(formula, span)
        return np.where(momenta == MOMENTUM, own, momenta)

    _, momenta = walk(built(name, args, optimizer=optimizer()))
    np.testing.assert_allclose(momenta, placed(UPDATES), rtol=1e-12)
    # They wait in the warmup, stay in the cooldown and past the end.
    _, momenta = walk(built(name, args, optimizer=optimizer(), warmup="4 updates", cooldown="6 updates"), UPDATES + 5)
    inner = placed(UPDATES - 10)
    np.testing.assert_allclose(momenta, [*[inner[0]] * 4, *inner, *[inner[-1]] * 11], rtol=1e-12)


def test_muons_momentum_cycles_and_the_betas_of_its_adamw_stay() -> None:
    matrices, others = ([{"params": [Parameter(torch.zeros(2, 2))], "scale": 0.5}] for _ in range(2))
    optimizer = MuonAndAdamW(matrices, others, {"lr": PEAK, "momentum": 0.95}, {"lr": PEAK, "betas": BETAS})
    schedule = built("OneCycleLR", optimizer=optimizer)
    momenta = []
    for _ in range(UPDATES):
        first, second = optimizer.param_groups
        momenta.append(first["momentum"])
        assert (second["betas"], "momentum" in second, "betas" in first) == (BETAS, False, False)
        assert first["lr"] == second["lr"]
        schedule.step()
    np.testing.assert_allclose(momenta, expected(one_cycle(0.3, 0.95, 0.85, 0.95)), rtol=1e-12)


def test_a_list_of_functions_has_one_for_each_group() -> None:
    x = np.arange(40)
    names = [here("falling"), here("halving"), here("waving")]
    rates, _ = walk(built("LambdaLR", {"lr_lambda": names}, warmup="20 updates"))
    inner = PEAK * np.stack([1 / (1 + x), 0.5**x, 1.5 + np.sin(x)], 1) * SCALES
    np.testing.assert_allclose(rates[20:], inner, rtol=1e-12)
    np.testing.assert_allclose(rates[:20], inner[0] * np.arange(1, 21)[:, None] / 20, rtol=1e-12)
    # MultiplicativeLR's is first called with 1.
    names = [here("ratio"), here("halving"), here("waving")]
    rates, _ = walk(built("MultiplicativeLR", {"lr_lambda": names}))
    x = np.arange(UPDATES)
    waves = np.cumprod(np.where(x, 1.5 + np.sin(x), 1.0))
    inner = PEAK * np.stack([1 / (1 + x), 0.5 ** (x * (x + 1) / 2), waves], 1) * SCALES
    np.testing.assert_allclose(rates, inner, rtol=1e-12)


def restarts(period: Fraction, growth: int, eta_min: float, updates: int) -> tuple[Floats, list[int]]:
    """Return the rates, computed cycle by cycle in exact numbers, and the updates on which a restart falls exactly."""
    actual, exact = [], []
    start, length = Fraction(0), period
    for update in range(updates):
        while update >= start + length:
            start, length = start + length, length * growth
        if update == start:
            exact.append(update)
        actual.append(eta_min + (PEAK - eta_min) * math.cos(math.pi / 2 * float((update - start) / length)) ** 2)
    return np.array(actual), exact


@pytest.mark.parametrize("growth", [1, 2, 3])
@pytest.mark.parametrize(
    ("length", "period"),
    [
        ("1 epochs", Fraction(15, 2)),
        ("2 epochs", Fraction(15)),
        ("5 updates", Fraction(5)),
        ("1 updates", Fraction(1)),
        ("7 samples", Fraction(7, 4)),
        ("0.37 epochs", Fraction(111, 40)),
        ("3%", Fraction(75)),
    ],
)
def test_warm_restarts_happen_at_the_configured_lengths(length: str, period: Fraction, growth: int) -> None:
    updates = 2500
    args = {"T_0": length, "T_mult": growth, "eta_min": 0.01}
    actual = rates_of(built("CosineAnnealingWarmRestarts", args, updates=updates), updates)
    curve, exact = restarts(period, growth, 0.01, updates)
    np.testing.assert_allclose(actual, curve, rtol=0, atol=2e-9 * PEAK)
    # Where two halves make a whole, a restart is on an update: there it is the peak, bit for bit.
    np.testing.assert_array_equal(actual[exact], PEAK)
    assert len(exact) >= {1: 23, 2: 1, 3: 2}[growth]


def test_warm_restarts_with_warmup_cooldown_and_state() -> None:
    fields: dict[str, Any] = {"warmup": "7 updates", "cooldown": "9 updates", "cooldown_end": 0.5}
    args = {"T_0": "1 epochs", "T_mult": 2}
    actual = rates_of(built("CosineAnnealingWarmRestarts", args, **fields))
    inner, _ = restarts(Fraction(15, 2), 2, 0.0, UPDATES - 16)
    np.testing.assert_allclose(actual, framed(inner, 7, 9, 0.5), rtol=0, atol=2e-9 * PEAK)
    for stop in (0, 3, 7, 14, 15, 30, 50, 55, UPDATES):
        again, _ = resumed("CosineAnnealingWarmRestarts", args, stop, **fields)
        np.testing.assert_array_equal(again[:-5, 0], actual[stop:])


@pytest.mark.parametrize(
    ("metric", "args", "values", "parts"),
    [
        # A change below the threshold of 1e-4 is none; a better value starts the count anew.
        ("loss", {"patience": 1}, [3, 2, 2, 1.9999, 2, 1.9, 2, 2], [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]),
        ("top1", {"patience": 1}, [10, 20, 20, 20, 30, 30, 20], [1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
        ("raw_loss", {"patience": 0}, [3, 4, 2], [1, 0.5, 0.5]),
        ("raw_top1", {"patience": 0}, [3, 4, 2], [1, 1, 0.5]),
        ("loss", {}, [1] * 12, [1] * 11 + [0.5]),
        ("top5", {"patience": 2, "factor": 0.25}, [50] * 7, [1, 1, 1, 0.25, 0.25, 0.25, 0.0625]),
        ("loss", {"patience": 0, "threshold": 0.1}, [10, 9.5, 8.9, 8.1], [1, 0.5, 0.5, 0.25]),
        ("top1", {"patience": 0, "threshold": 0.1}, [10, 10.5, 11.5, 12], [1, 0.5, 0.5, 0.25]),
        (
            "loss",
            {"patience": 0, "threshold": 0.5, "threshold_mode": "abs"},
            [5, 4.6, 4.4, 4.0],
            [1, 0.5, 0.5, 0.25],
        ),
        (
            "top1",
            {"patience": 0, "threshold": 2, "threshold_mode": "abs"},
            [50, 51, 53, 54],
            [1, 0.5, 0.5, 0.25],
        ),
        ("loss", {"patience": 0, "cooldown": 2}, [1] * 8, [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]),
        ("loss", {"patience": 0, "min_lr": 0.1}, [1] * 4, [1, 0.5, 0.4, 0.4]),
        ("loss", {"patience": 0, "eps": 0.1}, [1] * 4, [1, 0.5, 0.5, 0.5]),
    ],
)
def test_a_plateau_follows_evaluations(
    metric: str, args: dict[str, Any], values: list[float], parts: list[float]
) -> None:
    arguments = {"metric": metric, "factor": 0.5} | args
    schedule = built("ReduceLROnPlateau", arguments)
    assert schedule.metric == metric == schedule_metric(ScheduleConfig(name="ReduceLROnPlateau", args=arguments))
    for value, part in zip(values, parts, strict=True):
        before = [group["lr"] for group in schedule.optimizer.param_groups]
        for _ in range(2):
            schedule.step()
            assert [group["lr"] for group in schedule.optimizer.param_groups] == before
        schedule.evaluated({"loss": -1.0, "top1": -1.0, metric: value})
        actual = [group["lr"] for group in schedule.optimizer.param_groups]
        np.testing.assert_allclose(actual, PEAK * part * np.array(SCALES), rtol=1e-15)


def test_a_plateau_ignores_evaluations_in_warmup_and_cooldown() -> None:
    args = {"metric": "loss", "patience": 0, "factor": 0.5}
    schedule = built("ReduceLROnPlateau", args, updates=12, warmup="3 updates", cooldown="4 updates")
    actual = []
    for _ in range(14):
        actual.append(schedule.optimizer.param_groups[0]["lr"] / PEAK)
        schedule.step()
        schedule.evaluated({"loss": 1.0})
    # The first that it hears is that after the fourth update, which sets what is best so far.
    rest = np.array([1, 1, 0.5, 0.25, 0.125, 0.125, 0.125 * 3 / 4, 0.0625, 0.03125, 0, 0])
    np.testing.assert_allclose(actual, [1 / 3, 2 / 3, 1, *rest], rtol=1e-12)


def test_other_schedules_ignore_evaluations() -> None:
    schedule = built("StepLR", {"step_size": "3 updates"})
    for _ in range(5):
        schedule.evaluated({"loss": 1.0, "top1": 0.0})
    np.testing.assert_allclose(rates_of(schedule, 6), [PEAK] * 3 + [PEAK / 10] * 3, rtol=1e-15)
    assert schedule_metric(ScheduleConfig()) is None


@pytest.mark.parametrize(
    ("name", "args", "formula"),
    [
        ("MultiStepLR", {"milestones": [...]}, steps(0.1, 15)),
        ("ConstantLR", {"total_iters": ..., "factor": 0.1}, lambda x, span: PEAK * np.where(x < 15, 0.1, 1)),
        ("LinearLR", {"total_iters": ...}, line(1 / 3, 1, 15)),
        ("PolynomialLR", {"total_iters": ...}, lambda x, span: PEAK * np.maximum(0, 1 - x / 15)),
        ("CosineAnnealingLR", {"T_max": ...}, half_cosine(PEAK, 0, 15)),
        (
            "SequentialLR",
            {"schedulers": [{"name": "LinearLR"}, {"name": "StepLR", "step_size": "2 epochs"}], "milestones": [...]},
            after((0, line(1 / 3, 1)), (15, steps(0.1, 15, 30))),
        ),
    ],
)
def test_lengths_of_every_unit_become_whole_updates(name: str, args: dict[str, Any], formula: Formula) -> None:
    for first, length in (
        (0, "15 updates"),
        (10, "2 epochs"),
        (0, "1.9 epochs"),
        (10, "60 samples"),
        (10, "57 samples"),
        (10, "25%"),
        (0, "24%"),
    ):
        arguments = {
            key: length if value is ... else [length] if value == [...] else value for key, value in args.items()
        }
        actual = rates_of(built(name, arguments, warmup=f"{first} updates"))
        curve = framed(expected(formula, UPDATES - first), first)
        np.testing.assert_allclose(actual, curve, rtol=1e-12, atol=1e-15, err_msg=length)


@pytest.mark.parametrize(
    ("length", "exact"), [("15 updates", 15), ("1.9 epochs", 14.25), ("1 epochs", 7.5), ("9%", 5.4)]
)
def test_steps_and_cycles_of_fractional_lengths_do_not_drift(length: str, exact: float) -> None:
    x = np.arange(UPDATES)
    actual = rates_of(built("StepLR", {"step_size": length, "gamma": 0.5}))
    np.testing.assert_allclose(actual, PEAK * 0.5 ** np.floor(x / exact), rtol=1e-12)
    for arguments, (up, down) in (({"step_size_up": length}, (exact, exact)), ({"step_size_down": length}, (5, exact))):
        wave = np.interp(x % (up + down), [0, up, up + down], [0, 1, 0])
        actual = rates_of(built("CyclicLR", CYCLE | arguments))
        np.testing.assert_allclose(actual, 0.01 + (PEAK - 0.01) * wave, rtol=1e-9, err_msg=str(arguments))


def test_a_run_may_consist_of_warmup_and_cooldown() -> None:
    actual = rates_of(built("wsd", {}, updates=10, warmup="5 updates", cooldown="5 updates"), 10)
    np.testing.assert_allclose(actual, PEAK * np.array([0.2, 0.4, 0.6, 0.8, 1, 1, 0.8, 0.6, 0.4, 0.2]), rtol=1e-12)


@pytest.mark.parametrize("name", ["LinearLR", "PolynomialLR", "CosineAnnealingLR", "cosine", "OneCycleLR"])
@pytest.mark.parametrize("warmup", ["5 updates", "20%"])
def test_a_run_made_longer_follows_the_longer_plan_at_once(name: str, warmup: str) -> None:
    rates, momenta = walk(built(name, {}, updates=80, warmup=warmup), 80)
    for stop in (0, 5, 20, 50):
        actual = resumed(name, {}, stop, updates=50, grown=80, warmup=warmup)
        np.testing.assert_array_equal(actual[0][: 80 - stop], rates[stop:], str(stop))
        np.testing.assert_array_equal(actual[1][: 80 - stop], momenta[stop:], str(stop))


def test_a_constant_factor_of_zero_is_refused() -> None:
    with pytest.raises(UserError) as error:
        built("ConstantLR", {"factor": 0, "total_iters": "5 updates"})
    assert str(error.value) == "schedule.args: ConstantLR over 60 updates: a factor of 0 has no way back"
    with pytest.raises(UserError) as error:
        built("OneCycleLR", {"cycle_momentum": False, "div_factor": 0})
    assert str(error.value) == (
        "schedule.args: OneCycleLR over 60 updates: a phase of it has no update, or it divides by a factor of 0"
    )


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.65**12, 3.0])
def test_absolute_rates_in_arguments_apply_to_a_group_of_scale_one(scale: float) -> None:
    def lowest(name: str, args: dict[str, Any]) -> float:
        optimizer = sgd([0.25, scale])
        rates, _ = walk(built(name, args, optimizer=optimizer))
        np.testing.assert_allclose(rates[:, 1] * 0.25, rates[:, 0] * scale, rtol=1e-14)
        return float(rates[:, 1].min())

    assert lowest("CosineAnnealingLR", {"eta_min": 0.02, "T_max": "30 updates"}) == pytest.approx(0.02 * scale)
    assert lowest("CyclicLR", CYCLE) == pytest.approx(0.01 * scale)
    assert lowest("OneCycleLR", {"max_lr": 5, "final_div_factor": 10}) == pytest.approx(0.02 * scale)
    schedule = built("ReduceLROnPlateau", {"metric": "loss", "patience": 0, "min_lr": 0.02}, optimizer=sgd([1, scale]))
    for _ in range(9):
        schedule.step()
        schedule.evaluated({"loss": 1.0})
    assert [group["lr"] for group in schedule.optimizer.param_groups] == pytest.approx([0.02, 0.02 * scale], rel=1e-15)


def through_json(schedule: Schedule) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(json.dumps(schedule.state_dict(), allow_nan=False))
    return state


def resumed(
    name: str,
    args: dict[str, Any],
    stop: int,
    *,
    optimizer: Callable[[], Optimizer] = sgd,
    updates: int = UPDATES,
    grown: int = UPDATES,
    **fields: Any,
) -> tuple[Floats, Floats]:
    """Return the rest of a run of `grown` updates, resumed from the state of one of `updates` after `stop`."""
    first = built(name, args, optimizer=optimizer(), updates=updates, **fields)
    walk(first, stop)
    state = through_json(first)
    assert state["updates"] == stop
    second = built(name, args, optimizer=optimizer(), updates=grown, **fields)
    second.load_state_dict(state)
    assert through_json(second) == state or grown > updates
    return walk(second, grown - stop + 5)


STOPS = (0, 1, 6, 7, 8, 16, 22, 27, 37, 50, 51, 52, 59, UPDATES)


@curves
def test_the_curve_continues_from_a_state_saved_as_json(case: str) -> None:
    name, args, _ = CURVES[case]
    fields: dict[str, Any] = {"warmup": "7 updates", "cooldown": "9 updates", "cooldown_power": 1.5}
    rates, momenta = walk(built(name, args, **fields), UPDATES + 5)
    for stop in STOPS:
        actual = resumed(name, args, stop, **fields)
        np.testing.assert_array_equal(actual[0], rates[stop:], str(stop))
        np.testing.assert_array_equal(actual[1], momenta[stop:], str(stop))


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("case", MOMENTA)
def test_momenta_resume_from_a_state(case: str, optimizer: Callable[[], Optimizer]) -> None:
    name, args, _ = MOMENTA[case]
    fields: dict[str, Any] = {"warmup": "7 updates", "cooldown": "9 updates"}
    rates, momenta = walk(built(name, args, optimizer=optimizer(), **fields), UPDATES + 5)
    assert len(set(momenta.tolist())) > 5
    for stop in STOPS:
        actual = resumed(name, args, stop, optimizer=optimizer, **fields)
        np.testing.assert_array_equal(actual[0], rates[stop:], str(stop))
        np.testing.assert_array_equal(actual[1], momenta[stop:], str(stop))


@pytest.mark.parametrize(("metric", "worst"), [("loss", "inf"), ("top1", "-inf")])
def test_a_plateau_resumes_from_its_state(metric: str, worst: str) -> None:
    args = {"metric": metric, "patience": 1, "factor": 0.5, "cooldown": 1, "threshold": 0.3}
    scores = [1.0, 1.1, 0.9, 1.3, 1.0, 2.0, 2.1, 2.1, 0.5, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 3.0, 3.0, 3.0, 3.0]

    def on(schedule: Schedule, begin: int, end: int) -> list[float]:
        actual = []
        for update in range(begin, end):
            actual.append(schedule.optimizer.param_groups[1]["lr"])
            schedule.step()
            if update % 3 == 2:
                schedule.evaluated({metric: scores[update // 3]})
        return actual

    def fresh() -> Schedule:
        return built("ReduceLROnPlateau", args, warmup="4 updates", cooldown="10 updates")

    whole = on(fresh(), 0, UPDATES)
    assert len(set(whole[4:50])) > 4
    for stop in range(0, UPDATES + 1):
        first = fresh()
        on(first, 0, stop)
        state = through_json(first)
        assert (state["plateau"]["best"] == worst) is (stop < 6)
        second = fresh()
        second.load_state_dict(state)
        assert through_json(second) == state
        assert on(second, stop, UPDATES) == whole[stop:]


@pytest.mark.parametrize(
    ("name", "args", "fields"),
    [
        ("constant", {}, {}),
        ("wsd", {}, {"cooldown": "10 updates"}),
        ("LambdaLR", {"lr_lambda": here("waving")}, {}),
        ("MultiplicativeLR", {"lr_lambda": here("ratio")}, {"cooldown": "10 updates"}),
        ("StepLR", {"step_size": "2 epochs"}, {}),
        ("MultiStepLR", {"milestones": ["20 updates", "55 updates"]}, {}),
        ("LinearLR", {"total_iters": "60 updates"}, {}),
        ("ExponentialLR", {"gamma": 0.9}, {"cooldown": "10 updates"}),
        ("CosineAnnealingLR", {"T_max": "60 updates", "eta_min": 0.01}, {}),
        ("CosineAnnealingWarmRestarts", {"T_0": "1 epochs", "T_mult": 2}, {}),
        ("CyclicLR", CYCLE | {"cycle_momentum": True}, {}),
        (
            "SequentialLR",
            {
                "schedulers": [{"name": "OneCycleLR"}, {"name": "LambdaLR", "lr_lambda": here("falling")}],
                "milestones": ["30 updates"],
            },
            {},
        ),
    ],
)
def test_a_lengthened_run_goes_on_as_if_it_had_been_planned_that_long(
    name: str, args: dict[str, Any], fields: dict[str, Any]
) -> None:
    fields = {"warmup": "5 updates", **fields}
    rates, momenta = walk(built(name, args, updates=80, **fields), 85)
    for stop in (0, 3, 5, 20, 40, 41, 45, 50):
        actual = resumed(name, args, stop, updates=50, grown=80, **fields)
        np.testing.assert_array_equal(actual[0], rates[stop:], str(stop))
        np.testing.assert_array_equal(actual[1], momenta[stop:], str(stop))


@pytest.mark.parametrize(("name", "args"), [("cosine", {}), ("OneCycleLR", {}), ("OneCycleLR", {"three_phase": True})])
@pytest.mark.parametrize("stop", [6, 20, 49])
def test_schedulers_over_the_whole_run_span_a_lengthened_run(name: str, args: dict[str, Any], stop: int) -> None:
    rates, momenta = walk(built(name, args, updates=80, warmup="5 updates"), 85)
    actual = resumed(name, args, stop, updates=50, grown=80, warmup="5 updates")
    np.testing.assert_array_equal(actual[0][1:], rates[stop + 1 :])
    np.testing.assert_array_equal(actual[1][1:], momenta[stop + 1 :])


def torchs_words(kind: str, **arguments: Any) -> str:
    with pytest.raises((TypeError, ValueError, ZeroDivisionError)) as error:
        getattr(lr_scheduler, kind)(Adagrad([Parameter(torch.zeros(1))], lr=1.0), **arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "args", "theirs"),
    [
        ("LinearLR", {"start_factor": 0}, {"start_factor": 0.0}),
        ("LinearLR", {"end_factor": 1.5}, {"end_factor": 1.5}),
        ("ConstantLR", {"factor": 2, "total_iters": "5%"}, {"factor": 2.0}),
        ("OneCycleLR", {}, {"max_lr": 1.0, "total_steps": 50}),
        ("OneCycleLR", {"pct_start": 1.5}, {"max_lr": 1.0, "total_steps": 50, "pct_start": 1.5}),
        ("CyclicLR", CYCLE | {"cycle_momentum": True}, {"base_lr": 0.01, "max_lr": PEAK}),
        ("CosineAnnealingWarmRestarts", {"T_0": "1 epochs", "T_mult": 0}, {"T_0": 1, "T_mult": 0}),
        ("ReduceLROnPlateau", {"metric": "loss", "factor": 1}, {"factor": 1.0}),
    ],
)
def test_torchs_errors_about_schedulers_are_shown(name: str, args: dict[str, Any], theirs: dict[str, Any]) -> None:
    words = torchs_words(name, **theirs)
    assert len(words) > 10
    with pytest.raises(UserError) as error:
        built(name, args, optimizer=Adagrad([Parameter(torch.zeros(1))], lr=1.0), warmup="10 updates")
    assert str(error.value) == f"schedule.args: {name} over 50 updates: {words}"


def test_torchs_errors_about_nested_schedulers_are_shown() -> None:
    words = torchs_words("LinearLR", start_factor=0.0)
    inner = {"name": "LinearLR", "start_factor": 0}
    with pytest.raises(UserError) as error:
        built("SequentialLR", {"schedulers": [inner, {"name": "LinearLR"}], "milestones": ["20 updates"]})
    assert str(error.value) == f"schedule.args: LinearLR over 20 updates: {words}"
    with pytest.raises(UserError) as error:
        built("ChainedScheduler", {"schedulers": [inner]})
    assert str(error.value) == f"schedule.args: LinearLR over 60 updates: {words}"


@pytest.mark.parametrize("count", [0, 1, 2, 4])
@pytest.mark.parametrize("name", ["LambdaLR", "MultiplicativeLR"])
def test_a_wrong_number_of_functions_is_refused(name: str, count: int) -> None:
    with pytest.raises(UserError) as error:
        built(name, {"lr_lambda": [here("falling")] * count})
    assert str(error.value) == (
        f"schedule.args.lr_lambda: has {count} functions for 3 groups of parameters: give one for each, "
        "or one for all; `vit-dist plan` lists the groups"
    )


@pytest.mark.parametrize(
    "milestones",
    [
        ["20 updates", "20 updates"],
        ["20 updates", "10 updates"],
        ["20 updates", "50 updates"],
        ["20 updates", "9 epochs"],
        # Both are the 8th update, rounded up.
        ["1 epochs", "8 updates"],
    ],
)
def test_milestones_that_do_not_rise_are_refused(milestones: list[str]) -> None:
    schedulers = [{"name": "LinearLR"}] * 3
    with pytest.raises(UserError) as error:
        built("SequentialLR", {"schedulers": schedulers, "milestones": milestones}, warmup="4%", cooldown="7 updates")
    assert str(error.value) == (
        "schedule.args.milestones: must rise, above 0 and below the 50 updates between warmup and cooldown"
    )
    built("SequentialLR", {"schedulers": schedulers, "milestones": ["1 updates", "49 updates"]}, warmup="10 updates")


@pytest.mark.parametrize(
    ("name", "args", "path", "why"),
    [
        ("LambdaLR", {"lr_lambda": "nosuch_module:f"}, "nosuch_module:f", "No module named 'nosuch_module'"),
        ("MultiplicativeLR", {"lr_lambda": ["math:f"] * 3}, "math:f", "module 'math' has no attribute 'f'"),
    ],
)
def test_a_missing_lr_lambda_is_refused(name: str, args: dict[str, Any], path: str, why: str) -> None:
    text = f"schedule.args.lr_lambda: {path} cannot be imported: {why}; write it as package.module:function"
    for kind, arguments in ((name, args), ("SequentialLR", {"schedulers": [{"name": name, **args}], "milestones": []})):
        with pytest.raises(UserError) as error:
            built(kind, arguments)
        assert str(error.value) == text


def test_a_missing_scale_fn_is_refused() -> None:
    with pytest.raises(UserError, match=r"^schedule.args.scale_fn: math:nosuch cannot be imported: "):
        built("CyclicLR", CYCLE | {"scale_fn": "math:nosuch"})
