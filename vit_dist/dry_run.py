"""What a config would do, without doing it: the run's numbers, its memory, the curve of its rate."""

from __future__ import annotations

import contextlib
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit_dist.announcement import augment_notes, plan_rows
from vit_dist.assembly import build_loss, own_model, refuse_metrics
from vit_dist.config.config import Config
from vit_dist.data.augmentation.transforms import training_transform
from vit_dist.data.preprocessing import form_of
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
from vit_dist.telemetry.console import Console

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Memory:
    """Bytes per process. activations: what one micro-batch's forward pass keeps for its backward pass."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, at the end of a forward pass."""
        return sum(astuple(self))


def show_plan(config: Config, console: Console, *, processes: int, picture: Path) -> None:
    """Prints the plan of a config on so many processes, and draws its rate there and into a PNG. Raises UserError."""
    data = open_data(config.data)
    form = form_of(config, data)
    plan = Plan.of(config, len(data.splits["train"]), processes)
    refuse_metrics(config, data)
    training_transform(config.augment, form.mean, form.image_size, None)
    model, notes = own_model(config, data, form, pretrained=False)
    loss = build_loss(config, data, form, torch.device("cpu"), contextlib.nullcontext)
    lr = peak_lr(config.optimizer, config.batch.global_size)
    optimizer = build_optimizer(config.optimizer, model, lr)
    rates = rate_curve(Schedule(config.schedule, optimizer, plan, lr), plan)
    precision = resolve_precision(
        config.train.precision, cpu=config.run.device == "cpu" or not torch.cuda.is_available()
    )
    flops = forward_flops(model, channels=data.channels, image_size=form.image_size)
    rows = plan_rows(config, data, form, plan, parameter_count(model), flops)
    side = (data.channels, form.image_size, form.image_size)
    memory = estimate(model, optimizer, config, side, drop_path_depth(model), precision)
    if loss.teacher is not None:
        teachers = _bytes([*loss.teacher.parameters(), *loss.teacher.buffers()])
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


def estimate(
    model: nn.Module, optimizer: Optimizer, config: Config, image: tuple[int, int, int], drop_paths: int, precision: str
) -> Memory:
    """Memory of a process that trains the model on micro-batches of images [channels, side, side].

    Measured, not modelled: the optimizer makes one step of the model with gradients of zero, and activations are
    what autograd keeps of two small batches, their difference scaled to the micro-batch. Without the device's own
    context, work space and fragmentation.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = _bytes([*model.parameters(), *model.buffers()])
    model.train()
    two, four = (_kept(model, slots, image, drop_paths, precision) for slots in (2, 4))
    activations = two + (four - two) * (config.batch.micro_size - 2) // 2
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    state = [value for slots in optimizer.state.values() for value in slots.values() if isinstance(value, Tensor)]
    return Memory(weights, _bytes(trained), _bytes(state), weights if config.train.ema else 0, activations)


def _kept(model: nn.Module, slots: int, image: tuple[int, int, int], drop_paths: int, precision: str) -> int:
    """Bytes that autograd keeps of a forward pass, but for the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = tensor
        return tensor

    inputs = [torch.zeros(slots, *image)] + ([torch.zeros(slots, drop_paths, 2)] if drop_paths else [])
    with _autocast(precision), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*inputs).float().logsumexp(1).sum()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _autocast(precision: str) -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", _AUTOCAST[precision]) if precision in _AUTOCAST else contextlib.nullcontext()


def _bytes(tensors: list[Tensor] | list[nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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
