"""Runs for the tests of reports: one trained, with its report, and finished ones written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.run_folder.handwritten import eval_line, make_run, some_inputs, start_line, train_line
from tests.sharing import made_once
from tests.training.test_run import digits
from vit_dist import train
from vit_dist.report.comparison import Row
from vit_dist.report.page import write_report
from vit_dist.report.rendering import render
from vit_dist.report.speed import SpeedSection
from vit_dist.run_folder.predictions import INPUTS, write_inputs


def summary(**changes: Any) -> dict[str, Any]:
    """Return the summary of a finished run, with some values changed."""
    return {
        **{"updates": 30, "epochs": 3.0, "train_seconds": 3.0, "total_seconds": 60.0, "samples_per_second": 480.0},
        **{"test": {"loss": 0.5, "top1": 90.0, "top5": 99.0}, "peak_memory_bytes": 2**20, **changes},
    }


def finished_run(folder: Path, *, losses: Any = (3.0, 2.0, 1.0), every: int = 10, **more: Any) -> Path:
    """Write a finished run of 30 updates and return its folder.

    `more` are values of the summary, or fields of the config if a name has two underscores, as optimizer__lr.
    """
    lines = [start_line(0, 0.0)]
    for number, loss in enumerate(losses, 1):
        lines.append(train_line(every * number, float(number), loss=loss))
    lines.append(eval_line(15, 4.0, loss=1.5, top1=80.0, best=True))
    lines.append(eval_line(30, 5.0, loss=more.pop("val_loss", 1.25), top1=more.pop("val_top1", 81.0), best=True))
    fields = {name: more.pop(name) for name in list(more) if "__" in name}
    return make_run(folder, lines, state="finished", summary=summary(**more), **fields)


def finished_run_on(folder: Path, samples: int = 480, classes: str = "", **fields: Any) -> Path:
    """Write a finished run on `samples` images, with input examples if `classes` has names; return its folder."""
    finished_run(folder, **fields)
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    text = text.replace('"plan": {"samples": 480', f'"plan": {{"samples": {samples}')
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    if classes:
        write_inputs(folder / INPUTS, some_inputs(classes))
    return folder


def reported_run(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run on the digits with EMA and its report; train it once for all modules.

    The run first has 30 updates; then it is extended to 60, so it resumes from a checkpoint.
    """

    def make(folder: Path) -> None:
        fields = {"log__trackers": "none", "train__ema": 0.9, "evaluate__every": "10 updates", "augment__mixup": 0.2}
        for length in ("30 updates", "60 updates"):
            train(digits(folder, **{**fields, "train__duration": length}))
        assert write_report(folder) == folder / "report" / "index.html"

    return made_once(factory, "a run of digits", make)


def comparison_page(title: str, verdict: str, texts: Sequence[str]) -> str:
    """Return the page of a comparison whose every text is one of these."""
    rows = [Row(list(texts), kind) for kind in ("best", "noise")]
    speed = SpeedSection(title, [list(texts), list(texts)], list(texts), {})
    return render(
        "comparison.html",
        **{"title": title, "verdict": verdict, "head": texts, "rows": rows, "notes": texts, "against": title},
        **{"curves": {}, "classes": None, "speed": speed, "speed_curves": {}},
    )
