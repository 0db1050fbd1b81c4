"""The user's functions of the learning rate are checked at every call."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vit_dist import Config, UserError
from vit_dist.config.fields import ScheduleConfig
from vit_dist.optim.rate_curve import check_user_rates
from vit_dist.optim.rate_functions import rate_function, uses_functions
from vit_dist.plan.plan import Plan

calls: list[int] = []


def late(update: int) -> float:
    """Return 1, and fail at update 7."""
    calls.append(update)
    if update == 7:
        raise KeyError("a table without 7")
    return 1.0


def pair(update: int) -> tuple[int, int]:
    """Return no number."""
    return update, update


def test_a_valid_value_is_passed_on_unchanged() -> None:
    exact = rate_function("math:exp", "schedule.args.lr_lambda")
    assert [exact(number) for number in range(5)] == [math.exp(number) for number in range(5)]
    assert rate_function("operator:neg", "schedule.args.scale_fn")(3) == -3


@pytest.mark.parametrize(
    ("path", "argument", "line"),
    [
        (f"{__name__}:late", 7, f"{__name__}:late for update 7 after the warmup fails: KeyError: 'a table without 7'"),
        (f"{__name__}:pair", 1, f"{__name__}:pair for update 1 after the warmup fails: TypeError: "),
        (
            "operator:neg",
            2,
            "operator:neg for update 2 after the warmup gives -2: it must give a finite number of 0 or",
        ),
        ("math:cosh", 711, "math:cosh for update 711 after the warmup fails: OverflowError: math range error"),
        ("builtins:float", "nan", "builtins:float for update nan after the warmup gives nan: it must give a finite"),
        ("builtins:exit", 1, "builtins:exit for update 1 after the warmup fails: SystemExit: 1"),
    ],
)
def test_a_wrong_value_names_the_function_the_update_and_the_value(path: str, argument: Any, line: str) -> None:
    with pytest.raises(UserError) as error:
        rate_function(path, "schedule.args.lr_lambda")(argument)
    assert str(error.value).startswith(f"schedule.args.lr_lambda: {line}")
    assert "\n" not in str(error.value)


def test_the_whole_run_is_checked_before_it_begins_and_the_optimizer_is_left_alone() -> None:
    plan = Plan.from_config(Config.load("digits", {"train.duration": "50 updates"}), 1000, 1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1, momentum=0.5)
    before = str(optimizer.param_groups)
    calls.clear()
    config = ScheduleConfig(name="LambdaLR", args={"lr_lambda": f"{__name__}:late"})
    with pytest.raises(UserError, match=r"for update 7 after the warmup fails"):
        check_user_rates(config, optimizer, plan, 0.1)
    assert calls == list(range(8))
    check_user_rates(ScheduleConfig(), optimizer, plan, 0.1)
    assert str(optimizer.param_groups) == before


def test_functions_are_found_inside_other_schedulers() -> None:
    assert not uses_functions({"gamma": 0.5, "schedulers": [{"name": "StepLR", "gamma": 1}]})
    assert uses_functions({"schedulers": [{"name": "StepLR"}, {"name": "LambdaLR", "lr_lambda": "a:b"}]})
    assert uses_functions({"scale_fn": "a:b"})
