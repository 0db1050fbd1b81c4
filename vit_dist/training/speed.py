"""Measure how fast this machine trains a run, by a few real updates that leave no trace."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice

from vit_dist.checkpointing.state import TrainState
from vit_dist.data.stream import EvaluationStream, Stream
from vit_dist.models.forward import at_least_float32, eval_mode
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.components import Components
from vit_dist.training.setup import build_updater
from vit_dist.training.streams import build_streams
from vit_dist.training.update import Updater

# Updates that are not timed: the first ones choose kernels and fill buffers. And the bounds of what is timed.
_WARM_UP, _MOST_UPDATES, _MOST_BATCHES = 3, 100, 20


@dataclass(frozen=True)
class Speed:
    """How fast a run trains.

    updates: how many were timed. update_seconds, samples_per_second: of training. waiting: the share of that time in
    which images were waited for, 0 to 1. passes: split → seconds of one evaluation. memory: peak bytes so far, as
    `Runtime.peak_memory_bytes` counts them.
    """

    updates: int
    update_seconds: float
    samples_per_second: float
    waiting: float
    passes: dict[str, float]
    memory: int

    def training_seconds(self, plan: Plan, position: int) -> float:
        """Return the seconds of the updates after `position`."""
        return (plan.samples_at(plan.updates) - plan.samples_at(position)) / self.samples_per_second

    def evaluating_seconds(self, plan: Plan, position: int) -> float:
        """Return the seconds of the evaluations after `position`: of val at each interval, of test at the end."""
        done, whole = divmod(plan.total_samples, plan.evaluate_every)
        count = done + bool(whole) - plan.samples_at(position) // plan.evaluate_every
        return count * self.passes.get("val", 0.0) + self.passes.get("test", 0.0)


def measure_speed(components: Components, runtime: Runtime, seconds: float) -> Speed:
    """Make updates, and batches of evaluations, for about so many seconds. The components' model and optimizer change.

    The images have the run's final size: with `augment.sizes` it trains faster until then. Raises UserError.
    """
    plan = components.plan
    first = plan.sizes[-1][0] if plan.sizes and plan.sizes[-1][0] < plan.updates else 0
    updater = build_updater(components, TrainState(position=first), None, runtime)
    stream, evaluations = build_streams(components, runtime)
    try:
        _make_updates(updater, stream, plan, min(_WARM_UP, plan.updates - first - 1), seconds)
        before, start, waited = updater.state.position, _now(runtime), stream.wait_seconds
        # In two halves: in the first, workers may be ahead by what they have read since they started.
        _make_updates(updater, stream, plan, _MOST_UPDATES // 2, seconds / 2)
        if updater.state.position < plan.updates:
            before, start, waited = updater.state.position, _now(runtime), stream.wait_seconds
            _make_updates(updater, stream, plan, _MOST_UPDATES // 2, seconds / 2)
        took, count = _now(runtime) - start, updater.state.position - before
        waiting = (stream.wait_seconds - waited) / took
        passes = {
            name: _pass_seconds(components, evaluation, runtime, seconds / 4)
            for name, evaluation in evaluations.items()
        }
    finally:
        stream.close()
        for evaluation in evaluations.values():
            evaluation.close()
    samples = plan.samples_at(updater.state.position) - plan.samples_at(before)
    weights = 2 if updater.average is not None else 1
    return Speed(
        updates=count,
        update_seconds=took / count,
        samples_per_second=samples / took,
        waiting=waiting,
        passes={name: weights * value for name, value in passes.items()},
        memory=runtime.peak_memory_bytes(),
    )


def _now(runtime: Runtime) -> float:
    """Return the time once the device has done what it was given."""
    runtime.synchronize()
    return time.perf_counter()


def _make_updates(updater: Updater, stream: Stream, plan: Plan, count: int, seconds: float) -> None:
    """Make at most `count` updates, until the seconds are over or the run is; one at least if count is above 0."""
    state, end = updater.state, time.perf_counter() + seconds
    last = min(state.position + count, plan.updates)
    while state.position < last:
        updater.update(stream.window(state.position), plan.micro_batches_per_rank, plan.weight(state.position))
        if time.perf_counter() > end:
            return


def _pass_seconds(components: Components, stream: EvaluationStream, runtime: Runtime, seconds: float) -> float:
    """Return the seconds of one evaluation of a split, from those of its first batches."""
    start, end, images = _now(runtime), time.perf_counter() + seconds, 0
    with eval_mode(components.model):
        for pixels, _, weights, _ in islice(stream, _MOST_BATCHES):
            at_least_float32(components.model(pixels)).sum()
            images += int((weights > 0).sum().item())
            if time.perf_counter() > end:
                break
    return (_now(runtime) - start) * stream.length / max(images, 1)
