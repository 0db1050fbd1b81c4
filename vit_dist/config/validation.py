"""What is wrong with a config: every field out of its range and every contradiction, with the fix."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

from vit_dist.config.catalog import METRICS, is_timm, loss_problems, optimizer_problems
from vit_dist.config.schedulers import schedule_problems
from vit_dist.config.schema import Schema
from vit_dist.config.values import Length, coerce, parse_size
from vit_dist.errors import nearest


def problems(config: Schema) -> Iterator[str]:
    """Every field out of its range and every contradiction between fields, with the fix."""
    yield from _part_problems(config)
    yield from _sign_problems(config)
    yield from _other_problems(config)
    yield from _model_problems(config)
    yield from _data_problems(config)
    yield from _augment_problems(config)
    yield from loss_problems(config.loss.name)
    yield from optimizer_problems(config.optimizer.name)
    yield from schedule_problems(config.schedule.name, config.schedule.args)
    yield from _idle_problems(config)
    yield from _override_problems(config)
    if config.evaluate.metric not in METRICS:
        yield f"evaluate.metric: no metric {config.evaluate.metric}{nearest(config.evaluate.metric, METRICS)}"
    yield from _length_problems(config)


def _part_problems(config: Schema) -> Iterator[str]:
    """Parts of a whole that are not between 0 and 1."""
    model, optimizer = config.model, config.optimizer
    fractions = {
        "model.dropout": model.dropout,
        "model.attention_dropout": model.attention_dropout,
        "data.crop": config.data.crop,
        "augment.crop_min": config.augment.crop_min,
        "augment.flip": config.augment.flip,
        "augment.translate": config.augment.translate,
        "augment.erasing": config.augment.erasing,
        "augment.mix_prob": config.augment.mix_prob,
        "augment.mix_switch": config.augment.mix_switch,
        "loss.label_smoothing": config.loss.label_smoothing,
        "loss.distillation_weight": config.loss.distillation_weight,
        "optimizer.momentum": optimizer.momentum or 0.0,
        "schedule.cooldown_end": config.schedule.cooldown_end,
    }
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            yield f"{name}: must be between 0 and 1, not {value}"
    for name, value in {
        "model.drop_path": model.drop_path,
        "train.ema": config.train.ema,
        "augment.scale": config.augment.scale,
    }.items():
        if not 0 <= value < 1:
            yield f"{name}: must be at least 0 and below 1, not {value}"
    if not 0 < optimizer.layer_decay <= 1:
        yield f"optimizer.layer_decay: must be above 0 and at most 1, not {optimizer.layer_decay}"


def _sign_problems(config: Schema) -> Iterator[str]:
    """Numbers that must be above 0, or not below it."""
    model, data, batch, optimizer = config.model, config.data, config.batch, config.optimizer
    if config.run.seed >= 2**63:
        yield f"run.seed: must be below 2^63, not {config.run.seed}"
    positive = {
        "model.patch_size": model.patch_size,
        "model.mlp_ratio": model.mlp_ratio,
        "model.norm_eps": model.norm_eps,
        "batch.global_size": batch.global_size,
        "batch.micro_size": batch.micro_size,
        "augment.repeats": config.augment.repeats,
        "loss.temperature": config.loss.temperature,
        "optimizer.lr": optimizer.lr,
        "optimizer.scale_base": optimizer.scale_base,
        "schedule.cooldown_power": config.schedule.cooldown_power,
        "evaluate.batch_size": config.evaluate.batch_size,
        "checkpoint.keep": config.checkpoint.keep,
    }
    for name in ("patch_stride", "width", "depth", "heads"):
        if getattr(model, name) is not None:
            positive[f"model.{name}"] = getattr(model, name)
    if config.run.threads != "auto":
        positive["run.threads"] = config.run.threads
    for name, value in positive.items():
        if value <= 0:
            yield f"{name}: must be above 0, not {value}"
    at_least_zero = {
        "run.seed": config.run.seed,
        "data.image_size": data.image_size,
        "data.workers": 0 if data.workers == "auto" else data.workers,
        "augment.shift": config.augment.shift,
        "augment.color_jitter": config.augment.color_jitter,
        "augment.mixup": config.augment.mixup,
        "augment.cutmix": config.augment.cutmix,
        "optimizer.weight_decay": optimizer.weight_decay,
        "model.registers": model.registers,
        "model.layer_scale": model.layer_scale,
        "optimizer.clip_norm": optimizer.clip_norm,
        "evaluate.patience": config.evaluate.patience,
        "evaluate.min_delta": config.evaluate.min_delta,
    }
    for name, value in at_least_zero.items():
        if value < 0:
            yield f"{name}: must be 0 or more, not {value}"


def _other_problems(config: Schema) -> Iterator[str]:
    """A part, a size and decay rates with bounds of their own, and what an optimizer does not have."""
    data, batch, optimizer = config.data, config.batch, config.optimizer
    if not 0 <= data.val_fraction <= 0.5:
        yield f"data.val_fraction: must be between 0 and 0.5, not {data.val_fraction}"
    if batch.micro_size % 2:
        yield f"batch.micro_size: must be even, not {batch.micro_size}: set {batch.micro_size + 1}"
    if not all(0 <= beta < 1 for beta in optimizer.betas):
        yield f"optimizer.betas: must be at least 0 and below 1, not {list(optimizer.betas)}"
    elif optimizer.name in ("adamw", "adam", "muon") and len(optimizer.betas) not in (0, 2):
        yield f"optimizer.betas: {optimizer.name} has two, not {list(optimizer.betas)}"
    if optimizer.betas and optimizer.name == "sgd":
        yield "optimizer.betas: sgd has none: leave it empty"
    if optimizer.momentum is not None and optimizer.name in ("adamw", "adam"):
        yield f"optimizer.momentum: {optimizer.name} has optimizer.betas in its place: leave it empty"


def _model_problems(config: Schema) -> Iterator[str]:
    """Sizes that do not fit each other."""
    model, data = config.model, config.data
    ours = not is_timm(model.name) and ":" not in model.name
    stride = model.patch_stride or model.patch_size
    field = "model.patch_stride" if model.patch_stride else "model.patch_size"
    if ours and stride > 0 and data.image_size > 0:
        yield from (one.replace("model.patch_size", field) for one in image_problems(stride, data.image_size))
    for side in dict.fromkeys(_sides(config)) if ours and stride > 0 else []:
        for one in image_problems(stride, side):
            yield f"augment.sizes: {one.partition(': ')[2].partition(': set')[0]}: set {_multiple(side, stride)}"
    if ours and stride > model.patch_size:
        yield f"model.patch_stride: {stride} is more than model.patch_size {model.patch_size}: pixels would be left out"
    for pattern in model.freeze:
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"model.freeze: {pattern} is not a regular expression: {error}"
    if model.width and model.heads and model.heads > 0 and model.width % model.heads:
        yield f"model.width: {model.width} is not divisible by model.heads {model.heads}"
    if model.position == "sincos" and model.width and model.width % 4:
        yield f"model.width: {model.width} must be divisible by 4 with model.position sincos"
    if model.args and ours:
        yield f"model.args: only for timm/NAME and package.module:function; {model.name} has its own fields"


def _data_problems(config: Schema) -> Iterator[str]:
    """Means and deviations that do not go together."""
    data = config.data
    if len(data.mean) != len(data.std):
        yield f"data.std: has {len(data.std)} values where data.mean has {len(data.mean)}: give both per channel"
    if any(value <= 0 for value in data.std):
        yield f"data.std: must be above 0, not {list(data.std)}"


def _augment_problems(config: Schema) -> Iterator[str]:
    """Of augmentation that cannot be."""
    augment = config.augment
    if not 0 <= augment.rotate <= 180:
        yield f"augment.rotate: must be between 0 and 180 degrees, not {augment.rotate}"
    if augment.transform and ":" not in augment.transform:
        yield f"augment.transform: must be package.module:function, not {augment.transform!r}"
    if augment.repeats > max(1, config.batch.global_size // 2):
        half = f"half of batch.global_size {config.batch.global_size}"
        yield f"augment.repeats: {augment.repeats} copies are more than {half}"
    for text in augment.sizes:
        try:
            length = parse_size(text)[1]
        except ValueError:
            yield f'augment.sizes: must be a side for a length of the run, as "128 for 40%", not {text!r}'
            continue
        if length.amount == 0:
            yield f"augment.sizes: must be for more than nothing, not {text!r}"


def _sides(config: Schema) -> list[int]:
    """Of augment.sizes; those that cannot be read are told elsewhere."""
    sides = []
    for text in config.augment.sizes:
        with contextlib.suppress(ValueError):
            sides.append(parse_size(text)[0])
    return sides


def _idle_problems(config: Schema) -> Iterator[str]:
    """Of distillation, and of fields that would do nothing."""
    loss = config.loss
    if is_timm(loss.teacher) and not loss.teacher_weights:
        yield f"loss.teacher_weights: {loss.teacher} has nothing to teach without weights: give a safetensors file"
    if loss.teacher_weights and not is_timm(loss.teacher):
        yield "loss.teacher_weights: only for loss.teacher timm/NAME; a run or checkpoint has its own"
    plain = type(loss)()
    for name in ("distillation", "distillation_weight", "temperature"):
        if not loss.teacher and getattr(loss, name) != getattr(plain, name):
            yield f"loss.{name}: does nothing without loss.teacher: set that too, or leave it out"
    schedule = config.schedule
    if schedule.cooldown_end and not schedule.cooldown and schedule.name not in ("cosine", "wsd"):
        yield f"schedule.cooldown_end: {schedule.name} has no cooldown: set schedule.cooldown, or leave it out"


def _override_problems(config: Schema) -> Iterator[str]:
    """Of optimizer.overrides: a regular expression for each mapping of numbers."""
    for pattern, given in config.optimizer.overrides.items():
        where = f"optimizer.overrides.{pattern}"
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"{where}: not a regular expression: {error}"
        if not isinstance(given, Mapping) or not given:
            yield f"{where}: must be lr or weight_decay with their numbers, as {{lr: 1e-4}}, not {given!r}"
            continue
        for name, value in given.items():
            if name not in ("lr", "weight_decay"):
                yield f"{where}.{name}: no such field{nearest(str(name), ('lr', 'weight_decay'))}"
                continue
            try:
                negative = coerce(value, float) < 0
            except (TypeError, ValueError, OverflowError):
                yield f"{where}.{name}: must be a number, not {value!r}"
                continue
            if negative:
                yield f"{where}.{name}: must be 0 or more, not {value}"


def _length_problems(config: Schema) -> Iterator[str]:
    """Lengths of time that are none, or nothing."""
    lengths = {
        "train.duration": config.train.duration,
        "schedule.warmup": config.schedule.warmup,
        "evaluate.every": config.evaluate.every,
        "checkpoint.every": config.checkpoint.every,
        "log.every": config.log.every,
    }
    if config.schedule.cooldown:
        lengths["schedule.cooldown"] = config.schedule.cooldown
    for name, text in lengths.items():
        try:
            length = Length.parse(text)
        except ValueError:
            part = "" if name == "train.duration" else ' or "5%"'
            yield f'{name}: a length with its unit, as "20 epochs", "5000 updates", "1e6 samples"{part}, not {text!r}'
            continue
        if name == "train.duration" and length.unit == "%":
            yield f"{name}: needs epochs, updates or samples, not a part of itself ({text!r})"
        if length.amount == 0 and not name.startswith("schedule."):
            yield f"{name}: must be above 0, not {text!r}"


def image_problems(patch_size: int, image_size: int) -> Iterator[str]:
    """What is wrong with an image of that side for patches of that side."""
    if image_size % patch_size:
        near = [size for size in range(1, image_size + 1) if image_size % size == 0]
        best = min(near, key=lambda size: abs(size - patch_size))
        yield (
            f"model.patch_size: {patch_size} does not divide an image of {image_size} pixels: "
            f"set model.patch_size {best} or data.image_size {_multiple(image_size, patch_size)}"
        )


def _multiple(size: int, of: int) -> int:
    """The nearest multiple, at least one."""
    return max(1, round(size / of)) * of
