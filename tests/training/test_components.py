"""The components of a run and its overview: metrics that nothing measures, and the numbers of the plan."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.optim import SGD

from vit_dist.config.config import Config
from vit_dist.config.fields import BatchConfig, LossConfig, ScheduleConfig
from vit_dist.config.optimizer_fields import OptimizerConfig
from vit_dist.data.preprocessing import resolve_preprocessing
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import LabelledSplits, all_of
from vit_dist.errors import UserError
from vit_dist.optim.schedules import Schedule
from vit_dist.plan.plan import Plan
from vit_dist.training.components import Components, build_components, check_metrics
from vit_dist.training.losses import Loss
from vit_dist.training.overview import peak_text, plan_rows

NO_VAL = {"data.val_fraction": 0}
PATIENCE = {"evaluate.patience": 2}


def plateau(metric: str) -> dict[str, Any]:
    return {"schedule.name": "ReduceLROnPlateau", "schedule.args": {"metric": metric}}


def pictures(classes: int, *splits: str) -> LabelledSplits:
    """Return twelve black images in so many classes, the same for every split."""
    split = all_of(MemorySource(np.zeros((12, 1, 8, 8), np.uint8), np.arange(12) % classes))
    names = tuple(str(i) for i in range(classes))
    return LabelledSplits(dict.fromkeys(splits, split), names, 1, 8, (0.5,), (0.25,))


def refusal(config: Config, data: LabelledSplits) -> str:
    with pytest.raises(UserError) as error:
        check_metrics(config, data)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (PATIENCE, "evaluate.patience: there is no val split to measure loss on: set data.val_fraction above 0"),
        (
            {**PATIENCE, "evaluate.metric": "raw_top5"},
            "evaluate.patience: there is no val split to measure raw_top5 on: set data.val_fraction above 0",
        ),
        (
            plateau("top1"),
            "schedule.args.metric: there is no val split to measure top1 on: set data.val_fraction above 0",
        ),
        (
            {**plateau("top5"), **PATIENCE},
            "schedule.args.metric: there is no val split to measure top5 on: set data.val_fraction above 0\n"
            "evaluate.patience: there is no val split to measure loss on: set data.val_fraction above 0",
        ),
    ],
)
def test_metrics_of_val_are_refused_without_a_val_split(changes: dict[str, Any], text: str) -> None:
    config = Config.load("digits", {**changes, **NO_VAL})
    data = open_data(config.data)
    assert sorted(data.splits) == ["test", "train"]
    assert refusal(config, data) == text
    with_val = Config.load("digits", changes)
    check_metrics(with_val, open_data(with_val.data))


def test_a_metric_that_nothing_uses_needs_no_val_split() -> None:
    for metric in ("loss", "top1", "top5", "raw_top5"):
        config = Config.load("digits", {**NO_VAL, "evaluate.metric": metric})
        uses_it = Config.load("digits", {**NO_VAL, "evaluate.metric": metric, "evaluate.patience": 1})
        for data in (open_data(config.data), pictures(3, "train")):
            check_metrics(config, data)
            with pytest.raises(UserError, match=f"there is no val split to measure {metric} on"):
                check_metrics(uses_it, data)


@pytest.mark.parametrize("metric", ["top5", "raw_top5"])
def test_top5_is_refused_for_five_classes_or_fewer(metric: str) -> None:
    chosen = Config.load("digits", {"evaluate.metric": metric})
    followed = Config.load("digits", plateau(metric))
    for classes in (2, 5):
        data = pictures(classes, "train", "val")
        fix = f"no evaluation of {classes} classes gives {metric}: set top1 or loss"
        assert refusal(chosen, data) == f"evaluate.metric: {fix}"
        assert refusal(followed, data) == f"schedule.args.metric: {fix}"
    for config in (chosen, followed):
        check_metrics(config, pictures(6, "train", "val"))
    with_patience = Config.load("digits", {"evaluate.metric": metric, **PATIENCE})
    assert refusal(with_patience, pictures(5, "train")) == (
        f"evaluate.metric: no evaluation of 5 classes gives {metric}: set top1 or loss\n"
        f"evaluate.patience: there is no val split to measure {metric} on: set data.val_fraction above 0"
    )


@pytest.mark.parametrize(
    ("optimizer", "size", "text"),
    [
        ({}, 128, "0.001"),
        ({"lr": 0.123456}, 128, "0.1235"),
        ({"scale": "linear"}, 128, "0.0005 (lr 0.001, linear in the global batch: 128 over 256)"),
        ({"scale": "linear", "scale_base": 32}, 256, "0.008 (lr 0.001, linear in the global batch: 256 over 32)"),
        ({"scale": "sqrt"}, 1024, "0.002 (lr 0.001, sqrt in the global batch: 1024 over 256)"),
    ],
)
def test_peak_text(optimizer: dict[str, Any], size: int, text: str) -> None:
    config = Config(optimizer=OptimizerConfig(**optimizer), batch=BatchConfig(global_size=size))
    assert peak_text(config) == text


def rows(processes: int, **changes: Any) -> dict[str, str]:
    config = Config.load("digits", {name.replace("__", "."): value for name, value in changes.items()})
    data = open_data(config.data)
    plan = Plan.from_config(config, len(data.splits["train"]), processes)
    optimizer = SGD([torch.zeros(1)], lr=1.0)
    components = Components(
        config=config,
        data=data,
        preprocessing=resolve_preprocessing(config, data),
        plan=plan,
        model=nn.Identity(),
        parameters=1_797_130,
        forward_flops=17_580_000_000,
        loss=Loss(LossConfig()),
        lr=1.0,
        optimizer=optimizer,
        schedule=Schedule(ScheduleConfig(), optimizer, plan, 1.0),
        notes=[],
    )
    return plan_rows(components)


def test_rows_of_a_plan() -> None:
    assert rows(1) == {
        "model": "vit_tiny, 1.8 M parameters, 17.6 GFLOP per image forward",
        "data": "train 1,294, test 359, val 144; 10 classes",
        "classes": "10, train + val + test: smallest 7 (124 + 13 + 42), median 3 (127 + 17 + 39), "
        "largest 6 (140 + 13 + 28)",
        "sizes": "8 × 8 pixels, grey",
        "images": "1 × 8 × 8, mean 0.3053, std 0.376",
        "run": "4853 updates of 32 samples = 120 epochs (the last update has 16 samples)",
        "batch": "micro-batches of 32, 1 per process and update",
        "loss": "cross_entropy, smoothing 0.1",
        "optimizer": "adamw, weight decay 0.5, clip 1",
        "rate": "cosine, lr 0.003, warmup 98 updates",
    }


def test_optional_rows_of_a_plan() -> None:
    changes = {
        "batch__global_size": 100,
        "train__duration": "10 updates",
        "train__ema": 0.999,
        "schedule__name": "wsd",
        "optimizer__scale": "sqrt",
        "optimizer__scale_base": 25,
        "evaluate__patience": 3,
        "evaluate__metric": "raw_top1",
    }
    shown = rows(3, **changes)
    assert list(shown) == [
        "model",
        "data",
        "classes",
        "sizes",
        "images",
        "run",
        "batch",
        "loss",
        "optimizer",
        "rate",
        "average",
        "patience",
    ]
    assert list(shown.values())[5:] == [
        "10 updates of 100 samples = 0.7728 epochs",
        "micro-batches of 32, 2 per process and update, 92 filler slots per update",
        "cross_entropy, smoothing 0.1",
        "adamw, weight decay 0.5, clip 1",
        "wsd, lr 0.006 (lr 0.003, sqrt in the global batch: 100 over 25), warmup 1 updates, cooldown 2 updates",
        "of the weights, decay 0.999 per update",
        "3 evaluations of raw_top1",
    ]


@pytest.mark.parametrize(
    ("row", "changes", "text"),
    [
        ("loss", {"label_smoothing": 0}, "cross_entropy"),
        ("loss", {"name": "a.b:c", "label_smoothing": 0}, "a.b:c"),
        ("loss", {"name": "bce", "label_smoothing": 0.25}, "bce, smoothing 0.25"),
        ("loss", {"teacher": "runs/a"}, "cross_entropy, smoothing 0.1; 50% hard distillation from runs/a"),
        (
            "loss",
            {"label_smoothing": 0, "teacher": "timm/x", "teacher_weights": "x.safetensors", "distillation": "soft",
             "distillation_weight": 0.25, "temperature": 3},
            "cross_entropy; 25% soft distillation at temperature 3 from timm/x",
        ),
        ("optimizer", {"name": "timm/lamb", "weight_decay": 0}, "timm/lamb, weight decay 0, clip 1"),
        ("optimizer", {"name": "sgd", "momentum": 0.5, "clip_norm": 0}, "sgd, weight decay 0.5, clip 0"),
        (
            "schedule",
            {"name": "StepLR", "args": {"step_size": "3 epochs", "gamma": 0.5}, "cooldown": "5 updates"},
            "StepLR, step_size 3 epochs, gamma 0.5, lr 0.003, warmup 98 updates, cooldown 5 updates",
        ),
        (
            "schedule",
            {"name": "MultiStepLR", "args": {"milestones": ["30%", "60%"]}, "warmup": "0%"},
            "MultiStepLR, milestones ['30%', '60%'], lr 0.003, warmup 0 updates",
        ),
        ("schedule", {"name": "constant"}, "constant, lr 0.003, warmup 98 updates"),
    ],
)  # fmt: skip
def test_rows_of_loss_optimizer_and_schedule(row: str, changes: dict[str, Any], text: str) -> None:
    shown = rows(1, **{f"{row}__{name}": value for name, value in changes.items()})
    assert shown["rate" if row == "schedule" else row] == text


def test_preprocessing_comes_from_the_config_or_else_from_the_data() -> None:
    data = dataclasses.replace(pictures(3, "train"), mean=(0.1,), std=(0.2,))
    preprocessing = resolve_preprocessing(Config.load("digits"), data)
    assert (preprocessing.image_size, preprocessing.mean, preprocessing.std) == (8, (0.1,), (0.2,))
    preprocessing = resolve_preprocessing(
        Config.load("digits", {"data.image_size": 16, "data.mean": [0.3], "data.std": [0.4]}), data
    )
    assert (preprocessing.image_size, preprocessing.mean, preprocessing.std) == (16, (0.3,), (0.4,))
    wrong = Config.load("digits", {"data.mean": [0.3, 0.3, 0.3], "data.std": [0.4, 0.4, 0.4]})
    with pytest.raises(UserError, match=r"^data.mean: has 3 values and the images 1 channels: give one each$"):
        resolve_preprocessing(wrong, data)


def test_crop_of_files_comes_from_the_config_or_else_from_the_model(image_folder: Path) -> None:
    def crop(recipe: str = "folder", **changes: Any) -> float:
        fields = {"data.root": str(image_folder)} if recipe == "folder" else {}
        config = Config.load(recipe, fields | {name.replace("__", "."): value for name, value in changes.items()})
        return resolve_preprocessing(config, open_data(config.data)).crop

    assert crop() == 0.875
    assert crop(data__crop=0.9) == 0.9
    assert crop(model__name="timm/convnext_tiny") == 0.95
    assert crop(model__name="timm/convnext_tiny", data__crop=0.5) == 0.5
    # Decoded images fill their frame.
    assert crop("digits") == crop("digits", data__crop=0.5) == crop("digits", model__name="timm/convnext_tiny") == 1.0


def test_a_timm_model_that_is_given_brings_its_preprocessing(image_folder: Path) -> None:
    config = Config.load("folder", {"data.root": str(image_folder)})
    data, given = open_data(config.data), timm.create_model("test_vit", num_classes=3)
    made, cfg = resolve_preprocessing(config, data, given), given.pretrained_cfg
    assert (made.image_size, made.crop, made.mean) == (cfg["input_size"][-1], cfg["crop_pct"], tuple(cfg["mean"]))
    given.pretrained_cfg = {**cfg, "crop_mode": "squash", "interpolation": "bilinear"}
    own = Config.load(
        "folder", {"data.root": str(image_folder), "data.image_size": 32, "data.interpolation": "bicubic"}
    )
    made = resolve_preprocessing(own, data, given)
    assert (made.image_size, made.fit, made.interpolation) == (32, "stretch", "bicubic")
    # Not what another module calls so, nor what the config's own model has.
    named = Config.load("folder", {"data.root": str(image_folder), "model.name": "timm/convnext_tiny"})
    plain = resolve_preprocessing(config, data)
    for cfg in ({}, {"mean": 3}, "a text", None):
        other = nn.Identity()
        other.pretrained_cfg = cfg
        assert resolve_preprocessing(named, data, other) == plain


def test_augmentation_has_a_row_if_there_is_any() -> None:
    assert "augment" not in rows(1)
    assert rows(1, augment__rotate=10.0, augment__mixup=0.8)["augment"] == "rotate 10.0, mixup 0.8"


def components_of(**changes: Any) -> Components:
    config = Config.load("digits", {name.replace("__", "."): value for name, value in changes.items()})
    return build_components(config, world_size=2, device=torch.device("cpu"), autocast=contextlib.nullcontext)


def test_components_are_those_of_the_config() -> None:
    components = components_of(model__width=16, model__depth=2, model__heads=2, optimizer__scale="sqrt")
    assert components.plan == Plan.from_config(components.config, 1294, 2)
    assert components.lr == pytest.approx(3e-3 * (32 / 256) ** 0.5, rel=1e-12)
    assert components.schedule.rate == pytest.approx(components.lr / components.plan.warmup, rel=1e-12)
    assert components.schedule.optimizer is components.optimizer
    assert components.parameters == sum(parameter.numel() for parameter in components.model.parameters())
    assert components.notes == []


def test_a_model_and_a_source_replace_those_of_the_config() -> None:
    data, model = pictures(6, "train", "val"), nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    config = Config.load("digits", {"schedule.warmup": "0%"})
    components = build_components(
        config, world_size=1, device=torch.device("cpu"), autocast=contextlib.nullcontext, model=model, source=data
    )
    assert components.model is model
    assert components.data is data
    assert (components.plan.samples, components.parameters, components.forward_flops) == (12, 390, 768)
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 6))
    with pytest.raises(UserError, match=r"^model.name: BatchNorm \(1\) makes the result depend on"):
        build_components(
            config, world_size=1, device=torch.device("cpu"), autocast=contextlib.nullcontext, model=norm, source=data
        )
