"""How good a run is: the result with its interval, the verdict in words, the figures of the classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.run_folder.handwritten import eval_line, make_run, some_predictions, start_line, train_line
from vit_dist.files import write_json
from vit_dist.report.quality import Result, class_rows, result_of, tiles, verdict
from vit_dist.run_folder.data_facts import FACTS
from vit_dist.run_folder.figures import figures
from vit_dist.run_folder.predictions import PREDICTIONS, write_predictions
from vit_dist.run_folder.record import read_run


def result(right: int, support: list[int], **changes: Any) -> Result:
    """Return a result on test: of each class the first `right` percent are right, the rest taken for the next class."""
    label = np.repeat(np.arange(len(support)), support)
    place = np.concatenate([np.arange(count) for count in support])
    correct = place < np.asarray(support)[label] * right / 100
    of_test = figures(label, np.where(correct, label, (label + 1) % len(support)), len(support))
    values: dict[str, Any] = {
        **{"split": "test", "weights": "raw", "update": 2669, "epoch": 66.0, "loss": 0.1632, "top5": None},
        **{"top1": of_test.top1, "seen": of_test.seen, "classes": [f"class {n}" for n in range(len(support))]},
        **{"figures": of_test, "baseline": of_test.baseline, "chose_the_weights": False},
    }
    return Result(**{**values, **changes})


@pytest.mark.parametrize(
    ("right", "support", "changes", "expected"),
    [
        (97, [100] * 10, {}, "97.0 % on test (±1.3): far above the 10.0 % of always answering the commonest class."),
        (60, [100] * 10, {}, "60.0 % on test (±3.1): well above the 10.0 % of always answering the commonest class."),
        (30, [100] * 10, {}, "30.0 % on test (±2.9): above the 10.0 % of always answering the commonest class."),
        (15, [100] * 10, {}, "15.0 % on test (±2.3): barely above the 10.0 % of always answering the commonest class."),
        (11, [100] * 10, {}, "11.0 % on test (±2.1): not clearly above the 10.0 % of always answering the commonest "
                             "class."),
        (9, [100] * 10, {}, "9.0 % on test (±1.9): no better than the 10.0 % of always answering the commonest class."),
        (97, [100] * 10, {"baseline": None}, "97.0 % on test (±1.3)."),
        (75, [4, 4], {"split": "val", "chose_the_weights": True},
         "75.0 % on val (±34.1): not clearly above the 50.0 % of always answering the commonest class. Val is small: "
         "8 images, each of 12.5 points. The same images chose the best weights, so expect a little less on new ones."),
    ],
)  # fmt: skip
def test_the_verdict_is_a_sentence(right: int, support: list[int], changes: dict[str, Any], expected: str) -> None:
    assert verdict(result(right, support, **changes)) == expected


def test_accuracy_that_hides_rare_classes_is_said() -> None:
    of_test = figures(np.asarray([0] * 180 + [1] * 20), np.asarray([0] * 200), 2)
    said = verdict(result(0, [180, 20], figures=of_test, top1=90.0, baseline=90.0))
    assert said == (
        "90.0 % on test (±4.9): no better than the 90.0 % of always answering the commonest class. "
        "If every class counts the same, it is 50.0 %."
    )


def test_tiles_are_of_an_even_number_and_have_top5_where_it_means_something() -> None:
    few = tiles(result(97, [100] * 10, top5=99.9))
    assert [name for _, name, _ in few] == [
        *("accuracy on test", "baseline", "macro F1", "balanced accuracy", "images wrong", "loss on test"),
    ]  # fmt: skip
    assert [value for value, _, _ in few] == ["97.00 %", "10.00 %", "97.00 %", "97.00 %", "30", "0.1632"]
    assert few[0][2] == "±1.3 (95 % interval)"
    assert few[1][2] == "always “class 0”"
    assert few[4][2] == "of 1,000 on test"
    many = [name for _, name, _ in tiles(result(97, [100] * 11, top5=99.9))]
    assert many[2] == "top-5 accuracy"
    assert len(many) == 6
    assert len(tiles(result(97, [50, 50], figures=None, baseline=None))) == 2


def test_the_rows_of_classes_are_worst_first_with_means() -> None:
    of_test = figures(np.asarray([0, 0, 1, 1, 1, 3]), np.asarray([0, 1, 1, 1, 1, 0]), 4)
    rows, means = class_rows(of_test, ["a", "b", "c", "d"], 9)
    assert [row["name"] for row in rows] == ["d", "a", "b"]
    assert rows[0] == {
        **{"name": "d", "images": 1, "precision": None, "recall": 0.0, "f1": 0.0, "mistaken": "a (1×)"},
    }  # fmt: skip
    assert [row["mistaken"] for row in rows] == ["a (1×)", "b (1×)", ""]
    assert rows[2]["precision"] == 75
    assert [row["name"] for row in means] == ["macro mean", "weighted mean"]
    assert means[0]["recall"] == pytest.approx(50)
    assert means[1]["recall"] == pytest.approx(100 * 4 / 6)
    assert len(class_rows(of_test, ["a", "b", "c", "d"], 2)[0]) == 2


def test_a_run_that_goes_on_is_judged_by_its_best_evaluation(tmp_path: Path) -> None:
    lines = [start_line(0, 0.0), train_line(10, 1.0), eval_line(10, 1.5, best=True, top1=75.0, top5=99.0)]
    folder = make_run(tmp_path / "run", [*lines, eval_line(20, 2.0, top1=50.0)], evaluate__metric="top1")
    assert result_of(read_run(make_run(tmp_path / "new", lines[:2]))) is None
    found = result_of(read_run(folder))
    assert found is not None
    assert (found.split, found.update, found.top1, found.top5, found.seen) == ("val", 10, 75.0, 99.0, 48)
    assert (found.baseline, found.figures, found.classes) == (None, None, [])
    counts = {"train": {"a": 300, "b": 100}, "val": {"a": 36, "b": 12}}
    write_json(folder / FACTS, {"classes": ["a", "b"], "counts": counts})
    found = result_of(read_run(folder))
    assert found is not None
    assert (found.baseline, found.is_above_baseline, found.classes) == (75.0, False, ["a", "b"])


def test_a_finished_run_is_judged_by_its_predictions(tmp_path: Path) -> None:
    lines = [start_line(0, 0.0), train_line(10, 1.0), eval_line(30, 1.5, best=True)]
    folder = make_run(tmp_path / "run", [*lines, eval_line(30, 2.0, split="test", loss=0.75)], state="finished")
    saved = some_predictions("abc")
    write_predictions(folder / PREDICTIONS, saved)
    found = result_of(read_run(folder))
    assert found is not None
    assert (found.split, found.loss, found.top1, found.seen, found.epoch) == ("test", 0.75, 50.0, 4, 3.0)
    assert (found.top5, found.chose_the_weights) == (None, False)
    write_predictions(folder / PREDICTIONS, replace(saved, metadata={**saved.metadata, "split": "val"}))
    found = result_of(read_run(folder))
    assert found is not None
    assert (found.loss, found.chose_the_weights) == (1.5, True)
