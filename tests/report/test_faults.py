"""What is wrong with a run: findings in words, and labels that the model disputes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.run_folder.handwritten import eval_line, make_run, some_predictions, start_line, train_line
from vit_dist.report.faults import findings, suspected_labels
from vit_dist.report.quality import result_of
from vit_dist.run_folder.predictions import PREDICTIONS, Predictions, SavedPredictions, write_predictions
from vit_dist.run_folder.record import read_run


def disputed(*mistakes: tuple[int, int, float, float], right: int = 20, sure: float = 0.9) -> Predictions:
    """Return predictions of three classes: `right` of each as `sure` as this, and mistakes.

    Each of these is (label, predicted class, its probability, the label's).
    """
    rows = [(label, label, sure, sure) for label in range(3) for _ in range(right)] + list(mistakes)
    label = np.asarray([row[0] for row in rows])
    top, probability = np.zeros((len(rows), 3), np.int64), np.zeros((len(rows), 3), np.float32)
    for number, (truth, predicted, first, of_label) in enumerate(rows):
        others = [truth, *(each for each in range(3) if each not in (truth, predicted))]
        order = [predicted, *others] if predicted != truth else others
        top[number] = order
        probability[number, 0] = first
        if predicted != truth:
            probability[number, 1] = of_label
    return Predictions(np.arange(len(rows)), label, top, probability)


def test_labels_are_suspected_where_the_model_is_sure_of_another_class() -> None:
    predictions = disputed((0, 1, 0.95, 0.01), (0, 1, 0.85, 0.01), (2, 1, 0.95, 0.05), (2, 0, 0.99, 0.0))
    # The second is less sure than of the class's own images (0.9); the third still gives the label something.
    assert suspected_labels(predictions).tolist() == [60, 63]


def test_none_are_suspected_of_a_model_that_is_often_wrong_or_unsure() -> None:
    wrong = [(0, 1, 0.99, 0.0)] * 30
    assert suspected_labels(disputed(*wrong, right=20)).tolist() == []
    assert len(suspected_labels(disputed(*wrong[:25], right=20))) == 25
    assert suspected_labels(disputed((0, 1, 0.79, 0.0), sure=0.5)).tolist() == []
    assert suspected_labels(disputed((0, 1, 0.81, 0.0), sure=0.5)).tolist() == [60]


def found(folder: Path, lines: list[dict[str, Any]], saved: SavedPredictions | None = None) -> list[tuple[str, str]]:
    make_run(folder, lines, state="finished")
    if saved is not None:
        write_predictions(folder / PREDICTIONS, saved)
    run = read_run(folder)
    assert run.problems.pop().endswith("figures are those of metrics.jsonl")
    return [(finding.name, finding.text) for finding in findings(run, result_of(run))]


@pytest.mark.parametrize(
    ("top1", "val", "expected"),
    [
        (99.0, {"top1": 90.0}, "99.0 % right on train at the end, 90.0 % on val: a gap of 9.0 points."),
        (85.0, {"top1": 90.0}, "85.0 % right on train at the end, 90.0 % on val: no gap."),
        (None, {"loss": 1.5}, "The loss ends at 2 on train, 1.5 on val. Mixed labels have no accuracy."),
    ],
)
def test_the_gap_between_train_and_val_is_said(
    tmp_path: Path, top1: float | None, val: dict[str, float], expected: str
) -> None:
    lines = [start_line(0, 0.0), train_line(10, 1.0, top1=top1), eval_line(10, 2.0, **val)]
    assert found(tmp_path / "run", lines) == [("Train and val", expected)]


def test_the_gap_names_what_the_kept_weights_reach(tmp_path: Path) -> None:
    best = {**eval_line(10, 2.0, top1=64.5), "best": True}
    lines = [start_line(0, 0.0), best, train_line(20, 3.0, top1=97.5), eval_line(20, 4.0, top1=54.8)]
    assert found(tmp_path / "run", lines) == [(
        "Train and val",
        "97.5 % right on train at the end, 54.8 % on val: a gap of 42.7 points. (The weights that are kept, of epoch "
        "1, reach 64.5 % on val.)",
    )]  # fmt: skip


def test_classes_that_are_missed_and_suspected_labels_are_named(tmp_path: Path) -> None:
    saved = some_predictions("abc")
    predictions = disputed(*[(0, 1, 0.99, 0.0)] * 20, right=20)
    predictions.top[:20] = [1, 0, 2]
    texts = dict(found(tmp_path / "run", [start_line(0, 0.0)], SavedPredictions(
        predictions, saved.metadata, np.asarray([79]), saved.pictures[:1]
    )))  # fmt: skip
    assert texts["Never predicted"] == "1 class is never the answer: a."
    assert texts["Worst classes"] == "a (F1 0 %, 0 % found), b (F1 50 %, 100 % found)."
    assert "Labels" not in texts
    saved_few = SavedPredictions(
        disputed((0, 1, 0.99, 0.0)), saved.metadata, np.asarray([60]), saved.pictures[:1]
    )  # fmt: skip
    texts = dict(found(tmp_path / "few", [start_line(0, 0.0)], saved_few))
    assert texts["Labels"] == (
        "1 label looks wrong on test: the model is at least 80% sure of another class, as sure as it usually is of "
        "that class’s own images, and gives the label under 5%. Look at those below."
    )


def test_a_failed_run_and_one_without_val_say_so(tmp_path: Path) -> None:
    failed = make_run(tmp_path / "failed", [start_line(0, 0.0)], state="failed", reason="20 updates were skipped")
    assert [finding.text for finding in findings(read_run(failed), None)] == ["It failed: 20 updates were skipped"]
    lines = [start_line(0, 0.0), train_line(10, 1.0)]
    whole = make_run(tmp_path / "whole", lines, state="finished", summary={"updates": 10})
    [missing] = findings(read_run(whole), None)[-1:]
    assert missing.name == "Validation set"
