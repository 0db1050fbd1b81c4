"""The fields of what a run measures, saves and says: evaluation, checkpoints, log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_dist.config.option import option


@dataclass(frozen=True)
class EvaluateConfig:
    """The evaluation on the validation set, and early stopping."""

    every: str = option("1 epochs", "interval between evaluations; the end of the run is always evaluated")
    batch_size: int = option(256, "slots of one forward pass", above=0, changes_result=False, at_inference=True)
    metric: str = option(
        "top1",
        "validation metric that picks the best weights: top1, top5 or loss (of the EMA weights if train.ema is "
        "set; prefix raw_ for the others)",
    )
    patience: int = option(
        0, "evaluations without improvement, after the warmup, that end the run; 0: never", at_least=0
    )
    min_delta: float = option(
        0.0, "change of the metric above which patience sees an improvement; never one image of val alone", at_least=0
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """The checkpoints: how often they are written, how many are kept."""

    every: str = option(
        "1 epochs",
        "interval between checkpoints: epochs, updates, samples, or a time as 15 minutes; a new best and the end are "
        "always saved",
        changes_result=False,
    )
    keep: int = option(3, "number of newest checkpoints to keep, besides the best one", above=0, changes_result=False)


@dataclass(frozen=True)
class LogConfig:
    """The log: metrics, console, report and experiment trackers."""

    every: str = option("10 updates", "interval between lines of metrics", changes_result=False)
    level: Literal["debug", "info", "warning"] = option(
        "info",
        "warning: warnings and errors only; debug: the libraries' own logs as well, of all ranks",
        changes_result=False,
    )
    profile: str = option(
        "",
        'updates to profile, as "10 updates", ten after the start, or "10 updates from 500": a trace in profile/, '
        "and on the report page where their time went; empty: none",
        changes_result=False,
    )
    report: bool = option(True, "draw the report at the end of the run", changes_result=False)
    trackers: Literal["auto", "none", "wandb", "tensorboard"] = option(
        "auto", "experiment tracker; auto: wandb if you are logged in", changes_result=False
    )
    project: str = option("vit_dist", "project in W&B", changes_result=False)
    entity: str = option("", "team or user in W&B; empty: your default", changes_result=False)
    group: str = option("", "group of runs in W&B", changes_result=False)
    tags: tuple[str, ...] = option((), "tags of the run in W&B", changes_result=False)
