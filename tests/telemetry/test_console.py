"""The console: plain lines without a terminal, nothing on other ranks."""

from __future__ import annotations

import io
from typing import Any

import pytest

from vit_dist.config.config import Config
from vit_dist.config.fields import ScheduleConfig, TrainConfig
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
