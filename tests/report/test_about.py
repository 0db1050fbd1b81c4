"""A run in words: data, model, recipe, starts, and what its training loss holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.run_folder.handwritten import eval_line, make_run, start_line, train_line
from vit_dist import Config
from vit_dist.files import write_json
from vit_dist.report.about import (
    NearestRecipe,
    about_rows,
    fitted_fields,
    loss_note,
    nearest_recipe,
    smoothing_floor,
    starts_in_words,
)
from vit_dist.report.measures import run_figures
from vit_dist.report.smoothing import end_of, rolling_median
from vit_dist.run_folder.data_facts import FACTS
from vit_dist.run_folder.record import read_run


def test_the_nearest_recipe_is_found_with_the_fields_that_differ() -> None:
    for name in ("digits", "mnist", "folder", "imagenet_deit3_b16"):
        assert nearest_recipe(Config.load(name)) == NearestRecipe(name, [], [])
    changed = Config.load("digits", {"optimizer.lr": 2e-3, "run.seed": 7, "log.every": "3 updates"})
    differ: list[tuple[str, tuple[object, object]]] = [("run.seed", (0, 7)), ("optimizer.lr", (3e-3, 2e-3))]
    assert nearest_recipe(changed) == NearestRecipe("digits", differ, [])


def test_fields_that_the_recipe_leaves_to_the_data_are_no_changes() -> None:
    config = Config.load("folder", {"data.root": "photos", "batch.global_size": 8, "optimizer.clip_norm": 2.0})
    nearest = nearest_recipe(config)
    assert nearest == NearestRecipe("folder", [("optimizer.clip_norm", (1.0, 2.0))], [("batch.global_size", 8)])
    assert fitted_fields(config) == ["batch.global_size 8"]
    assert fitted_fields(Config.load("digits")) == []


def test_the_data_and_the_model_are_described(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "run", [start_line(0, 0.0), train_line(10, 1.0)], data__name="folder", data__root="photos",
        model__name="timm/vit_tiny_patch16_224", model__pretrained="timm", train__ema=0.99,
    )  # fmt: skip
    classes = ["ant", "bee", "cat", "dog", "eel"]
    counts = {split: dict.fromkeys(classes, count) for split, count in (("train", 300), ("val", 30), ("test", 60))}
    write_json(
        folder / FACTS,
        {"classes": classes, "counts": counts, "sizes": {"smallest": 28, "median": 375, "largest": 5000}},
    )
    run = read_run(folder)
    about = dict(about_rows(run, run_figures(run)))
    assert about["Data"] == (
        "photos: 1,500 training, 150 validation and 300 test images of 5 classes (ant, bee, cat, dog …); "
        "sides of 28 to 5,000 pixels, median 375"
    )
    assert about["Model"] == "timm/vit_tiny_patch16_224, 18.2 k parameters, fine-tuned from timm’s weights"
    assert about["Training"].endswith("; adamw, learning rate 0.003, cosine; EMA of the weights, 0.99")


def test_starts_are_told_with_how_the_ones_before_ended(tmp_path: Path) -> None:
    first = [start_line(0, 0.0), train_line(10, 60.0)]
    assert starts_in_words(read_run(make_run(tmp_path / "one", first))) == []
    lines = [*first, start_line(10, 100.0, device="H100", changed={"train.duration": "60 updates"})]
    stop = {"kind": "stop", "time": 130.0, "update": 20, "reason": "asked to stop (SIGINT)"}
    lines += [stop, start_line(20, 200.0, device="H100")]
    one, two, three = starts_in_words(read_run(make_run(tmp_path / "many", lines)))
    assert one.startswith("Started on ")
    assert two.startswith("It was killed, or ended without a word; resumed on ")
    assert two.endswith(" from update 10 (epoch 1), with train.duration 60 updates, on 1 × H100, fp32.")
    assert three.startswith("It ended: asked to stop (Ctrl-C); resumed on ")
    assert three.endswith(" from update 20 (epoch 2).")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"loss__label_smoothing": 0.0, "model__drop_path": 0.0},
         "Both losses are plain cross entropy; that on train is the mean since the last line."),
        ({"model__drop_path": 0.0},
         "The training loss is made harder by label smoothing (at 0.1 it cannot fall below 0.50); val’s is plain cross "
         "entropy, so it may lie below."),
        ({"augment__mixup": 0.2, "augment__flip": 0.5},
         "The training loss is made harder by mixed images (mixup, CutMix), label smoothing, augmentation and drop "
         "path; val’s is plain cross entropy, so it may lie below."),
    ],
)  # fmt: skip
def test_what_makes_the_training_loss_harder_is_said(tmp_path: Path, fields: dict[str, Any], expected: str) -> None:
    folder = make_run(tmp_path / "run", [start_line(0, 0.0), eval_line(10, 1.0)], **fields)
    names = [str(number) for number in range(10)]
    write_json(folder / FACTS, {"classes": names, "counts": {"train": dict.fromkeys(names, 3)}})
    assert loss_note(read_run(folder)) == expected
    bare = read_run(make_run(tmp_path / "without val", [start_line(0, 0.0)], **fields))
    assert loss_note(bare) == "There is no validation loss to compare the training loss with."


def test_the_floor_of_label_smoothing_is_the_entropy_of_its_targets() -> None:
    assert smoothing_floor(0.0, 10) == 0
    assert smoothing_floor(1.0, 8) == pytest.approx(math.log(8))
    assert smoothing_floor(0.1, 10) == pytest.approx(-(0.91 * math.log(0.91) + 0.09 * math.log(0.01)))


def test_a_rolling_median_ignores_a_spike_and_mirrors_the_ends() -> None:
    values = np.asarray([1.0, 2, 3, 100, 5, 6, 7])
    assert rolling_median(values, 3).tolist() == [2, 2, 3, 5, 6, 6, 6]
    assert rolling_median(values, 1).tolist() == values.tolist()
    assert rolling_median(values[:1], 9).tolist() == [1]
    assert len(rolling_median(np.empty(0), 9)) == 0


def test_the_end_of_a_series_is_the_median_of_its_last_tenth() -> None:
    assert end_of(np.asarray([*range(90), *[5.0] * 9, 1000.0])) == 5
    assert end_of(np.asarray([np.nan, 3.0, np.inf])) == 3
    assert end_of(np.asarray([np.nan])) is None
