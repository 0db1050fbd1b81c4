"""The console: plain lines without a terminal, a live line and colours on one, nothing on other ranks."""

from __future__ import annotations

import io
import os
import pty
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import pytest

from vit_dist.config.config import Config
from vit_dist.config.fields import ScheduleConfig, TrainConfig
from vit_dist.plan.plan import Plan
from vit_dist.telemetry.console import Console

TRAIN: dict[str, Any] = {"update": 40, "epoch": 1.254, "loss": 0.51236, "top1": 80.25, "lr": 3e-4,
                         "samples_per_second": 12345.6, "data_wait_fraction": 0.031, "update_seconds": 2.0}  # fmt: skip
EVAL: dict[str, Any] = {"split": "val", "update": 40, "weights_update": 40, "weights": "raw",
                        "epoch": 1.254, "loss": 0.51236, "top1": 87.654, "top5": None,
                        "seen": 179, "seconds": 0.56}  # fmt: skip


def plan(duration: str = "100 updates") -> Plan:
    return Plan.from_config(Config(train=TrainConfig(duration=duration), schedule=ScheduleConfig()), 1000, 1)


def print_everything(console: Console, *, ema: bool = True) -> None:
    console.phase("starting")
    console.say("[bold]hello[/bold]")
    console.start(plan(), 0, {"val": 179, "test": 50}, ema=ema)
    console.tick(1)
    console.progress(plan(), TRAIN)
    console.evaluation({**EVAL, "best": False})
    if ema:
        console.evaluation({**EVAL, "weights": "ema", "loss": 0.25, "best": True})
    console.evaluated(40)
    console.progress(plan(), {**TRAIN, "loss": "nan", "top1": None, "update": 100})
    console.evaluation({**EVAL, "update": 100, "best": False, "bad": 2})
    console.evaluated(100)
    console.evaluation({**EVAL, "split": "test", "weights_update": 40, "top5": 99.0, "best": True})
    console.table({"a": "1", "longer": "2"})
    console.stop()


# After update 40 there are 60 × 2 s, and, at a third of an update's time for an image, two passes over 8 × 179 + 50
# images, of 15.4 s.
PLAIN = [
    "[bold]hello[/bold]",
    "first update after",
    "update 40/100  epoch 5.12/12.8  loss 0.5124  lr 3.0e-04  12,346 images/s  data wait 3%  2 min 16 s left",
    "epoch 5.1  update 40/100  train loss 0.5124  train top1 80.25 %  val loss 0.5124  val top1 87.65 %  "
    "EMA loss 0.2500  EMA top1 87.65 %  training 1 min 20 s  evaluation 1.1 s  best",
    "update 100/100  epoch 12.80/12.8  loss nan  lr 3.0e-04  12,346 images/s  data wait 3%  1 s left",
    "val: 2 images could not be read and are left out",
    "epoch 12.8  update 100/100  val loss 0.5124  val top1 87.65 %  training 2 min 00 s  evaluation 0.6 s",
    "test, weights of update 40: top1 87.65 %  loss 0.5124  top5 99.00 %  of 179 images  evaluation 0.6 s",
    "  a       1",
    "  longer  2",
]


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_everything(Console(speaks=True))
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert re.fullmatch(r"first update after <?0.\d s: starting <?0.\d s, warming up <?0.\d s", lines[1])
    assert [line if number != 1 else PLAIN[1] for number, line in enumerate(lines)] == PLAIN
    assert "\x1b" not in printed.out
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
    console = Console(speaks=True, level=level)
    print_everything(console)
    console.note("a note")
    assert capsys.readouterr().out.splitlines()[2:] == [*PLAIN[2:], "a note"]


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
        for printed in (True, False):
            assert list(Console(speaks=speaks).counted(iter([3, 1, 2]), 3, printed=printed)) == [3, 1, 2]
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "")


class Terminal:
    """A pseudo-terminal and what was written to it."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        self.stream: TextIO = os.fdopen(theirs, "w", encoding="utf-8")
        self._read: list[bytes] = []
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def _collect(self) -> None:
        try:
            while chunk := os.read(self._ours, 65536):
                self._read.append(chunk)
        except OSError:  # the other end is closed
            pass

    def close(self) -> str:
        self.stream.close()
        self._thread.join()
        os.close(self._ours)
        return b"".join(self._read).decode()


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Iterator[Terminal]:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "140", **environment}.items():
        monkeypatch.setenv(name, value)
    opened = Terminal()
    yield opened
    if not opened.stream.closed:
        opened.close()


def kept(output: str) -> list[str]:
    """Return the lines that stay: those that end with a newline, without what was erased before and without colours."""
    lines = (re.split(r"\x1b\[2K", line)[-1] for line in output.split("\r\n")[:-1])
    shown = (re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).replace("\r", "") for line in lines)
    return [line for line in shown if line]


def test_a_terminal_keeps_a_table_of_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        print_everything(Console(speaks=True, stream=screen.stream), ema=False)
        output = screen.close()
    lines = kept(output)
    assert [line for line in lines if line.startswith(("epoch", "  5", " 12", "update"))] == [
        "epoch   update  train loss  train top1  val loss  val top1      training  evaluation",
        "  5.1   40/100      0.5124     80.25 %    0.5124   87.65 %    1 min 20 s       0.6 s",
        " 12.8  100/100                            0.5124   87.65 %    2 min 00 s       0.6 s",
    ]
    assert lines[0] == "[bold]hello[/bold]"
    assert lines[1].startswith("first update after ")
    assert lines[-2:] == ["  a       1", "  longer  2"]
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") == 1  # the cursor comes back


def test_colours_on_a_terminal_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        with terminal(monkeypatch, **environment) as screen:
            console = Console(speaks=True, stream=screen.stream)
            console.note("a note")
            console.start(plan(), 0, {"val": 179}, ema=False)
            console.evaluation({**EVAL, "best": True})
            console.evaluated(40)
            console.stop()
            output = screen.close()
        assert ("\x1b[33ma note\x1b[0m" in output) is coloured
        assert ("\x1b[1;32m  5.1" in output) is coloured
        assert not coloured or "best" in kept(output)[-1]
        assert "\x1b[3" not in output or coloured


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, TERM="dumb") as screen:
        print_everything(Console(speaks=True, stream=screen.stream))
        output = screen.close()
    assert "\x1b" not in output
    assert output.split("\r\n")[2:-1] == PLAIN[2:]


def test_the_live_line_shows_the_phase_then_the_update_and_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with terminal(monkeypatch) as screen:
        console = Console(speaks=True, stream=screen.stream)
        console.phase("opening the data")
        shown = [console._render().plain]
        console.start(plan(), 0, {"val": 179, "test": 50}, ema=False)
        shown.append(console._render().plain)
        console.tick(3)
        shown.append(console._render().plain)
        console.progress(plan(), TRAIN)
        console.tick(41)
        shown.append(console._render().plain)
        console.phase("evaluating val")
        shown.append(console._render().plain)
        console.stop()
        screen.close()
    bar = "━" * 16
    assert [re.sub("^[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", "⠋", line) for line in shown] == [
        "⠋ opening the data  0 s",
        "⠋ warming up  0 s",
        f"{bar}  update 3/100  epoch 0.38/12.8",
        f"{bar}  update 41/100  epoch 5.25/12.8  2 min 06 s left  loss 0.5124  12,346 images/s  lr 3.0e-04  "
        "data wait 3%",
        "⠋ evaluating val  0 s  update 41/100  2 min 06 s left",
    ]


def test_a_narrow_terminal_leaves_parts_of_the_live_line_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, COLUMNS="66") as screen:
        console = Console(speaks=True, stream=screen.stream)
        console.start(plan(), 0, {}, ema=False)
        console.tick(3)
        console.progress(plan(), TRAIN)
        console.tick(41)
        line = console._render().plain
        console.stop()
        screen.close()
    assert line == f"{'━' * 16}  update 41/100  epoch 5.25/12.8  1 min 58 s left"
