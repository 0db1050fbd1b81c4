"""The order of runs, what is said of the best, and whether others differ from it by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.runs import finished_run, finished_run_on
from tests.run_folder.handwritten import eval_line, make_run, start_line, train_line
from vit_dist.files import write_json
from vit_dist.report.differences import changed_fields, data_names, same_data
from vit_dist.report.ranking import difference, ranked, verdict
from vit_dist.run_folder.data_facts import FACTS
from vit_dist.run_folder.figures import interval
from vit_dist.run_folder.predictions import PREDICTIONS, Predictions, SavedPredictions, write_predictions
from vit_dist.run_folder.record import RunRecord, read_run


def evaluated(folder: Path, val_loss: float, correct: int, seen: int = 400, **fields: Any) -> Path:
    """Write a finished run with so many of the images of test right, and the interval of that."""
    top1 = 100 * correct / seen
    figures = {"split": "test", "seen": seen, "balanced_accuracy": top1, "macro_f1": top1, "baseline": 50.0}
    figures |= {"top1_interval": list(interval(correct, seen)), "macro_f1_interval": [0.0, 100.0]}
    test = {"loss": 0.5, "top1": top1, "top5": None}
    return finished_run(folder, val_loss=val_loss, test=test, figures=figures, **fields)


def keep(folder: Path, wrong: Sequence[int], seen: int = 400, split: str = "test") -> None:
    """Write predictions of images of two classes, those in `wrong` being wrong."""
    labels = np.arange(seen) % 2
    top = labels.copy()
    top[list(wrong)] = 1 - top[list(wrong)]
    predictions = Predictions(np.arange(seen), labels, top[:, None], np.ones((seen, 1), np.float32))
    about = {"split": split, "weights": "raw", "update": 30, "classes": ["a", "b"]}
    empty = np.zeros(0, np.int64)
    saved = SavedPredictions(predictions, about, empty, np.zeros((0, 1, 4, 4), np.uint8))
    write_predictions(folder / PREDICTIONS, saved)


def read(*folders: Path) -> list[RunRecord]:
    return [read_run(folder) for folder in folders]


def test_runs_are_ordered_by_the_metric_that_chooses_the_best(tmp_path: Path) -> None:
    by_loss = read(*(finished_run(tmp_path / str(loss), val_loss=loss) for loss in (1.25, 1.0, 1.4)))
    assert ranked(by_loss) == [1, 0, 2]
    fields = {"evaluate__metric": "top1"}
    by_top1 = read(*(finished_run(tmp_path / f"t{top1}", val_top1=top1, **fields) for top1 in (81.0, 84.0, 79.0)))
    assert ranked(by_top1) == [1, 0, 2]
    ties = read(*(finished_run(tmp_path / f"l{loss}", val_top1=80.0, val_loss=loss, **fields) for loss in (1.2, 1.1)))
    assert ranked(ties) == [1, 0]
    # Of several metrics, by the accuracy on val at the best evaluation; what was never evaluated comes last.
    never = read_run(make_run(tmp_path / "never", [start_line(0, 0.0), train_line(10, 1.0)]))
    assert ranked([never, by_loss[2], by_top1[1], by_top1[2]]) == [2, 1, 3, 0]


def test_a_difference_is_told_by_the_same_images_if_predictions_are_kept(tmp_path: Path) -> None:
    best, other = evaluated(tmp_path / "best", 1.0, 380), evaluated(tmp_path / "other", 1.2, 370)
    apart = difference(*read(best, other))
    assert apart is not None
    assert (str(apart), apart.on_same, apart.kind) == ("−2.50 points, within noise", None, "noise")
    assert verdict(read(best, other), ["best", "other"]) == (
        "best is the best of 2, by loss on val: 1.0000. On test it has 95.00 % (92.4 to 96.7), other 92.50 % "
        "(89.5 to 94.7): the 95 % intervals overlap: it may be chance."
    )
    keep(best, range(20))
    keep(other, range(30))
    paired = difference(*read(best, other))
    assert paired is not None
    assert (str(paired), paired.kind) == ("−2.50 points, beyond noise", "worse")
    assert verdict(read(best, other), ["best", "other"]) == (
        "best is the best of 2, by loss on val: 1.0000. On test it has 95.00 %, other 92.50 %: of the same 400 images, "
        "best alone is right on 10, other alone on 0, more than chance would make (McNemar's test, p = 0.002)."
    )
    keep(other, range(15, 45))
    assert "a difference that chance alone could make (McNemar's test, p = 0.15)" in verdict(
        read(best, other), ["best", "other"]
    )


def test_intervals_that_do_not_overlap_are_beyond_noise(tmp_path: Path) -> None:
    best, other = read(evaluated(tmp_path / "best", 1.0, 300), evaluated(tmp_path / "other", 1.2, 380))
    apart = difference(best, other)
    assert apart is not None
    assert (str(apart), apart.kind) == ("+20.00 points, beyond noise", "better")
    assert "the 95 % intervals do not overlap: more than chance." in verdict([best, other], ["best", "other"])


def test_runs_without_test_are_compared_on_val(tmp_path: Path) -> None:
    lines = [start_line(0, 0.0), train_line(30, 1.0)]
    folders = [
        make_run(tmp_path / str(top1), [*lines, eval_line(30, 2.0, top1=top1, seen=200, best=True)], state="finished",
                 summary={"updates": 30}, evaluate__metric="top1") for top1 in (90.0, 70.0)
    ]  # fmt: skip
    assert verdict(read(*folders), ["a", "b"]) == (
        "a is the best of 2, by top1 on val: 90.00 %. On val it has 90.00 % (85.1 to 93.4), b 70.00 % (63.3 to 75.9): "
        "the 95 % intervals do not overlap: more than chance."
    )


def test_runs_with_one_value_on_val_are_called_equal(tmp_path: Path) -> None:
    fields = {"evaluate__metric": "top1", "val_top1": 64.5, "test": None}
    losses = {"a": 1.1, "b": 1.2, "c": 1.1}
    runs = read(*(finished_run(tmp_path / name, val_loss=loss, **fields) for name, loss in losses.items()))
    assert verdict(runs[:2], ["a", "b"]) == "Both reach 64.50 % on val: no difference; a has the lower loss."
    assert verdict(runs[::2], ["a", "c"]) == "Both reach 64.50 % on val: no difference."
    assert verdict(runs, ["a", "b", "c"]).startswith("a and b are the best of 3, both with 64.50 % on val: no differ")
    by_loss = read(evaluated(tmp_path / "x", 1.2, 380), evaluated(tmp_path / "y", 1.2, 300))
    assert verdict(by_loss, ["x", "y"]) == (
        "Both reach loss 1.2000 on val: no difference. On test x has 95.00 % (92.4 to 96.7), y 75.00 % "
        "(70.5 to 79.0): the 95 % intervals do not overlap: more than chance."
    )
    assert str(difference(by_loss[0], by_loss[0])) == "no difference"


def folder_run(folder: Path, val: int, fraction: float, root: str = "/photos", of_class: int = 50) -> Path:
    """Write a finished run on two classes of images, so many of each of them held out as val."""
    fields = {"data__name": "folder", "data__root": root, "data__val_fraction": fraction}
    finished_run_on(folder, samples=2 * (of_class - val), classes="ab", **fields)
    counts = {"train": {"a": of_class - val, "b": of_class - val}, "val": {"a": val, "b": val}}
    write_json(folder / FACTS, {"classes": ["a", "b"], "counts": counts})
    return folder


def test_runs_with_other_images_of_one_folder_as_val_are_told_so(tmp_path: Path) -> None:
    tenth, fifth = folder_run(tmp_path / "tenth", 5, 0.1), folder_run(tmp_path / "fifth", 10, 0.2)
    assert data_names(read(tenth, fifth)) == ["photos", "photos (2)"]
    assert verdict(read(tenth, fifth), ["tenth", "fifth"]) == (
        "The same images, but not the same ones of them held out as val: the figures say nothing of which run is "
        "better. Compare them on images that none was trained on: vit-dist evaluate RUN --folder DIR."
    )
    for others in ({"root": "/elsewhere/photos"}, {"of_class": 60}):
        other = folder_run(tmp_path / str(others), 10, 0.2, **others)
        assert verdict(read(tenth, other), ["a", "b"]).startswith("These runs are on different data")


def test_unfinished_runs_are_named_once(tmp_path: Path) -> None:
    done = read_run(finished_run(tmp_path / "done"))
    going = read_run(make_run(tmp_path / "going", [start_line(0, 0.0), train_line(10, 1.0)]))
    empty = read_run(make_run(tmp_path / "empty", [start_line(0, 0.0)]))
    assert verdict([done, going, empty], ["a", "b", "c"]) == (
        "Not finished yet, so shown as far as it went: b, c. a is the best of 3, by loss on val: 1.2500."
    )
    assert verdict([going, empty], ["b", "c"]) == (
        "Not finished yet, so shown as far as it went: b, c. None of the runs has been evaluated yet."
    )


@pytest.mark.parametrize(
    "other",
    [
        {"samples": 2000},
        {"data__name": "mnist"},
        {"data__name": "folder", "data__root": "/pictures"},
        {"data__val_fraction": 0.3},
        {"classes": "abd"},
    ],
    ids=str,
)
def test_nothing_is_claimed_of_runs_on_other_data(tmp_path: Path, other: dict[str, Any]) -> None:
    first = read_run(finished_run_on(tmp_path / "one", classes="abc"))
    last = read_run(finished_run_on(tmp_path / "two", **{"classes": "abc", **other}))
    names = data_names([first, last])
    assert len(set(names)) == 2
    assert verdict([first, last], ["one", "two"]) == (
        f"These runs are on different data ({names[0]}: one; {names[1]}: two): "
        "their figures say nothing of which is better."
    )
    assert difference(first, last) is None
    same = read_run(finished_run_on(tmp_path / "three", classes="abc"))
    assert data_names([first, same]) == ["digits", "digits"]


def test_the_fingerprint_decides_whether_data_is_the_same(tmp_path: Path) -> None:
    """As for a grey and a colour version of a set, whose counts, classes and names are equal."""
    kinds = {"grey": "aa", "again": "aa", "colour": "bb"}
    runs = []
    for name, digest in kinds.items():
        folder = finished_run(tmp_path / name, data__root=f"/moved/{name}/pets", data__name="folder")
        state = folder / "checkpoints" / "update_00000030" / "state.json"
        state.parent.mkdir(parents=True)
        write_json(state, {"data": {"train": {"samples": 480, "sha256": digest}}, "classes": ["a", "b"]})
        runs.append(read_run(folder))
    assert [same_data(runs[0], run) for run in runs] == [True, True, False]
    assert data_names(runs) == ["pets", "pets", "pets (2)"]


def test_fields_that_differ_are_short_and_begin_with_the_one_of_most_values(tmp_path: Path) -> None:
    runs = read(
        finished_run(tmp_path / "a", optimizer__lr=1e-3),
        finished_run(tmp_path / "b", optimizer__lr=2e-3, optimizer__name="muon", log__every="5 updates"),
        finished_run(tmp_path / "c", optimizer__lr=3e-3, data__root="/elsewhere", schedule__name="constant"),
    )
    assert changed_fields(runs) == {
        "lr": ["0.001", "0.002", "0.003"],
        "optimizer.name": ["adamw", "muon", "adamw"],
        "schedule.name": ["cosine", "cosine", "constant"],
    }
    lone = read(
        finished_run(tmp_path / "d", augment__auto="3a", evaluate__every="3 epochs", optimizer__name="muon"),
        runs[0].folder,
    )
    assert changed_fields(lone).keys() >= {"augment.auto", "evaluate.every", "optimizer.name"}
    assert "lr" not in changed_fields(runs, without=("optimizer.lr",))
    assert changed_fields(runs[:1]) == {}
