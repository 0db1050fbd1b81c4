"""The learning rate: warmup, torch's schedulers, cooldown; stepped once for each update that was applied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LRScheduler, ReduceLROnPlateau

from vit_dist.config.catalog import PRESETS
from vit_dist.config.schedulers import schedule_arguments
from vit_dist.config.schema import ScheduleConfig
from vit_dist.config.values import Length, import_function
from vit_dist.errors import UserError
from vit_dist.files import json_number
from vit_dist.plan.plan import Plan

_MOVED = ("lr", "momentum", "betas")


# Of a plateau, what evaluations have left; every other scheduler follows from the number of updates.
_PLATEAU = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter")


class Schedule:
    """Sets the rate (and where a scheduler cycles it, the momentum) of every group of an optimizer.

    Update u (from 0; only applied ones count) is made with: in the warmup, (u+1)/warmup of the scheduler's first
    rate; then the scheduler's rates, counted from the end of the warmup; in the cooldown, what falls from its
    last rate to cooldown_end·lr as (1-t)^cooldown_power. A scheduler moves rates that all start at the peak; a
    group's own is that times its `scale`, so that layer-wise rates hold under any scheduler. `rate` is that of a
    group at the full rate (of the first group, where a scheduler has a function for each).
    """

    def __init__(self, config: ScheduleConfig, optimizer: Optimizer, plan: Plan, lr: float) -> None:
        """lr: the peak. Raises UserError where torch refuses the scheduler's arguments."""
        self.optimizer = optimizer
        self.warmup, self.cooldown = plan.warmup, plan.cooldown
        self.span = plan.updates - plan.warmup - plan.cooldown
        self.end = config.cooldown_end * lr
        self.power = config.cooldown_power
        self.updates = 0
        self.metric: str | None = schedule_metric(config)
        self.rate = 0.0
        self._parts = _parts(config, optimizer, plan, lr, max(1, self.span))
        self._set()

    def step(self) -> None:
        """One more update was applied."""
        self.updates += 1
        self._advance(min(self.updates - self.warmup, self.span - 1))
        self._set()

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """Feeds ReduceLROnPlateau its metric; not in the warmup and the cooldown."""
        inside = self.warmup < self.updates < self.warmup + self.span
        if self.metric is not None and inside:
            _, _, scheduler = self._parts[0]
            assert isinstance(scheduler, ReduceLROnPlateau)
            scheduler.step(metrics[self.metric])
            self._set()

    def state_dict(self) -> dict[str, Any]:
        """All that a schedule rebuilt from the same config and plan needs, as JSON holds it."""
        if self.metric is None:
            return {"updates": self.updates}
        _, rates, scheduler = self._parts[0]
        counters = {name: json_number(getattr(scheduler, name)) for name in _PLATEAU}
        return {"updates": self.updates, "rates": [group["lr"] for group in rates.param_groups], "plateau": counters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`: schedulers are stepped again from their start, exactly as they were.

        So the rates of a run that was made longer are, from here on, those of a run planned that long.
        """
        self.updates = state["updates"]
        if self.metric is not None:
            _, rates, scheduler = self._parts[0]
            for group, rate in zip(rates.param_groups, state["rates"], strict=True):
                group["lr"] = rate
            for name, value in state["plateau"].items():
                setattr(scheduler, name, float(value) if isinstance(value, str) else value)
        self._advance(min(self.updates - self.warmup, self.span - 1))
        self._set()

    def _advance(self, place: int) -> None:
        """Steps the scheduler that is due up to its own count at `place` updates from the end of the warmup."""
        start, rates, scheduler = self._parts[self._due(place)]
        while self.metric is None and rates.count < place - start:
            rates.step()
            scheduler.step()

    def _due(self, place: int) -> int:
        """Which of the schedulers makes the update at `place`."""
        return max(i for i, (start, _, _) in enumerate(self._parts) if start <= max(place, 0))

    def _set(self) -> None:
        """Hands the rates of now to the optimizer."""
        place = self.updates - self.warmup
        _, rates, _ = self._parts[self._due(min(place, self.span - 1))]
        for number, group in enumerate(self.optimizer.param_groups):
            moved = rates.param_groups[number if len(rates.param_groups) > 1 else 0]
            rate = moved["lr"]
            if place < 0:
                rate *= (self.updates + 1) / self.warmup
            elif self.cooldown and place >= self.span:
                left = max(0, self.span + self.cooldown - place) / self.cooldown
                rate = self.end + (rate - self.end) * left**self.power
            if rate < 0:
                raise UserError(f"schedule.args: the rate of update {self.updates} would be {rate:.3g}, below 0")
            self.rate = self.rate if number else rate
            group["lr"] = rate * group.get("scale", 1.0)
            for name in _MOVED[1:]:
                if name in moved and name in group:
                    group[name] = moved[name]


class Rates(Optimizer):
    """What a scheduler moves in place of the optimizer's groups: one rate for all, or one for each, from the peak on.

    count: the steps that were made with it.
    """

    def __init__(self, optimizer: Optimizer, lr: float, groups: int = 1) -> None:
        first = optimizer.param_groups[0]
        cycled: dict[str, Any] = {name: first[name] for name in _MOVED[1:] if first.get(name) is not None}
        super().__init__([{"params": [torch.zeros(1)]} for _ in range(groups)], {"lr": lr, **cycled})
        self.count = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Counts; there is nothing to optimize."""
        self.count += 1


class Restarts(lr_scheduler.CosineAnnealingWarmRestarts):
    """torch's, with T_0 an exact number of updates, whole or not: restarts fall where the lengths say.

    It steps the original at fractions of T_0, as its documentation does with fractions of epochs.
    """

    def __init__(self, optimizer: Optimizer, *, T_0: Fraction, T_mult: int = 1, eta_min: float = 0.0) -> None:  # noqa: N803
        self.period = T_0
        super().__init__(optimizer, 1, T_mult, eta_min)

    def step(self, epoch: float | None = None) -> None:
        """One more update, or number `epoch`."""
        count = self.last_epoch + 1 if epoch is None else int(epoch)
        # The original finds the cycle by a logarithm, whose rounding must not miss a restart.
        super().step(float(count / self.period) + 1e-9)
        self.last_epoch = count


def schedule_metric(config: ScheduleConfig) -> str | None:
    """The metric of val that the schedule follows, if it follows one."""
    return str(config.args["metric"]) if config.name == "ReduceLROnPlateau" else None


def cosine(update: int, *, span: int, end: float) -> float:
    """Half a cosine from 1 to `end` over `span` updates (Loshchilov and Hutter, "SGDR", 2017)."""
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, update / span)))


def stable(update: int) -> float:
    """The peak; with a cooldown behind it, wsd (Zhai et al., "Scaling Vision Transformers", 2022)."""
    return 1.0


_Part = tuple[int, Rates, LRScheduler]


def _parts(config: ScheduleConfig, optimizer: Optimizer, plan: Plan, lr: float, span: int) -> list[_Part]:
    """Schedulers one after another, each with its start, counted from the end of the warmup, and its own rates.

    SequentialLR is this; torch's own hands one set of rates and momenta from each scheduler to the next, where
    OneCycleLR and CyclicLR leave theirs behind.
    """
    if config.name in PRESETS:
        moved = Rates(optimizer, lr)
        shape = partial(cosine, span=span, end=config.cooldown_end) if config.name == "cosine" else stable
        return [(0, moved, LambdaLR(moved, shape))]
    arguments = schedule_arguments(config.name, config.args)
    if config.name != "SequentialLR":
        moved = Rates(optimizer, lr, len(optimizer.param_groups))
        return [(0, moved, _scheduler(config.name, arguments, moved, plan, lr, span))]
    starts = [0, *(math.ceil(plan.in_updates(length)) for length in arguments["milestones"])]
    if any(after <= before for before, after in pairwise([*starts, span])):
        raise UserError(
            f"schedule.args.milestones: must rise, above 0 and below the {span} updates between warmup and cooldown"
        )
    parts: list[_Part] = []
    for (start, end), one in zip(pairwise([*starts, span]), arguments["schedulers"], strict=True):
        moved = Rates(optimizer, lr, len(optimizer.param_groups))
        parts.append((start, moved, _inner(one, moved, plan, lr, end - start)))
    return parts


def _inner(one: Mapping[str, Any], moved: Rates, plan: Plan, lr: float, span: int) -> LRScheduler:
    """A scheduler inside another, of its name and arguments. Raises UserError."""
    arguments = schedule_arguments(one["name"], {key: value for key, value in one.items() if key != "name"})
    return _scheduler(one["name"], arguments, moved, plan, lr, span)


def _scheduler(name: str, arguments: dict[str, Any], moved: Rates, plan: Plan, lr: float, span: int) -> LRScheduler:
    """One of torch's schedulers over `span` updates. Raises UserError."""
    if name == "ChainedScheduler":
        return ChainedScheduler([_inner(one, moved, plan, lr, span) for one in arguments["schedulers"]], moved)
    given = dict(arguments)
    for key, value in arguments.items():
        if isinstance(value, Length):
            given[key] = _updates(name, plan.in_updates(value))
        elif key == "milestones":
            given[key] = [_whole(plan.in_updates(length)) for length in value]
        elif key in ("lr_lambda", "scale_fn"):
            given[key] = _functions(value, key, moved)
    if name == "StepLR" and isinstance(given["step_size"], Fraction):
        # Its steps fall between updates: as milestones they do not drift.
        size = given.pop("step_size")
        name, given["milestones"] = "MultiStepLR", [_whole(n * size) for n in range(1, math.ceil(span / size) + 1)]
    elif name in ("PolynomialLR", "LinearLR"):
        given.setdefault("total_iters", span)
    elif name == "CosineAnnealingLR":
        given.setdefault("T_max", span)
    elif name in ("OneCycleLR", "CyclicLR"):
        given.setdefault("max_lr", lr)
    if name == "OneCycleLR":
        given["total_steps"] = span
    try:
        if name == "ConstantLR" and given.get("factor") == 0:
            raise ValueError("a factor of 0 has no way back")
        if name == "CosineAnnealingWarmRestarts":
            return Restarts(moved, **given)
        if name == "ReduceLROnPlateau":
            metric = given.pop("metric")
            return ReduceLROnPlateau(moved, mode="min" if metric.endswith("loss") else "max", **given)
        scheduler: LRScheduler = getattr(lr_scheduler, name)(moved, **given)
        return scheduler
    except ZeroDivisionError:
        why = "a phase of it has no update, or it divides by a factor of 0"
        raise UserError(f"schedule.args: {name} over {span} updates: {why}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"schedule.args: {name} over {span} updates: {error}") from None


def _updates(name: str, length: Fraction) -> int | float | Fraction:
    """A length in updates as the scheduler takes it: exact where it can be, else whole."""
    if name == "CosineAnnealingWarmRestarts" or (name == "StepLR" and length.denominator > 1):
        return length
    return float(length) if name == "CyclicLR" else _whole(length)


def _whole(length: Fraction) -> int:
    return max(1, math.ceil(length))


def _functions(value: str | Sequence[str], name: str, moved: Rates) -> Any:
    """The function at an import path, or a list of them, one for each group."""
    if isinstance(value, str):
        return import_function(value, f"schedule.args.{name}")
    if len(value) != len(moved.param_groups):
        raise UserError(
            f"schedule.args.{name}: has {len(value)} functions for {len(moved.param_groups)} groups of parameters: "
            "give one for each, or one for all; `vit-dist plan` lists the groups"
        )
    return [import_function(path, f"schedule.args.{name}") for path in value]
