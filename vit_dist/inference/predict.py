"""Predict the classes of images: files, folders, patterns, or a split of the model's data."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vit_dist.data.sources.folder import image_files
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.source import sample_name
from vit_dist.data.workers import worker_count
from vit_dist.errors import UserError, visible
from vit_dist.files import user_path
from vit_dist.inference.batches import read_batches
from vit_dist.inference.evaluation import evaluate_subset
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.output import ImagePrediction
from vit_dist.inference.probabilities import likeliest, predict_pixels
from vit_dist.inference.splits import Split, open_split
from vit_dist.plan.keys import Purpose, key
from vit_dist.plan.permutation import permute
from vit_dist.runtime.runtime import Runtime

SAMPLE_SIZE = 16
_MOST_WORDS = 6  # of a path that was typed without quotes


def find_images(names: Sequence[str]) -> list[Path]:
    """Return the image files that paths, folders (with all below them) and patterns name, in this order.

    Raises UserError with every name at which there is none.
    """
    files: list[Path] = []
    problems = []
    for name in names:
        path = user_path(name, "IMAGE")
        matches = image_files(path) if path.is_dir() else [path] if path.is_file() else _matching(str(path))
        if not matches:
            problems.append(f"{name}: {_nothing_text(name, path)}")
        files += matches
    if problems:
        raise UserError(_spaced(names) or "\n".join(problems))
    return files


def _spaced(names: Sequence[str]) -> str | None:
    """Return what is wrong if words that follow each other are one path with spaces, typed without quotes."""
    for begin in range(len(names)):
        for end in range(begin + 2, min(len(names), begin + _MOST_WORDS) + 1):
            path = " ".join(names[begin:end])
            if os.path.exists(os.path.expanduser(path)):  # False for one too long
                return f"{path}: a path with a space stands in quotes: {shlex.quote(path)}"
    return None


def predict_files(
    trained: TrainedModel, paths: Sequence[Path], runtime: Runtime, *, top: int
) -> Iterator[ImagePrediction]:
    """Yield the prediction for each file, in order, computed batch by batch; or why it cannot be read.

    Raises UserError for workers that cannot go on.
    """
    config, mode = trained.config, "L" if trained.channels == 1 else "RGB"
    source = FileSource(paths, np.zeros(len(paths), np.int64), mode, config.data.max_pixels)
    batch_size, workers = config.evaluate.batch_size, worker_count(config.data.workers, runtime.cores)
    model = trained.model.to(runtime.device)
    for batch in read_batches(trained, source, "leave out", batch_size=batch_size, workers=workers):
        logits = predict_pixels(model, runtime.to_device(batch.pixels), trained.preprocessing, runtime.autocast)
        classes, probabilities = likeliest(logits, min(top, len(trained.classes)))
        ids = batch.ids.tolist()
        for slot, row in enumerate(zip(classes.tolist(), probabilities.tolist(), strict=True)):
            image = str(paths[ids[slot]])
            if slot in batch.bad:
                yield ImagePrediction(image, error=batch.bad[slot].removeprefix(f"{visible(image)}: "))
            elif batch.weights[slot]:
                yield ImagePrediction(image, _named(trained.names, *row))


def predict_split(
    trained: TrainedModel, split: Split, runtime: Runtime, *, top: int
) -> tuple[Split, list[ImagePrediction]]:
    """Return the part of a split that can be read, and the prediction for each of its samples."""
    predictions = evaluate_subset(trained, split.subset, runtime, keep=top).predictions
    assert predictions is not None
    arrays = (predictions.index, predictions.label, predictions.top, predictions.probability)
    named = [
        ImagePrediction(
            sample_name(split.subset.source, index, split.name),
            _named(split.classes, classes, probabilities),
            split.classes[label],
            right=classes[0] == label,
        )
        for index, label, classes, probabilities in zip(*(array.tolist() for array in arrays), strict=True)
    ]
    return replace(split, subset=split.subset.only(predictions.index)), named


def sample_of_split(trained: TrainedModel) -> Split:
    """Return 16 samples of test, or of val if there is no test, the same ones for a seed. Raises UserError."""
    split = open_split(trained, "", None)
    count = len(split.subset)
    order = permute(np.arange(count), count, key(trained.config.run.seed, Purpose.GRID))
    return replace(split, subset=split.subset.take(order[:SAMPLE_SIZE]))


def _named(
    names: Sequence[str], classes: Sequence[int], probabilities: Sequence[float]
) -> tuple[tuple[str, float], ...]:
    return tuple((names[number], probability) for number, probability in zip(classes, probabilities, strict=True))


def _nothing_text(name: str, path: Path) -> str:
    """Return what is wrong with a name at which there is no image."""
    if "://" in name:
        return "is an address on the web, from which nothing is fetched: save the image, and name the file"
    if path.exists() and not path.is_dir():
        return "is no regular file"
    return "no image is there" + ("" if path.is_dir() else ", nor does any match it")


def _matching(pattern: str) -> list[Path]:
    return [path for path in map(Path, sorted(glob.glob(pattern, recursive=True))) if path.is_file()]
