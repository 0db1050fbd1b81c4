"""Print the overview of a run before it starts: plan, machine, warnings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from vit_dist.config.config import Config
from vit_dist.config.fields import AugmentConfig
from vit_dist.data.sources.source import decoded
from vit_dist.data.sources.splits import UNLABELLED
from vit_dist.data.sources.survey import Survey, survey
from vit_dist.formatting import big
from vit_dist.optim.optimizers import peak_lr
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.pair_figures import MEAN_RECALL, ZERO_SHOT
from vit_dist.training.advice import advice, precision_advice
from vit_dist.training.components import Components
from vit_dist.training.defaults import Choice
from vit_dist.training.trainer import Trainer


def print_overview(trainer: Trainer, choices: Sequence[Choice], notes: Sequence[str], start: str) -> None:
    """Print what a run trains on what, how long, what was chosen for it, where it starts, and notes for the user.

    start: `new run`, or what it goes on from, in words.
    """
    components, runtime, console = trainer.components, trainer.runtime, trainer.console
    config, plan = components.config, components.plan
    if not runtime.is_main:
        return
    facts = survey(components.data)
    name = trainer.folder.name if config.run.dir else config.run.name
    console.say(f"{name}: {start}", "bold")
    threads = f"{runtime.threads} thread{'s' if runtime.threads > 1 else ''}"
    devices = runtime.device_name if runtime.world_size == 1 else f"{runtime.world_size} × {runtime.device_name}"
    rows = {
        "trains": f"{_model_text(config)}, {big(components.parameters)} parameters"
        + (_origin(config) if start == "new run" else ""),
        **data_rows(config, facts),
        "input": _input_text(components),
        "length": _length_text(components),
        "on": f"{devices}, {runtime.precision}, {threads}" + (" each" if runtime.world_size > 1 else ""),
        "results": str(trainer.folder),
    }
    console.table(rows)
    if choices and start.startswith("resumed"):
        console.say("  what was chosen for this data stays as it was: config.yaml in the run's folder has it")
    for line in [] if start.startswith("resumed") else choice_lines(choices):
        console.say(line)
    settings = [*advice(config, components.data), *precision_advice(config, runtime.precision)]
    gpus = torch.cuda.device_count() if runtime.device.type == "cuda" else 0
    for note in [*notes, *facts.notes, *settings, *runtime.notes, *idle_notes(plan, gpus)]:
        console.note(f"  note: {note}")
    console.say("  vit-dist plan with the same flags shows every number", "dim")


def data_rows(config: Config, facts: Survey) -> dict[str, str]:
    """Return what there is to train on, by name: images of each split and class, and their sizes."""
    uses = {"train": "images to train on", "val": "for validation", "test": "for the test at the end"}
    parts = [f"{facts.total(split):,} {use}" for split, use in uses.items() if facts.total(split)]
    where = config.data.root if config.data.source == "folder" else config.data.source
    return {"data": f"{where}: {', '.join(parts)}{_without_test(facts)}", **facts.rows()}


def _without_test(facts: Survey) -> str:
    return "" if facts.total("test") else "; no test images, so no figure on test"


def choice_lines(choices: Sequence[Choice]) -> list[str]:
    """Return the fields that were chosen from the data and why, a line each."""
    if not choices:
        return []
    width = max(len(f"{choice.field} {choice.value}") for choice in choices)
    lines = [f"    {f'{choice.field} {choice.value}':<{width}}  {choice.reason}" for choice in choices]
    return ["  chosen for this data; a flag sets each otherwise:", *lines]


def _model_text(config: Config) -> str:
    """Return the name of the model, with that of the text tower if it has one."""
    return f"{config.model.name} and {config.text.name}" if config.contrastive else config.model.name


def _origin(config: Config) -> str:
    """Return where the weights of a new run come from."""
    if config.model.pretrained == "timm":
        return ", from timm's pretrained weights"
    return f", from {config.model.pretrained}" if config.model.pretrained else ", from random weights"


def _input_text(components: Components) -> str:
    """Return what an image is for the model."""
    side, channels = components.preprocessing.image_size, components.data.channels
    colour = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    return f"{side} × {side} pixels, {colour}"


def _kept_text(metric: str) -> str:
    """Return which weights a run keeps as its best."""
    names = {"top1": "the best accuracy", "top5": "the best top-5 accuracy", "loss": "the lowest loss"}
    names |= {ZERO_SHOT: "the best zero-shot accuracy", MEAN_RECALL: "the best recall at 1, both ways,"}
    which = "raw weights" if metric.startswith("raw_") else "weights"
    return f"the {which} with {names[metric.removeprefix('raw_')]} on val are kept"


def _length_text(components: Components) -> str:
    """Return how much is trained, in updates and epochs, and how often it is evaluated."""
    plan, evaluate = components.plan, components.config.evaluate
    text = f"{plan.updates:,} updates of {plan.global_size:,} images = {plan.epochs:.4g} epochs"
    if "val" not in components.data.splits:
        return text
    every = float(plan.evaluate_every / plan.samples)
    interval = "every epoch" if every == 1 else f"every {every:.3g} epochs"
    patience = f", ends after {evaluate.patience} without a better {evaluate.metric}" if evaluate.patience else ""
    return f"{text}; evaluated {interval}, {_kept_text(evaluate.metric)}{patience}"


def plan_rows(components: Components) -> dict[str, str]:
    """Return the numbers of a run, by name, that do not depend on the machine."""
    config, data, plan = components.config, components.data, components.plan
    preprocessing, facts = components.preprocessing, survey(data)
    train_first = sorted(data.splits.items(), key=lambda item: item[0] != "train")
    splits = ", ".join(f"{name} {len(split):,}" for name, split in train_first)
    fillers = f", {plan.fillers} filler slots per update" if plan.fillers else ""
    last = plan.count(plan.updates - 1)
    short = f" (the last update has {last} samples)" if last != plan.global_size else ""
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    cooldown = f", cooldown {plan.cooldown} updates" if plan.cooldown else ""
    loss = config.loss
    args = "".join(f", {name} {value}" for name, value in config.schedule.args.items())
    smoothing = f", smoothing {loss.label_smoothing:g}" if loss.label_smoothing and ":" not in loss.name else ""
    distilled = ""
    if loss.teacher:
        soft = f" at temperature {loss.temperature:g}" if loss.distillation == "soft" else ""
        distilled = f"; {loss.distillation_weight:.0%} {loss.distillation} distillation{soft} from {loss.teacher}"
    if config.contrastive:
        distilled = ", equal captions " + ("positives" if loss.duplicates == "positives" else "left out")
    rows = {
        "model": f"{_model_text(config)}, {big(components.parameters)} parameters, "
        f"{big(components.forward_flops)}FLOP per {'pair' if config.contrastive else 'image'} forward",
        "data": f"{splits}{f'; {len(data.classes)} classes' * (data.classes != UNLABELLED)}{_without_test(facts)}",
        **facts.rows(),
        "images": f"{data.channels} × {preprocessing.image_size} × {preprocessing.image_size}, mean {mean}, std {std}",
        **({"evaluated": preprocessing.resizing()} if decoded(data.splits["train"].source) is None else {}),
        "run": f"{plan.updates} updates of {plan.global_size} samples = {plan.epochs:.4g} epochs{short}",
        "batch": f"micro-batches of {plan.micro_size}, {plan.micro_batches_per_rank} per process and update{fillers}",
        "loss": f"{loss.name}{smoothing}{distilled}",
        "optimizer": f"{config.optimizer.name}, weight decay {config.optimizer.weight_decay:g}, "
        f"clip {config.optimizer.clip_norm:g}",
        "rate": f"{config.schedule.name}{args}, lr {peak_text(config)}, warmup {plan.warmup} updates{cooldown}",
    }
    defaults = vars(AugmentConfig())
    changed = {name: value for name, value in vars(config.augment).items() if value != defaults[name]}
    if changed:
        rows["augment"] = ", ".join(f"{name} {value}" for name, value in changed.items())
    if config.train.ema:
        rows["average"] = f"of the weights, decay {config.train.ema:g} per update"
    if config.evaluate.patience:
        rows["patience"] = f"{config.evaluate.patience} evaluations of {config.evaluate.metric}"
    return rows


def idle_notes(plan: Plan, gpus: int) -> Iterator[str]:
    """Yield notes on processes and GPUs of this machine that idle or read for others, and how to use them."""
    idle = plan.world_size - plan.micro_batches
    if idle > 0:
        micro_size = max(2, math.ceil(plan.global_size / plan.world_size / 2) * 2)
        idle_text = f"{idle} of {plan.world_size} processes have no images to train on"
        yield f"{idle_text}: set batch.micro_size {micro_size}, so that a global batch has a part for each"
    if plan.world_size > 1 and plan.shards is not None and plan.micro_size % plan.shards.lane_size:
        lanes = plan.global_size // math.gcd(plan.global_size, plan.micro_size)
        yield f"data.lanes: each process reads all shards: in a new run, set data.lanes {lanes}, and each has its own"
    if gpus > 1 and plan.world_size == 1:
        launch = f"accelerate launch --multi_gpu --num_processes {gpus} scripts/train.py …"
        yield f"one of {gpus} GPUs is used; all of them: {launch}"


def peak_text(config: Config) -> str:
    """Return the peak rate as text, with its derivation from lr if it is scaled."""
    optimizer, size = config.optimizer, config.batch.global_size
    peak = f"{peak_lr(optimizer, size):.4g}"
    if optimizer.scale == "none":
        return peak
    return f"{peak} (lr {optimizer.lr:g}, {optimizer.scale} in the global batch: {size} over {optimizer.scale_base})"
