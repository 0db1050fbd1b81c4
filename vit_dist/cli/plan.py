"""What a config would do, without doing it: the run's numbers, its memory, the curve of its rate."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import torch

from vit_dist.config.config import Config
from vit_dist.data.augmentation.transforms import training_transform
from vit_dist.data.preprocessing import resolve_preprocessing
from vit_dist.data.sources.open import open_data
from vit_dist.errors import UserError
from vit_dist.formatting import sketch
from vit_dist.models.build import drop_path_depth
from vit_dist.models.forward import forward_flops, parameter_count
from vit_dist.optim.optimizers import build_optimizer, peak_lr
from vit_dist.optim.schedules import Schedule
from vit_dist.plan.plan import Plan
from vit_dist.report.curves import draw_rates
from vit_dist.runtime.devices import resolve_precision
from vit_dist.sizing.memory import Memory, estimate, total_bytes
from vit_dist.telemetry.console import Console
from vit_dist.training.components import build_loss, own_model, refuse_metrics
from vit_dist.training.overview import augment_notes, plan_rows


def show_plan(config: Config, console: Console, *, processes: int, picture: Path) -> None:
    """Prints the plan of a config on so many processes, and draws its rate there and into a PNG. Raises UserError."""
    data = open_data(config.data)
    preprocessing = resolve_preprocessing(config, data)
    plan = Plan.from_config(config, len(data.splits["train"]), processes)
    refuse_metrics(config, data)
    training_transform(config.augment, preprocessing.mean, preprocessing.image_size, None)
    model, notes = own_model(config, data, preprocessing, pretrained=False)
    loss = build_loss(config, data, preprocessing, torch.device("cpu"), contextlib.nullcontext)
    lr = peak_lr(config.optimizer, config.batch.global_size)
    optimizer = build_optimizer(config.optimizer, model, lr)
    rates = rate_curve(Schedule(config.schedule, optimizer, plan, lr), plan)
    precision = resolve_precision(
        config.train.precision, cpu=config.run.device == "cpu" or not torch.cuda.is_available()
    )
    flops = forward_flops(model, channels=data.channels, image_size=preprocessing.image_size)
    rows = plan_rows(config, data, preprocessing, plan, parameter_count(model), flops)
    side = (data.channels, preprocessing.image_size, preprocessing.image_size)
    memory = estimate(model, optimizer, config, side, drop_path_depth(model), precision)
    if loss.teacher is not None:
        teachers = total_bytes([*loss.teacher.parameters(), *loss.teacher.buffers()])
        memory = replace(memory, weights=memory.weights + teachers)
    console.say(f"plan of {config.run.name or config.folder.name}, on {processes} × {precision}")
    console.table({**rows, "memory": _memory_text(memory, plan)})
    for note in [*notes, *augment_notes(config, data)]:
        console.say(f"  note: {note}")
    console.say("parameters")
    console.table({group["name"]: _group_text(group, lr) for group in optimizer.param_groups})
    console.say(
        f"rate over {plan.epochs:.4g} epochs: first {rates[0]:.3g}, highest {max(rates):.3g}, last {rates[-1]:.3g}"
    )
    if config.schedule.name == "ReduceLROnPlateau":
        console.say(f"  note: it falls where {config.schedule.args['metric']} does not improve, which nobody knows yet")
    for line in sketch(rates):
        console.say(line)
    epochs = [plan.samples_at(update) / plan.samples for update in range(plan.updates)]
    try:
        draw_rates(picture, epochs, rates, f"{config.schedule.name}, peak {lr:.3g}")
    except OSError as error:
        raise UserError(f"--png {picture}: cannot be written: {error.strerror}: name another file") from None
    console.say(f"picture: {picture}")


def rate_curve(schedule: Schedule, plan: Plan) -> list[float]:
    """The full rate of each update, if all are applied; a plateau's, if its metric always improves."""
    rates = []
    for _ in range(plan.updates):
        rates.append(schedule.rate)
        schedule.step()
    return rates


def _memory_text(memory: Memory, plan: Plan) -> str:
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "average": memory.average,
        f"activations of {plan.micro_size} slots": memory.activations,
    }
    told = ", ".join(f"{name} {_size(value)}" for name, value in parts.items() if value)
    return f"about {_size(memory.total)} per process, beside what Python, torch and the device need: {told}"


def _group_text(group: dict[str, object], lr: float) -> str:
    tensors = group["params"]
    assert isinstance(tensors, list)
    count = sum(parameter.numel() for parameter in tensors)
    scale = group["scale"]
    assert isinstance(scale, float)
    return (
        f"{len(tensors)} tensors, {count:,} values, weight decay {group['weight_decay']:g}, peak rate {lr * scale:.4g}"
    )


def _size(value: int) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
