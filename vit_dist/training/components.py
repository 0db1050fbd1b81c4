"""Build the parts of a run from its config: the same for `train` and `plan`."""

from __future__ import annotations

import torch
from torch import nn

from vit_dist.config.config import Config
from vit_dist.config.values import parse_size
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.errors import UserError
from vit_dist.inference.load import start_from
from vit_dist.models.build import build_model, refuse_batch_norm
from vit_dist.models.pretrained import freeze
from vit_dist.optim.schedules import schedule_metric
from vit_dist.training.distillation import Autocast, build_teacher
from vit_dist.training.losses import Loss


def own_model(
    config: Config,
    data: LabelledSplits,
    preprocessing: Preprocessing,
    model: nn.Module | None = None,
    *,
    pretrained: bool,
) -> tuple[nn.Module, list[str]]:
    """The config's model for the data, or the one given, with what is to be said of its weights. Raises UserError.

    pretrained: whether model.pretrained is loaded, which a resumed run does not need.
    """
    notes: list[str] = []
    if model is not None:
        refuse_batch_norm(model)
    else:
        model = build_model(
            config.model,
            classes=len(data.classes),
            channels=data.channels,
            image_size=preprocessing.image_size,
            seed=config.run.seed,
            sizes=[parse_size(text)[0] for text in config.augment.sizes],
        )
    if pretrained and config.model.pretrained:
        notes += start_from(model, config.model, list(data.classes))
    return model, notes + freeze(model, config.model)


def build_loss(
    config: Config, data: LabelledSplits, preprocessing: Preprocessing, device: torch.device, autocast: Autocast
) -> Loss:
    """The loss with its teacher, if it has one, on the device. Raises UserError where they do not fit the data."""
    loss = Loss(config.loss, build_teacher(config.loss, data, preprocessing, device, autocast))
    if config.augment.mixup or config.augment.cutmix:
        loss.refuse_numbers_only(len(data.classes), "augment.mixup" if config.augment.mixup else "augment.cutmix")
    return loss


def refuse_metrics(config: Config, data: LabelledSplits) -> None:
    """What listens to a metric that no evaluation gives. Raises UserError, a line each."""
    listeners = {"schedule.args.metric": schedule_metric(config.schedule)}
    if "val" in data.splits or config.evaluate.patience:
        listeners["evaluate.metric"] = config.evaluate.metric
    problems = []
    for name, metric in listeners.items():
        if metric is not None and metric.endswith("top5") and len(data.classes) <= 5:
            problems.append(f"{name}: no evaluation of {len(data.classes)} classes gives {metric}: set top1 or loss")
        if metric is not None and "val" not in data.splits:
            asked = "evaluate.patience" if name == "evaluate.metric" else name
            problems.append(f"{asked}: there is no val split to measure {metric} on: set data.val_fraction above 0")
    if problems:
        raise UserError("\n".join(problems))
