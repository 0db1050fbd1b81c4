"""Decide `batch.micro_size auto`: the micro-batches with which this machine makes an update fastest, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from vit_dist.config.values import parse_size
from vit_dist.data.batch import Batch
from vit_dist.errors import UserError
from vit_dist.models.forward import at_least_float32
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.components import Components
from vit_dist.training.losses import Loss
from vit_dist.training.noise import noise_batch

_FIRST = 8  # the smallest size that is tried, if a process has more slots
_WINDOW, _WINDOWS = 0.2, 3  # least seconds that are timed at once, and how often
_LONG = 2.0  # seconds of a pass from which on larger sizes are not tried: what a pass costs at least is nothing then
_PART_OF_MEMORY = 0.9
# A size is passed over if its updates take so much longer than the fastest so far; two in a row end the search. Sizes
# as close to the fastest as this are as fast, and the smallest of them is taken, which needs less memory.
_SLOWER, _EQUAL = 1.1, 1.01


@dataclass(frozen=True)
class Trial:
    """A size, and the seconds of the passes, forward and backward, that a process makes in an update with it."""

    slots: int
    seconds: float


def decide_micro_size(components: Components, runtime: Runtime) -> Components:
    """Return the components with the size of micro-batches that `batch.micro_size auto` comes to on rank 0, and a note.

    Call it before the model is compiled or wrapped; model and generators are left as they were. Raises UserError where
    the size would change the result, and where not even the smallest fits into the memory.
    """
    if components.config.batch.micro_size != "auto":
        return components
    slots, note = runtime.run_on_main(lambda: list(_decide(components, runtime)))
    config = replace(components.config, batch=replace(components.config.batch, micro_size=slots))
    count = math.ceil(components.plan.global_size / slots)
    per_rank = math.ceil(count / components.plan.world_size)
    plan = replace(components.plan, micro_size=slots, micro_batches=count, micro_batches_per_rank=per_rank)
    return replace(components, config=config, plan=plan, notes=[*components.notes, note])


def candidates(plan: Plan) -> Iterator[int]:
    """Yield the sizes to try, from the smallest: powers of two, and all that a process has of a global batch."""
    share = max(2, 2 * math.ceil(plan.global_size / plan.world_size / 2))
    size = _FIRST
    while size < share:
        yield size
        size *= 2
    yield share


def fastest(trials: Sequence[Trial]) -> Trial:
    """Return the fastest of trials in rising order, or the smallest that is as fast."""
    best = min(trial.seconds for trial in trials)
    return next(trial for trial in trials if trial.seconds <= _EQUAL * best)


def _decide(components: Components, runtime: Runtime) -> tuple[int, str]:
    """Return the size, and in words what was found."""
    plan, model = components.plan, components.model
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    trials, ended = [], ""
    try:
        if _draws(components, runtime):
            raise UserError(
                "batch.micro_size: auto would change the result, since this model draws random numbers in each "
                "micro-batch (dropout): set a number"
            )
        for slots in candidates(plan):
            seconds = _seconds_of_pass(components, runtime, slots)
            if seconds is None:
                ended = f"; {slots:,} do not fit into {_PART_OF_MEMORY:.0%} of the memory"
                break
            passes = math.ceil(math.ceil(plan.global_size / slots) / plan.world_size)
            trials.append(Trial(slots, passes * seconds))
            slower = [trial.seconds > _SLOWER * fastest(trials).seconds for trial in trials[-2:]]
            if seconds > _LONG or (len(slower) > 1 and all(slower)):
                break
    finally:
        model.zero_grad()
        for buffer, before in buffers:
            buffer.copy_(before)
        runtime.restart_peak_memory()
    if not trials:
        raise UserError(
            f"batch.micro_size: not even {next(candidates(plan))} images fit into the memory: set a smaller model or "
            "data.image_size, or model.checkpoint_blocks true"
        )
    chosen = fastest(trials)
    images = plan.global_size / plan.world_size
    speeds = [(trial.slots, images / trial.seconds) for trial in trials]
    rates = [f"{slots:,}: {speed:,.0f}" if speed >= 100 else f"{slots:,}: {speed:.2g}" for slots, speed in speeds]
    where = f"{runtime.device_name}, {runtime.precision}"
    return chosen.slots, (
        f"batch.micro_size: {chosen.slots} is the fastest here ({where}; images/s forward and backward by size: "
        f"{', '.join(rates)}{ended}); a resumed run keeps it"
    )


def _draws(components: Components, runtime: Runtime) -> bool:
    """Return whether a forward pass and its loss take numbers from the default generators."""
    batch = _batch(components, runtime, 2)
    before = runtime.generator_states()
    with torch.no_grad():
        _loss(components, runtime, batch)
    return any(not torch.equal(a, b) for a, b in zip(before, runtime.generator_states(), strict=True))


def _seconds_of_pass(components: Components, runtime: Runtime, slots: int) -> float | None:
    """Return the least seconds of a forward and a backward pass; None if 90 % of the memory does not hold them."""
    limit = runtime.memory_for_all()
    runtime.restart_peak_memory()
    try:
        batch = _batch(components, runtime, slots)
        start = _now(runtime)
        _make_passes(components, runtime, batch, 1)
        first = _now(runtime) - start
        if limit is not None and runtime.reserved_memory() + _later_bytes(components) > _PART_OF_MEMORY * limit:
            return None
        count = max(1, math.ceil(_WINDOW / first))
        windows = []
        for _ in range(_WINDOWS if first < _LONG else 1):
            start = _now(runtime)
            _make_passes(components, runtime, batch, count)
            windows.append((_now(runtime) - start) / count)
            count = max(1, math.ceil(_WINDOW / windows[-1]))  # the first pass also chose kernels
    except torch.OutOfMemoryError:
        return None
    return min(windows)


def _now(runtime: Runtime) -> float:
    runtime.synchronize()
    return time.perf_counter()


def _make_passes(components: Components, runtime: Runtime, batch: Batch, count: int) -> None:
    for _ in range(count):
        with runtime.gradient_sync(components.model, last=True):
            _loss(components, runtime, batch).backward()  # type: ignore[no-untyped-call]


def _loss(components: Components, runtime: Runtime, batch: Batch) -> torch.Tensor:
    with runtime.autocast():
        outputs = components.model(*batch.inputs)
    assert isinstance(components.loss, Loss), "contrastive training needs a number: config/validation.py refuses auto"
    return components.loss(at_least_float32(outputs), batch).mean()


def _batch(components: Components, runtime: Runtime, slots: int) -> Batch:
    """Return a micro-batch of noise on the device, at the largest size of the run."""
    sizes = [parse_size(text)[0] for text in components.config.augment.sizes]
    side = max([components.preprocessing.image_size, *sizes])
    # Few images, repeated: what they show takes no time, and making them would.
    return noise_batch(components, runtime, slots, side, distinct=_FIRST)


def _later_bytes(components: Components) -> int:
    """Return the bytes that training needs beside a pass: two moments of each trained value, and the average."""
    model: nn.Module = components.model
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return trained * (3 if components.config.train.ema else 2)
