"""The config: loading, errors, identity."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml

from vit_dist.config.config import LATER, Config
from vit_dist.config.fields import DataConfig, LossConfig, RunConfig, ScheduleConfig
from vit_dist.config.optimizer_fields import OptimizerConfig
from vit_dist.config.recipe import RECIPES, find_recipe, recipe_for
from vit_dist.config.values import Length, import_function, parse_size
from vit_dist.errors import UserError

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))
SECTIONS = ["run", "model", "text", "data", "augment", "batch", "loss", "optimizer", "schedule", "train", "evaluate",
            "checkpoint", "log"]  # fmt: skip
NOT_IN_THE_IDENTITY = {
    "run.auto",
    "run.name", "run.dir", "run.resume", "run.deterministic", "run.device", "run.threads", "run.time_limit",
    "run.timeout", "train.compile", "model.checkpoint_blocks",
    "data.root", "data.workers", "data.timeout", "data.on_bad_sample", "data.max_pixels",
    "data.cache_size", "data.leave_out", "text.tokenizer",
    "train.max_bad_updates", "evaluate.batch_size", "checkpoint.every", "checkpoint.keep", "log.every", "log.trackers",
    "log.report", "log.level", "log.profile",
    "log.project", "log.entity", "log.group", "log.tags",
}  # fmt: skip
WHOLE = 'must be a length with its unit, as "20 epochs", "5000 updates", "1e6 samples"'
UNIT = f'{WHOLE} or "5%"'
MINUTES = f'{WHOLE}, "15 minutes" or "5%"'
BETWEEN = "must be between 0 and 1, not"
OVERRIDE = "optimizer.overrides.head: must be lr or weight_decay with their numbers, as {lr: 1e-4}"
NO_EFFECT = "has no effect without loss.teacher: set that too, or leave it out"
TEACHER_WEIGHTS = "loss.teacher_weights: only for loss.teacher timm/NAME; a run or checkpoint has its own"


def refusal(values: Any) -> str:
    with pytest.raises(UserError) as error:
        Config.from_dict(values)
    return str(error.value)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"optimzer": {}}, "optimzer: no such section (did you mean optimizer?)"),
        ({"zzz": 1}, f"zzz: no such section; known: {', '.join(SECTIONS)}"),
        ({1: {}}, f"1: no such section; known: {', '.join(SECTIONS)}"),
        ({"batch": 64}, "batch: a section of fields (global_size, micro_size), not 64"),
        ({"batch": {"global_sise": 64}}, "batch.global_sise: no such field (did you mean global_size?)"),
        ({"batch": {"qqq": 64}}, "batch.qqq: no such field; known: global_size, micro_size"),
        (
            {"log": {"profile": "5 epochs"}},
            'log.profile: must be updates, as "10 updates" or "10 updates from 500", not \'5 epochs\'',
        ),
        (
            {"log": {"profile": "0 updates"}},
            'log.profile: must be updates, as "10 updates" or "10 updates from 500", not \'0 updates\'',
        ),
        (
            {"log": {"profile": "101 updates from 5"}},
            "log.profile: 100 updates at most, since a longer trace takes too much memory, not 101",
        ),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr: must be a number, not 'fast'"),
        ({"optimizer": {"lr": "nan"}}, "optimizer.lr: must be a number, not 'nan'"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr: must be a number, not inf"),
        ({"optimizer": {"lr": True}}, "optimizer.lr: must be a number, not True"),
        ({"optimizer": {"lr": None}}, "optimizer.lr: must be a number, not None"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr: must be above 0, not 0"),
        ({"optimizer": {"decay_all": 1}}, "optimizer.decay_all: must be true or false, not 1"),
        (
            {"optimizer": {"name": "adamx"}},
            "optimizer.name: no optimizer adamx (did you mean adam?); if timm has it: timm/adamx",
        ),
        (
            {"optimizer": {"name": "Lion"}},
            "optimizer.name: no optimizer Lion; known: adamw, adam, sgd, muon, timm/NAME; if timm has it: timm/lion",
        ),
        ({"optimizer": {"betas": 0.9}}, "optimizer.betas: must be a list of numbers, not 0.9"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas: adamw has two, not [0.9]"),
        ({"optimizer": {"name": "adam", "betas": [0.9]}}, "optimizer.betas: adam has two, not [0.9]"),
        ({"optimizer": {"name": "muon", "betas": [0, 0, 0]}}, "optimizer.betas: muon has two, not [0.0, 0.0, 0.0]"),
        ({"optimizer": {"betas": [0.9, 1]}}, "optimizer.betas: must be at least 0 and below 1, not [0.9, 1]"),
        ({"optimizer": {"betas": [-0.1]}}, "optimizer.betas: must be at least 0 and below 1, not [-0.1]"),
        ({"optimizer": {"name": "sgd", "betas": [0.9]}}, "optimizer.betas: sgd has none: leave it empty"),
        (
            {"optimizer": {"momentum": 0.9}},
            "optimizer.momentum: adamw has optimizer.betas in its place: leave it empty",
        ),
        (
            {"optimizer": {"name": "adam", "momentum": 0}},
            "optimizer.momentum: adam has optimizer.betas in its place: leave it empty",
        ),
        ({"optimizer": {"momentum": "much"}}, "optimizer.momentum: must be a number or empty, not 'much'"),
        ({"optimizer": {"name": "sgd", "momentum": -0.1}}, f"optimizer.momentum: {BETWEEN} -0.1"),
        ({"optimizer": {"name": "muon", "momentum": 1.5}}, f"optimizer.momentum: {BETWEEN} 1.5"),
        ({"optimizer": {"layer_decay": 0}}, "optimizer.layer_decay: must be above 0 and at most 1, not 0"),
        ({"optimizer": {"layer_decay": 1.01}}, "optimizer.layer_decay: must be above 0 and at most 1, not 1.01"),
        ({"optimizer": {"scale": "square"}}, "optimizer.scale: must be none, linear or sqrt, not 'square'"),
        ({"optimizer": {"scale_base": 0}}, "optimizer.scale_base: must be above 0, not 0"),
        ({"optimizer": {"args": [1]}}, "optimizer.args: must be a mapping, as {name: value}, not [1]"),
        ({"optimizer": {"overrides": "head"}}, "optimizer.overrides: must be a mapping, as {name: value}, not 'head'"),
        (
            {"optimizer": {"overrides": {"(": {"lr": 1}}}},
            "optimizer.overrides.(: not a regular expression: missing ), unterminated subpattern at position 0",
        ),
        ({"optimizer": {"overrides": {"head": 1e-4}}}, f"{OVERRIDE}, not 0.0001"),
        ({"optimizer": {"overrides": {"head": {}}}}, f"{OVERRIDE}, not {{}}"),
        ({"optimizer": {"overrides": {"head": None}}}, f"{OVERRIDE}, not None"),
        (
            {"optimizer": {"overrides": {"head": {"wight_decay": 0}}}},
            "optimizer.overrides.head.wight_decay: no such field (did you mean weight_decay?)",
        ),
        (
            {"optimizer": {"overrides": {"head": {"betas": 0}}}},
            "optimizer.overrides.head.betas: no such field; known: lr, weight_decay",
        ),
        (
            {"optimizer": {"overrides": {"head": {"lr": "low"}}}},
            "optimizer.overrides.head.lr: must be a number, not 'low'",
        ),
        (
            {"optimizer": {"overrides": {"head": {"lr": False}}}},
            "optimizer.overrides.head.lr: must be a number, not False",
        ),
        (
            {"optimizer": {"overrides": {"head": {"lr": 1, "weight_decay": -1}}}},
            "optimizer.overrides.head.weight_decay: must be 0 or more, not -1",
        ),
        ({"optimizer": {"weight_decay": -1}}, "optimizer.weight_decay: must be 0 or more, not -1"),
        ({"optimizer": {"clip_norm": -0.5}}, "optimizer.clip_norm: must be 0 or more, not -0.5"),
        ({"batch": {"global_size": 1.5}}, "batch.global_size: must be a whole number, not 1.5"),
        ({"batch": {"global_size": 0}}, "batch.global_size: must be above 0, not 0"),
        ({"batch": {"micro_size": 7}}, "batch.micro_size: must be even, not 7: set 8"),
        ({"run": {"seed": -1}}, "run.seed: must be at least 0 and below 2^63, not -1"),
        ({"run": {"name": True}}, "run.name: must be a string, not True"),
        ({"run": {"threads": "many"}}, "run.threads: must be a whole number or auto, not 'many'"),
        ({"run": {"threads": 0}}, "run.threads: must be above 0, not 0"),
        ({"run": {"device": "gpu"}}, "run.device: must be auto, cpu, cuda or mps, not 'gpu'"),
        ({"model": {"width": "wide"}}, "model.width: must be a whole number or empty, not 'wide'"),
        ({"model": {"width": -4}}, "model.width: must be above 0, not -4"),
        ({"model": {"width": 10, "heads": 3}}, "model.width: 10 is not divisible by 3 heads: set model.heads"),
        (
            {"model": {"width": 6, "position": "sincos"}},
            "model.width: 6 must be divisible by 4 with model.position sincos",
        ),
        ({"model": {"args": 3}}, "model.args: must be a mapping, as {name: value}, not 3"),
        (
            {"model": {"args": {"depth": 3}}},
            "model.args: only for timm/NAME and package.module:function; vit_tiny has its own fields",
        ),
        (
            {"model": {"patch_size": 16}, "data": {"image_size": 28}},
            "model.patch_size: 16 does not divide an image of 28 pixels: set model.patch_size 14 or data.image_size 32",
        ),
        (
            {"model": {"patch_size": 16, "patch_stride": 12}, "data": {"image_size": 32}},
            "model.patch_stride: 12 does not divide an image of 32 pixels: "
            "set model.patch_stride 8 or data.image_size 36",
        ),
        (
            {"model": {"patch_size": 8, "patch_stride": 16}, "data": {"image_size": 32}},
            "model.patch_stride: 16 is more than model.patch_size 8: pixels would be left out",
        ),
        ({"model": {"dropout": 1.5}}, f"model.dropout: {BETWEEN} 1.5"),
        ({"model": {"attention_dropout": -0.1}}, f"model.attention_dropout: {BETWEEN} -0.1"),
        ({"model": {"drop_path": 2}}, "model.drop_path: must be at least 0 and below 1, not 2"),
        ({"data": {"crop": 1.5}}, f"data.crop: {BETWEEN} 1.5"),
        ({"augment": {"crop_min": 35}}, f"augment.crop_min: {BETWEEN} 35"),
        ({"augment": {"flip": -1}}, f"augment.flip: {BETWEEN} -1"),
        ({"augment": {"shift": -1}}, "augment.shift: must be 0 or more, not -1"),
        ({"loss": {"label_smoothing": 1.1}}, f"loss.label_smoothing: {BETWEEN} 1.1"),
        ({"loss": {"name": "cross_entrop"}}, "loss.name: no loss cross_entrop (did you mean cross_entropy?)"),
        (
            {"loss": {"name": "mse"}},
            "loss.name: no loss mse; known: cross_entropy, bce, clip, siglip, package.module:function",
        ),
        ({"loss": {"name": "clop"}}, "loss.name: no loss clop (did you mean clip?)"),
        (
            {"loss": {"teacher": "timm/x"}},
            "loss.teacher_weights: timm/x needs trained weights: give a safetensors file",
        ),
        ({"loss": {"teacher_weights": "a.safetensors"}}, TEACHER_WEIGHTS),
        ({"loss": {"teacher": "runs/a", "teacher_weights": "a.safetensors"}}, TEACHER_WEIGHTS),
        ({"loss": {"distillation": "warm"}}, "loss.distillation: must be hard or soft, not 'warm'"),
        ({"loss": {"teacher": "runs/a", "distillation_weight": 1.5}}, f"loss.distillation_weight: {BETWEEN} 1.5"),
        ({"loss": {"teacher": "runs/a", "temperature": 0}}, "loss.temperature: must be above 0, not 0"),
        ({"loss": {"distillation": "soft"}}, f"loss.distillation: {NO_EFFECT}"),
        ({"loss": {"distillation_weight": 0}}, f"loss.distillation_weight: {NO_EFFECT}"),
        ({"loss": {"temperature": 2}}, f"loss.temperature: {NO_EFFECT}"),
        ({"schedule": {"cooldown_end": 7}}, f"schedule.cooldown_end: {BETWEEN} 7"),
        (
            {"schedule": {"name": "constant", "cooldown_end": 0.1}},
            "schedule.cooldown_end: constant has no cooldown: set schedule.cooldown, or leave it out",
        ),
        (
            {"schedule": {"name": "LinearLR", "cooldown": "", "cooldown_end": 1}},
            "schedule.cooldown_end: LinearLR has no cooldown: set schedule.cooldown, or leave it out",
        ),
        ({"schedule": {"cooldown_power": 0}}, "schedule.cooldown_power: must be above 0, not 0"),
        ({"schedule": {"name": "cosin"}}, "schedule.name: no schedule cosin (did you mean cosine?)"),
        ({"schedule": {"name": "OneCycle"}}, "schedule.name: no schedule OneCycle (did you mean OneCycleLR?)"),
        (
            {"schedule": {"args": {"gamma": 1}}},
            "schedule.args: only for torch's schedulers; cosine has its own fields instead",
        ),
        ({"schedule": {"args": 3}}, "schedule.args: must be a mapping, as {name: value}, not 3"),
        (
            {"schedule": {"name": "StepLR", "args": {"step_size": 30}}},
            'schedule.args.step_size: must be a length with its unit, as "30 epochs", not 30',
        ),
        (
            {"schedule": {"name": "ExponentialLR", "args": {"gamma": "-1e-1"}}},
            "schedule.args.gamma: must be 0 or more, not -0.1",
        ),
        ({"train": {"ema": 1}}, "train.ema: must be at least 0 and below 1, not 1"),
        ({"train": {"ema": -0.1}}, "train.ema: must be at least 0 and below 1, not -0.1"),
        ({"evaluate": {"metric": "top2"}}, "evaluate.metric: no metric top2 (did you mean top5?)"),
        (
            {"evaluate": {"metric": "accuracy"}},
            "evaluate.metric: no metric accuracy; known: top1, top5, loss, raw_top1, raw_top5, raw_loss",
        ),
        ({"evaluate": {"patience": -1}}, "evaluate.patience: must be 0 or more, not -1"),
        ({"evaluate": {"patience": 2.5}}, "evaluate.patience: must be a whole number, not 2.5"),
        ({"evaluate": {"min_delta": -0.5}}, "evaluate.min_delta: must be 0 or more, not -0.5"),
        ({"evaluate": {"batch_size": 0}}, "evaluate.batch_size: must be above 0, not 0"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep: must be above 0, not 0"),
        ({"data": {"val_fraction": 0.6}}, "data.val_fraction: must be between 0 and 0.5, not 0.6"),
        ({"data": {"workers": -2}}, "data.workers: must be 0 or more, not -2"),
        ({"data": {"mean": 0.5}}, "data.mean: must be a list of numbers, not 0.5"),
        ({"data": {"mean": [0.5]}}, "data.std: has 0 values where data.mean has 1: give both per channel"),
        ({"data": {"mean": [0.5], "std": [0]}}, "data.std: must be above 0, not [0]"),
        ({"log": {"tags": "a"}}, "log.tags: must be a list of strings, not 'a'"),
        ({"train": {"duration": 20}}, f"train.duration: {WHOLE}, not '20'"),
        (
            {"train": {"duration": "5%"}},
            "train.duration: needs epochs, updates or samples, not a part of the run ('5%')",
        ),
        ({"train": {"duration": "0 epochs"}}, "train.duration: must be above 0, not '0 epochs'"),
        ({"schedule": {"warmup": "500"}}, f"schedule.warmup: {UNIT}, not '500'"),
        ({"schedule": {"cooldown": "2 hours"}}, f"schedule.cooldown: {UNIT}, not '2 hours'"),
        ({"evaluate": {"every": "0 updates"}}, "evaluate.every: must be above 0, not '0 updates'"),
        ({"checkpoint": {"every": "-1 epochs"}}, f"checkpoint.every: {MINUTES}, not '-1 epochs'"),
        ({"log": {"every": "often"}}, f"log.every: {UNIT}, not 'often'"),
    ],
)
def test_a_mistake_is_named_in_one_line(values: Any, text: str) -> None:
    assert refusal(values) == text


def test_all_mistakes_are_reported_at_once_a_line_each() -> None:
    values = {
        "optimzer": {"lr": 1},
        "model": {"widht": 1, "depth": "deep", "width": 10, "heads": 4, "patch_size": 5},
        "batch": {"micro_size": 3, "global_size": "x"},
        "data": {"image_size": 12, "mean": [0.5, 0.5], "std": [0.1]},
        "train": {"duration": "20"},
    }
    assert refusal(values).splitlines() == [
        "model.depth: must be a whole number or empty, not 'deep'",
        "model.widht: no such field (did you mean width?)",
        "batch.global_size: must be a whole number, not 'x'",
        "batch.micro_size: must be even, not 3: set 4",
        "optimzer: no such section (did you mean optimizer?)",
        "model.patch_size: 5 does not divide an image of 12 pixels: set model.patch_size 4 or data.image_size 10",
        "model.width: 10 is not divisible by 4 heads: set model.heads",
        "data.std: has 1 values where data.mean has 2: give both per channel",
        f"train.duration: {WHOLE}, not '20'",
    ]


def test_all_mistakes_of_loss_optimizer_and_schedule_are_reported_at_once() -> None:
    values = {
        "loss": {"name": "mse", "teacher": "timm/x", "distillation_weight": 2, "temperature": -1},
        "optimizer": {
            "name": "adm",
            "layer_decay": 2,
            "momentum": 7,
            "betas": [2],
            "overrides": {"[": {"lr": -1, "x": 1}, "head": {}},
        },
        "schedule": {
            "name": "StepLR",
            "cooldown": "5",
            "cooldown_power": -1,
            "args": {"gama": 1, "gamma": "x", "step_size": "0%"},
        },
        "train": {"ema": 2},
        "evaluate": {"metric": "best", "patience": -1, "min_delta": -1, "every": "now"},
    }
    assert refusal(values).splitlines() == [
        f"loss.distillation_weight: {BETWEEN} 2",
        "loss.temperature: must be above 0, not -1",
        "optimizer.layer_decay: must be above 0 and at most 1, not 2",
        "optimizer.betas: must be at least 0 and below 1, not [2]",
        f"optimizer.momentum: {BETWEEN} 7",
        "schedule.cooldown_power: must be above 0, not -1",
        "train.ema: must be at least 0 and below 1, not 2",
        "evaluate.patience: must be 0 or more, not -1",
        "evaluate.min_delta: must be 0 or more, not -1",
        "loss.name: no loss mse; known: cross_entropy, bce, clip, siglip, package.module:function",
        "optimizer.name: no optimizer adm (did you mean adam?); if timm has it: timm/adm",
        "schedule.args.gama: StepLR takes no gama (did you mean gamma?)",
        "schedule.args.gamma: must be a number, not 'x'",
        "schedule.args.step_size: must be above 0, not '0%'",
        "loss.teacher_weights: timm/x needs trained weights: give a safetensors file",
        "optimizer.overrides.[: not a regular expression: unterminated character set at position 0",
        "optimizer.overrides.[.lr: must be 0 or more, not -1",
        "optimizer.overrides.[.x: no such field; known: lr, weight_decay",
        f"{OVERRIDE}, not {{}}",
        "evaluate.metric: no metric best; known: top1, top5, loss, raw_top1, raw_top5, raw_loss",
        f"evaluate.every: {UNIT}, not 'now'",
        f"schedule.cooldown: {UNIT}, not '5'",
    ]


def test_all_fields_without_effect_are_reported_at_once() -> None:
    values = {
        "loss": {
            "teacher_weights": "a.safetensors",
            "distillation": "soft",
            "distillation_weight": 0.25,
            "temperature": 3,
        },
        "optimizer": {"name": "sgd", "betas": [0.9, 0.95]},
        "schedule": {"name": "StepLR", "cooldown_end": 0.1, "args": {"step_size": "5%"}},
    }
    assert refusal(values).splitlines() == [
        "optimizer.betas: sgd has none: leave it empty",
        TEACHER_WEIGHTS,
        f"loss.distillation: {NO_EFFECT}",
        f"loss.distillation_weight: {NO_EFFECT}",
        f"loss.temperature: {NO_EFFECT}",
        "schedule.cooldown_end: StepLR has no cooldown: set schedule.cooldown, or leave it out",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": {"name": "sgd", "momentum": 0}},
        {"optimizer": {"name": "sgd", "momentum": 1}},
        {"optimizer": {"name": "sgd", "momentum": None}},
        {"optimizer": {"name": "timm/adan", "betas": [0.9, 0.9, 0.9]}},
        {"optimizer": {"betas": [0, 0.999]}},
        {"optimizer": {"layer_decay": 1e-3}},
        {"optimizer": {"overrides": {"^head|norm$": {"lr": 1e-4}, "x": {"weight_decay": 0, "lr": 0}}}},
        {"loss": {"name": "my.module:function", "label_smoothing": 0.1}},
        {"loss": {"teacher": "timm/x", "teacher_weights": "x.safetensors"}},
        {"loss": {"teacher": "runs/a", "distillation_weight": 0}},
        {"loss": {"teacher": "runs/a", "distillation": "soft", "distillation_weight": 1, "temperature": 1e-3}},
        {"loss": {"distillation": "hard", "distillation_weight": 0.5, "temperature": 1}},
        {"loss": {"name": "bce", "label_smoothing": 0.1}},
        {"model": {"patch_size": 16, "patch_stride": 8}, "data": {"image_size": 40}},
        {"schedule": {"cooldown": ""}},
        {"schedule": {"name": "cosine", "cooldown_end": 0.1}},
        {"schedule": {"name": "wsd", "cooldown_end": 0.1}},
        {"schedule": {"name": "constant", "cooldown": "5%", "cooldown_end": 0.1}},
        {"schedule": {"name": "ExponentialLR", "args": {"gamma": 0}}},
        {"schedule": {"cooldown": "0%", "cooldown_end": 1, "cooldown_power": 0.1, "warmup": "0 updates"}},
        {"schedule": {"name": "StepLR", "args": {"step_size": "30 epochs"}}},
        {"train": {"ema": 0.999999}},
        {"evaluate": {"metric": "raw_loss", "patience": 3, "min_delta": 0.1}},
    ],
)
def test_values_within_their_bounds_are_accepted(values: dict[str, dict[str, Any]]) -> None:
    plain = Config.from_dict(values).to_dict()
    for section, fields in values.items():
        assert {name: plain[section][name] for name in fields} == fields


def test_sections_built_in_python_are_checked_too() -> None:
    with pytest.raises(UserError) as error:
        Config(
            run=RunConfig(seed=-1),
            data=DataConfig(val_fraction=1.0),
            optimizer=OptimizerConfig(name="adan", overrides={"a": {"b": 1}}),
            schedule=ScheduleConfig(name="LambdaLR"),
        )
    assert str(error.value).splitlines() == [
        "run.seed: must be at least 0 and below 2^63, not -1",
        "data.val_fraction: must be between 0 and 0.5, not 1.0",
        "optimizer.name: no optimizer adan (did you mean adam?); if timm has it: timm/adan",
        "schedule.args.lr_lambda: LambdaLR needs it: a list of strings or a string",
        "optimizer.overrides.a.b: no such field; known: lr, weight_decay",
    ]


def test_numbers_are_read_from_text(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("optimizer: {lr: 3e-4, betas: ['0.8', 9e-1]}\nbatch: {global_size: 1e2, micro_size: '64'}\n")
    assert isinstance(yaml.safe_load(path.read_text())["optimizer"]["lr"], str)
    config = Config.load(path)
    assert config.optimizer.lr == 0.0003
    assert config.optimizer.betas == (0.8, 0.9)
    assert (config.batch.global_size, config.batch.micro_size) == (100, 64)
    assert [type(value) for value in (config.optimizer.lr, config.batch.global_size)] == [float, int]


def test_numbers_are_read_from_text_inside_mappings_too(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "optimizer:\n  args: {eps: 1e-8, foreach: true}\n  overrides: {head: {lr: -.5E-4}, 3: {weight_decay: 5e+1}}\n"
        "schedule: {name: SequentialLR, args: {milestones: [1e1 updates], "
        "schedulers: [{name: StepLR, step_size: 1e3 samples, gamma: 5e-1}, {name: LinearLR}]}}\n"
    )
    with pytest.raises(UserError, match=r"^optimizer.overrides.head.lr: must be 0 or more, not -5e-05$"):
        Config.load(path)
    config = Config.load(path, {"optimizer.overrides": {"head": {"lr": "2e3"}}})
    assert config.optimizer.args == {"eps": 1e-8, "foreach": True}
    assert config.optimizer.overrides == {"head": {"lr": 2000.0}, "3": {"weight_decay": 50.0}}
    first, second = config.schedule.args["schedulers"]
    assert first == {"name": "StepLR", "step_size": "1e3 samples", "gamma": 0.5}
    assert (second, config.schedule.args["milestones"]) == ({"name": "LinearLR"}, ["1e1 updates"])
    # Text that only contains a number stays text, and so does a quoted number without an exponent.
    given = {"a": "e5", "b": "1e5x", "c": "10", "d": ["1e2", {"e": "x"}]}
    args = Config.from_dict({"model": {"name": "timm/x", "args": given}}).model.args
    assert args == {**given, "d": [100.0, {"e": "x"}]}


def test_load_takes_a_recipes_name_a_path_and_overrides(tmp_path: Path) -> None:
    named = Config.load("mnist")
    assert (named.data.name, named.optimizer.lr, named.train.duration) == ("mnist", 4e-3, "6 epochs")
    assert Config.load(RECIPES / "mnist.yaml") == named
    assert Config.load(str(RECIPES / "mnist.yaml")) == named
    changed = Config.load("mnist", {"optimizer.lr": "1e-2", "model.depth": 2})
    assert (changed.optimizer.lr, changed.model.depth, changed.model.width) == (0.01, 2, 64)
    path = tmp_path / "mine.yaml"
    path.write_text("train:\n  duration: 3 updates\nlog:\n")
    mine = Config.load(path, {"run.seed": 5})
    assert (mine.train.duration, mine.run.seed, mine.run.name) == ("3 updates", 5, "")
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert Config.load(empty).optimizer == Config().optimizer


def test_the_default_recipe_is_digits_or_folder_if_a_root_is_set() -> None:
    assert Config.load() == Config.load("digits")
    assert Config.load(None, {"optimizer.lr": 1}).data.name == "digits"
    folder = Config.load(None, {"data.root": "/pictures"})
    assert folder == Config.load("folder", {"data.root": "/pictures"})
    assert (folder.data.name, folder.data.root, folder.augment.crop_min) == ("folder", "/pictures", 0.35)
    assert Config.load(None, {"data.name": "nosuch"}).augment.crop_min == 0.35  # the folder recipe's


def test_the_default_recipe_of_a_loss_of_captions_is_contrastive_if_a_root_is_set() -> None:
    for loss in ("clip", "siglip"):
        fields = {"loss.name": loss, "data.root": "list.csv"}
        assert Config.load(None, fields) == Config.load("contrastive", fields)
        assert Config.load(None, {**fields, "model.pretrained": "x"}).text.name == "text_small"
        assert recipe_for({"loss.name": loss}) == "digits_captions"
        assert recipe_for({"loss.name": loss, "data.name": "mnist"}) == "mnist"


def test_the_default_recipe_is_finetune_if_pretrained_is_set() -> None:
    weights = {"model.pretrained": "timm"}
    tuned = Config.load(None, weights)
    assert tuned == Config.load("finetune", weights)
    assert (tuned.data.name, tuned.optimizer.layer_decay, tuned.model.pretrained) == ("folder", 0.75, "timm")
    rooted = {**weights, "data.root": "/pictures"}
    assert Config.load(None, rooted) == Config.load("finetune", rooted)
    named = {**weights, "data.name": "cifar10"}
    assert Config.load(None, named) == Config.load("finetune", named)
    assert Config.load(None, {"model.pretrained": ""}) == Config.load("digits")


@pytest.mark.parametrize(
    ("recipe", "overrides", "text"),
    [
        ("nosuch", {}, f"--config nosuch: neither a file nor a shipped recipe ({', '.join(SHIPPED)})"),
        ("digits", {"lr": 1}, "lr: no such field; write it as section.field, as in optimizer.lr"),
        ("digits", {"optimzer.lr": 1}, "optimzer: no such section (did you mean optimizer?)"),
        ("digits", {"optimizer.lrr": 1}, "optimizer.lrr: no such field (did you mean lr?)"),
    ],
)
def test_load_refuses_in_one_line(recipe: str, overrides: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as error:
        Config.load(recipe, overrides)
    assert str(error.value) == text


def test_a_file_that_is_not_a_config_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for content, text in (
        ("- 1\n", f"{path}: must hold sections such as `optimizer:` with fields below them"),
        ("optimizer: {lr: [1}\n", f"{path}: not YAML: while parsing a flow sequence"),
    ):
        path.write_text(content)
        with pytest.raises(UserError) as error:
            Config.load(path)
        assert str(error.value).startswith(text)
        assert "\n" not in str(error.value)
    assert "line 1, column 19" in str(error.value)


# The data set of each recipe.
DATA = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "cifar10_fast": "cifar10",
    "contrastive": "folder",
    "digits": "digits",
    "digits_captions": "digits_captions",
    "fashion_mnist": "fashion_mnist",
    "finetune": "folder",
    "folder": "folder",
    "imagenet_deit3_b16": "folder",
    "imagenet_deit3_s16": "folder",
    "imagenet_vit_s16_300ep": "folder",
    "imagenet_vit_s16_90ep": "folder",
    "mnist": "mnist",
    "mnist_best": "mnist",
    "mnist_reference": "mnist",
}


@pytest.mark.parametrize("recipe", SHIPPED)
def test_shipped_recipes_load(recipe: str) -> None:
    config = Config.load(recipe)
    assert find_recipe(recipe) == RECIPES / f"{recipe}.yaml"
    assert config.data.name == DATA[recipe]
    assert set(SHIPPED) == set(DATA)
    given = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    fields = config.fields()
    for section, values in given.items():
        for name, value in values.items():
            assert is_read(fields[f"{section}.{name}"], value)


def is_read(value: Any, written: Any) -> bool:
    """Return whether a value equals that of YAML 1.1, which reads 1e-4 as text."""
    if isinstance(written, dict):
        return value.keys() == written.keys() and all(is_read(value[name], item) for name, item in written.items())
    return str(value) == str(written) or value == float(written)


# Other values for fields that accept only some.
OTHERS: dict[str, Any] = {
    "data.columns": {"label": "kind"},
    "run.time_limit": "55 minutes",
    "log.profile": "7 updates from 3",
    "run.auto": ["train.duration"],
    "data.cache_size": "1TB",
    "augment.transform": "x:y",
    "augment.sizes": ["16 for 5%"],
    "loss.name": "bce",
    "text.name": "text_tiny",
    "text.prompts": ["{}, drawn"],
    "loss.teacher": "timm/y",
    "optimizer.name": "timm/x",
    "optimizer.momentum": 0.5,
    "optimizer.betas": [0.5, 0.75],
    "optimizer.overrides": {"head": {"lr": 0.5}},
    "schedule.name": "PolynomialLR",
    "schedule.cooldown": "7 updates",
    "schedule.args": {"total_iters": "7 updates"},
    "evaluate.metric": "raw_loss",
}


def changed(name: str, value: Any, kind: Any) -> Any:
    """Return another value that the field may have."""
    if name in OTHERS:
        return OTHERS[name]
    if get_origin(kind) in (Literal, Union):
        choices = [choice for choice in get_args(kind) if choice != value and choice is not type(None)]
        return 8 if int in choices else choices[0]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 2
    if isinstance(value, float):
        return value / 2 if value else 0.25
    if isinstance(value, (tuple, list)):
        return [item / 2 for item in value] if value else ["x"]
    if isinstance(value, dict):
        return {**value, "more": 1}
    assert isinstance(value, str)
    try:
        Length.parse(value)
    except ValueError:
        return f"{value}x"
    return "7 updates"


OF_TEXTS = ("text.", "loss.duplicates")


def everything(*, texts: bool = False) -> dict[str, Any]:
    """Return plain values of a config in which each field may be changed by itself; texts: those of captions."""
    values = Config().to_dict()
    if texts:
        values["loss"] |= {"name": "clip"}
        return values
    values["model"] |= {"name": "timm/x", "args": {"a": 1}}
    values["data"] |= {"mean": [0.5], "std": [0.25]}
    values["batch"] |= {"global_size": 126}  # three lanes divide it
    values["loss"] |= {"teacher": "timm/x", "teacher_weights": "x.safetensors"}
    values["optimizer"] |= {"name": "muon"}
    values["schedule"] |= {"name": "LinearLR", "cooldown": "5 updates", "args": {"total_iters": "5 updates"}}
    return values


FIELDS = [
    (section, field, get_type_hints(kind)[field.name])
    for section, kind in get_type_hints(Config).items()
    for field in dataclasses.fields(kind)
]


@pytest.mark.parametrize(("section", "field", "kind"), FIELDS, ids=[f"{s}.{f.name}" for s, f, _ in FIELDS])
def test_identity_changes_with_each_field_that_can_change_the_result(section: str, field: Any, kind: Any) -> None:
    name = f"{section}.{field.name}"
    values = everything(texts=name.startswith(OF_TEXTS))
    before = Config.from_dict(values)
    values[section][field.name] = changed(name, values[section][field.name], kind)
    after = Config.from_dict(values)
    assert after != before
    assert [key for key, value in after.fields().items() if before.fields()[key] != value] == [name]
    assert field.metadata["changes_result"] is (name not in NOT_IN_THE_IDENTITY)
    assert (after.identity() != before.identity()) is (name not in NOT_IN_THE_IDENTITY)
    assert len(field.metadata["description"]) > 10


def test_identity_is_six_hex_digits_and_the_same_in_every_process() -> None:
    assert list(Config().to_dict()) == SECTIONS
    assert len(Config().identity()) == 6
    assert int(Config().identity(), 16) >= 0
    assert Config.from_dict({}).identity() == Config().identity()
    assert Config().fields(changes_result=True).keys() == Config().fields().keys() - NOT_IN_THE_IDENTITY


def test_fields_that_came_later_leave_the_names_of_earlier_runs() -> None:
    earlier = {name: value for name, value in Config().fields(changes_result=True).items() if name not in LATER}
    text = json.dumps({name: value for name, value in earlier.items() if name != "batch.micro_size"}, sort_keys=True)
    assert Config().identity() == hashlib.sha256(text.encode()).hexdigest()[:6] == "c0cbf9"
    assert len({Config.from_dict({"data": {"fit": fit}}).identity() for fit in ("auto", "crop", "pad", "stretch")}) == 4


@pytest.mark.parametrize("texts", [False, True])
def test_round_trip_through_dict_json_and_yaml(texts: bool) -> None:
    values = everything(texts=texts)
    for section, field, kind in FIELDS:
        name = f"{section}.{field.name}"
        if name.startswith(OF_TEXTS) is texts:
            values[section][field.name] = changed(name, values[section][field.name], kind)
    values["data"]["lanes"] = 1  # no other number goes with the rest
    config = Config.from_dict(values)
    if not texts:
        assert (config.data.mean, config.optimizer.betas, config.optimizer.momentum) == ((0.25,), (0.5, 0.75), 0.5)
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Config.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


def test_name_and_folder_of_a_run() -> None:
    config = Config.load("digits", {"optimizer.lr": 0.25})
    with pytest.raises(ValueError, match=r"^run.name: is empty until the data has been opened$"):
        assert config.folder
    assert config.identity() != config.identity({"train": 1}) != config.identity({"train": 2})
    assert Config.load("digits", {"run.name": "mine"}).folder == Path("runs/mine")
    placed = Config.load("digits", {"run.dir": "/somewhere"})
    assert (placed.run.name, placed.folder) == ("", Path("/somewhere"))


def test_a_config_is_frozen() -> None:
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optimizer.lr = 1.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.run = RunConfig()  # type: ignore[misc]
    assert (config.optimizer.lr, Config().model.args) == (1e-3, {})


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("20 epochs", 20, "epochs"),
        ("20epochs", 20, "epochs"),
        ("1 epoch", 1, "epochs"),
        (" 5000  updates ", 5000, "updates"),
        ("1 update", 1, "updates"),
        ("1e6 samples", 1_000_000, "samples"),
        ("2.5E+3 samples", 2500, "samples"),
        ("1 sample", 1, "samples"),
        ("0.1 epochs", Fraction(1, 10), "epochs"),
        ("5%", 5, "%"),
        ("12.5 %", Fraction(25, 2), "%"),
        ("0 updates", 0, "updates"),
    ],
)
def test_lengths_are_read_exactly(text: str, amount: Any, unit: str) -> None:
    assert Length.parse(text) == Length(Fraction(amount), unit)


@pytest.mark.parametrize(
    "text",
    ["", "20", "epochs", "1e400 updates", "1e999999999 updates", f"{'9' * 99} epochs",
     "-1 epochs", "20 hours", "1.5.2 epochs", "nan epochs", "inf epochs", "1e-1 epochs",
     "20 epochss", "5% epochs", "20 Epochs", "1,000 updates"],
)  # fmt: skip
def test_a_wrong_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Length.parse(text)


def test_import_function_returns_the_object_or_names_the_mistake() -> None:
    assert import_function("json:dumps", "loss.name") is json.dumps
    hint = "write it as package.module:function"
    for path, why in (
        ("nosuch_module:f", "No module named 'nosuch_module'"),
        ("json:nosuch", "module 'json' has no attribute 'nosuch'"),
        (":f", "Empty module name"),
    ):
        with pytest.raises(UserError) as error:
            import_function(path, "loss.name")
        assert str(error.value) == f"loss.name: {path} cannot be imported: {why}; {hint}"


def test_an_empty_section_takes_overrides_and_nested_arguments_merge(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optimizer:\nmodel: {name: timm/vit_tiny_patch16_224, args: {b: 2}}\n")
    given = {"optimizer.lr": 1, "model.args": {"a": 1}, "optimizer.overrides": {"head": {"lr": 1}}}
    config = Config.load(path, given)
    assert (config.optimizer.lr, config.model.args) == (1.0, {"a": 1, "b": 2})
    assert config.optimizer.overrides == {"head": {"lr": 1}}
    path.write_text("schedule: {name: StepLR, args: {step_size: 1 epochs}}\n")
    config = Config.load(path, {"schedule.args": {"gamma": 0.5}})
    assert config.schedule.args == {"step_size": "1 epochs", "gamma": 0.5}
    path.write_text("model: {args: {x: !!binary aaaa}}\n")
    with pytest.raises(UserError, match=r"^model.args: must be a mapping, as \{name: value\}, not "):
        Config.load(path)


def test_a_seed_above_63_bits_is_refused() -> None:
    with pytest.raises(UserError, match=r"^run.seed: must be at least 0 and below 2\^63, not 9223372036854775808$"):
        Config.from_dict({"run": {"seed": 2**63}})


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "folder"])
def test_the_default_recipe_of_a_data_set_is_its_own(name: str) -> None:
    alone = Config.load(None, {"data.name": name})
    assert alone == Config.load(name)
    assert alone.data.name == name
    rooted = Config.load(None, {"data.name": name, "data.root": "/pictures"})
    assert rooted == Config.load(name, {"data.root": "/pictures"})
    patches = {"digits": 4, "mnist": 7, "fashion_mnist": 7, "cifar10": 4, "cifar100": 4, "folder": 16}
    assert alone.model.patch_size == patches[name]


SIZE = 'augment.sizes: must be a side for a length of the run, as "128 for 40%", not'


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"rotate": 181}, "augment.rotate: must be between 0 and 180 degrees, not 181"),
        ({"rotate": -1}, "augment.rotate: must be between 0 and 180 degrees, not -1"),
        ({"translate": 1.5}, f"augment.translate: {BETWEEN} 1.5"),
        ({"translate": -0.1}, f"augment.translate: {BETWEEN} -0.1"),
        ({"scale": 1}, "augment.scale: must be at least 0 and below 1, not 1"),
        ({"scale": -0.5}, "augment.scale: must be at least 0 and below 1, not -0.5"),
        ({"erasing": 2}, f"augment.erasing: {BETWEEN} 2"),
        ({"erasing_mode": "noise"}, "augment.erasing_mode: must be const, rand or pixel, not 'noise'"),
        ({"color_jitter": -0.4}, "augment.color_jitter: must be 0 or more, not -0.4"),
        ({"mixup": -1}, "augment.mixup: must be 0 or more, not -1"),
        ({"cutmix": "often"}, "augment.cutmix: must be a number, not 'often'"),
        ({"cutmix": -0.2}, "augment.cutmix: must be 0 or more, not -0.2"),
        ({"mix_prob": 1.1}, f"augment.mix_prob: {BETWEEN} 1.1"),
        ({"mix_switch": -1}, f"augment.mix_switch: {BETWEEN} -1"),
        ({"repeats": 0}, "augment.repeats: must be above 0, not 0"),
        ({"repeats": 2.5}, "augment.repeats: must be a whole number, not 2.5"),
        ({"repeats": 65}, "augment.repeats: 65 copies are more than half of batch.global_size 128"),
        ({"transform": "flip"}, "augment.transform: must be package.module:function, not 'flip'"),
        ({"sizes": "160 for 40%"}, "augment.sizes: must be a list of strings, not '160 for 40%'"),
        ({"sizes": ["160"]}, f"{SIZE} '160'"),
        ({"sizes": [160]}, f"{SIZE} '160'"),
        ({"sizes": ["160 for 2 hours"]}, f"{SIZE} '160 for 2 hours'"),
        ({"sizes": ["0 for 5%"]}, f"{SIZE} '0 for 5%'"),
        ({"sizes": ["-16 for 5%"]}, f"{SIZE} '-16 for 5%'"),
        ({"sizes": ["16.5 for 5%"]}, f"{SIZE} '16.5 for 5%'"),
        ({"sizes": ["16 for 5%", "40% for 160"]}, f"{SIZE} '40% for 160'"),
        ({"sizes": ["160 for 0%"]}, "augment.sizes: the length must be above 0, not '160 for 0%'"),
        (
            {"sizes": ["160 for 40%", "200 for 5%"]},
            "augment.sizes: 16 does not divide an image of 200 pixels: set 192",
        ),
        (
            {"sizes": ["200 for 5%", "160 for 4%", " 200 for 3%"]},
            "augment.sizes: 16 does not divide an image of 200 pixels: set 192",
        ),
        ({"sizes": ["5 for 5%"]}, "augment.sizes: 16 does not divide an image of 5 pixels: set 16"),
    ],
)
def test_a_mistake_in_augmentation_is_named_in_one_line(values: dict[str, Any], text: str) -> None:
    assert refusal({"augment": values}) == text


def test_sizes_that_patches_do_not_divide_are_reported_once_each() -> None:
    values: dict[str, Any] = {
        "model": {"patch_size": 16, "patch_stride": 12},
        "data": {"image_size": 50},
        "augment": {"sizes": ["40 for 5%", "24 for 5%", "x", "50 for 5%", "40 for 0%"]},
    }
    assert refusal(values).splitlines() == [
        "model.patch_stride: 12 does not divide an image of 50 pixels: set model.patch_stride 10 or data.image_size 48",
        "augment.sizes: 12 does not divide an image of 40 pixels: set 36",
        "augment.sizes: 12 does not divide an image of 50 pixels: set 48",
        f"{SIZE} 'x'",
        "augment.sizes: the length must be above 0, not '40 for 0%'",
    ]


@pytest.mark.parametrize(("size", "most"), [(1, 1), (2, 1), (3, 1), (4, 2), (9, 4), (128, 64)])
def test_repeats_leave_two_samples_in_a_batch(size: int, most: int) -> None:
    values = {"batch": {"global_size": size}, "augment": {"repeats": most}}
    assert Config.from_dict(values).augment.repeats == most
    values["augment"]["repeats"] += 1
    assert refusal(values) == f"augment.repeats: {most + 1} copies are more than half of batch.global_size {size}"


def test_augmentation_at_its_bounds_is_accepted() -> None:
    augment = {
        "rotate": 180, "translate": 1, "scale": "0.99", "erasing": 1, "mix_prob": 0, "mix_switch": 1, "repeats": 64,
        "sizes": ["160 for 40%", " 192 for 1e3 samples", "16 for 12.5 %"],
    }  # fmt: skip
    config = Config.from_dict({"augment": augment})
    assert config.augment.scale == 0.99
    assert config.augment.sizes == ("160 for 40%", " 192 for 1e3 samples", "16 for 12.5 %")
    assert Config.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
    # Written without quotes, as in the help.
    assert Config.from_dict(yaml.safe_load("augment: {sizes: [128 for 40%, 160 for 30%]}")).augment.sizes == (
        "128 for 40%",
        "160 for 30%",
    )
    # The patches of other models are not known.
    other = {"model": {"name": "timm/resnet18"}, "augment": {"sizes": ["100 for 5%"]}}
    assert Config.from_dict(other).augment.sizes == ("100 for 5%",)


@pytest.mark.parametrize(
    ("text", "side", "length"),
    [
        ("128 for 40%", 128, Length(Fraction(40), "%")),
        (" 96  for 5 epochs ", 96, Length(Fraction(5), "epochs")),
        ("1 for 1e3updates", 1, Length(Fraction(1000), "updates")),
        ("0224 for 0.5 epochs", 224, Length(Fraction(1, 2), "epochs")),
    ],
)
def test_sizes_are_read_exactly(text: str, side: int, length: Length) -> None:
    assert parse_size(text) == (side, length)


@pytest.mark.parametrize(
    "text",
    ["", "128", "for 40%", "128for 40%", "128 for", "0 for 5%", "128 for 128 for 5%", "1e2 for 5%", "-8 for 5%",
     "128 FOR 5%", "128 for -5%", "² for 5%", "8 pixels for 5%"],
)  # fmt: skip
def test_a_wrong_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


AUGMENTED: dict[str, Any] = {
    "crop_min": 0.2, "auto": "3a", "color_jitter": 0.4, "transform": "json:loads", "flip": 0.5, "shift": 1,
    "rotate": 15, "translate": 0.1, "scale": 0.1, "erasing": 0.25, "erasing_mode": "pixel", "mixup": 0.8, "cutmix": 1,
    "mix_prob": 0.5, "mix_switch": 0.25, "repeats": 3, "sizes": ["160 for 40%"],
}  # fmt: skip


def test_how_a_batch_is_split_counts_only_where_draws_depend_on_it() -> None:
    def differs(**model: object) -> bool:
        one, two = (Config.from_dict({"batch": {"micro_size": size}, "model": model}) for size in (16, 32))
        return one.identity() != two.identity()

    assert not differs(drop_path=0.1)
    assert differs(dropout=0.1)
    assert differs(attention_dropout=0.1)
    assert differs(name="timm/vit_tiny_patch16_224")


def test_every_field_of_augmentation_is_part_of_the_identity() -> None:
    assert list(AUGMENTED) == list(Config().to_dict()["augment"])
    identities = {Config.from_dict({"augment": {name: value}}).identity() for name, value in AUGMENTED.items()}
    assert len(identities | {Config().identity()}) == len(AUGMENTED) + 1
    both = Config.from_dict({"augment": AUGMENTED})
    assert Config.from_dict(json.loads(json.dumps(both.to_dict()))) == both


def test_values_of_sections_built_in_python_are_converted_as_those_of_yaml() -> None:
    built = Config(loss=LossConfig(teacher="runs/a", temperature=2), optimizer=OptimizerConfig(args={"eps": "1e-8"}))
    loaded = Config.from_dict({"loss": {"teacher": "runs/a", "temperature": 2}, "optimizer": {"args": {"eps": 1e-8}}})
    assert built == loaded
    assert type(built.loss.temperature) is float
    assert built.identity() == loaded.identity()
    with pytest.raises(UserError, match=r"^optimizer.lr: must be a number, not 'fast'$"):
        Config(optimizer=OptimizerConfig(lr="fast"))  # type: ignore[arg-type]


def test_a_refused_field_is_no_part_of_a_contradiction() -> None:
    values = {"model": {"patch_size": 0}, "data": {"image_size": 28}}
    assert refusal(values) == "model.patch_size: must be above 0, not 0"


def test_a_long_value_is_cut() -> None:
    assert refusal({"optimizer": {"lr": "x" * 9999}}) == f"optimizer.lr: must be a number, not '{'x' * 199}…"
    assert refusal({"batch": {"micro_size": "7"}}) == "batch.micro_size: must be even, not 7: set 8"
    assert refusal({"log": {"tags": {"a"}}}) == "log.tags: must be a list of strings, not {'a'}"


def test_a_key_that_appears_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    for text, where in (
        ("run: {seed: 1}\ndata: {workers: 0}\nrun: {threads: 2}\n", 'run appears twice in "<unicode string>", line 3'),
        ("run:\n  seed: 1\n  seed: 2\n", 'seed appears twice in "<unicode string>", line 3'),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as error:
            Config.load(path)
        assert str(error.value).startswith(f"{path}: not YAML: {where}")


def test_yaml_that_python_cannot_hold_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    odd = ("!!int ''", "!!float ''", "!!bool x", "!!python/object/apply:os.getcwd []", "!!map x", "\t")
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\n" + "".join(f"c{i}: &c{i} [*b, *b]\n" for i in range(9))
    whys = {
        "[" * 2000: "more than 32 levels",
        "[" * 500_000: "more than 32 levels",
        f"run: {{seed: {'9' * 5000}}}": "a number of more than 100 digits",
        f"run: {{seed: 0x{'f' * 200}}}": "a number of more than 100 digits",
        f"run: {{seed: {'1:' * 200}1}}": "a number of more than 100 digits",
        bomb: "aliases are not read: write the value again",
        "&a [*a]": "aliases are not read: write the value again",
        f"a: [{'1,' * 300_000}]": "more than 20,000 values",
        **{f"run: {{seed: {text}}}": "" for text in odd},
    }
    start = time.perf_counter()
    for text, why in whys.items():
        path.write_text(text)
        with pytest.raises(UserError) as error:
            Config.load(path)
        assert str(error.value).startswith(f"{path}: not YAML: {why}")
        assert "\n" not in str(error.value)
    path.write_text("#" * (2**20 + 1))
    with pytest.raises(UserError) as error:
        Config.load(path)
    assert str(error.value) == f"{path}: longer than a config can be: 1,048,576 characters at most"
    assert time.perf_counter() - start < 20  # seconds; without the limits, minutes and all memory


@pytest.mark.parametrize("written", ["1.10", "007", "1_000", "0x10", "1e3", "2020-01-02", "1:30", "+5", ".5"])
def test_a_number_where_a_text_is_expected_keeps_its_spelling(written: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"run: {{name: {written}}}\nlog: {{tags: [{written}]}}\nmodel: {{width: 64.0, heads: 1e0}}\n")
    config = Config.load(path)
    assert (config.run.name, config.log.tags) == (written, (written,))
    assert (config.model.width, type(config.model.width), config.model.heads) == (64, int, 1)
    assert yaml.safe_load(yaml.safe_dump(config.to_dict())) == config.to_dict()


def test_numbers_that_were_written_are_plain_numbers_in_the_config(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "model: {name: timm/x, args: {a: 1, b: [2.50]}}\ndata: {mean: [0.50], std: [0.1]}\noptimizer: {lr: 0.10}"
    )
    config = Config.load(path)
    numbers = [config.model.args["a"], *config.model.args["b"], *config.data.mean, config.optimizer.lr]
    assert [(type(number), number) for number in numbers] == [(int, 1), (float, 2.5), (float, 0.5), (float, 0.1)]


LONGER = "is longer than a run can be: 1e+12 at most"
CONTROL = "has a control character: leave it out"
NAME = "is no name for a folder in runs: no slash, no ~ or .. at its start, 200 bytes at most: run.dir names any folder"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"model": {"depth": 10**9}}, "model.depth: must be at most 1,000, not 1000000000"),
        ({"model": {"width": 10**99}}, f"model.width: must be at most 65,536, not 1{'0' * 99}"),
        ({"model": {"width": 10**9999}}, "model.width: is too long: 100 digits at most, not that int"),
        ({"model": {"width": "9" * 5000}}, f"model.width: must be a whole number or empty, not '{'9' * 199}…"),
        ({"data": {"image_size": 1e18}}, "data.image_size: must be at most 16,384, not 1e+18"),
        ({"batch": {"global_size": 2**40}}, "batch.global_size: must be at most 10,000,000, not 1099511627776"),
        ({"batch": {"micro_size": 2**40}}, "batch.micro_size: must be at most 1,000,000, not 1099511627776"),
        ({"data": {"workers": 10**6}}, "data.workers: must be at most 1,024, not 1000000"),
        ({"run": {"threads": "1e9"}}, "run.threads: must be at most 4,096, not 1e9"),
        ({"optimizer": {"lr": 1e300}}, "optimizer.lr: must be at most 1,000,000, not 1e+300"),
        ({"train": {"duration": "1e400 updates"}}, f"train.duration: 1e400 updates {LONGER}"),
        (
            {"train": {"duration": "1e999999999 updates"}},
            f"train.duration: 1e999999999 updates {LONGER}",
        ),
        ({"schedule": {"warmup": "1e9999999"}}, f"schedule.warmup: {UNIT}, not '1e9999999'"),
        ({"schedule": {"warmup": f"{'9' * 99} %"}}, f"schedule.warmup: {'9' * 99} % {LONGER}"),
        (
            {"augment": {"sizes": ["8 for 1e99 epochs"]}},
            f"augment.sizes: 8 for 1e99 epochs {LONGER}",
        ),
        *(({"run": {"name": name}}, f"run.name: {name} {NAME}") for name in ("..", ".", "../../x", "/abs", "a/b")),
        *(({"run": {"name": name}}, f"run.name: {name} {NAME}") for name in ("~root", "x" * 201, "..x", "a\\b")),
        ({"run": {"name": "a\nb"}}, f"run.name: {CONTROL}, not 'a\\nb'"),
        ({"run": {"dir": "a\0b"}}, f"run.dir: {CONTROL}, not 'a\\x00b'"),
        ({"data": {"root": "\x1b[2J"}}, f"data.root: {CONTROL}, not '\\x1b[2J'"),
        ({"log": {"tags": ["a", "\ud800"]}}, f"log.tags: {CONTROL}, not ['a', '\\ud800']"),
        ({"model": {"name": "timm/x", "args": {"a": ["\0"]}}}, f"model.args: {CONTROL}, not {{'a': ['\\x00']}}"),
        ({"run": {"dir": "x" * 300}}, "run.dir: has a name of more than 255 bytes, which no file system takes"),
        ({"data": {"root": "~nobody_here/x"}}, "data.root: ~nobody_here/x: there is no such user: write the path out"),
        ({"data": {"root": "x/" * 3000}}, f"data.root: is too long: 4096 characters at most, not '{'x/' * 99}x…"),
        ({"log": {"tags": ["a"] * 1001}}, f"log.tags: has 1001 entries: 1000 at most, not {str(['a'] * 99)[:200]}…"),
    ],
    ids=lambda _: "x",
)  # fmt: skip
def test_a_value_beyond_all_machines_is_refused_in_one_line(values: Any, text: str) -> None:
    assert refusal(values) == text


def test_values_inside_each_other_are_refused() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    circle: dict[str, Any] = {}
    circle["a"] = circle
    for args in ({"a": deep}, circle, {"a": list(range(2000))}):
        with pytest.raises(UserError, match=r"^model.args: is too large: 1000 entries in 32 levels at most, not "):
            Config.from_dict({"model": {"name": "timm/x", "args": args}})


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (DataConfig(), "digits"),
        (DataConfig(root="/pictures"), "folder"),
        (DataConfig(name="mnist", root="/pictures"), "mnist"),
    ],
)
def test_the_source_of_the_data(data: DataConfig, source: str) -> None:
    assert data.source == source
