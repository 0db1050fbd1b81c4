"""The learning rate: warmup, torch's schedulers, cooldown; stepped once for each update that was applied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LRScheduler, ReduceLROnPlateau

from vit_dist.config.catalog import PRESETS
from vit_dist.config.fields import ScheduleConfig
from vit_dist.config.schedulers import schedule_arguments
from vit_dist.config.values import Length
from vit_dist.errors import UserError, one_line
from vit_dist.files import json_number
from vit_dist.optim.rate_functions import rate_function
from vit_dist.plan.plan import Plan

# Values that a scheduler cycles along with the rate.
_CYCLED = ("momentum", "betas")
# The state of ReduceLROnPlateau; that of every other scheduler follows from the number of updates.
PLATEAU = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter")


class Schedule:
    """The rate of every group of an optimizer (and its momentum, if a scheduler cycles it).

    Update u (from 0; skipped ones do not count) has, in the warmup, (u+1)/warmup of the scheduler's first rate; then
    the scheduler's rates, counted from the end of the warmup; in the cooldown, rates that fall from its last one to
    cooldown_end·lr as (1-t)^cooldown_power. A scheduler's rates start at the peak; a group's own is that times its
    `scale`, so that layer-wise rates hold under any scheduler. `rate` is that of a group whose scale is 1 (of the
    first group, if a scheduler has a function for each).
    """

    def __init__(self, config: ScheduleConfig, optimizer: Optimizer, plan: Plan, lr: float) -> None:
        """lr: the peak. Raises UserError if torch refuses the scheduler's arguments."""
        self.optimizer = optimizer
        self.name = config.name
        self.warmup, self.cooldown = plan.warmup, plan.cooldown
        self.span = plan.updates - plan.warmup - plan.cooldown
        self.end = config.cooldown_end * lr
        self.power = config.cooldown_power
        self.updates = 0
        self.metric: str | None = schedule_metric(config)
        self.rate = 0.0
        self._function = f" of {config.args['lr_lambda']}" if "lr_lambda" in config.args else ""
        self._phases = _phases(config, optimizer, plan, lr, max(1, self.span))
        self._set()

    def step(self) -> None:
        """Go on to the next update, after one was applied."""
        self.updates += 1
        self._advance(min(self.updates - self.warmup, self.span - 1))
        self._set()

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """Give ReduceLROnPlateau its metric, except in the warmup and the cooldown."""
        inside = self.warmup < self.updates < self.warmup + self.span
        if self.metric is not None and inside:
            scheduler = self._phases[0].scheduler
            assert isinstance(scheduler, ReduceLROnPlateau)
            scheduler.step(metrics[self.metric])
            self._set()

    def state_dict(self) -> dict[str, Any]:
        """Return, as JSON values, the state that a schedule built from the same config and plan needs to go on."""
        if self.metric is None:
            return {"updates": self.updates}
        phase = self._phases[0]
        counters = {name: json_number(getattr(phase.scheduler, name)) for name in PLATEAU}
        rates = [group["lr"] for group in phase.stand_in.param_groups]
        return {"updates": self.updates, "rates": rates, "plateau": counters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; schedulers are stepped again from their start, exactly as they were.

        The rates of a run that was made longer are therefore, from here on, those of a run planned that long.
        """
        self.updates = state["updates"]
        if self.metric is not None:
            phase = self._phases[0]
            for group, rate in zip(phase.stand_in.param_groups, state["rates"], strict=True):
                group["lr"] = rate
            for name, value in state["plateau"].items():
                setattr(phase.scheduler, name, float(value) if isinstance(value, str) else value)
        self._advance(min(self.updates - self.warmup, self.span - 1))
        self._set()

    def _advance(self, update: int) -> None:
        """Step the scheduler of an update, counted from the end of the warmup, until it has reached that update."""
        phase = self._phase_at(update)
        try:
            while self.metric is None and phase.stand_in.steps < update - phase.start:
                phase.stand_in.count_step()
                phase.scheduler.step()
        except ArithmeticError as error:
            raise UserError(f"schedule.args: {self.name} fails at update {self.updates}: {one_line(error)}") from None

    def _phase_at(self, update: int) -> _Phase:
        """Return the phase of an update, counted from the end of the warmup."""
        return [phase for phase in self._phases if phase.start <= max(update, 0)][-1]

    def _set(self) -> None:
        """Write the current rates into the optimizer's groups. Raises UserError for one below 0 or not finite."""
        update = self.updates - self.warmup
        scheduled_groups = self._phase_at(min(update, self.span - 1)).stand_in.param_groups
        for number, group in enumerate(self.optimizer.param_groups):
            scheduled = scheduled_groups[number if len(scheduled_groups) > 1 else 0]
            rate = scheduled["lr"]
            if update < 0:
                rate *= (self.updates + 1) / self.warmup
            elif self.cooldown and update >= self.span:
                left = max(0, self.span + self.cooldown - update) / self.cooldown
                rate = self.end + (rate - self.end) * left**self.power
            if not 0 <= rate < math.inf:
                why = "below 0" if rate < 0 else f"not finite, with {self.name}{self._function}"
                raise UserError(f"schedule.args: the rate of update {self.updates} would be {rate:.3g}, {why}")
            self.rate = self.rate if number else rate
            group["lr"] = rate * group.get("scale", 1.0)
            for name in _CYCLED:
                if name in scheduled and name in group:
                    group[name] = scheduled[name]


class StandInOptimizer(Optimizer):
    """An optimizer of nothing, whose rates a scheduler changes: one for all groups or one for each, from the peak on.

    steps: number of steps made.
    """

    def __init__(self, optimizer: Optimizer, lr: float, groups: int = 1) -> None:
        first = optimizer.param_groups[0]
        cycled: dict[str, Any] = {name: first[name] for name in _CYCLED if first.get(name) is not None}
        super().__init__([{"params": [torch.zeros(1)]} for _ in range(groups)], {"lr": lr, **cycled})
        self.steps = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing; there is nothing to optimize."""

    def count_step(self) -> None:
        """Count a step. Only the first is made: torch's schedulers ask for one, and its hooks cost more than a rate."""
        if not self.steps:
            self.step()
        self.steps += 1


class Restarts(lr_scheduler.CosineAnnealingWarmRestarts):
    """CosineAnnealingWarmRestarts with T_0 an exact number of updates, which need not be whole.

    It steps torch's class by fractions of T_0, as torch's documentation does by fractions of epochs.
    """

    def __init__(self, optimizer: Optimizer, *, T_0: Fraction, T_mult: int = 1, eta_min: float = 0.0) -> None:  # noqa: N803
        self.period = T_0
        super().__init__(optimizer, 1, T_mult, eta_min)

    def step(self, epoch: float | None = None) -> None:
        """Go on to the next update, or to update number `epoch`."""
        count = self.last_epoch + 1 if epoch is None else int(epoch)
        # torch finds the cycle by a logarithm, whose rounding must not miss a restart.
        super().step(float(count / self.period) + 1e-9)
        self.last_epoch = count


def schedule_metric(config: ScheduleConfig) -> str | None:
    """Return the validation metric that the schedule follows, if it follows one."""
    return str(config.args["metric"]) if config.name == "ReduceLROnPlateau" else None


def cosine(update: int, *, span: int, end: float) -> float:
    """Return the factor at an update of half a cosine from 1 to `end` over `span` (Loshchilov and Hutter, 2017)."""
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, update / span)))


def stable(update: int) -> float:
    """Return 1, the peak; followed by a cooldown it is wsd (Zhai et al., "Scaling Vision Transformers", 2022)."""
    return 1.0


class _Phase(NamedTuple):
    """A scheduler with its own rates. start: its first update, counted from the end of the warmup."""

    start: int
    stand_in: StandInOptimizer
    scheduler: LRScheduler


def _phases(config: ScheduleConfig, optimizer: Optimizer, plan: Plan, lr: float, span: int) -> list[_Phase]:
    """Build the schedulers that follow each other over `span` updates. Raises UserError.

    SequentialLR is built here: torch's own passes one set of rates and momenta from each scheduler to the next, and
    OneCycleLR and CyclicLR would leave theirs behind.
    """
    if config.name in PRESETS:
        stand_in = StandInOptimizer(optimizer, lr)
        shape = partial(cosine, span=span, end=config.cooldown_end) if config.name == "cosine" else stable
        return [_Phase(0, stand_in, LambdaLR(stand_in, shape))]
    arguments = schedule_arguments(config.name, config.args)
    if config.name != "SequentialLR":
        stand_in = StandInOptimizer(optimizer, lr, len(optimizer.param_groups))
        return [_Phase(0, stand_in, _scheduler(config.name, arguments, stand_in, plan, lr, span))]
    starts = [0, *(math.ceil(plan.in_updates(length)) for length in arguments["milestones"])]
    if any(after <= before for before, after in pairwise([*starts, span])):
        raise UserError(
            f"schedule.args.milestones: must rise, above 0 and below the {span} updates between warmup and cooldown"
        )
    phases: list[_Phase] = []
    for (start, end), fields in zip(pairwise([*starts, span]), arguments["schedulers"], strict=True):
        stand_in = StandInOptimizer(optimizer, lr, len(optimizer.param_groups))
        phases.append(_Phase(start, stand_in, _nested_scheduler(fields, stand_in, plan, lr, end - start)))
    return phases


def _nested_scheduler(
    fields: Mapping[str, Any], stand_in: StandInOptimizer, plan: Plan, lr: float, span: int
) -> LRScheduler:
    """Build a scheduler inside another from its name and arguments. Raises UserError."""
    arguments = schedule_arguments(fields["name"], {key: value for key, value in fields.items() if key != "name"})
    return _scheduler(fields["name"], arguments, stand_in, plan, lr, span)


def _scheduler(
    name: str, arguments: dict[str, Any], stand_in: StandInOptimizer, plan: Plan, lr: float, span: int
) -> LRScheduler:
    """Build one of torch's schedulers over `span` updates. Raises UserError."""
    if name == "ChainedScheduler":
        nested = [_nested_scheduler(fields, stand_in, plan, lr, span) for fields in arguments["schedulers"]]
        return ChainedScheduler(nested, stand_in)
    kwargs = dict(arguments)
    for key, value in arguments.items():
        if isinstance(value, Length):
            kwargs[key] = _updates(name, plan.in_updates(value))
        elif key == "milestones":
            kwargs[key] = [_whole(plan.in_updates(length)) for length in value]
        elif key in ("lr_lambda", "scale_fn"):
            kwargs[key] = _functions(value, key, stand_in)
    if name == "StepLR" and isinstance(kwargs["step_size"], Fraction):
        # The steps fall between updates: rounded one by one to milestones, they do not drift.
        size = kwargs.pop("step_size")
        name, kwargs["milestones"] = "MultiStepLR", [_whole(n * size) for n in range(1, math.ceil(span / size) + 1)]
    elif name in ("PolynomialLR", "LinearLR"):
        kwargs.setdefault("total_iters", span)
    elif name == "CosineAnnealingLR":
        kwargs.setdefault("T_max", span)
    elif name in ("OneCycleLR", "CyclicLR"):
        kwargs.setdefault("max_lr", lr)
    if name == "OneCycleLR":
        kwargs["total_steps"] = span
    try:
        if name == "ConstantLR" and kwargs.get("factor") == 0:
            raise ValueError("a factor of 0 has no way back")
        if name == "CosineAnnealingWarmRestarts":
            return Restarts(stand_in, **kwargs)
        if name == "ReduceLROnPlateau":
            metric = kwargs.pop("metric")
            return ReduceLROnPlateau(stand_in, mode="min" if metric.endswith("loss") else "max", **kwargs)
        scheduler: LRScheduler = getattr(lr_scheduler, name)(stand_in, **kwargs)
        return scheduler
    except UserError:
        raise
    except ZeroDivisionError:
        why = "a phase of it has no update, or it divides by a factor of 0"
        raise UserError(f"schedule.args: {name} over {span} updates: {why}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"schedule.args: {name} over {span} updates: {error}") from None


def _updates(name: str, length: Fraction) -> int | float | Fraction:
    """Return a length in updates as the scheduler takes it: exact if it can be, else rounded up."""
    if name == "CosineAnnealingWarmRestarts" or (name == "StepLR" and length.denominator > 1):
        return length
    return float(length) if name == "CyclicLR" else _whole(length)


def _whole(length: Fraction) -> int:
    """Round up, to 1 at least: torch's schedulers take no length of 0."""
    return max(1, math.ceil(length))


def _functions(value: str | Sequence[str], name: str, stand_in: StandInOptimizer) -> Any:
    """Import a function by its path, or a list of them, one for each group. Raises UserError."""
    if isinstance(value, str):
        return rate_function(value, f"schedule.args.{name}")
    if len(value) != len(stand_in.param_groups):
        raise UserError(
            f"schedule.args.{name}: has {len(value)} functions for {len(stand_in.param_groups)} groups of parameters: "
            "give one for each, or one for all; `vit-dist plan` lists the groups"
        )
    return [rate_function(path, f"schedule.args.{name}") for path in value]
