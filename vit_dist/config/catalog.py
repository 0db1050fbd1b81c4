"""The names that a config may use, and what each takes: schedules, optimizers, losses, metrics."""

from __future__ import annotations

from collections.abc import Iterator

from vit_dist.errors import nearest

PRESETS = ("cosine", "wsd", "constant")


_TIMM = "timm/"
OPTIMIZERS = ("adamw", "adam", "sgd", "muon")


LOSSES = ("cross_entropy", "bce")


# Of val, by the averaged weights where train.ema keeps some; raw_ asks for the others.
METRICS = ("top1", "top5", "loss", "raw_top1", "raw_top5", "raw_loss")


def is_timm(name: str) -> bool:
    """Return whether a model's or an optimizer's name is one of timm's: timm/NAME."""
    return name.startswith(_TIMM)


def timm_name(name: str) -> str:
    """Return timm's own name for timm/NAME."""
    return name.removeprefix(_TIMM)


def optimizer_problems(name: str) -> Iterator[str]:
    """What is wrong with an optimizer's name."""
    if name not in OPTIMIZERS and not is_timm(name):
        hint = nearest(name, [*OPTIMIZERS, "timm/NAME"])
        timms = "" if "did you mean" in hint or not name else f"; if timm has it: timm/{name.lower()}"
        yield f"optimizer.name: no optimizer {name}{hint}{timms}"


def loss_problems(name: str) -> Iterator[str]:
    """What is wrong with a loss's name."""
    if name == "clip":
        yield (
            "loss.name: clip needs a two-tower model (images and texts), which is not built: "
            f"use {' or '.join(LOSSES)}, or package.module:function"
        )
    elif name not in LOSSES and ":" not in name:
        yield f"loss.name: no loss {name}{nearest(name, [*LOSSES, 'package.module:function'])}"


# Fields that may be set beside a trained run, which says all else itself.
BESIDE_A_RUN = (
    *("data.root", "data.workers", "evaluate.batch_size"),
    *("run.device", "run.threads", "run.seed", "train.precision"),
)
