"""Predict the classes of images: files, folders, patterns, or a split of the model's data."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vit_dist.data.augmentation.transforms import EvaluationTransform
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.reader import worker_count
from vit_dist.data.sources.folder import image_files
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.source import sample_name
from vit_dist.errors import UserError
from vit_dist.inference.evaluation import evaluate_subset
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.output import ImagePrediction
from vit_dist.inference.probabilities import likeliest, predict_pixels
from vit_dist.inference.splits import Split, open_split
from vit_dist.plan.keys import Purpose, key
from vit_dist.plan.permutation import permute
from vit_dist.runtime.runtime import Runtime

SAMPLE_SIZE = 16


class ImageFiles(Dataset[Tensor | str]):
    """Image files as the model reads them, uint8 [channels, side, side]; an error's text for one that cannot be."""

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing, channels: int) -> None:
        self.source = FileSource(paths, np.zeros(len(paths), np.int64), mode="L" if channels == 1 else "RGB")
        self.transform = EvaluationTransform(preprocessing.crop)
        self.side = preprocessing.image_size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.transform(self.source.image(index), 0, self.side)
        except UserError as error:
            return str(error)


def find_images(names: Sequence[str]) -> list[Path]:
    """Return the image files that paths, folders (with all below them) and patterns name, in this order.

    Raises UserError with every name at which there is none.
    """
    files: list[Path] = []
    problems = []
    for name in names:
        path = Path(name).expanduser()
        matches = image_files(path) if path.is_dir() else [path] if path.is_file() else _matching(str(path))
        if not matches:
            problems.append(f"{name}: no image is there" + ("" if path.is_dir() else ", nor does any match it"))
        files += matches
    if problems:
        raise UserError("\n".join(problems))
    return files


def predict_files(
    trained: TrainedModel, paths: Sequence[Path], runtime: Runtime, *, top: int
) -> Iterator[ImagePrediction]:
    """Yield the prediction for each file, in order, computed batch by batch."""
    config, preprocessing = trained.config, trained.preprocessing
    batch_size = config.evaluate.batch_size
    workers = worker_count(config.data.workers, runtime)
    batches = DataLoader(
        ImageFiles(paths, preprocessing, trained.channels),
        batch_size=batch_size,
        collate_fn=list,
        num_workers=workers if len(paths) > batch_size else 0,  # for a few, starting them takes longer than reading
        pin_memory=False,
    )
    model = trained.model.to(runtime.device)
    images = iter(paths)
    for batch in batches:
        pixels = [item for item in batch if isinstance(item, Tensor)]
        rows: Iterator[tuple[list[int], list[float]]] = iter(())
        if pixels:
            on_device = runtime.to_device(torch.stack(pixels))
            logits = predict_pixels(model, on_device, preprocessing, runtime.autocast)
            classes, probabilities = likeliest(logits, min(top, len(trained.classes)))
            rows = zip(classes.tolist(), probabilities.tolist(), strict=True)
        for item in batch:
            image = str(next(images))
            if isinstance(item, str):
                yield ImagePrediction(image, error=item.removeprefix(f"{image}: "))
            else:
                yield ImagePrediction(image, _named(trained.names, *next(rows)))


def predict_split(trained: TrainedModel, split: Split, runtime: Runtime, *, top: int) -> list[ImagePrediction]:
    """Return the prediction for each sample of a split, in its order."""
    predictions = evaluate_subset(trained, split.subset, runtime, keep=top).predictions
    assert predictions is not None
    arrays = (predictions.index, predictions.label, predictions.top, predictions.probability)
    return [
        ImagePrediction(
            sample_name(split.subset.source, index, split.name),
            _named(split.classes, classes, probabilities),
            split.classes[label],
            right=classes[0] == label,
        )
        for index, label, classes, probabilities in zip(*(array.tolist() for array in arrays), strict=True)
    ]


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


def _matching(pattern: str) -> list[Path]:
    return [path for path in map(Path, sorted(glob.glob(pattern, recursive=True))) if path.is_file()]
