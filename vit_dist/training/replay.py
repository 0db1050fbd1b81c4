"""Repeat the update at which a run failed, from the last checkpoint before it; nothing is written."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from vit_dist.checkpointing.checkpoint import Checkpoint, open_whole
from vit_dist.checkpointing.folder import list_checkpoints
from vit_dist.checkpointing.manifest import DamagedCheckpointError
from vit_dist.config.config import Config
from vit_dist.config.recipe import read_yaml
from vit_dist.data.stream import EvaluationStream, Stream
from vit_dist.errors import UserError, visible
from vit_dist.files import read_json
from vit_dist.formatting import loss_text
from vit_dist.inference.evaluation import evaluate
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.console import Console
from vit_dist.training.bad_update import BAD_UPDATE, measure_update, what_is_wrong
from vit_dist.training.components import Components, build_components
from vit_dist.training.identity import check_same_data, compare
from vit_dist.training.model_selection import value_of, weights_of
from vit_dist.training.resolve import resolve
from vit_dist.training.resume import ResumePoint, resumed_state
from vit_dist.training.setup import build_updater
from vit_dist.training.streams import build_streams
from vit_dist.training.update import Updater

# Samples that are shown.
_SHOWN = 6


def replay(
    config: Config,
    model: nn.Module | None = None,
    source: Any = None,
    *,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Compute the update in the run's bad_update.json again, and print its losses and gradient norms.

    Updates between the last whole checkpoint before it, or the start, and the bad one are made again. The arguments
    are those of `train`. Return the numbers as bad_update.json has them. Raises UserError.
    """
    runtime = Runtime(config.run, None)
    console = Console(speaks=runtime.is_main, level=config.log.level, may_fail=True)
    # A launcher that has lost a process asks the others to stop: they first find out why.
    signals = runtime.flags.on_signals() if runtime.world_size > 1 else contextlib.nullcontext()
    runtime.flags.raises = True
    try:
        with signals, runtime.together():
            return _replay(config, runtime, console, model, source, trust_code=trust_code)
    finally:
        runtime.end()


def _replay(
    config: Config, runtime: Runtime, console: Console, model: nn.Module | None, source: Any, *, trust_code: bool
) -> dict[str, Any]:
    """Compute the update again, print its numbers and return them."""
    resolved = resolve(config, source, runtime)
    config, data, folder = resolved.config, resolved.data, resolved.config.folder
    recorded = _recorded(config)
    position = recorded["update"] - 1
    checkpoint = _newest_before(config, position)
    runtime.use_precision(recorded["precision"], config.run.device)
    components = build_components(
        config,
        world_size=runtime.world_size,
        device=runtime.device,
        autocast=runtime.autocast,
        model=model,
        source=data,
        load_pretrained=checkpoint is None,
        preprocessing=checkpoint.state.preprocessing if checkpoint else None,
        trust_code=trust_code,
    )
    if checkpoint is not None:
        check_same_data(checkpoint, data, resolved.samples)
    state = resumed_state(ResumePoint(checkpoint, True), components.plan)
    again = position - state.position
    updater = build_updater(components, state, checkpoint, runtime)
    stream, evaluation_streams = build_streams(components, runtime)
    try:
        _repeat_updates(components, updater, stream, evaluation_streams.get("val"), position)
        numbers = measure_update(updater, stream, components.plan, components.model, position)
        rate = updater.schedule.rate
    finally:
        stream.close()
        for evaluation_stream in evaluation_streams.values():
            evaluation_stream.close()
    start = checkpoint.path.relative_to(folder) if checkpoint is not None else "the start"
    content = {"lr": rate, **numbers.to_dict(components.data.splits["train"])}
    console.say(f"update {position + 1} of {folder}, from {start} (updates made again: {again})")
    console.table(_rows(content, recorded))
    return content


def _recorded(config: Config) -> dict[str, Any]:
    """Return the content of the run's bad_update.json. Raises UserError without one, or for another config."""
    path = config.folder / BAD_UPDATE
    if not path.is_file():
        raise UserError(f"{path}: is not there: --replay takes the flags of a run that failed on its numbers")
    try:
        content = read_json(path)
        update, precision = content["update"], content["precision"]
        losses = [float(sample["loss"]) for sample in content["samples"]]
        norms = [float(norm) for norm in content["grad_norms"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        losses = norms = []
    if not losses or not norms or type(update) is not int or update < 1 or precision not in ("fp32", "bf16", "fp16"):
        raise UserError(f"{path}: broken: train again, and it is written anew")
    before = Config.from_dict(read_yaml(config.folder / "config.yaml"))
    compare(before, config, config.folder)
    return content


def _newest_before(config: Config, position: int) -> Checkpoint | None:
    """Return the newest whole checkpoint of at most `position` updates; None without one. Raises UserError."""
    for path in reversed(list_checkpoints(config.folder / "checkpoints")):
        if int(path.name.removeprefix("update_")) <= position:
            try:
                return open_whole(path)
            except DamagedCheckpointError:
                continue
    return None


def _repeat_updates(
    components: Components, updater: Updater, stream: Stream, val: EvaluationStream | None, position: int
) -> None:
    """Make the updates up to `position` again, with the evaluations that the schedule follows."""
    plan, state, metric = components.plan, updater.state, updater.schedule.metric
    while state.position < position:
        updater.update(stream.window(state.position), plan.micro_batches_per_rank, plan.weight(state.position))
        if metric is not None and val is not None and plan.due(state.position, plan.evaluate_every):
            updater.finish_previous()
            weights = weights_of(metric, {"ema": {}} if updater.average is not None else {})
            if weights == "ema" and updater.average is not None:
                with updater.average.swapped():
                    result = evaluate(components.model, val, val.length, updater.runtime)
            else:
                result = evaluate(components.model, val, val.length, updater.runtime)
            updater.schedule.evaluated({metric: value_of(metric, {weights: result.to_dict()})})
    updater.finish_previous()


def _rows(content: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, str]:
    """Return what is printed: names and values."""
    samples = content["samples"]
    # Those that are not finite first, then the highest.
    order = sorted(samples, key=lambda sample: -float(sample["loss"]) if _is_finite(sample["loss"]) else -math.inf)
    shown = [f"{sample['name']} {loss_text(sample['loss'])}" for sample in order[:_SHOWN]]
    norms = [f"{name} {_number(norm)}" for name, norm in content["grad_norms"].items()]
    return {
        "found": what_is_wrong(content),
        "rate": f"{content['lr']:.3g}",
        "loss": loss_text(content["loss"]),
        "grad norm": f"{_number(content['grad_norm'])}: {', '.join(norms)}",
        "samples": visible(", ".join(shown)) + (f" and {len(order) - _SHOWN} lower" if len(order) > _SHOWN else ""),
        "recorded": _comparison(content, recorded),
    }


def _comparison(content: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    """Return in words whether these are the recorded numbers."""
    now, then = (
        [*(sample["loss"] for sample in each["samples"]), *each["grad_norms"].values()] for each in (content, recorded)
    )
    if now == then:
        return "the same numbers"
    if list(map(_is_finite, now)) != list(map(_is_finite, then)):
        return f"other numbers: {what_is_wrong(recorded)}"
    pairs = [(one, other) for one, other in zip(now, then, strict=True) if _is_finite(one)]
    largest = max((abs(one - other) / max(abs(other), 1e-30) for one, other in pairs), default=0.0)
    return f"the same up to a relative difference of {largest:.1e}"


def _is_finite(value: float | str) -> bool:
    return not isinstance(value, str)


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
