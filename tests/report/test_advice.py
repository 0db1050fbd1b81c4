"""The hints of a report: each rule with a run that shows it and with runs that do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.run_folder.handwritten import eval_line, make_run, some_predictions, start_line, train_line
from vit_dist import Config
from vit_dist.files import write_json
from vit_dist.report.advice import MOST_HINTS, RULES, Hint, hints
from vit_dist.report.command import train_command
from vit_dist.run_folder.data_facts import FACTS
from vit_dist.run_folder.predictions import PREDICTIONS, Predictions, write_predictions
from vit_dist.run_folder.record import read_run

LINES, EPOCHS = 100, 20


def run_hints(
    folder: Path,
    *,
    losses: Any = None,
    val_losses: Any = None,
    val_top1: Any = 90.0,
    best: int | None = None,
    samples: int = 10_000,
    planned: int = 2000,
    seen: int = 1000,
    state: str = "finished",
    counts: dict[str, list[int]] | None = None,
    sides: tuple[int, int, int] | None = None,
    train: Any = None,
    extra_planned: int = 0,
    **fields: Any,
) -> list[Hint]:
    """Return the hints of a run of 20 epochs with 100 train lines and 20 evaluations; it shows nothing by default.

    losses, val_losses, val_top1: a series, or one value for all. best: number of the best evaluation. train: further
    values of the train lines, as series or one value. sides: of data.json. extra_planned: updates not made yet.
    """

    def series(values: Any, count: int, default: Any) -> list[Any]:
        values = default if values is None else values
        return list(values) if isinstance(values, (list, tuple, np.ndarray)) else [values] * count

    lines = [start_line(0, 0.0, planned=planned + extra_planned)]
    lines[0]["plan"]["samples"] = samples
    updates = np.linspace(planned / LINES, planned, LINES).astype(int).tolist()
    train_losses = series(losses, LINES, np.linspace(2.0, 0.5, LINES).tolist())
    more = {name: series(values, LINES, None) for name, values in (train or {}).items()}
    for number, update in enumerate(updates):
        values = {name: column[number] for name, column in more.items()}
        epoch = EPOCHS * (number + 1) / LINES
        line = train_line(
            update, number + 1.0, **{"loss": train_losses[number], "epoch": epoch, "top1": 85.0, **values}
        )
        lines.append(line)
    loss_series, top1_series = series(val_losses, EPOCHS, 0.5), series(val_top1, EPOCHS, 90.0)
    for number in range(EPOCHS):
        update = planned * (number + 1) // EPOCHS
        is_best = number == (EPOCHS // 2 if best is None else best)
        line = eval_line(update, 200.0 + number, loss=loss_series[number], top1=top1_series[number], seen=seen)
        lines.append({**line, "best": is_best, "epoch": float(number + 1)})
    folder = make_run(folder, lines, state=state, **fields)
    if counts is not None:
        classes = [f"class {number}" for number in range(len(counts["train"]))]
        sizes = dict(zip(("smallest", "median", "largest"), sides, strict=True)) if sides else None
        named = {split: dict(zip(classes, row, strict=True)) for split, row in counts.items()}
        write_json(folder / FACTS, {"classes": classes, "counts": named, "sizes": sizes})
    return hints(read_run(folder))


def spiky(*places: int, height: float = 9.0) -> list[float]:
    losses = np.linspace(2.0, 0.5, LINES).tolist()
    for place in places:
        losses[place] = height
    return losses


FALLING = np.linspace(2.0, 0.5, EPOCHS).tolist()
RISING = [*np.linspace(1.0, 0.4, 8).tolist(), *np.linspace(0.42, 0.6, 12).tolist()]
FOLDER = {"data__name": "folder", "data__root": "photos"}
BALANCED = {"train": [1000] * 10, "val": [100] * 10}


def test_all_right_on_two_images_is_no_reason_to_be_content(tmp_path: Path) -> None:
    few = {"counts": {"train": [2, 2], "val": [1, 1]}, "samples": 4, "planned": 100, **FOLDER}
    many = {"counts": BALANCED, **FOLDER}
    begins = ("Fine-tune a model", "The batch is large", "Add training images", "The validation set is too small")
    for name, fields, seen, wanted in (("few", few, 2, True), ("many", many, 1000, False)):
        texts = [hint.text for hint in run_hints(tmp_path / name, val_top1=100.0, seen=seen, **fields)]
        assert [any(text.startswith(begin) for text in texts) for begin in begins] == [wanted] * 4


# What a run shows → (its fields, the beginning of the hint, words of the evidence, the flag).
SHOWN: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "nothing learned": (
        {"val_top1": 10.4, "counts": BALANCED, "optimizer__lr": 0.1, "train": {"top1": 10.0}},
        "The model has learned next to nothing",
        "10.4 % on val against 10.0 %, after 2,000 updates at a rate of up to 0.1",
        "--optimizer.lr 0.01",
    ),
    "a training loss of guessing": (
        {"losses": 2.25, "val_top1": 30.0, "counts": BALANCED, "train": {"top1": 25.0}},
        "The model has learned next to nothing",
        "the training loss ends at 2.25; guessing gives 2.3, after 2,000 updates at a rate of up to 0.003",
        "--optimizer.lr 0.0003",
    ),
    "skipped updates": (
        {"train": {"skipped_updates": 40}},
        "The learning rate looks too high",
        "40 of 2,000 updates were skipped",
        "--optimizer.lr 0.001",
    ),
    "spikes": (
        {"losses": spiky(50, 70, height=9.0)},
        "The learning rate looks too high",
        "2 spikes of the training loss, the highest of 9 at epoch 14.2",
        "--optimizer.lr 0.001",
    ),
    "a loss that rises": (
        {"losses": [*np.linspace(2.0, 0.5, 60).tolist(), *np.linspace(0.5, 1.5, 40).tolist()]},
        "The learning rate looks too high",
        "the training loss rose from 0.5",
        "--optimizer.lr 0.001",
    ),
    "a large batch": (
        {"samples": 86, "planned": 1000, "batch__global_size": 64},
        "The batch is large",
        "64 of 86 training images in each of 1,000 updates",
        "--batch.global_size 8",
    ),
    "few updates": (
        {"planned": 200},
        "The run is short",
        "200 updates of 32 images",
        '--train.duration "800 updates"',
    ),
    "few images from scratch": (
        {**FOLDER, "samples": 2000},
        "Fine-tune a model",
        "2,000 training images; 90.0 % on val from scratch",
        "--model.pretrained timm",
    ),
    "val's loss rises": (
        {"val_losses": RISING},
        "The model overfits",
        "val's loss was lowest, 0.4, at epoch 8, and ends at 0.584; the training loss ends at 0.568",
        "--augment.mixup 0.2 --train.ema 0.999",
    ),
    "a gap": (
        {"train": {"top1": 99.0}, "val_top1": 80.0, "augment__mixup": 0.1, "train__ema": 0.99},
        "The model overfits",
        "99.0 % on the training images, 80.0 % on val at the end",
        '--train.duration "11 epochs"',
    ),
    "training images known by heart": (
        {"train": {"top1": 100.0}, "val_top1": 95.0, "augment__mixup": 0.1},
        "The model overfits",
        "100.0 % on the training images, 95.0 % on val at the end",
        "--train.ema 0.999",
    ),
    "still improving": (
        {"val_losses": FALLING, "best": 19, "train__duration": "20 epochs"},
        "The model was still improving",
        "val's loss fell from 0.895 at epoch 15 to 0.5 at epoch 20, the end; accuracy from 90.0 to 90.0 %",
        '--train.duration "40 epochs"',
    ),
    "few of a class": (
        {"counts": {"train": [1000, 9, 3, 0], "val": [100] * 4}},
        "Add training images of the rarest classes",
        "3 of 4 classes have fewer than 10: class 3 0, class 2 3, class 1 9",
        "",
    ),
    "a small val that is held out": (
        {"seen": 48, "samples": 430},
        "The validation set is too small",
        "48 images in val, so one of them is 2.1 points",
        "--data.val_fraction 0.2",
    ),
    "a small val of its own": (
        {"seen": 48, "samples": 4300},
        "The validation set is too small to choose weights by, or to compare runs with: add images to it.",
        "48 images in val",
        "",
    ),
    "waiting, no workers": (
        {"train": {"update_seconds": 0.1, "data_wait_fraction": 0.4}, "data__workers": 0},
        "The model waits for images: read them with more workers.",
        "40% of the training time went to waiting for images: 80 of 200 s",
        "--data.workers auto",
    ),
    "waiting, two workers": (
        {"train": {"update_seconds": 0.1, "data_wait_fraction": 0.4}, "data__workers": 2},
        "The model waits for images: read them with more workers.",
        "40% of",
        "--data.workers 4",
    ),
    "waiting, all cores": (
        {"train": {"update_seconds": 0.1, "data_wait_fraction": 0.4}},
        "The model waits for images: it needs more CPU cores",
        "40% of",
        "",
    ),
    "waiting, huge images": (
        {"train": {"update_seconds": 0.1, "data_wait_fraction": 0.4}, "counts": BALANCED, "sides": (500, 3000, 4000)},
        "The model waits for images: shrink the files once, to about 448 pixels",
        "the median image has sides of 3,000 pixels, the model 224",
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_a_rule_gives_its_hint_and_no_other(name: str, tmp_path: Path) -> None:
    fields, text, evidence, flag = SHOWN[name]
    quiet = {"train": {"data_wait_fraction": 0.0, **fields.get("train", {})}}
    [hint] = run_hints(tmp_path / "run", **{**fields, **quiet})
    assert hint.text.startswith(text)
    assert evidence in hint.evidence
    assert hint.flag == flag


# Runs that are just short of a rule.
SHORT: dict[str, dict[str, Any]] = {
    "a run that shows nothing": {},
    "better than the commonest class": {"val_top1": 15.0, "counts": BALANCED, "train": {"top1": 15.0}},
    "the few updates that fp16 skips": {"train": {"skipped_updates": 4}},
    "one spike": {"losses": spiky(50)},
    "spikes of a loss that is nearly 0": {"losses": [*[2.0] * 50, *[0.001, 0.01] * 25]},
    "a batch of a quarter": {"samples": 128, "planned": 1000, "batch__global_size": 32},
    "few updates that are enough": {"planned": 200, "val_top1": 99.5},
    "few images, and good from scratch": {**FOLDER, "samples": 2000, "val_top1": 96.0},
    "few images, fine-tuned": {
        **FOLDER, "samples": 2000, "model__pretrained": "timm", "model__name": "timm/vit_tiny_patch16_224",
    },
    "few images of a set that is no folder": {"samples": 2000},
    "many images from scratch": {**FOLDER, "samples": 10_000},
    "a loss on val that rises and a model that is right": {"val_losses": RISING, "val_top1": 99.4},
    "a loss on val that rises a little": {"val_losses": [*[0.5] * 10, *[0.54] * 10]},
    "a gap of ten points": {"train": {"top1": 90.0}, "val_top1": 80.0},
    "training images known by heart, and a small gap": {"train": {"top1": 100.0}, "val_top1": 97.5},
    "a training loss a little below that of guessing": {
        "losses": 2.15, "val_top1": 30.0, "counts": BALANCED, "train": {"top1": 25.0},
    },
    "a model that has learned nothing yet": {
        "val_top1": 10.0, "counts": BALANCED, "train": {"top1": 10.0}, "extra_planned": 20_000,
    },
    "a falling loss of a run that goes on": {"val_losses": FALLING, "best": 19, "state": "running"},
    "a falling loss of a run that was best before": {"val_losses": FALLING, "best": 14},
    "a loss that has stopped falling": {"val_losses": [*np.linspace(2, 0.5, 12).tolist(), *[0.5] * 8], "best": 19},
    "a falling loss, and nothing left to gain": {"val_losses": FALLING, "best": 19, "val_top1": 99.9},
    "ten of a class": {"counts": {"train": [1000, 10], "val": [500, 500]}},
    "a val of a hundred": {"seen": 100},
    "waiting a little": {"train": {"update_seconds": 0.1, "data_wait_fraction": 0.1}},
    "waiting in a short run": {"train": {"update_seconds": 0.01, "data_wait_fraction": 0.4}},
}  # fmt: skip


@pytest.mark.parametrize("name", SHORT)
def test_a_run_short_of_a_rule_gets_no_hint(name: str, tmp_path: Path) -> None:
    fields = SHORT[name]
    fields = {**fields, "train": {"data_wait_fraction": 0.0, **fields.get("train", {})}}
    assert run_hints(tmp_path / "run", **fields) == []


def test_rare_classes_that_are_missed_are_a_hint(tmp_path: Path) -> None:
    """Of 100 test images, 80 are of the first class; the others' recall decides."""
    label = np.asarray([0] * 80 + [1] * 20)
    about = {"split": "test", "weights": "raw", "update": 2000, "classes": ["class 0", "class 1"]}
    saved = some_predictions(["class 0", "class 1", "class 2"])
    for name, missed, expected in (("missed", 9, 1), ("found", 2, 0)):
        predicted = label.copy()
        predicted[80 : 80 + missed] = 0
        predictions = Predictions(np.arange(100), label, predicted[:, None], np.full((100, 1), 0.6, np.float32))
        folder = tmp_path / name
        counts = {"train": [9000, 900], "val": [500, 500]}
        run_hints(folder, counts=counts, train={"data_wait_fraction": 0.0})
        empty = np.empty(0, np.int64)
        write_predictions(folder / PREDICTIONS, replace(
            saved, predictions=predictions, metadata=about, picture_rows=empty, pictures=saved.pictures[:0]
        ))  # fmt: skip
        found = hints(read_run(folder))
        assert len(found) == expected
    [hint] = hints(read_run(tmp_path / "missed"))
    assert hint.text.startswith("The classes are unbalanced and the rare ones are missed")
    assert hint.evidence == (
        "9,000 training images of class 0, 900 of class 1; balanced accuracy 77.5 %, 13.5 points below accuracy"
    )


def test_at_most_five_hints_in_the_order_of_their_worth(tmp_path: Path) -> None:
    found = run_hints(
        tmp_path / "run",
        **FOLDER,
        samples=300,
        planned=120,
        seen=33,
        val_losses=RISING,
        losses=spiky(50, 70),
        counts={"train": [295, 5], "val": [17, 16]},
        train={"update_seconds": 5.0, "data_wait_fraction": 0.9},
        data__workers=0,
    )
    assert len(found) == MOST_HINTS < len(RULES)
    starts = ["The learning rate looks", "Fine-tune a model", "The run is short", "The model overfits", "Add training"]
    assert [hint.text.startswith(start) for hint, start in zip(found, starts, strict=True)] == [True] * 5


def test_a_run_without_an_evaluation_gets_no_hints(tmp_path: Path) -> None:
    assert hints(read_run(make_run(tmp_path / "none", [start_line(0, 0.0)]))) == []
    lines = [start_line(0, 0.0), train_line(10, 1.0, loss="nan")]
    assert hints(read_run(make_run(tmp_path / "train", lines))) == []


def test_losses_that_are_not_finite_do_no_harm(tmp_path: Path) -> None:
    lost = {"skipped_updates": 100, "top1": None, "data_wait_fraction": None}
    found = run_hints(tmp_path / "run", losses=["nan"] * LINES, val_losses="nan", train=lost)
    assert [hint.evidence for hint in found] == [
        "100 of 2,000 updates were skipped: their loss or gradient was not finite"
    ]


def test_a_hint_has_a_command_to_copy_and_says_what_its_flag_does(tmp_path: Path) -> None:
    fields = {**FOLDER, "data__root": "/my photos", "samples": 20_000, "val_losses": RISING}
    fields["train"] = {"data_wait_fraction": 0.0}
    [hint] = run_hints(tmp_path / "run", **fields)
    assert (hint.flag, hint.meaning) == (
        "--augment.mixup 0.2 --augment.auto 3a",
        "mixup blends pairs of images and their labels; 3a makes each image grey, inverts its bright parts or blurs "
        "it, and varies its colours",
    )
    digits = run_hints(tmp_path / "digits", val_losses=RISING, optimizer__lr=1e-4)[0]
    assert digits.command == "vit-dist train --optimizer.lr 0.0001 --augment.mixup 0.2 --train.ema 0.999"


def test_a_command_keeps_what_differs_from_the_recipe_and_is_one_that_runs() -> None:
    own = {"data.root": "/my photos", "model.mlp_ratio": 3.0, "data.val_fraction": 0.2, "loss.label_smoothing": 0.2}
    config = Config.load("folder", own)
    command = train_command(config, '--train.duration "800 updates"')
    assert command == (
        "vit-dist train --data.root '/my photos' --model.mlp_ratio 3.0 --data.val_fraction 0.2 "
        "--train.duration '800 updates'"
    )
    assert train_command(config, "--model.pretrained timm") == (
        "vit-dist train --data.root '/my photos' --data.val_fraction 0.2 --model.pretrained timm"
    )
    assert train_command(Config.load("mnist"), "--optimizer.lr 0.1") == (
        "vit-dist train --config mnist --optimizer.lr 0.1"
    )
    # The data has no name: of a source in Python.
    assert train_command(Config.load("folder", {"data.name": "folder"}), "--optimizer.lr 0.1") == "--optimizer.lr 0.1"
