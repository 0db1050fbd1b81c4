"""What differs between runs: their data, and the fields of their configs."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.config.config import Config
from vit_dist.run_folder.record import RunRecord

_DATA_FIELDS = ("data.name", "data.root")
# Last parts of names that say little without their section.
_VAGUE = {"auto", "every", "name"}


def data_name(config: Config) -> str:
    """Return the name of a run's data for people: that of its folder or data set."""
    if config.data.source == "folder" and config.data.root:
        return Path(os.path.abspath(Path(config.data.root).expanduser())).name
    return config.data.source


def data_names(runs: Sequence[RunRecord]) -> list[str]:
    """Return a name for the data of each run; other data of the same name is numbered: pets, pets (2)."""
    kinds: list[tuple[RunRecord, str]] = []
    for run in runs:
        if not any(same_data(run, other) for other, _ in kinds):
            name = data_name(run.config)
            number = 1 + sum(data_name(other.config) == name for other, _ in kinds)
            kinds.append((run, f"{name} ({number})" if number > 1 else name))
    return [next(name for other, name in kinds if same_data(run, other)) for run in runs]


def same_data(first: RunRecord, other: RunRecord) -> bool:
    """Return whether two runs have the same data: by its fingerprint or, before a checkpoint, as far as is known."""
    if first.data and other.data:
        return first.data == other.data
    seen = [
        (run.inputs.metadata["classes"], run.inputs.pixels.shape[1]) for run in (first, other) if run.inputs is not None
    ]
    one, two = (
        (data_name(run.config), run.config.data.val_fraction, run.start["plan"]["samples"]) for run in (first, other)
    )
    return one == two and all(each == seen[0] for each in seen)


def same_images(first: RunRecord, other: RunRecord) -> bool:
    """Return whether two runs have the same images, be it with others of them held out as val."""
    if same_data(first, other):
        return True
    if None in (first.facts, other.facts) or first.config.data.val_fraction == other.config.data.val_fraction:
        return False
    return _images(first) == _images(other)


def _images(run: RunRecord) -> tuple[str, str, list[str], list[int], list[int]]:
    """Return where the images are, the classes, and the counts of each: outside test, and in it."""
    assert run.facts is not None
    counts = run.facts.counts
    seen = sum(of for split, of in counts.items() if split != "test")
    test = counts["test"].tolist() if "test" in counts else []
    return run.config.data.source, run.config.data.root, run.facts.classes, np.asarray(seen).tolist(), test


def changed_fields(runs: Sequence[RunRecord], without: Collection[str] = ()) -> dict[str, list[str]]:
    """Return the fields that can change the result and differ among runs: short name → each run's value, as text.

    The field with the most values comes first. The data's name and place are left out, and so is `without`.
    """
    values = [run.config.fields(changes_result=True) for run in runs]
    differing: dict[str, list[Any]] = {}
    for name in values[0] if values else ():
        column = [fields[name] for fields in values]
        if name not in (*_DATA_FIELDS, *without) and any(value != column[0] for value in column):
            differing[name] = column
    ordered = sorted(differing, key=lambda name: -len({repr(value) for value in differing[name]}))
    last = [name.split(".")[-1] for name in ordered]
    return {
        name if last.count(part) > 1 or part in _VAGUE else part: [value_text(value) for value in differing[name]]
        for name, part in zip(ordered, last, strict=True)
    }


def value_text(value: Any) -> str:
    """Return a value of the config as short text."""
    if isinstance(value, float):
        return f"{value:g}"
    if value in ("", None, [], {}):
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
