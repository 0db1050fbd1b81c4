"""The `plan` command: show a run's numbers, memory and learning rate without training."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vit_dist.config.config import Config
from vit_dist.data.sources.survey import survey
from vit_dist.errors import UserError
from vit_dist.files import check_place
from vit_dist.formatting import sketch
from vit_dist.models.build import drop_path_depth
from vit_dist.optim.rate_curve import rate_curve
from vit_dist.plan.plan import Plan
from vit_dist.report.curves import draw_rates
from vit_dist.runtime.devices import resolve_precision
from vit_dist.sizing.memory import Memory, estimate, total_bytes
from vit_dist.telemetry.console import Console
from vit_dist.training.components import Components, build_components
from vit_dist.training.overview import augment_notes, plan_rows
from vit_dist.training.resolve import resolve
from vit_dist.training.resume import find_resume_point


def show_plan(config: Config, console: Console, *, processes: int, picture: Path, trust_code: bool = False) -> None:
    """Print the plan of a config on `processes` processes, and draw its learning rate into a PNG.

    trust_code: run a function that the run of the config's teacher names as its model.
    Raises UserError for everything that `train` refuses, except what depends on the machine, the
    network or what is in the run's folder.
    """
    resolved = resolve(config)
    config = resolved.config
    check_place(config.folder, "run.dir" if config.run.dir else "run.name")
    if config.run.resume not in ("auto", "never"):
        find_resume_point(config, resolved.data, resolved.samples)
    components = build_components(
        config,
        world_size=processes,
        device=torch.device("cpu"),
        autocast=contextlib.nullcontext,
        source=resolved.data,
        load_pretrained=config.model.pretrained != "timm",  # a plan downloads no weights
        trust_code=trust_code,
    )
    plan = components.plan
    rates = rate_curve(components.schedule, plan)
    precision = resolve_precision(config.train.precision, config.run.device)
    console.say(f"plan of {config.run.name or config.folder.name}, on {processes} × {precision}")
    console.table({**plan_rows(components), "memory": _memory_text(_estimate_memory(components, precision), plan)})
    for note in [*components.notes, *survey(components.data).notes, *augment_notes(config, components.data)]:
        console.say(f"  note: {note}")
    console.say("parameters")
    groups = components.optimizer.param_groups
    console.table({group["name"]: _group_text(group, components.lr) for group in groups})
    _show_rates(config, components, rates, console, picture)


def _show_rates(
    config: Config, components: Components, rates: Sequence[float], console: Console, picture: Path
) -> None:
    """Print the curve of the learning rate and draw it into a PNG. Raises UserError."""
    plan = components.plan
    over = f"{plan.epochs:.4g} epochs" if len(rates) == plan.updates else f"the first {len(rates):,} updates"
    console.say(f"rate over {over}: first {rates[0]:.3g}, highest {max(rates):.3g}, last {rates[-1]:.3g}")
    if config.schedule.name == "ReduceLROnPlateau":
        console.say(
            f"  note: it falls where {config.schedule.args['metric']} does not improve, which is not known in advance"
        )
    for line in sketch(rates):
        console.say(line)
    epochs = [plan.samples_at(update) / plan.samples for update in range(len(rates))]
    try:
        draw_rates(picture, epochs, rates, f"{config.schedule.name}, peak {components.lr:.3g}")
    except OSError as error:
        raise UserError(f"--png {picture}: cannot be written: {error.strerror}: name another file") from None
    console.say(f"picture: {picture}")


def _estimate_memory(components: Components, precision: str) -> Memory:
    """Estimate the memory of one process, the teacher's weights included."""
    model, teacher = components.model, components.loss.teacher
    side = components.preprocessing.image_size
    image = (components.data.channels, side, side)
    memory = estimate(model, components.optimizer, components.config, image, drop_path_depth(model), precision)
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
    }
    listed = ", ".join(f"{name} {_size(value)}" for name, value in parts.items() if value)
    return f"about {_size(memory.total)} per process, on top of what Python, torch and the device need: {listed}"


def _group_text(group: dict[str, object], lr: float) -> str:
    """Return the size, weight decay and peak rate of a parameter group in words."""
    tensors = group["params"]
    assert isinstance(tensors, list)
    count = sum(parameter.numel() for parameter in tensors)
    scale = group["scale"]
    assert isinstance(scale, float)
    return (
        f"{len(tensors)} tensors, {count:,} values, weight decay {group['weight_decay']:g}, peak rate {lr * scale:.4g}"
    )


def _size(value: int) -> str:
    """Return bytes in MiB or GiB."""
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
