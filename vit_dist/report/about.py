"""A run in words: its data, model, recipe, training and machine; its starts; what its training loss holds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vit_dist.config.config import Config
from vit_dist.config.recipe import RECIPES
from vit_dist.formatting import big, duration
from vit_dist.report.drawing import short
from vit_dist.report.measures import RunFigures
from vit_dist.report.processes import processes_in_words
from vit_dist.report.quality import class_names
from vit_dist.run_folder.metrics import Line
from vit_dist.run_folder.record import RunRecord, reason_text

# Fields that differ from the nearest recipe's: more are not named one by one, and more still make it another recipe.
_NAMED, _MOST_CHANGES = 8, 25
# Say where a run is, and not what it is.
_NO_CHANGE = {"data.name", "data.root", "run.auto"}


def about_rows(run: RunRecord, figures: RunFigures) -> list[tuple[str, str]]:
    """Return what a reader must know of the run: (name, text)."""
    rows = [("Data", _data(run)), ("Model", _model(run)), ("Recipe", _recipe(run.config))]
    rows += [("Training", _training(run, figures)), ("Machine", _machine(run, figures))]
    rows.append(("Processes", processes_in_words(run)))
    return [(name, text) for name, text in rows if text]


def _data(run: RunRecord) -> str:
    config, facts, names = run.config.data, run.facts, class_names(run)
    totals = dict(facts.totals) if facts is not None else {"train": int(run.start["plan"]["samples"])}
    if facts is None:
        evaluated = {line["split"]: line["seen"] for line in run.metrics.other_lines if line["kind"] == "eval"}
        totals |= {split: seen for split, seen in evaluated.items() if split in ("val", "test")}
    words = {"train": "training", "val": "validation", "test": "test"}
    counts = [f"{totals[split]:,} {word}" for split, word in words.items() if split in totals]
    listed = " and ".join([", ".join(counts[:-1]), counts[-1]] if len(counts) > 1 else counts)
    text = f"{config.root if config.source == 'folder' else config.source}: {listed} images"
    if names:
        text += f" of {len(names):,} class{'es' if len(names) > 1 else ''}"
        text += f" ({', '.join(map(short, names[:4]))}{' …' if len(names) > 4 else ''})"
    if facts is not None and facts.sizes is not None and facts.sizes[0] != facts.sizes[2]:
        text += f"; sides of {facts.sizes[0]:,} to {facts.sizes[2]:,} pixels, median {facts.sizes[1]:,}"
    if run.inputs is not None:
        channels, _, side = run.inputs.pixels.shape[1:]
        text += f"; the model sees {side} × {side} pixels in {'grey' if channels == 1 else 'colour'}"
    return text


def _model(run: RunRecord) -> str:
    model, loss = run.config.model, run.config.loss
    text = f"{model.name}, {big(run.start['parameters'])} parameters"
    if model.pretrained:
        text += f", fine-tuned from {'timm’s weights' if model.pretrained == 'timm' else model.pretrained}"
        text += ", the head alone" if model.linear_probe else ""
    else:
        text += ", trained from scratch"
    return text + (f", distilled from {loss.teacher}" if loss.teacher else "")


def _recipe(config: Config) -> str:
    nearest = nearest_recipe(config)
    if nearest is None:
        return ""
    named = "; ".join(
        f"{field} {_value(new)} (recipe: {_value(old)})" for field, (old, new) in nearest.changes[:_NAMED]
    )
    more = f"; and {len(nearest.changes) - _NAMED} more: see the config below" if len(nearest.changes) > _NAMED else ""
    unchanged = nearest.name if nearest.fitted else f"{nearest.name}, unchanged"
    return f"{nearest.name}, with {named}{more}" if named else unchanged


def fitted_fields(config: Config) -> list[str]:
    """Return the fields that the recipe leaves to the data, with the values that they got: from the data, or a flag."""
    nearest = nearest_recipe(config)
    return [f"{field} {_value(value)}" for field, value in nearest.fitted] if nearest else []


def _value(value: object) -> str:
    if value is None:
        return "default"
    if value in ("", [], ()):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class NearestRecipe:
    """The shipped recipe that a config differs least from. changes: field → (the recipe's value, the config's).

    fitted: the values of the fields that the recipe leaves to the data.
    """

    name: str
    changes: list[tuple[str, tuple[object, object]]]
    fitted: list[tuple[str, object]]


def nearest_recipe(config: Config) -> NearestRecipe | None:
    """Return the shipped recipe for its data set that a config differs least from; None if it is far from all."""
    fields = {name: value for name, value in config.fields(changes_result=True).items() if name not in _NO_CHANGE}
    nearest: NearestRecipe | None = None
    for path in sorted(RECIPES.glob("*.yaml")):
        shipped = Config.load(path)
        if shipped.data.source != config.data.source:
            continue
        values = shipped.fields(changes_result=True)
        differ = {name: (values[name], value) for name, value in fields.items() if values[name] != value}
        changes = [(name, pair) for name, pair in differ.items() if name not in shipped.run.auto]
        if len(changes) <= (len(nearest.changes) - 1 if nearest else _MOST_CHANGES):
            fitted = [(name, new) for name, (_, new) in differ.items() if name in shipped.run.auto]
            nearest = NearestRecipe(path.stem, changes, fitted)
    return nearest


def _training(run: RunRecord, figures: RunFigures) -> str:
    config, size = run.config, run.config.batch.global_size
    text = f"{figures.updates_text} updates of {size:,} images"
    if figures.epochs is not None and figures.seconds is not None:
        text += f" = {figures.epochs:.4g} epochs, in {duration(figures.seconds)}"
        pace = figures.epoch_seconds
        text += f" ({duration(pace)} an epoch, {figures.samples_per_second:,.0f} images/s)" if pace else ""
    text += f"; {config.optimizer.name}, learning rate {config.optimizer.lr:g}, {config.schedule.name}"
    return text + (f"; EMA of the weights, {config.train.ema:g}" if config.train.ema else "")


def _machine(run: RunRecord, figures: RunFigures) -> str:
    text = figures.machine
    if figures.memory_bytes:
        text += f"; {figures.memory_bytes / 2**20:,.0f} MiB of memory at most"
    if figures.mfu is not None:
        text += f"; MFU {100 * figures.mfu:.1f} % (median)"
    goodput = run.summary.get("goodput")
    return text + (f"; {goodput:.0%} of the time went to updates" if isinstance(goodput, float) else "")


def starts_in_words(run: RunRecord) -> list[str]:
    """Return a sentence for each start of a run that started more than once, with how the one before it ended."""
    starts, stops = run.metrics.starts, [line for line in run.metrics.other_lines if line["kind"] == "stop"]
    if len(starts) < 2:
        return []
    sentences = [f"Started on {_clock(starts[0])}."]
    for before, start in pairwise(starts):
        stop = next((line for line in stops if before["time"] <= line["time"] < start["time"]), None)
        ended = (
            "It was killed, or ended without a word"
            if stop is None
            else f"It ended: {reason_text(stop.get('reason', 'stopped'))}"
        )
        changed = ", ".join(f"{name} {value}" for name, value in start["changed"].items())
        sentences.append(
            f"{ended}; resumed on {_clock(start)} from update {start['update']:,} (epoch {start['epoch']:.3g})"
            + (f", with {changed}" if changed else "")
            + (f", on {_hardware(start)}" if _hardware(start) != _hardware(before) else "")
            + "."
        )
    return sentences


def _clock(line: Line) -> str:
    return time.strftime("%Y-%m-%d at %H:%M:%S", time.localtime(line["time"]))


def _hardware(line: Line) -> str:
    return f"{line['world_size']} × {line['device']}, {line['precision']}"


def loss_note(run: RunRecord) -> str:
    """Return in words why the training loss is not val's loss on other images."""
    parts = list(_loss_parts(run))
    if run.config.contrastive:
        return "Val’s loss is that of training, of as many pairs together, each image with one of its captions."
    if not run.evaluations("val", "raw"):
        return "There is no validation loss to compare the training loss with."
    if not parts:
        return "Both losses are plain cross entropy; that on train is the mean since the last line."
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"The training loss is made harder by {listed}; val’s is plain cross entropy, so it may lie below."


def _loss_parts(run: RunRecord) -> Iterator[str]:
    config = run.config
    augment, loss, classes = config.augment, config.loss, len(class_names(run))
    if augment.mixup or augment.cutmix:
        yield "mixed images (mixup, CutMix)"
    if loss.label_smoothing and ":" not in loss.name:
        floor = smoothing_floor(loss.label_smoothing, classes)
        plain = loss.name == "cross_entropy" and not (augment.mixup or augment.cutmix or loss.teacher)
        least = f" (at {loss.label_smoothing:g} it cannot fall below {floor:.2f})" if plain and classes > 1 else ""
        yield f"label smoothing{least}"
    if loss.teacher:
        yield "distillation"
    fields = ("crop_min", "auto", "color_jitter", "flip", "shift", "rotate", "translate", "scale", "erasing")
    if augment.transform or any(getattr(augment, name) for name in fields):
        yield "augmentation"
    if config.model.drop_path or config.model.dropout:
        yield "drop path" if config.model.drop_path else "dropout"


def smoothing_floor(smoothing: float, classes: int) -> float:
    """Return the lowest cross entropy that targets with label smoothing allow: their entropy."""
    rest = smoothing / max(1, classes)
    target = np.asarray([1 - smoothing + rest, *[rest] * (classes - 1)])
    target = target[target > 0]
    return max(0.0, -math.fsum(target * np.log(target)))
