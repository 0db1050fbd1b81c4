"""The data that a trained model is evaluated on: a split of its own data, or a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vit_dist.data.fingerprint import SAMPLES, same_samples, split_fingerprint, trained_on
from vit_dist.data.sources.folder import FOLDER, find_class_folders
from vit_dist.data.sources.open import is_address, open_data
from vit_dist.data.sources.splits import SPLITS, Subset
from vit_dist.errors import UserError, nearest
from vit_dist.formatting import data_text
from vit_dist.inference.load import TrainedModel


@dataclass(frozen=True)
class Split:
    """A split to evaluate or predict: its name, samples and class names for people, and notes for the user."""

    name: str
    subset: Subset
    classes: list[str]
    notes: tuple[str, ...] = ()


def open_split(trained: TrainedModel, split: str, folder: Path | None, field: str = FOLDER) -> Split:
    """Open a folder of class folders, or a split of the model's data (by default test, else val).

    A model whose classes have no names, only numbers, takes as many classes in their sorted order, as timm does.
    field: what errors call the folder. Raises UserError if the data does not have the model's classes.
    """
    if folder is not None:
        found = find_class_folders(folder, trained.classes, field)
        others = _names_for_numbers(trained, found.names)
        subset = found.read(others or trained.classes, trained.channels, trained.config.data.max_pixels)
        left_out = "; ".join(map(str, found.left_out))
        said = [f"left out of {folder}: {left_out}"] if left_out else []
        seen = trained_on(trained.folder / SAMPLES, subset) if trained.folder else 0
        if seen:
            said.append(
                f"{seen:,} of these {len(subset):,} images trained this model (by name, size and class): the figures "
                "say little about new ones"
            )
        return Split(str(folder), subset, others or trained.names, tuple(said))
    config = trained.config.data
    in_files = config.name in ("", "folder")
    if in_files and not config.root and (trained.update is None or config.name == "folder"):
        raise UserError(
            "data.root: this model does not say its data: name images (predict) or --folder DIR (evaluate), "
            "or set data.root or data.name"
        )
    if in_files and config.root and not is_address(config.root) and not Path(config.root).expanduser().exists():
        raise UserError(f"data.root: no folder or table {config.root} here: set --data.root to where the data is now")
    data = open_data(config, trained.config.contrastive)
    others = _names_for_numbers(trained, data.classes)
    classes = others or trained.classes
    if data.channels != trained.channels or set(data.classes) != set(classes):
        theirs, known = data_text(data.classes, data.channels), data_text(trained.classes, trained.channels)
        raise UserError(
            f"data: has {theirs}, the model knows {known}: give it the data that it was trained on, "
            "or --folder with folders named like its classes"
        )
    name = (
        SPLITS.get(split, split) if split else next(known for known in ("test", "val", "train") if known in data.splits)
    )
    if name not in data.splits:
        raise UserError(f"--split: there is no split {split}{nearest(split, sorted(data.splits))}")
    subset = data.splits[name]
    number_of = {label: number for number, label in enumerate(classes)}
    numbers = np.asarray([number_of[label] for label in data.classes], np.int64)
    subset = replace(subset, labels=numbers[subset.labels])
    notes = []
    if trained.samples is not None and len(data.splits["train"]) != trained.samples:
        notes = [
            f"the run had {trained.samples:,} training images, and here are {len(data.splits['train']):,}: "
            "a split that was held out of them may be another now"
        ]
    elif name in trained.data and not same_samples(trained.data[name], split_fingerprint(data, name)):
        notes = [f"the images of {name} are not those that the run had: some of them may have been trained on"]
    return Split(name, subset, others or trained.names, tuple(notes))


def _names_for_numbers(trained: TrainedModel, classes: Sequence[str]) -> list[str]:
    """Return the classes in natural order (9 before 10) if the model's are as many and mere numbers; else none."""
    numbers = [str(number) for number in range(len(classes))]
    if trained.update is not None or trained.classes != numbers or set(classes) == set(numbers):
        return []
    return sorted(classes, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
