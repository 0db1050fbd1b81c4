"""Configs of hostile values end in one line or in a plan: never in a traceback, a hang, or code that is run."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any, get_origin

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vit_dist.cli.plan import show_plan
from vit_dist.config.config import Config
from vit_dist.config.recipe import parse_yaml
from vit_dist.config.schema import all_options, sections
from vit_dist.errors import HIDDEN, UserError
from vit_dist.telemetry.console import Console

SMALL: dict[str, Any] = {
    "run": {"name": "small", "device": "cpu", "threads": 1},
    "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2},
    "data": {"name": "digits", "workers": 0},
    "batch": {"global_size": 16, "micro_size": 16},
    "train": {"duration": "3 updates"},
    "schedule": {"warmup": "1 updates"},
    "log": {"trackers": "none", "report": False},
}
TEXTS = (
    *("", " ", "..", "../../x", "/abs", "~root", "~nobody_here", "a\nb", "\0", "\x1b[2J", "\ud800", "\u202e", "é"),
    *("x" * 300, "x" * 5000, "x/" * 200, "1.10", "007", "1e400", "nan", "inf", "-1", "1e9", "9" * 5000, "1_0", "²"),
    *("0x" + "f" * 300, "os:getcwd", "builtins:exit", "torch.hub:load", "json:dumps", ":", "a:b:c", "nosuch:f"),
    *("math:cosh", "math:pi", "timm/hf-hub:a/b", "timm/", "timm/vit_tiny_patch16_224", "timm/../x", "0 epochs", "5%"),
    *("1e999999999 updates", "1e99%", "3 updates", "1e12 epochs", "0.000001 epochs", "1000000 samples", "8 for 50%"),
    *("8 for 1e99 epochs", "(" * 200, "(a+)+$", "[", "*", "auto", "none", "wandb", "never", "mean", "sincos", "jax"),
    *("bce", "sgd", "muon", "wsd", "constant", "OneCycleLR", "LambdaLR", "StepLR", "ReduceLROnPlateau", "raw_loss"),
    *("top5", "rand-m9", "augmix-", "3a", "trivial", "$x", "<b>", "=1+1", "clip"),
)
NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 16, 64, -1, 0.5, 1.0, 1.5, -0.0, 1e-300, 1e300),
    *(2**31, 2**63, -(2**63), 10**30, 10**400),
)
SCALARS = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from(NUMBERS),
    st.builds(lambda: 10**5000),  # which has no text
    st.sampled_from((float("nan"), float("inf"), -float("inf"), True, False, None, b"bytes", (), object)),
    st.text(max_size=8),
    st.integers(-3, 70),
    st.floats(-2, 2),
)
NAMES = st.sampled_from(
    [
        *("name", "lr_lambda", "gamma", "step_size", "milestones", "schedulers", "metric", "max_lr", "total_iters"),
        *("lr", "head", "weight_decay", "eps", "nesterov", "depth", "embed_dim", "checkpoint_path", "pretrained"),
        *("", "\0", "(", "__class__"),
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES | st.integers(0, 2), inner, max_size=3)),
    max_leaves=6,
)
FIELDS = [(name, get_origin(option.type) is dict) for name, option in all_options()]
# Values that a field may well have, so that what follows the config is reached.
LIKELY = st.dictionaries(
    st.sampled_from([name for name, is_mapping in FIELDS if not is_mapping]),
    st.sampled_from(TEXTS[40:])
    | st.sampled_from((0, 1, 2, 4, 8, 16, 0.25, 0.9, 1e-3, True, False))
    | st.integers(0, 70),
    min_size=1,
    max_size=2,
)
CONFIGS = LIKELY | st.dictionaries(
    st.sampled_from([name for name, _ in FIELDS] + ["run", "model", "nosuch", "run.nosuch", "\x1b", "optimizer.lr\n"]),
    VALUES | st.dictionaries(NAMES, SCALARS, max_size=3),
    min_size=1,
    max_size=4,
)


def with_fields(fields: dict[str, Any]) -> dict[Any, Any]:
    """Return the small config with other values of dotted fields."""
    values: dict[Any, Any] = {name: dict(fields) for name, fields in SMALL.items()}
    for name, value in fields.items():
        section, _, field = name.partition(".")
        if field and isinstance(values.setdefault(section, {}), dict):
            values[section][field] = value
        elif not field:
            values[section] = value
    return values


def check_refusal(error: UserError) -> None:
    """Check that each line of an error is short, names what is wrong, and is safe to show."""
    for line in str(error).split("\n"):
        assert ": " in line
        assert len(line) < 3000
        assert not HIDDEN.search(line)


def load(fields: dict[str, Any]) -> Config | None:
    """Return the config, or None if it is refused as it should be."""
    try:
        config = Config.from_dict(with_fields(fields))
    except UserError as error:
        check_refusal(error)
        return None
    assert Config.from_dict(config.to_dict()) == config
    if config.run.name and not config.run.dir:
        assert config.folder.resolve().parent == Path("runs").resolve()
    return config


def plan(fields: dict[str, Any], folder: Path) -> None:
    """Plan a config, if it is one."""
    start = time.perf_counter()
    config = load(fields)
    if config is not None:
        try:
            show_plan(config, Console(speaks=True, stream=io.StringIO()), processes=1, picture=folder / "plan.png")
        except UserError as error:
            check_refusal(error)
    assert time.perf_counter() - start < 60  # seconds


UNHURRIED = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@settings(UNHURRIED, max_examples=200)
@given(CONFIGS)
def test_a_hostile_config_is_refused_in_lines_or_loads(fields: dict[str, Any]) -> None:
    load(fields)


@settings(UNHURRIED, max_examples=100)
@given(st.text(st.characters() | st.sampled_from("{}[]:,&*!|>-?#'\"%@` \n\t"), max_size=60))
@example("!!timestamp x")
@example("{1: 2, null: 3, true: 4, [a]: 5}")
def test_any_text_is_yaml_or_refused_in_one_line(text: str) -> None:
    try:
        parse_yaml(text, "text")
    except UserError as error:
        lines = str(error).split("\n")
    else:
        return
    assert len(lines) == 1
    assert lines[0].startswith("text: not YAML: ")


@settings(UNHURRIED, max_examples=12)
@given(CONFIGS)
def test_a_hostile_config_is_planned_or_refused(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]
) -> None:
    plan(fields, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@settings(UNHURRIED, max_examples=1000)
@given(CONFIGS)
def test_a_thousand_hostile_configs_are_planned_or_refused(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]
) -> None:
    plan(fields, tmp_path_factory.getbasetemp())


assert set(SMALL) < set(sections())
