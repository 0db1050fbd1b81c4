"""Torch's learning rate schedulers: the arguments that each takes here, and their checks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, Union

from vit_dist.config.catalog import ALL_METRICS, PRESETS
from vit_dist.config.values import Length, coerce, describe
from vit_dist.errors import nearest

_FUNCTION = Union[tuple[str, ...], str]

_MOMENTUM = {"cycle_momentum": bool, "base_momentum": float, "max_momentum": float}


# Scheduler → argument → type: torch's own names, with lengths in place of counts of steps.
SCHEDULERS: dict[str, dict[str, Any]] = {
    "LambdaLR": {"lr_lambda": _FUNCTION},
    "MultiplicativeLR": {"lr_lambda": _FUNCTION},
    "StepLR": {"step_size": Length, "gamma": float},
    "MultiStepLR": {"milestones": tuple[Length, ...], "gamma": float},
    "ConstantLR": {"total_iters": Length, "factor": float},
    "LinearLR": {"total_iters": Length, "start_factor": float, "end_factor": float},
    "ExponentialLR": {"gamma": float},
    "PolynomialLR": {"total_iters": Length, "power": float},
    "CosineAnnealingLR": {"T_max": Length, "eta_min": float},
    "CosineAnnealingWarmRestarts": {"T_0": Length, "T_mult": int, "eta_min": float},
    "CyclicLR": {
        "base_lr": float,
        "max_lr": float,
        "step_size_up": Length,
        "step_size_down": Length,
        "mode": Literal["triangular", "triangular2", "exp_range"],
        "gamma": float,
        "scale_fn": str,
        "scale_mode": Literal["cycle", "iterations"],
        **_MOMENTUM,
    },
    "OneCycleLR": {
        "max_lr": float,
        "pct_start": float,
        "anneal_strategy": Literal["cos", "linear"],
        "div_factor": float,
        "final_div_factor": float,
        "three_phase": bool,
        **_MOMENTUM,
    },
    "ReduceLROnPlateau": {
        "metric": Literal[ALL_METRICS],
        "factor": float,
        "patience": int,
        "threshold": float,
        "threshold_mode": Literal["rel", "abs"],
        "cooldown": int,
        "min_lr": float,
        "eps": float,
    },
    "ChainedScheduler": {"schedulers": list},
    "SequentialLR": {"schedulers": list, "milestones": tuple[Length, ...]},
}


# Arguments without a default here. torch's default of five steps is of no use where steps are updates; the lengths of
# PolynomialLR, LinearLR and CosineAnnealingLR default to what is left of the run.
_REQUIRED = {
    "LambdaLR": ("lr_lambda",),
    "MultiplicativeLR": ("lr_lambda",),
    "StepLR": ("step_size",),
    "MultiStepLR": ("milestones",),
    "ConstantLR": ("total_iters",),
    "ExponentialLR": ("gamma",),
    "CosineAnnealingWarmRestarts": ("T_0",),
    "CyclicLR": ("base_lr", "step_size_up"),
    "ReduceLROnPlateau": ("metric",),
    "ChainedScheduler": ("schedulers",),
    "SequentialLR": ("schedulers", "milestones"),
}

_FUNCTIONS = ("lr_lambda", "scale_fn")

_FROM_THE_PLAN = ("total_steps", "epochs", "steps_per_epoch", "last_epoch")

_NOT_INSIDE = ("ReduceLROnPlateau", "ChainedScheduler", "SequentialLR")


def schedule_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked arguments of a scheduler with their types; lengths as `Length`."""
    return {key: value if kind is list else coerce(value, kind) for key, value, kind in _known(name, arguments)}


def schedule_problems(
    name: str, arguments: Mapping[str, Any], where: str = "schedule", known: Collection[str] = (*PRESETS, *SCHEDULERS)
) -> Iterator[str]:
    """Yield what is wrong with a schedule's name and arguments, a line each that begins with `where`."""
    if name in PRESETS:
        if arguments:
            yield f"{where}.args: only for torch's schedulers; {name} has its own fields instead"
        return
    if name not in SCHEDULERS:
        yield f"{where}.name: no schedule {name}{nearest(name, known)}"
        return
    takes = SCHEDULERS[name]
    for key in arguments:
        if key in _FROM_THE_PLAN and key not in takes:
            yield f"{where}.args.{key}: comes from the run's length: leave it out"
        elif key not in takes:
            yield f"{where}.args.{key}: {name} takes no {key}{nearest(str(key), takes)}"
    for key in _REQUIRED.get(name, ()):
        if key not in arguments:
            kind = takes[key]
            yield f"{where}.args.{key}: {name} needs it: {'a list' if kind is list else describe(kind)}"
    for key, value, kind in _known(name, arguments):
        if kind is list:
            yield from _inner_problems(name, value, f"{where}.args.{key}")
            continue
        try:
            typed = coerce(value, kind)
        except ValueError:
            yield f"{where}.args.{key}: must be {describe(kind)}, not {value!r}"
            continue
        lengths = typed if isinstance(typed, tuple) else (typed,)
        if any(isinstance(length, Length) and length.amount == 0 for length in lengths):
            yield f"{where}.args.{key}: must be above 0, not {value!r}"
        if isinstance(typed, (int, float)) and typed < 0:
            yield f"{where}.args.{key}: must be 0 or more, not {value!r}"
        if key in _FUNCTIONS and not all(":" in path for path in ([typed] if isinstance(typed, str) else typed)):
            yield f"{where}.args.{key}: must be package.module:function, not {value!r}"
    if name == "SequentialLR" and all(isinstance(arguments.get(key), (list, tuple)) for key in takes):
        parts, milestones = len(arguments["schedulers"]), len(arguments["milestones"])
        if milestones != parts - 1:
            yield f"{where}.args.milestones: {parts} schedulers have {max(0, parts - 1)} between them, not {milestones}"


def _known(name: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, value and type of the arguments that the scheduler takes."""
    takes = SCHEDULERS.get(name, {})
    for key, value in arguments.items():
        if key in takes:
            yield key, value, takes[key]


def _inner_problems(name: str, schedulers: Any, where: str) -> Iterator[str]:
    """Check the schedulers inside another one, each a mapping of its name and arguments."""
    if not isinstance(schedulers, (list, tuple)) or not schedulers:
        yield f"{where}: must be a list, as [{{name: StepLR, step_size: 30 epochs}}], not {schedulers!r}"
        return
    for number, scheduler in enumerate(schedulers):
        here = f"{where}[{number}]"
        if not isinstance(scheduler, Mapping) or not isinstance(scheduler.get("name"), str):
            yield f"{here}: must be a scheduler's name and arguments, as {{name: StepLR, step_size: 30 epochs}}"
        elif scheduler["name"] in _NOT_INSIDE or scheduler["name"] in PRESETS:
            instead = ": use CosineAnnealingLR" if scheduler["name"] == "cosine" else ""
            yield f"{here}: {scheduler['name']} cannot be inside {name}{instead}"
        else:
            inner = {key: value for key, value in scheduler.items() if key != "name"}
            known = [other for other in SCHEDULERS if other not in _NOT_INSIDE]
            for problem in schedule_problems(scheduler["name"], inner, here, known):
                yield problem.replace(f"{here}.args.", f"{here}.")
