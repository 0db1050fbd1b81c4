"""Names that a config may use: schedules, optimizers, losses, metrics."""

from __future__ import annotations

from collections.abc import Iterator

from vit_dist.errors import nearest

_TIMM = "timm/"
PRESETS = ("cosine", "wsd", "constant")
OPTIMIZERS = ("adamw", "adam", "sgd", "muon")
LOSSES = ("cross_entropy", "bce", "clip", "siglip")
# Validation metrics, of the EMA weights if train.ema is set; with raw_, of the raw weights.
METRICS = ("top1", "top5", "loss", "raw_top1", "raw_top5", "raw_loss")
# Those of images and captions; top1 is the first of these that the data has.
_OF_PAIRS = ("zero_shot_top1", "mean_recall_at_1")
PAIR_METRICS = ("top1", *_OF_PAIRS, "loss", "raw_top1", *(f"raw_{name}" for name in _OF_PAIRS), "raw_loss")
ALL_METRICS = tuple(dict.fromkeys([*METRICS, *PAIR_METRICS]))

# Fields that a data set can decide (run.auto).
AUTO = (
    *("model.name", "model.width", "model.depth", "model.heads", "model.patch_size"),
    *("data.image_size", "data.crop"),
    *("batch.global_size", "batch.micro_size", "optimizer.lr", "optimizer.weight_decay"),
    "train.duration",
    *("augment.crop_min", "augment.flip", "augment.auto", "augment.shift", "augment.rotate", "augment.scale"),
    *("augment.mixup", "loss.label_smoothing", "evaluate.every"),
)


def is_timm(name: str) -> bool:
    """Return whether a model's or an optimizer's name is one of timm's: timm/NAME."""
    return name.startswith(_TIMM)


def timm_name(name: str) -> str:
    """Return timm's own name for timm/NAME."""
    return name.removeprefix(_TIMM)


def optimizer_problems(name: str) -> Iterator[str]:
    """Yield what is wrong with the name of an optimizer."""
    if name not in OPTIMIZERS and not is_timm(name):
        hint = nearest(name, [*OPTIMIZERS, "timm/NAME"])
        timms = "" if name.lower() in ("", "timm", *OPTIMIZERS) else f"; if timm has it: timm/{name.lower()}"
        yield f"optimizer.name: no optimizer {name}{hint}{timms}"


def loss_problems(name: str) -> Iterator[str]:
    """Yield what is wrong with the name of a loss."""
    if name not in LOSSES and ":" not in name:
        yield f"loss.name: no loss {name}{nearest(name, [*LOSSES, 'package.module:function'])}"
