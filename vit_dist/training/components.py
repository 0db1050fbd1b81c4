"""Build the parts of a run from its config: the same for `train` and `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.optim import Optimizer

from vit_dist.config.catalog import METRICS, PAIR_METRICS
from vit_dist.config.config import Config
from vit_dist.config.fields import AugmentConfig
from vit_dist.config.values import parse_size
from vit_dist.data.augmentation.transforms import training_transform
from vit_dist.data.preprocessing import Preprocessing, resolve_preprocessing
from vit_dist.data.shards.source import shard_sizes
from vit_dist.data.sources.custom import from_source
from vit_dist.data.sources.leave_out import leave_out
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.data.text.tokenizer import Tokenizer
from vit_dist.errors import UserError, one_line
from vit_dist.inference.load import start_from
from vit_dist.models.build import bf16_residual, build_model, check_outputs, checkpoint_blocks, refuse_batch_norm
from vit_dist.models.contrastive_loss import ContrastiveLoss
from vit_dist.models.forward import forward_flops, parameter_count
from vit_dist.models.pretrained import freeze
from vit_dist.optim.optimizers import build_optimizer, peak_lr
from vit_dist.optim.rate_curve import check_user_rates
from vit_dist.optim.schedules import Schedule, schedule_metric
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.pair_figures import ZERO_SHOT
from vit_dist.sizing.limits import check_images
from vit_dist.telemetry.trackers import check_tracker
from vit_dist.training.captions import caption_notes, check_captions, run_tokenizer
from vit_dist.training.distillation import Autocast, Teacher, build_teacher
from vit_dist.training.losses import Loss
from vit_dist.training.towers import build_towers


@dataclass(frozen=True)
class Components:
    """The parts of a run that its config decides.

    model: bare, on the device. parameters: how many are trained. forward_flops: of one image. lr: the peak.
    notes: lines for the user. tokenizer: of the captions, in a contrastive run.
    """

    config: Config
    data: LabelledSplits
    preprocessing: Preprocessing
    plan: Plan
    model: nn.Module
    parameters: int
    forward_flops: int
    loss: Loss | ContrastiveLoss
    lr: float
    optimizer: Optimizer
    schedule: Schedule
    notes: list[str]
    tokenizer: Tokenizer | None = None


def build_components(
    config: Config,
    *,
    world_size: int,
    device: torch.device,
    autocast: Autocast,
    model: nn.Module | None = None,
    source: Any = None,
    load_pretrained: bool = True,
    preprocessing: Preprocessing | None = None,
    trust_code: bool = False,
) -> Components:
    """Build the parts of a run on `world_size` ranks, of which this one computes on `device`.

    autocast: the precision that a teacher runs in. model, source: used in place of the config's model and data.
    load_pretrained: False if a checkpoint's weights follow. preprocessing: the checkpoint's, which a run keeps.
    trust_code: run a function that a teacher's run names as its model. Raises UserError for everything that `train`
    refuses, except what depends on the machine or the run's folder.
    """
    check_tracker(config.log.trackers)
    data = open_splits(config, source)
    tokenizer = run_tokenizer(config)
    preprocessing = preprocessing or resolve_preprocessing(config, data, model)
    train = data.splits["train"]
    plan = Plan.from_config(config, len(train), world_size, shard_sizes(train), train.weights)
    if plan.shards is None and config.data.lanes > 1:
        raise UserError(f"data.lanes: {config.data.lanes} are for shards, and this data has none: set data.lanes 1")
    for field, slots in (
        ("batch.micro_size", config.batch.slots),
        ("evaluate.batch_size", config.evaluate.batch_size),
    ):
        check_images(slots, (data.channels, preprocessing.image_size, preprocessing.image_size), field)
    check_metrics(config, data)
    _check_transform(config.augment, data, preprocessing)
    if tokenizer is not None:
        model, notes = build_towers(
            config, tokenizer, data.channels, preprocessing, model, load_pretrained=load_pretrained
        )
    else:
        model, notes = _build_model(config, data, preprocessing, model, load_pretrained=load_pretrained)
    flops = forward_flops(model, channels=data.channels, image_size=preprocessing.image_size)
    loss = _build_loss(config, data, preprocessing, device, autocast, trust_code)
    model.to(device)
    lr = peak_lr(config.optimizer, config.batch.global_size)
    optimizer = build_optimizer(config.optimizer, model, lr)
    check_user_rates(config.schedule, optimizer, plan, lr)
    return Components(
        config=config,
        data=data,
        preprocessing=preprocessing,
        plan=plan,
        model=model,
        parameters=parameter_count(model),
        forward_flops=flops,
        loss=loss,
        lr=lr,
        optimizer=optimizer,
        schedule=Schedule(config.schedule, optimizer, plan, lr),
        notes=[
            *notes,
            *(loss.teacher.notes if isinstance(loss.teacher, Teacher) else []),
            *(caption_notes(data, tokenizer) if tokenizer else []),
        ],
        tokenizer=tokenizer,
    )


def open_splits(config: Config, source: Any) -> LabelledSplits:
    """Return the config's data, or that of the source given in its place, in any form, with the captions it needs.

    Raises UserError.
    """
    if source is None:
        data = open_data(config.data, config.contrastive)
    elif isinstance(source, LabelledSplits):
        data = source
    else:
        data = leave_out(from_source(source, config.data, captions=config.contrastive), config.data.leave_out, "")
    if config.contrastive:
        check_captions(config, data)
    elif len(data.classes) < 2:
        raise UserError(f"data: has one class, {data.classes[0]}: a classifier needs two or more")
    return data


def _build_model(
    config: Config,
    data: LabelledSplits,
    preprocessing: Preprocessing,
    model: nn.Module | None,
    *,
    load_pretrained: bool,
) -> tuple[nn.Module, list[str]]:
    """Return the model on the CPU, and notes on pretrained and frozen weights. Raises UserError."""
    given = model is not None
    if model is not None:
        if not isinstance(model, nn.Module):
            raise UserError(f"model: must be a torch.nn.Module, not {type(model).__name__}")
        refuse_batch_norm(model)
        if config.model.residual == "bf16":
            bf16_residual(model)
    else:
        model = build_model(
            config.model,
            classes=len(data.classes),
            channels=data.channels,
            image_size=preprocessing.image_size,
            seed=config.run.seed,
            sizes=[parse_size(text)[0] for text in config.augment.sizes],
        )
    if given or ":" in config.model.name:
        check_outputs(
            model,
            classes=len(data.classes),
            channels=data.channels,
            image_size=preprocessing.image_size,
            field="model" if given else "model.name",
        )
    if config.model.checkpoint_blocks:
        checkpoint_blocks(model)
    notes: list[str] = []
    if load_pretrained and config.model.pretrained:
        notes += start_from(model, config.model, list(data.classes))
    return model, notes + freeze(model, config.model)


def _build_loss(
    config: Config,
    data: LabelledSplits,
    preprocessing: Preprocessing,
    device: torch.device,
    autocast: Autocast,
    trust_code: bool,
) -> Loss | ContrastiveLoss:
    """Return the loss, with its teacher on the device if it has one. Raises UserError if they do not fit the data."""
    if config.contrastive:
        return ContrastiveLoss(config.loss)
    named = config.model.name
    teacher = build_teacher(config.loss, data, preprocessing, device, autocast, trust_code=trust_code, named=named)
    loss = Loss(config.loss, teacher)
    loss.check_function(len(data.classes), device)
    if config.augment.mixup or config.augment.cutmix:
        loss.check_mixed_targets(len(data.classes), "augment.mixup" if config.augment.mixup else "augment.cutmix")
    return loss


def _check_transform(config: AugmentConfig, data: LabelledSplits, preprocessing: Preprocessing) -> None:
    """Build the transform of the training images, and call the user's once. Raises UserError if one of them fails."""
    side = preprocessing.image_size
    transform = training_transform(config, preprocessing.mean, side, None)
    if transform is None or not config.transform or data.channels not in (1, 3):
        return
    try:
        transform(Image.new("L" if data.channels == 1 else "RGB", (side, side)), 0, side)
    except UserError:
        raise
    except Exception as error:  # of any kind: it is the user's function
        what = f"{config.transform} fails on an image of {side} × {side} pixels"
        raise UserError(f"augment.transform: {what}: {type(error).__name__}: {one_line(error, 200)}") from error


def check_metrics(config: Config, data: LabelledSplits) -> None:
    """Reject metrics that no evaluation produces. Raises UserError, one line for each."""
    used = {"schedule.args.metric": schedule_metric(config.schedule)}
    if "val" in data.splits or config.evaluate.patience:
        used["evaluate.metric"] = config.evaluate.metric
    problems = []
    measured = PAIR_METRICS if config.contrastive else METRICS
    for field, metric in used.items():
        if metric is not None and metric not in measured:
            problems.append(f"{field}: no evaluation of this run gives {metric}: set one of {', '.join(measured)}")
        if metric is not None and metric.endswith("top5") and len(data.classes) <= 5:
            problems.append(f"{field}: no evaluation of {len(data.classes)} classes gives {metric}: set top1 or loss")
        if metric is not None and metric.endswith(ZERO_SHOT) and len(data.classes) < 2:
            problems.append(f"{field}: these images have captions and no classes, so no {metric}: set mean_recall_at_1")
        if metric is not None and "val" not in data.splits:
            cause = "evaluate.patience" if field == "evaluate.metric" else field
            problems.append(f"{cause}: there is no val split to measure {metric} on: set data.val_fraction above 0")
    if problems:
        raise UserError("\n".join(problems))
