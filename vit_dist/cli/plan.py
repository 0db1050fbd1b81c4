"""The `plan` command: show what `train` would do, without training: numbers, memory, learning rate, time."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vit_dist.config.config import Config
from vit_dist.data.sources.survey import survey
from vit_dist.errors import UserError
from vit_dist.formatting import duration, size_text, sketch
from vit_dist.models.build import drop_path_depth
from vit_dist.models.contrastive_loss import block_elements
from vit_dist.models.pretrained import timm_weights_are_here
from vit_dist.optim.rate_curve import rate_curve
from vit_dist.plan.plan import Plan
from vit_dist.runtime.devices import available_cores, resolve_device, resolve_precision
from vit_dist.sizing.memory import Memory, estimate, pair_bytes, total_bytes
from vit_dist.telemetry.console import Console
from vit_dist.training.advice import advice, precision_advice
from vit_dist.training.components import Components, build_components
from vit_dist.training.overview import choice_lines, idle_notes, plan_rows
from vit_dist.training.resolve import Resolved, find_start, resolve
from vit_dist.training.resume import ResumePoint, resumed_state, start_text

# Seconds of updates that are timed, and the share of them spent waiting above which the data is too slow.
_MEASURED, _WAITS = 10.0, 0.1


def show_plan(
    config: Config,
    console: Console,
    *,
    processes: int = 1,
    picture: Path | None = None,
    measure: bool = False,
    trust_code: bool = False,
    command: str = "",
) -> None:
    """Print the plan of a config on `processes` processes. Nothing is written but the picture.

    command: the one that trains it, to be shown.

    picture: PNG of the learning rate. measure: time a few updates on this machine. trust_code: run a function that the
    run of the config's teacher names as its model. Raises UserError for everything that `train` refuses.
    """
    if picture is not None:
        _check_picture(picture)
    if measure and processes > 1:
        raise UserError("--measure: times one process: drop --processes, or time a short run under the launcher")
    device = resolve_device(config.run.device)
    resolved, resume = find_start(resolve(config))
    config = resolved.config
    precision = resolve_precision(resume.precision(config), config.run.device)
    components = _build(resolved, resume, processes, trust_code=trust_code)
    plan = components.plan
    state = resumed_state(resume, plan)
    if resume.checkpoint is not None and not resume.finished:
        resume.checkpoint.check_fits(components.model, components.optimizer)
    rates = rate_curve(components.schedule, plan)
    memory = _estimate_memory(components, precision, device)
    console.say(f"plan of {config.folder.name if config.run.dir else config.run.name}: {start_text(resume, plan)}")
    rows = {
        **plan_rows(components),
        "machine": _machine_text(config, processes, device, precision),
        "memory": _memory_text(memory, plan),
        "folder": str(config.folder),
    }
    console.table(rows)
    for line in choice_lines(resolved.choices):
        console.say(line)
    known = [*resolved.notes, *resume.notes, *components.notes, *survey(components.data).notes]
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    if config.batch.micro_size == "auto":
        known.append(f"batch.micro_size: auto is measured when the run begins; this shows it with {plan.micro_size}")
    known += [*advice(config, components.data), *precision_advice(config, precision)]
    for note in [*known, *idle_notes(plan, gpus)]:
        console.say(f"  note: {note}")
    console.say("parameters")
    groups = components.optimizer.param_groups
    console.table(_group_rows(groups, components.lr))
    _show_rates(config, components, rates, console)
    if picture is not None:
        _draw_rates(picture, components, rates)
        console.say(f"picture: {picture}")
    if command:
        console.say(f"to train: {command}" + ("" if measure else "; to see how long it takes: plan --measure"))
    if measure:
        _show_speed(resolved, resume, state.position, console, trust_code=trust_code)


def train_command(words: Sequence[str]) -> str:
    """Return the command that trains what `plan` with these words shows."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        flag, equals, _ = word.partition("=")
        if flag not in ("--processes", "--png", "--measure"):
            kept.append(word)
        elif flag != "--measure" and not equals:
            next(rest, None)
    return shlex.join(["vit-dist", "train", *kept])


def _build(resolved: Resolved, resume: ResumePoint, processes: int, *, trust_code: bool) -> Components:
    """Build the parts of the run on the CPU, as `train` does. No weights are downloaded. Raises UserError."""
    named = resolved.config.model
    begins = resume.checkpoint is None
    here = named.pretrained != "timm" or not begins or timm_weights_are_here(named.name)
    components = build_components(
        resolved.config,
        world_size=processes,
        device=torch.device("cpu"),
        autocast=contextlib.nullcontext,
        source=resolved.data,
        load_pretrained=begins and here,
        preprocessing=resume.checkpoint.state.preprocessing if resume.checkpoint else None,
        trust_code=trust_code,
    )
    if not here:
        components.notes.append("model.pretrained: train downloads timm's weights first")
    return components


def _machine_text(config: Config, processes: int, device: str, precision: str) -> str:
    """Return the device of each process, the precision and the threads in words, as a run's overview has them."""
    name = torch.cuda.get_device_name() if device == "cuda" else device
    threads = max(1, available_cores() // processes) if config.run.threads == "auto" else config.run.threads
    return f"{processes} × {name}, {precision}, {threads} thread{'s' if threads > 1 else ''} per process"


def _show_rates(config: Config, components: Components, rates: Sequence[float], console: Console) -> None:
    """Print the curve of the learning rate."""
    plan = components.plan
    over = f"{plan.epochs:.4g} epochs" if len(rates) == plan.updates else f"the first {len(rates):,} updates"
    console.say(f"rate over {over}: first {rates[0]:.3g}, highest {max(rates):.3g}, last {rates[-1]:.3g}")
    if config.schedule.name == "ReduceLROnPlateau":
        console.say(
            f"  note: it falls where {config.schedule.args['metric']} does not improve, which is not known in advance"
        )
    for line in sketch(rates):
        console.say(line)


def _check_picture(path: Path) -> None:
    """Check that a picture may be written: to a new file, or over one of an earlier plan. Raises UserError."""
    if path.is_dir():
        raise UserError(f"--png {path}: cannot be written: Is a directory: name another file")
    if not path.exists():
        return
    from vit_dist.report.curves import is_rate_picture

    if not is_rate_picture(path):
        raise UserError(f"--png: {path} is there, and is no picture of a plan: name another file")


def _draw_rates(path: Path, components: Components, rates: Sequence[float]) -> None:
    """Draw the curve of the learning rate into a PNG. Raises UserError."""
    from vit_dist.report.curves import draw_rates

    plan, schedule = components.plan, components.config.schedule
    epochs = [plan.samples_at(update) / plan.samples for update in range(len(rates))]
    try:
        draw_rates(path, epochs, rates, f"{schedule.name}, peak {components.lr:.3g}")
    except OSError as error:
        raise UserError(f"--png {path}: cannot be written: {error.strerror}: name another file") from None


def _show_speed(resolved: Resolved, resume: ResumePoint, position: int, console: Console, *, trust_code: bool) -> None:
    """Time some updates on this machine, and print how long the run takes. Raises UserError."""
    from vit_dist.runtime.runtime import Runtime
    from vit_dist.training.micro_size import decide_micro_size
    from vit_dist.training.speed import measure_speed

    config = resolved.config
    runtime = Runtime(config.run, resume.precision(config))
    try:
        components = build_components(
            config,
            world_size=1,
            device=runtime.device,
            autocast=runtime.autocast,
            source=resolved.data,
            load_pretrained=False,  # other weights take as long
            preprocessing=resume.checkpoint.state.preprocessing if resume.checkpoint else None,
            trust_code=trust_code,
        )
        components = decide_micro_size(components, runtime)
        speed = measure_speed(components, runtime, _MEASURED)
    finally:
        runtime.end()
    if config.batch.micro_size == "auto":
        console.say(components.notes[-1])
    plan = components.plan
    position = plan.updates if resume.finished else position
    training, evaluating = speed.training_seconds(plan, position), speed.evaluating_seconds(plan, position)
    rest = f" from update {position}" if position else ""
    whole = {
        "run": f"about {duration(training + evaluating)}{rest}: training {duration(training)}, "
        f"evaluation {duration(evaluating)}; saving and the report not counted"
    }
    console.say(f"measured over {speed.updates} updates on {runtime.device_name}, {runtime.precision}")
    console.table(
        {
            "update": f"{speed.update_seconds:.3g} s, {speed.samples_per_second:,.0f} images/s",
            "epoch": duration(plan.samples / speed.samples_per_second),
            **{f"{name} once": duration(value) for name, value in speed.passes.items()},
            **({} if resume.finished else whole),
            "bound by": _bound_text(speed.waiting),
            "memory": f"{size_text(speed.memory)} at most, "
            + ("on the GPU" if runtime.device.type == "cuda" else "of the whole process"),
        }
    )


def _bound_text(waiting: float) -> str:
    """Return what the time of an update goes to. waiting: the share of it in which images are waited for."""
    if waiting < _WAITS:
        return f"computing: images are waited for {waiting:.0%} of the time"
    return (
        f"reading images: they are waited for {waiting:.0%} of the time; more data.workers, smaller files or a faster "
        "disk may help"
    )


def _estimate_memory(components: Components, precision: str, device: str) -> Memory:
    """Estimate the memory of one process, the teacher's weights included."""
    model, teacher = components.model, components.loss.teacher
    side = components.preprocessing.image_size
    image = (components.data.channels, side, side)
    memory = estimate(model, components.optimizer, components.config, image, drop_path_depth(model), precision)
    if components.config.contrastive:
        plan, text = components.plan, components.config.text
        own = plan.micro_batches_per_rank * plan.micro_size
        block, everyone = block_elements(device), own * plan.world_size
        pairs = pair_bytes(own, everyone, text.embed_dim, image, text.context_length, block)
        memory = replace(memory, pairs=pairs)
    if teacher is None:
        return memory
    return replace(memory, weights=memory.weights + total_bytes([*teacher.parameters(), *teacher.buffers()]))


def _memory_text(memory: Memory, plan: Plan) -> str:
    """Return the memory of one process in words, in total and by part."""
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "average": memory.average,
        f"activations of {plan.micro_size} slots": memory.activations,
        f"pairs of {plan.global_size} samples": memory.pairs,
    }
    listed = ", ".join(f"{name} {_size(value)}" for name, value in parts.items() if value)
    return f"about {_size(memory.total)} per process, on top of what Python, torch and the device need: {listed}"


def _group_rows(groups: Sequence[Mapping[str, Any]], lr: float) -> dict[str, str]:
    """Return name → size, weight decay and peak rate of the groups of parameters; those of several layers together."""
    together: dict[str, list[Mapping[str, Any]]] = {}
    for group in groups:
        together.setdefault(re.sub(r", (image |text )?layer \d+", "", group["name"]), []).append(group)
    rows = {}
    for name, parts in together.items():
        tensors = [parameter for part in parts for parameter in part["params"]]
        count = sum(parameter.numel() for parameter in tensors)
        rates = [lr * scale for scale in sorted({part["scale"] for part in parts})]
        rising = f" to {rates[-1]:.4g}, higher from layer to layer" if len(rates) > 1 else ""
        number = f"{len(tensors)} tensor{'s' if len(tensors) > 1 else ''}"
        decay = f"weight decay {parts[0]['weight_decay']:g}"
        rows[name] = f"{number}, {count:,} values, {decay}, peak rate {rates[0]:.4g}{rising}"
    return rows


def _size(value: int) -> str:
    """Return bytes in MiB or GiB."""
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
