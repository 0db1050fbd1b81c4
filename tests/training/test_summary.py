"""The printed summary of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report.runs import finished_run
from vit_dist.telemetry.console import Console
from vit_dist.training.summary import print_summary

SUMMARY: dict[str, Any] = {
    "updates": 300,
    "planned_updates": 300,
    "epochs": 20.0,
    "train_seconds": 125.4,
    "evaluate_seconds": 7.0,
    "save_seconds": 0.4,
    "total_seconds": 3725.0,
    "seconds_per_epoch": 6.27,
    "samples_per_second": 12345.6,
    "weights": "raw",
    "best": {"update": 240, "metric": "top1", "value": 98.123456, "weights": "raw"},
    "test": {"loss": 0.12345, "top1": 97.5, "top5": 99.9},
    "peak_memory_bytes": 1536 * 2**20,
}


NEXT = [
    "next",
    "  vit-dist predict runs/mine IMAGE …    classify images of your own",
    "  vit-dist report runs/mine             draw the report again",
    "  vit-dist export runs/mine model.onnx  a file for other programs",
]


def printed(capsys: pytest.CaptureFixture[str], report: Path | None = None, **changes: Any) -> list[str]:
    print_summary(Console(speaks=True), Path("runs/mine"), {**SUMMARY, **changes}, report)
    output = capsys.readouterr()
    assert output.err == ""
    return output.out.splitlines()


def test_summary_of_a_run_with_best_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys) == [
        "finished: 97.5 % on test",
        "  trained  20 epochs in 2 min 05 s (6.3 s an epoch, 12,346 images/s)",
        "  time     1 h 02 min in all; evaluation 7.0 s, saving 0.4 s",
        "  best     top1 98.12 % on val at update 240",
        "  test     top1 97.50 %, loss 0.1235, of the best weights",
        "  memory   1,536 MiB at most",
        "  results  runs/mine",
        *NEXT,
    ]


def test_the_first_hint_of_the_report_is_a_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished_run(tmp_path / "run")
    for page, expected in ((folder / "report" / "index.html", 2), (None, 0)):
        print_summary(Console(speaks=True), folder, SUMMARY, page)
        lines = capsys.readouterr().out.splitlines()
        hint = lines[lines.index("next") + 1 : -3]
        assert len(hint) == expected
        if page is not None:
            assert hint[0] == "  The run is short: it makes few updates."
            assert hint[1].startswith("    vit-dist train ")
            assert hint[1].endswith(" --train.duration '800 updates'")


def test_the_summary_says_where_the_time_went(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"updates": 90.0, "waiting": 6.0, "evaluating": 1.0, "saving": 0.01, "starting": 3.0, "repeated": 0.0}
    assert printed(capsys, seconds={**seconds, "other": 0.0, "downtime": 60.0}, goodput=0.9)[3] == (
        "  useful   90% of the time was updates; waiting 6.0 s, starting 3.0 s, evaluating 1.0 s; "
        "down for 1 min 00 s between starts"
    )
    assert printed(capsys, seconds={**dict.fromkeys(seconds, 0.0), "downtime": 0.0}, goodput=1.0)[3] == (
        "  useful   100% of the time was updates"
    )


def test_the_summary_names_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path("runs/mine/report/index.html")
    assert printed(capsys, page)[-5:] == [f"  report   {page}: open it in a browser", *NEXT]


def test_the_paths_of_the_next_commands_are_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(Console(speaks=True), Path("my runs/a"), SUMMARY, None)
    assert capsys.readouterr().out.splitlines()[-3] == (
        "  vit-dist predict 'my runs/a' IMAGE …    classify images of your own"
    )


def test_summary_of_a_run_without_val(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, best=None)[3:] == [
        "  test     top1 97.50 %, loss 0.1235, of the last weights",
        "  memory   1,536 MiB at most",
        "  results  runs/mine",
        *NEXT,
    ]
    assert printed(capsys, best=None, weights="ema")[3] == (
        "  test     top1 97.50 %, loss 0.1235, of the last EMA weights"
    )
    assert printed(capsys, best=None, test=None)[3] == "  memory   1,536 MiB at most"


def test_the_summary_says_if_weights_are_averaged(capsys: pytest.CaptureFixture[str]) -> None:
    best = {"update": 240, "metric": "loss", "value": 0.0123456, "weights": "ema"}
    assert printed(capsys, best=best, weights="ema")[3:5] == [
        "  best     loss 0.01235 on val at update 240, EMA weights",
        "  test     top1 97.50 %, loss 0.1235, of the best EMA weights",
    ]


def test_the_summary_says_if_patience_ran_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, updates=255, epochs=17.0)[1] == (
        "  trained  17 epochs in 2 min 05 s (6.3 s an epoch, 12,346 images/s); out of patience 45 updates early"
    )


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(Console(speaks=False), Path("runs/mine"), SUMMARY, None)
    assert capsys.readouterr().out == ""


def test_accuracy_on_test_has_its_margin(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"split": "test", "top1_interval": [96.0, 98.4]}
    assert printed(capsys, figures=figures)[0] == "finished: 97.5 % on test (±1.5)"
    assert printed(capsys, figures={**figures, "split": "val"})[0] == "finished: 97.5 % on test"


def test_without_test_the_headline_is_of_val(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"split": "val", "top1_interval": [96.0, 99.0]}
    assert printed(capsys, test=None, figures=figures)[0] == "finished: 98.1 % on val (±2.1)"
    assert printed(capsys, test=None)[0] == "finished: 98.1 % on val"
    assert printed(capsys, test=None, figures=figures, best={**SUMMARY["best"], "metric": "loss"})[0] == "finished"
    assert printed(capsys, test=None, best=None)[0] == "finished"


def test_the_best_has_its_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, best_epoch=16.0)[3] == "  best     top1 98.12 % on val at update 240 (epoch 16)"
