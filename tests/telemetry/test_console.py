"""The console: plain lines without a terminal, nothing on other ranks, formatted numbers."""

from __future__ import annotations

import io
from typing import Any

import pytest

from vit_dist.config.config import Config
from vit_dist.config.fields import ScheduleConfig, TrainConfig
from vit_dist.formatting import big, duration, sketch
from vit_dist.plan.plan import Plan
from vit_dist.telemetry.console import Console

TRAIN: dict[str, Any] = {"update": 40, "epoch": 1.254, "loss": 0.51236, "lr": 3e-4, "samples_per_second": 12345.6,
                         "data_wait_fraction": 0.031, "update_seconds": 2.0}  # fmt: skip
EVAL: dict[str, Any] = {"split": "val", "update": 40, "weights_update": 40, "weights": "raw",
                        "epoch": 1.254, "loss": 0.51236, "top1": 87.654, "top5": None,
                        "seen": 179, "seconds": 0.56}  # fmt: skip


def plan() -> Plan:
    return Plan.from_config(Config(train=TrainConfig(duration="100 updates"), schedule=ScheduleConfig()), 1000, 1)


def print_everything(console: Console) -> None:
    console.say("[bold]hello[/bold]")
    console.start(plan(), 0)
    console.progress(plan(), TRAIN)
    console.progress(plan(), {**TRAIN, "loss": "nan", "update": 100})
    console.evaluation({**EVAL, "best": False})
    console.evaluation({**EVAL, "weights": "ema", "best": True})
    console.evaluation({**EVAL, "split": "test", "weights_update": 30, "top5": 99.0, "best": True})
    console.table({"a": "1", "longer": "2"})
    console.stop()


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_everything(Console(speaks=True))
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "[bold]hello[/bold]",
        "update 40/100  epoch 1.25  loss 0.5124  lr 3.0e-04  12,346 images/s  data wait 3%  2 min 00 s left",
        "update 100/100  epoch 1.25  loss nan  lr 3.0e-04  12,346 images/s  data wait 3%  0 s left",
        "val, raw weights of update 40: loss 0.5124  top1 87.65 %  of 179 images in 0.6 s",
        "val, EMA weights of update 40: loss 0.5124  top1 87.65 %  of 179 images in 0.6 s  best so far",
        "test, raw weights of update 30: loss 0.5124  top1 87.65 %  top5 99.00 %  of 179 images in 0.6 s  best so far",
        "  a       1",
        "  longer  2",
    ]
    assert printed.err == ""


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    print_everything(Console(speaks=False))
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (1e-9, "<0.1 s"),
        (0.0499, "<0.1 s"),
        (0.05, "0.1 s"),
        (0.25, "0.2 s"),
        (9.94, "9.9 s"),
        (9.95, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599, "59 min 59 s"),
        (3599.7, "1 h 00 min"),
        (3660, "1 h 01 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (7_850, "7.85 k"),
        (1_797_130, "1.8 M"),
        (62_100_000, "62.1 M"),
        (17.58e9, "17.6 G"),
        (989e12, "989 T"),
    ],
)
def test_big(value: float, text: str) -> None:
    assert big(value) == text


def test_sketch_of_a_ramp() -> None:
    assert sketch([1, 2, 3, 4, 5, 6, 7, 8], width=8, height=2) == [
        "   8.0e+00 ┤    ▂▄▆█",
        "         0 ┤▂▄▆█████",
    ]
    assert sketch([0.0, 0.5e-3, 1e-3], width=72, height=4) == [
        "   1.0e-03 ┤  █",
        "           ┤  █",
        "           ┤ ██",
        "         0 ┤ ██",
    ]
    assert sketch([1.0, 0.95, 0.9, 0.05], height=1) == ["   1.0e+00 ┤██▇ "]


def test_a_column_of_a_sketch_is_the_mean_of_its_share() -> None:
    # Columns of 1, 1 and 2 values: 0, 8 and the mean of 0 and 8.
    assert sketch([0.0, 8.0, 0.0, 8.0], width=3, height=1) == ["   8.0e+00 ┤ █▄"]
    assert sketch([2.0, 4.0] * 50, width=5, height=2) == ["   3.0e+00 ┤█████", "         0 ┤█████"]
    assert [len(line) for line in sketch(range(1000))] == [12 + 72] * 8


def test_sketch_of_nothing_and_of_one() -> None:
    assert sketch([0.0, 0.0], height=2) == ["   1.0e+00 ┤  ", "         0 ┤  "]
    assert sketch([3e-4], height=3) == ["   3.0e-04 ┤█", "           ┤█", "         0 ┤█"]


def test_the_warning_level_prints_notes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(speaks=True, level="warning")
    console.note("[a] before")
    print_everything(console)
    console.note("after")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("[a] before\nafter\n", "")


@pytest.mark.parametrize("level", ["info", "debug"])
def test_other_levels_print_everything(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_everything(Console(speaks=True))
    plain = capsys.readouterr().out
    console = Console(speaks=True, level=level)
    print_everything(console)
    console.note("a note")
    assert capsys.readouterr().out == plain + "a note\n"


@pytest.mark.parametrize("level", ["info", "warning"])
def test_only_rank_0_prints_notes(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    Console(speaks=False, level=level).note("a note")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_console_prints_to_the_stream_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    console = Console(speaks=True, stream=stream)
    console.say("one")
    console.note("two")
    console.table({"a": "1", "longer": "2"})
    assert stream.getvalue() == "one\ntwo\n  a       1\n  longer  2\n"
    assert capsys.readouterr().out == ""


def test_counted_returns_the_items(capsys: pytest.CaptureFixture[str]) -> None:
    for speaks in (True, False):
        assert list(Console(speaks=speaks).counted(iter([3, 1, 2]), 3)) == [3, 1, 2]
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
