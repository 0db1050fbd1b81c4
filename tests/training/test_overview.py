"""The overview before a run: what was chosen and what there is to train on, in words."""

from __future__ import annotations

import numpy as np
import pytest

from vit_dist.config.config import Config
from vit_dist.data.sources.survey import Survey
from vit_dist.plan.plan import Plan
from vit_dist.training.defaults import Choice
from vit_dist.training.overview import choice_lines, data_rows, idle_notes


def test_choices_are_listed_with_their_reasons() -> None:
    choices = [Choice("batch.global_size", 16, "a quarter of 64 images"), Choice("data.crop", 1.0, "small images")]
    assert choice_lines(choices) == [
        "  chosen for this data; a flag sets each otherwise:",
        "    batch.global_size 16  a quarter of 64 images",
        "    data.crop 1.0         small images",
    ]
    assert choice_lines([]) == []


@pytest.mark.parametrize(
    ("world", "lanes", "size", "micro", "fitting"),
    [(1, 1, 64, 16, 0), (2, 1, 64, 16, 4), (4, 2, 64, 16, 4), (2, 4, 64, 16, 0), (2, 8, 64, 16, 0), (2, 1, 60, 16, 15)],
)
def test_lanes_that_would_keep_processes_apart_are_noted(
    world: int, lanes: int, size: int, micro: int, fitting: int
) -> None:
    fields = {"run.auto": [], "batch.global_size": size, "batch.micro_size": micro, "data.lanes": lanes}
    config = Config.load("folder", fields)
    notes = list(idle_notes(Plan.from_config(config, 1000, world, np.full(100, 10)), 0))
    said = f"data.lanes: each process reads all shards: in a new run, set data.lanes {fitting}, and each has its own"
    assert notes == ([said] if fitting else [])
    assert list(idle_notes(Plan.from_config(config, 1000, world), 0)) == []


def test_the_data_is_told_by_use() -> None:
    facts = Survey(("a", "b"), {"train": (1000, 500), "val": (100, 50), "test": (7, 0)}, None, (), ())
    rows = data_rows(Config.load("folder", {"data.root": "photos/pets"}), facts)
    assert rows["data"] == "photos/pets: 1,500 images to train on, 150 for validation, 7 for the test at the end"
    assert rows["classes"].startswith("2")
    only = Survey(("a", "b"), {"train": (1, 2)}, None, (), ())
    assert (
        data_rows(Config.load("digits"), only)["data"]
        == "digits: 3 images to train on; no test images, so no figure on test"
    )
