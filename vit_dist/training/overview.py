"""What is said before a run: its plan, and what a person should know."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from vit_dist.checkpointing.checkpoint import Checkpoint
from vit_dist.config.config import Config
from vit_dist.config.schema import AugmentConfig
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.formatting import big
from vit_dist.optim.optimizers import peak_lr
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.trainer import Trainer
from vit_dist.version import __version__


def print_overview(session: Trainer, notes: list[str], start: Checkpoint | None) -> None:
    """Every number of the run, for people, and what they should know."""
    plan, runtime, config, console = session.plan, session.runtime, session.config, session.console
    console.say(f"vit_dist {__version__}: {config.run.name or session.folder.name}")
    flops = session.meter.flops
    console.table(
        {
            **plan_rows(config, session.data, session.preprocessing, plan, session.parameters, flops),
            "machine": f"{runtime.world_size} × {runtime.device_name}, {runtime.precision}, "
            f"{runtime.threads} threads per process",
            "starts": f"at update {session.state.position}, from {start.path}" if start else "anew",
            "folder": str(session.folder),
        }
    )
    for note in [*notes, *augment_notes(config, session.data), *runtime.notes, *_idle_notes(plan, runtime)]:
        console.note(f"  note: {note}")


def plan_rows(
    config: Config, data: LabelledSplits, preprocessing: Preprocessing, plan: Plan, parameters: int, flops: int
) -> dict[str, str]:
    """The numbers of a run that the machines do not change."""
    splits = ", ".join(
        f"{name} {len(split):,}" for name, split in sorted(data.splits.items(), key=lambda one: one[0] != "train")
    )
    fillers = f", {plan.fillers} filler slots per update" if plan.fillers else ""
    last = plan.weight(plan.updates - 1)
    short = f" (the last update has {last} samples)" if last != plan.global_size else ""
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    cooldown = f", cooldown {plan.cooldown} updates" if plan.cooldown else ""
    loss = config.loss
    given = "".join(f", {name} {value}" for name, value in config.schedule.args.items())
    smoothing = f", smoothing {loss.label_smoothing:g}" if loss.label_smoothing and ":" not in loss.name else ""
    taught = ""
    if loss.teacher:
        soft = f" at temperature {loss.temperature:g}" if loss.distillation == "soft" else ""
        taught = f"; {loss.distillation_weight:.0%} {loss.distillation} distillation{soft} from {loss.teacher}"
    rows = {
        "model": f"{config.model.name}, {big(parameters)} parameters, {big(flops)}FLOP per image forward",
        "data": f"{splits}; {len(data.classes)} classes",
        "images": f"{data.channels} × {preprocessing.image_size} × {preprocessing.image_size}, mean {mean}, std {std}",
        "run": f"{plan.updates} updates of {plan.global_size} samples = {plan.epochs:.4g} epochs{short}",
        "batch": f"micro-batches of {plan.micro_size}, {plan.micro_batches_per_rank} per process and update{fillers}",
        "loss": f"{loss.name}{smoothing}{taught}",
        "optimizer": f"{config.optimizer.name}, weight decay {config.optimizer.weight_decay:g}, "
        f"clip {config.optimizer.clip_norm:g}",
        "rate": f"{config.schedule.name}{given}, lr {peak_text(config)}, warmup {plan.warmup} updates{cooldown}",
    }
    plain = AugmentConfig()
    set_ones = {name: value for name, value in vars(config.augment).items() if value != getattr(plain, name)}
    if set_ones:
        rows["augment"] = ", ".join(f"{name} {value}" for name, value in set_ones.items())
    if config.train.ema:
        rows["average"] = f"of the weights, decay {config.train.ema:g} per update"
    if config.evaluate.patience:
        rows["patience"] = f"{config.evaluate.patience} evaluations of {config.evaluate.metric}"
    return rows


def augment_notes(config: Config, data: LabelledSplits) -> Iterator[str]:
    """Augmentation that is likely a mistake."""
    if config.augment.flip and set(data.classes) == {str(i) for i in range(10)}:
        yield "augment.flip: mirrored digits are no digits: 0 is better here"


def _idle_notes(plan: Plan, runtime: Runtime) -> Iterator[str]:
    """Machines that the run leaves unused, and how to use them."""
    idle = plan.world_size - plan.micro_batches
    if idle > 0:
        fitting = max(2, math.ceil(plan.global_size / plan.world_size / 2) * 2)
        yield f"{idle} of {plan.world_size} processes compute only fillers: set batch.micro_size {fitting} to use them"
    gpus = torch.cuda.device_count() if runtime.device.type == "cuda" and runtime.world_size == 1 else 0
    if gpus > 1:
        launch = f"accelerate launch --multi_gpu --num_processes {gpus} scripts/train.py …"
        yield f"one of {gpus} GPUs is used; all of them: {launch}"


def peak_text(config: Config) -> str:
    """The peak rate, and how it came from lr where it was scaled."""
    optimizer, size = config.optimizer, config.batch.global_size
    peak = f"{peak_lr(optimizer, size):.4g}"
    if optimizer.scale == "none":
        return peak
    return f"{peak} (lr {optimizer.lr:g}, {optimizer.scale} in the global batch: {size} over {optimizer.scale_base})"
