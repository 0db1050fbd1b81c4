"""The learning rate of a whole run, known before it begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch.optim import Optimizer

from vit_dist.config.fields import ScheduleConfig
from vit_dist.optim.rate_functions import uses_functions
from vit_dist.optim.schedules import Schedule
from vit_dist.plan.plan import Plan

LONGEST_CURVE = 1_000_000  # updates; a step of torch's schedulers takes some 15 µs


def rate_curve(schedule: Schedule, plan: Plan) -> list[float]:
    """Return the full rate of each update if all are applied; with a plateau schedule, if its metric always improves.

    Steps the schedule to its end, or over the first million updates. Raises UserError for a rate that cannot be.
    """
    rates = []
    for update in range(min(plan.updates, LONGEST_CURVE)):
        if update:
            schedule.step()
        rates.append(schedule.rate)
    return rates


def check_user_rates(config: ScheduleConfig, optimizer: Optimizer, plan: Plan, lr: float) -> None:
    """Check the rates of a schedule that the user's own functions make, over the whole run. Raises UserError."""
    if uses_functions(config.args):
        stand_in: Any = SimpleNamespace(param_groups=[dict(group) for group in optimizer.param_groups])
        rate_curve(Schedule(config, stand_in, plan, lr), plan)
