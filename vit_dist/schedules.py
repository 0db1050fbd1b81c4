"""The learning rate: one of torch's schedulers, stepped once for each update that was applied."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vit_dist.config import ScheduleConfig
from vit_dist.plan import Plan


def build_schedule(config: ScheduleConfig, optimizer: Optimizer, plan: Plan) -> LambdaLR:
    """The scheduler over a plan; its whole state is the number of updates applied."""
    return LambdaLR(optimizer, partial(factor, config=config, plan=plan))


def factor(update: int, *, config: ScheduleConfig, plan: Plan) -> float:
    """The fraction of the peak rate that update number `update` (from 0) is made with.

    Warmup: linear, 1/warmup at update 0, 1 at update warmup-1. cosine: half a cosine from there to
    `cooldown_end` at the run's end (Loshchilov and Hutter, "SGDR", 2017). wsd: stable, then linear to
    `cooldown_end` (Zhai et al., "Scaling Vision Transformers", 2022). constant: stable.
    """
    if update < plan.warmup:
        return (update + 1) / plan.warmup
    if config.name == "constant":
        return 1.0
    if config.name == "cosine":
        done = (update - plan.warmup) / max(1, plan.updates - plan.warmup)
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    else:
        share = min(1.0, max(0, plan.updates - update) / max(1, plan.cooldown))
    return config.cooldown_end + (1 - config.cooldown_end) * share
