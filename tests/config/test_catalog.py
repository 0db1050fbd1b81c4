"""The catalog against torch's schedulers, and the texts of its errors."""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD, Optimizer, lr_scheduler

from vit_dist.config.catalog import LOSSES, METRICS, OPTIMIZERS, PRESETS, loss_problems, optimizer_problems
from vit_dist.config.schedulers import SCHEDULERS, schedule_arguments, schedule_problems
from vit_dist.config.values import Length

LENGTH = 'a length with its unit, as "30 epochs"'
LENGTHS = "a list of lengths with their units, as [30 epochs, 60 epochs]"
FUNCTION = "a list of strings or a string"
METRIC = (
    "top1, top5, loss, raw_top1, raw_top5, raw_loss, zero_shot_top1, mean_recall_at_1, raw_zero_shot_top1 or "
    "raw_mean_recall_at_1"
)
KNOWN = (
    "cosine, wsd, constant, LambdaLR, MultiplicativeLR, StepLR, MultiStepLR, ConstantLR, LinearLR, ExponentialLR, "
    "PolynomialLR, CosineAnnealingLR, CosineAnnealingWarmRestarts, CyclicLR, OneCycleLR, ReduceLROnPlateau, "
    "ChainedScheduler, SequentialLR"
)
# Other arguments of torch's signatures, which are set by the plan.
ELSEWHERE = {"OneCycleLR": {"total_steps", "epochs", "steps_per_epoch"}, "ReduceLROnPlateau": {"mode"}}
# Arguments whose default in torch is of no use here: required, or derived from the plan and the peak rate.
REQUIRED = {
    "LambdaLR": {"lr_lambda": FUNCTION},
    "MultiplicativeLR": {"lr_lambda": FUNCTION},
    "StepLR": {"step_size": LENGTH},
    "MultiStepLR": {"milestones": LENGTHS},
    "ConstantLR": {"total_iters": LENGTH},
    "ExponentialLR": {"gamma": "a number"},
    "CosineAnnealingWarmRestarts": {"T_0": LENGTH},
    "CyclicLR": {"base_lr": "a number", "step_size_up": LENGTH},
    "ReduceLROnPlateau": {"metric": METRIC},
    "ChainedScheduler": {"schedulers": "a list"},
    "SequentialLR": {"schedulers": "a list", "milestones": LENGTHS},
}
FROM_THE_RUN = {"CosineAnnealingLR": {"T_max"}, "CyclicLR": {"max_lr"}, "OneCycleLR": {"max_lr"}}
OWN = "adamw, adam, sgd, muon"
INSIDE = "as {name: StepLR, step_size: 30 epochs}"
everyone = pytest.mark.parametrize("name", SCHEDULERS)


def signature(name: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of torch's scheduler, without the optimizer."""
    parameters = dict(inspect.signature(getattr(lr_scheduler, name)).parameters)
    assert parameters.pop("optimizer").kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    return parameters


def problems_of(name: str, settings: Any) -> list[str]:
    return list(schedule_problems(name, settings))


def test_every_scheduler_of_torch_is_supported() -> None:
    assert set(lr_scheduler.__all__) - {"LRScheduler"} == set(SCHEDULERS)
    assert not set(PRESETS) & set(SCHEDULERS)


@everyone
def test_arguments_have_torchs_names(name: str) -> None:
    takes = set(SCHEDULERS[name]) - ({"metric"} if name == "ReduceLROnPlateau" else set())
    elsewhere = ELSEWHERE.get(name, set())
    assert set(signature(name)) - {"last_epoch"} == takes | elsewhere
    assert not takes & elsewhere


@everyone
def test_types_of_arguments_fit_torchs_defaults(name: str) -> None:
    kinds = SCHEDULERS[name]
    for key, parameter in signature(name).items():
        if key not in kinds or parameter.default in (None, inspect.Parameter.empty):
            continue
        kind, default = kinds[key], parameter.default
        if get_origin(kind) is Literal:
            assert default in get_args(kind)
        elif isinstance(default, bool) or kind is bool:
            assert (type(default), kind) == (bool, bool)
        elif isinstance(default, float):
            assert kind is float
        else:
            assert isinstance(default, int)
            assert kind in (int, Length, float)


@pytest.mark.parametrize(
    ("name", "key", "settings"),
    [
        ("CyclicLR", "mode", {"base_lr": 0.1, "max_lr": 1.0}),
        ("OneCycleLR", "anneal_strategy", {"max_lr": 1.0, "total_steps": 9}),
        ("ReduceLROnPlateau", "threshold_mode", {}),
    ],
)
def test_choices_are_those_of_torch(name: str, key: str, settings: dict[str, Any]) -> None:
    def optimizer() -> Optimizer:
        return SGD([Parameter(torch.zeros(1))], 1.0, 0.9)

    for choice in get_args(SCHEDULERS[name][key]):
        getattr(lr_scheduler, name)(optimizer(), **settings, **{key: choice})
    with pytest.raises(ValueError):
        getattr(lr_scheduler, name)(optimizer(), **settings, **{key: "other"})


@everyone
def test_required_arguments_are_named_with_their_types(name: str) -> None:
    required = REQUIRED.get(name, {})
    assert problems_of(name, {}) == [f"schedule.args.{key}: {name} needs it: {kind}" for key, kind in required.items()]
    # Each argument without a default in torch is required, or derived.
    empty = {key for key, parameter in signature(name).items() if parameter.default is inspect.Parameter.empty}
    assert empty <= required.keys() | FROM_THE_RUN.get(name, set())


GOOD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("LambdaLR", {"lr_lambda": "a.b:c"}, {"lr_lambda": "a.b:c"}),
    ("LambdaLR", {"lr_lambda": ["a:b", "c:d"]}, {"lr_lambda": ("a:b", "c:d")}),
    ("StepLR", {"step_size": "30epochs", "gamma": "5e-1"}, {"step_size": Length.parse("30 epochs"), "gamma": 0.5}),
    (
        "MultiStepLR",
        {"milestones": ["30 epochs", "60%"]},
        {"milestones": (Length.parse("30 epochs"), Length.parse("60%"))},
    ),
    ("CosineAnnealingWarmRestarts", {"T_0": "1 epoch", "T_mult": 2.0}, {"T_0": Length.parse("1 epochs"), "T_mult": 2}),
    ("OneCycleLR", {"three_phase": True, "pct_start": 1}, {"three_phase": True, "pct_start": 1.0}),
    ("ReduceLROnPlateau", {"metric": "raw_loss", "min_lr": 0}, {"metric": "raw_loss", "min_lr": 0.0}),
    ("LinearLR", {}, {}),
    ("LinearLR", {"start_factor": 0, "end_factor": "0"}, {"start_factor": 0.0, "end_factor": 0.0}),
    ("ReduceLROnPlateau", {"metric": "loss", "patience": 0}, {"metric": "loss", "patience": 0}),
]


@pytest.mark.parametrize(("name", "settings", "typed"), GOOD)
def test_valid_arguments_are_typed_and_have_no_problems(
    name: str, settings: dict[str, Any], typed: dict[str, Any]
) -> None:
    assert problems_of(name, settings) == []
    arguments = schedule_arguments(name, settings)
    assert arguments == typed
    assert {key: type(value) for key, value in arguments.items()} == {key: type(value) for key, value in typed.items()}


def test_inner_schedulers_are_left_unchanged() -> None:
    inner = [{"name": "LinearLR"}, {"name": "StepLR", "step_size": "5 updates"}]
    settings = {"schedulers": inner, "milestones": ["5%"]}
    assert problems_of("SequentialLR", settings) == []
    assert schedule_arguments("SequentialLR", settings)["schedulers"] is inner
    assert problems_of("ChainedScheduler", {"schedulers": tuple(inner)}) == []
    assert problems_of("SequentialLR", {"schedulers": inner[:1], "milestones": []}) == []


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_no_arguments(name: str) -> None:
    assert problems_of(name, {}) == []
    assert problems_of(name, {"gamma": 1}) == [
        f"schedule.args: only for torch's schedulers; {name} has its own fields instead"
    ]


@pytest.mark.parametrize(
    ("name", "settings", "problems"),
    [
        ("cosin", {}, ["schedule.name: no schedule cosin (did you mean cosine?)"]),
        ("OneCycle", {"x": 1}, ["schedule.name: no schedule OneCycle (did you mean OneCycleLR?)"]),
        ("StepLr", {}, ["schedule.name: no schedule StepLr (did you mean StepLR?)"]),
        ("zzz", {}, [f"schedule.name: no schedule zzz; known: {KNOWN}"]),
        ("LRScheduler", {}, [f"schedule.name: no schedule LRScheduler; known: {KNOWN}"]),
        (
            "ExponentialLR",
            {"gama": 0.9},
            [
                "schedule.args.gama: ExponentialLR takes no gama (did you mean gamma?)",
                "schedule.args.gamma: ExponentialLR needs it: a number",
            ],
        ),
        ("LinearLR", {7: 1}, ["schedule.args.7: LinearLR takes no 7; known: total_iters, start_factor, end_factor"]),
        (
            "OneCycleLR",
            {"total_steps": 5, "epochs": 2, "steps_per_epoch": 3, "last_epoch": 1},
            [
                f"schedule.args.{key}: comes from the run's length: leave it out"
                for key in ("total_steps", "epochs", "steps_per_epoch", "last_epoch")
            ],
        ),
        (
            "ReduceLROnPlateau",
            {"metric": "loss", "mode": "min"},
            [
                "schedule.args.mode: ReduceLROnPlateau takes no mode; known: metric, factor, patience, threshold, "
                "threshold_mode, cooldown, min_lr, eps"
            ],
        ),
        ("ReduceLROnPlateau", {"metric": "top2"}, [f"schedule.args.metric: must be {METRIC}, not 'top2'"]),
        ("ReduceLROnPlateau", {"metric": ["loss"]}, [f"schedule.args.metric: must be {METRIC}, not ['loss']"]),
        (
            "ReduceLROnPlateau",
            {"metric": "loss", "patience": 1.5, "factor": "half"},
            [
                "schedule.args.patience: must be a whole number, not 1.5",
                "schedule.args.factor: must be a number, not 'half'",
            ],
        ),
        ("StepLR", {"step_size": 30}, [f"schedule.args.step_size: must be {LENGTH}, not 30"]),
        ("StepLR", {"step_size": None}, [f"schedule.args.step_size: must be {LENGTH}, not None"]),
        ("StepLR", {"step_size": "2 hours"}, [f"schedule.args.step_size: must be {LENGTH}, not '2 hours'"]),
        ("StepLR", {"step_size": "0 epochs"}, ["schedule.args.step_size: must be above 0, not '0 epochs'"]),
        (
            "StepLR",
            {"step_size": "1 epochs", "gamma": float("inf")},
            ["schedule.args.gamma: must be a number, not inf"],
        ),
        ("ExponentialLR", {"gamma": -0.9}, ["schedule.args.gamma: must be 0 or more, not -0.9"]),
        (
            "ReduceLROnPlateau",
            {"metric": "loss", "patience": -1, "min_lr": "-1e-5", "cooldown": 0},
            [
                "schedule.args.patience: must be 0 or more, not -1",
                "schedule.args.min_lr: must be 0 or more, not '-1e-5'",
            ],
        ),
        (
            "OneCycleLR",
            {"max_lr": -1, "three_phase": False},
            ["schedule.args.max_lr: must be 0 or more, not -1"],
        ),
        (
            "CosineAnnealingWarmRestarts",
            {"T_0": "-1 epochs"},
            [f"schedule.args.T_0: must be {LENGTH}, not '-1 epochs'"],
        ),
        (
            "ChainedScheduler",
            {"schedulers": [{"name": "LinearLR", "start_factor": -0.5}, {"name": "ExponentialLR", "gamma": -1}]},
            [
                "schedule.args.schedulers[0].start_factor: must be 0 or more, not -0.5",
                "schedule.args.schedulers[1].gamma: must be 0 or more, not -1",
            ],
        ),
        (
            "MultiStepLR",
            {"milestones": "30 epochs"},
            [f"schedule.args.milestones: must be {LENGTHS}, not '30 epochs'"],
        ),
        ("MultiStepLR", {"milestones": [30]}, [f"schedule.args.milestones: must be {LENGTHS}, not [30]"]),
        (
            "OneCycleLR",
            {"three_phase": 1, "anneal_strategy": "cosine"},
            [
                "schedule.args.three_phase: must be true or false, not 1",
                "schedule.args.anneal_strategy: must be cos or linear, not 'cosine'",
            ],
        ),
        (
            "CyclicLR",
            {"base_lr": 0, "step_size_up": "1%", "mode": "square", "scale_fn": "half", "scale_mode": "x"},
            [
                "schedule.args.mode: must be triangular, triangular2 or exp_range, not 'square'",
                "schedule.args.scale_fn: must be package.module:function, not 'half'",
                "schedule.args.scale_mode: must be cycle or iterations, not 'x'",
            ],
        ),
        ("LambdaLR", {"lr_lambda": "half"}, ["schedule.args.lr_lambda: must be package.module:function, not 'half'"]),
        (
            "MultiplicativeLR",
            {"lr_lambda": ["a:b", "half"]},
            ["schedule.args.lr_lambda: must be package.module:function, not ['a:b', 'half']"],
        ),
        ("LambdaLR", {"lr_lambda": {"a": 1}}, [f"schedule.args.lr_lambda: must be {FUNCTION}, not {{'a': 1}}"]),
        (
            "ChainedScheduler",
            {"schedulers": []},
            [f"schedule.args.schedulers: must be a list, {INSIDE.replace('as ', 'as [')}], not []"],
        ),
        (
            "ChainedScheduler",
            {"schedulers": {"name": "StepLR"}},
            [f"schedule.args.schedulers: must be a list, {INSIDE.replace('as ', 'as [')}], not {{'name': 'StepLR'}}"],
        ),
        (
            "ChainedScheduler",
            {"schedulers": ["StepLR", {"step_size": "1%"}, {"name": 3}, {"name": "LinearLR"}]},
            [f"schedule.args.schedulers[{i}]: must be a scheduler's name and arguments, {INSIDE}" for i in range(3)],
        ),
        (
            "SequentialLR",
            {
                "schedulers": [
                    {"name": "SequentialLR"},
                    {"name": "ReduceLROnPlateau", "metric": "loss"},
                    {"name": "ChainedScheduler"},
                    {"name": "wsd"},
                ],
                "milestones": ["1%", "2%", "3%"],
            },
            [
                f"schedule.args.schedulers[{i}]: {inner} cannot be inside SequentialLR"
                for i, inner in enumerate(["SequentialLR", "ReduceLROnPlateau", "ChainedScheduler", "wsd"])
            ],
        ),
        (
            "SequentialLR",
            {
                "schedulers": [
                    {"name": "StepLL"},
                    {"name": "StepLR", "gama": 1},
                    {"name": "OneCycleLR", "epochs": 5},
                    {"name": "StepLR", "step_size": "0%", "gamma": "x"},
                ],
                "milestones": ["10 updates"],
                "gamma": 1,
            },
            [
                "schedule.args.gamma: SequentialLR takes no gamma; known: schedulers, milestones",
                "schedule.args.schedulers[0].name: no schedule StepLL (did you mean StepLR?)",
                "schedule.args.schedulers[1].gama: StepLR takes no gama (did you mean gamma?)",
                f"schedule.args.schedulers[1].step_size: StepLR needs it: {LENGTH}",
                "schedule.args.schedulers[2].epochs: comes from the run's length: leave it out",
                "schedule.args.schedulers[3].step_size: must be above 0, not '0%'",
                "schedule.args.schedulers[3].gamma: must be a number, not 'x'",
                "schedule.args.milestones: 4 schedulers have 3 between them, not 1",
            ],
        ),
        (
            "SequentialLR",
            {"schedulers": [{"name": "LinearLR"}], "milestones": ["5%", "6%"]},
            ["schedule.args.milestones: 1 schedulers have 0 between them, not 2"],
        ),
    ],
)
def test_problems_of_a_schedule_are_reported_a_line_each(name: str, settings: Any, problems: list[str]) -> None:
    assert problems_of(name, settings) == problems


def test_problems_begin_with_the_given_place() -> None:
    assert list(schedule_problems("StepLR", {"x": 1}, "a.b")) == [
        "a.b.args.x: StepLR takes no x; known: step_size, gamma",
        f"a.b.args.step_size: StepLR needs it: {LENGTH}",
    ]
    assert list(schedule_problems("Step", {}, "a.b")) == ["a.b.name: no schedule Step (did you mean StepLR?)"]


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        *[(name, []) for name in OPTIMIZERS],
        ("timm/lamb", []),
        (
            "adamw_",
            ["optimizer.name: no optimizer adamw_ (did you mean adamw?); if timm has it: timm/adamw_"],
        ),
        (
            "AdamW",
            ["optimizer.name: no optimizer AdamW (did you mean adamw?)"],
        ),
        ("timm", [f"optimizer.name: no optimizer timm; known: {OWN}, timm/NAME"]),
        ("lion", [f"optimizer.name: no optimizer lion; known: {OWN}, timm/NAME; if timm has it: timm/lion"]),
        ("adamax", ["optimizer.name: no optimizer adamax (did you mean adam?); if timm has it: timm/adamax"]),
        ("LAMB", [f"optimizer.name: no optimizer LAMB; known: {OWN}, timm/NAME; if timm has it: timm/lamb"]),
        ("", [f"optimizer.name: no optimizer ; known: {OWN}, timm/NAME"]),
    ],
)
def test_problems_of_the_name_of_an_optimizer(name: str, problems: list[str]) -> None:
    assert list(optimizer_problems(name)) == problems


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        *[(name, []) for name in LOSSES],
        ("my.module:loss", []),
        ("crossentropy", ["loss.name: no loss crossentropy (did you mean cross_entropy?)"]),
        ("package.module", ["loss.name: no loss package.module (did you mean package.module:function?)"]),
        ("mse", ["loss.name: no loss mse; known: cross_entropy, bce, clip, siglip, package.module:function"]),
    ],
)
def test_problems_of_the_name_of_a_loss(name: str, problems: list[str]) -> None:
    assert list(loss_problems(name)) == problems


def test_metrics_are_of_the_ema_or_the_raw_weights() -> None:
    averaged = ["top1", "top5", "loss"]
    assert list(METRICS) == averaged + [f"raw_{name}" for name in averaged]
