"""Contradictions between the fields of a config, each with its fix; names, patterns and lengths that do not parse."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from vit_dist.config import limits
from vit_dist.config.catalog import AUTO, METRICS, PAIR_METRICS, is_timm, loss_problems, optimizer_problems
from vit_dist.config.fields import ModelConfig
from vit_dist.config.schedulers import schedule_problems
from vit_dist.config.schema import Schema
from vit_dist.config.text_fields import text_problems
from vit_dist.config.values import Length, TooLongError, coerce, parse_bytes, parse_profile, parse_seconds, parse_size
from vit_dist.errors import nearest
from vit_dist.files import pickle_problem

_SMALLEST_CACHE = 2**26
_MOST_PROFILED = 100
# What `re.compile` raises.
_NO_PATTERN = (re.error, RecursionError, OverflowError)

# What the columns of a table may hold.
_COLUMNS = ("path", "label", "split", "weight", "caption")


def contradictions(config: Schema) -> Iterator[str]:
    """Yield what is wrong with a config whose fields each have their type and bounds, a line each."""
    yield from _optimizer_problems(config)
    yield from _model_problems(config)
    yield from text_problems(config)
    yield from _data_problems(config)
    yield from _augment_problems(config)
    yield from loss_problems(config.loss.name)
    yield from optimizer_problems(config.optimizer.name)
    yield from schedule_problems(config.schedule.name, config.schedule.args)
    yield from _idle_problems(config)
    yield from _micro_size_problems(config)
    yield from _override_problems(config)
    metrics = PAIR_METRICS if config.contrastive else METRICS
    if config.evaluate.metric not in metrics:
        yield f"evaluate.metric: no metric {config.evaluate.metric}{nearest(config.evaluate.metric, metrics)}"
    for field in config.run.auto:
        if field not in AUTO:
            yield f"run.auto: no rule for {field}; known: {', '.join(AUTO)}"
    yield from _length_problems(config)
    yield from _path_problems(config)


def vit_problems(model: ModelConfig, image_size: int) -> Iterator[str]:
    """Yield which sizes of our own ViT do not fit each other; a size of None or 0 is not known yet, and not checked."""
    field = "patch_stride" if model.patch_stride else "patch_size"
    stride = model.patch_stride or model.patch_size
    if image_size % stride:
        divisors = [size for size in range(1, image_size + 1) if image_size % size == 0]
        nearest_divisor = min(divisors, key=lambda size: abs(size - stride))
        yield (
            f"model.{field}: {_does_not_divide(stride, image_size)}: "
            f"set model.{field} {nearest_divisor} or data.image_size {_nearest_multiple(image_size, stride)}"
        )
    if stride > model.patch_size:
        yield f"model.patch_stride: {stride} is more than model.patch_size {model.patch_size}: pixels would be left out"
    if model.width and model.heads and model.width % model.heads:
        yield f"model.width: {model.width} is not divisible by {model.heads} heads: set model.heads"
    if model.position == "sincos" and model.width and model.width % 4:
        yield f"model.width: {model.width} must be divisible by 4 with model.position sincos"


def _optimizer_problems(config: Schema) -> Iterator[str]:
    """Check betas and momentum against the optimizer."""
    optimizer = config.optimizer
    if optimizer.name in ("adamw", "adam", "muon") and len(optimizer.betas) not in (0, 2):
        yield f"optimizer.betas: {optimizer.name} has two, not {list(optimizer.betas)}"
    if optimizer.betas and optimizer.name == "sgd":
        yield "optimizer.betas: sgd has none: leave it empty"
    if optimizer.momentum is not None and optimizer.name in ("adamw", "adam"):
        yield f"optimizer.momentum: {optimizer.name} has optimizer.betas in its place: leave it empty"


def _model_problems(config: Schema) -> Iterator[str]:
    """Check the sizes of our own ViT, the patterns of freeze, and the model's arguments."""
    model = config.model
    ours = not is_timm(model.name) and ":" not in model.name
    if ours:
        undecided = {"model.patch_size", "data.image_size"} & set(config.run.auto)
        yield from vit_problems(model, 0 if undecided else config.data.image_size)
        stride = model.patch_stride or model.patch_size
        for side in dict.fromkeys(_sides(config)):
            if side % stride:
                yield f"augment.sizes: {_does_not_divide(stride, side)}: set {_nearest_multiple(side, stride)}"
    for pattern in model.freeze:
        try:
            re.compile(pattern)
        except _NO_PATTERN as error:
            yield f"model.freeze: {pattern} is not a regular expression: {error}"
    if model.args and ours:
        yield f"model.args: only for timm/NAME and package.module:function; {model.name} has its own fields"


def _data_problems(config: Schema) -> Iterator[str]:
    """Check the number of means, lanes against the batch, and the size of the cache."""
    data, size = config.data, config.batch.global_size
    if size % data.lanes and "batch.global_size" not in config.run.auto:
        divisors = [lanes for lanes in range(1, size + 1) if size % lanes == 0]
        fitting = min(divisors, key=lambda lanes: abs(lanes - data.lanes))
        yield f"data.lanes: {data.lanes} do not divide batch.global_size {size}: set {fitting}"
    try:
        too_small = parse_bytes(data.cache_size) < _SMALLEST_CACHE
    except ValueError:
        too_small = True
    if too_small:
        yield f"data.cache_size: must be a size of 64MiB or more, as 32GiB, not {data.cache_size}"
    if data.lanes > 1 and config.augment.repeats > 1:
        yield "data.lanes: augment.repeats puts copies of a sample into several lanes: set data.lanes 1"
    for what, name in data.columns.items():
        if what not in _COLUMNS:
            yield f"data.columns: {what} is no column that is read{nearest(str(what), _COLUMNS)}"
        elif not isinstance(name, str) or not name:
            yield f"data.columns.{what}: must be the name of a column, not {name!r}"
    if len(data.mean) != len(data.std):
        yield f"data.std: has {len(data.std)} values where data.mean has {len(data.mean)}: give both per channel"


def _augment_problems(config: Schema) -> Iterator[str]:
    """Check the form of transform and sizes, and that repeats fit the batch."""
    augment = config.augment
    if augment.transform and ":" not in augment.transform:
        yield f"augment.transform: must be package.module:function, not {augment.transform!r}"
    if augment.repeats > max(1, config.batch.global_size // 2):
        half = f"half of batch.global_size {config.batch.global_size}"
        yield f"augment.repeats: {augment.repeats} copies are more than {half}"
    for text in augment.sizes:
        try:
            length = parse_size(text)[1]
        except TooLongError as error:
            yield f"augment.sizes: {text} is {error}"
            continue
        except ValueError:
            yield f'augment.sizes: must be a side for a length of the run, as "128 for 40%", not {text!r}'
            continue
        if length.amount == 0:
            yield f"augment.sizes: the length must be above 0, not {text!r}"


def _sides(config: Schema) -> list[int]:
    """Return the sides of augment.sizes in pixels, without those that do not parse."""
    sides = []
    for text in config.augment.sizes:
        with contextlib.suppress(ValueError):
            sides.append(parse_size(text)[0])
    return sides


def _idle_problems(config: Schema) -> Iterator[str]:
    """Check distillation, and fields that have no effect."""
    loss = config.loss
    if is_timm(loss.teacher) and not loss.teacher_weights:
        yield f"loss.teacher_weights: {loss.teacher} needs trained weights: give a safetensors file"
    if loss.teacher_weights and not is_timm(loss.teacher):
        yield "loss.teacher_weights: only for loss.teacher timm/NAME; a run or checkpoint has its own"
    plain = type(loss)()
    for name in ("distillation", "distillation_weight", "temperature"):
        if not loss.teacher and getattr(loss, name) != getattr(plain, name):
            yield f"loss.{name}: has no effect without loss.teacher: set that too, or leave it out"
    schedule = config.schedule
    if schedule.cooldown_end and not schedule.cooldown and schedule.name not in ("cosine", "wsd"):
        yield f"schedule.cooldown_end: {schedule.name} has no cooldown: set schedule.cooldown, or leave it out"


def _micro_size_problems(config: Schema) -> Iterator[str]:
    """Check that a size which the machine decides changes no result, as far as the config says it."""
    if config.batch.micro_size != "auto":
        return
    drawn = {
        "model.dropout": config.model.dropout,
        "model.attention_dropout": config.model.attention_dropout,
        "text.dropout": config.text.dropout,
    }
    for name, rate in drawn.items():
        if rate:
            yield f"batch.micro_size: auto would change the result: {name} draws in each micro-batch: set a number"
    if config.contrastive:
        yield f"batch.micro_size: auto is for classifiers, not for loss.name {config.loss.name}: set a number"


def _override_problems(config: Schema) -> Iterator[str]:
    """Check optimizer.overrides: regular expressions, each with its lr or weight_decay."""
    for pattern, override in config.optimizer.overrides.items():
        where = f"optimizer.overrides.{pattern}"
        try:
            re.compile(pattern)
        except _NO_PATTERN as error:
            yield f"{where}: not a regular expression: {error}"
        if not isinstance(override, Mapping) or not override:
            yield f"{where}: must be lr or weight_decay with their numbers, as {{lr: 1e-4}}, not {override!r}"
            continue
        for name, value in override.items():
            if name not in ("lr", "weight_decay"):
                yield f"{where}.{name}: no such field{nearest(str(name), ('lr', 'weight_decay'))}"
                continue
            try:
                negative = coerce(value, float) < 0
            except ValueError:
                yield f"{where}.{name}: must be a number, not {value!r}"
                continue
            if negative:
                yield f"{where}.{name}: must be 0 or more, not {value}"


def _length_problems(config: Schema) -> Iterator[str]:
    """Check that lengths parse and are above 0."""
    lengths = {
        "train.duration": config.train.duration,
        "schedule.warmup": config.schedule.warmup,
        "evaluate.every": config.evaluate.every,
        "checkpoint.every": config.checkpoint.every,
        "log.every": config.log.every,
    }
    if config.schedule.cooldown:
        lengths["schedule.cooldown"] = config.schedule.cooldown
    limit = config.run.time_limit
    if limit and parse_seconds(limit) is None:
        yield f'run.time_limit: must be a time with its unit, as "55 minutes" or "1.5 hours", not {limit!r}'
    if config.log.profile:
        yield from _profile_problems(config.log.profile)
    for name, text in lengths.items():
        if name == "checkpoint.every" and parse_seconds(text):
            continue
        try:
            length = Length.parse(text)
        except TooLongError as error:
            yield f"{name}: {text} is {error}"
            continue
        except ValueError:
            percent = "" if name == "train.duration" else ' or "5%"'
            minutes = ', "15 minutes"' if name == "checkpoint.every" else ""
            examples = f'"20 epochs", "5000 updates", "1e6 samples"{minutes}{percent}'
            yield f"{name}: must be a length with its unit, as {examples}, not {text!r}"
            continue
        if name == "train.duration" and length.unit == "%":
            yield f"{name}: needs epochs, updates or samples, not a part of the run ({text!r})"
        if length.amount == 0 and not name.startswith("schedule."):
            yield f"{name}: must be above 0, not {text!r}"


def _profile_problems(text: str) -> Iterator[str]:
    try:
        _, count = parse_profile(text)
    except ValueError:
        yield f'log.profile: must be updates, as "10 updates" or "10 updates from 500", not {text!r}'
        return
    if count > _MOST_PROFILED:
        yield f"log.profile: {_MOST_PROFILED} updates at most, since a longer trace takes too much memory, not {count}"


def _path_problems(config: Schema) -> Iterator[str]:
    """Check that the run's name is that of a folder in runs/, and that paths can be."""
    run, name = config.run, config.run.name
    if name.startswith(("~", "..")) or name == "." or re.search(r"[/\\]", name) or len(name.encode()) > limits.RUN_NAME:
        yield (
            f"run.name: {name} is no name for a folder in runs: no slash, no ~ or .. at its start, "
            f"{limits.RUN_NAME} bytes at most: run.dir names any folder"
        )
    paths = {
        "run.dir": run.dir,
        "run.resume": run.resume,
        "model.pretrained": config.model.pretrained,
        "data.root": config.data.root,
        "loss.teacher": config.loss.teacher,
        "loss.teacher_weights": config.loss.teacher_weights,
    }
    if problem := pickle_problem(config.model.pretrained):
        yield f"model.pretrained: {problem}"
    for field, path in paths.items():
        try:
            Path(path).expanduser()
        except RuntimeError:
            yield f"{field}: {path}: there is no such user: write the path out"
        if any(len(part.encode()) > limits.PATH_PART for part in Path(path).parts):
            yield f"{field}: has a name of more than {limits.PATH_PART} bytes, which no file system takes"


def _does_not_divide(stride: int, image_size: int) -> str:
    return f"{stride} does not divide an image of {image_size} pixels"


def _nearest_multiple(size: int, stride: int) -> int:
    """Return the multiple of `stride` nearest to `size`, at least one stride."""
    return max(1, round(size / stride)) * stride
