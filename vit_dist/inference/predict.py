"""What a trained model says of images: files, folders, patterns, or a split of its data."""

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
from vit_dist.data.sources.source import FileSource, sample_name
from vit_dist.errors import UserError
from vit_dist.inference.evaluation import evaluate_subset
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.output import ImagePrediction
from vit_dist.inference.splits import Split, open_split
from vit_dist.models.forward import at_least_float32, eval_mode
from vit_dist.plan.keys import Purpose, key
from vit_dist.plan.order import permute
from vit_dist.runtime.runtime import Runtime

GRID = 16


class ImageFiles(Dataset[Tensor | str]):
    """Files as a model reads them, uint8 [channels, side, side]; the text of what is wrong where one cannot be."""

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
    """The files of paths, folders (with all below them) and patterns, in this order. Raises UserError, all at once."""
    found: list[Path] = []
    problems = []
    for name in names:
        path = Path(name).expanduser()
        inside = image_files(path) if path.is_dir() else [path] if path.is_file() else _matching(str(path))
        if not inside:
            problems.append(f"{name}: no image is there" + ("" if path.is_dir() else ", nor does any match it"))
        found += inside
    if problems:
        raise UserError("\n".join(problems))
    return found


def predict_files(
    trained: TrainedModel, paths: Sequence[Path], runtime: Runtime, *, top: int
) -> Iterator[ImagePrediction]:
    """An answer for each file, in order, batch by batch."""
    config, preprocessing = trained.config, trained.preprocessing
    size = config.evaluate.batch_size
    workers = worker_count(config.data.workers, runtime)
    reads = DataLoader(
        ImageFiles(paths, preprocessing, trained.channels),
        batch_size=size,
        collate_fn=list,
        num_workers=workers if len(paths) > size else 0,  # for a few, starting them takes longer than reading
        pin_memory=False,
    )
    model = trained.model.to(runtime.device)
    left = iter(paths)
    for read in reads:
        pixels = [one for one in read if isinstance(one, Tensor)]
        said: Iterator[tuple[list[int], list[float]]] = iter(())
        if pixels:
            with eval_mode(model), runtime.autocast():
                images = preprocessing.normalise(runtime.to_device(torch.stack(pixels)))
                shares, classes = at_least_float32(model(images)).softmax(1).topk(min(top, len(trained.classes)))
            said = zip(classes.tolist(), shares.tolist(), strict=True)
        for one in read:
            image = str(next(left))
            if isinstance(one, str):
                yield ImagePrediction(image, error=one.removeprefix(f"{image}: "))
            else:
                yield ImagePrediction(image, _named(trained.names, *next(said)))


def predict_split(trained: TrainedModel, split: Split, runtime: Runtime, *, top: int) -> list[ImagePrediction]:
    """An answer for each sample of a split, in its order."""
    found = evaluate_subset(trained, split.subset, runtime, keep=top).predictions
    assert found is not None
    source = split.subset.source
    return [
        ImagePrediction(
            sample_name(source, index, split.name),
            _named(split.classes, classes, shares),
            split.classes[label],
            right=classes[0] == label,
        )
        for index, label, classes, shares in zip(
            found.index.tolist(), found.label.tolist(), found.top.tolist(), found.probability.tolist(), strict=True
        )
    ]


def grid_sample(trained: TrainedModel) -> Split:
    """16 samples of test, or of val where there is none, the same ones for a seed. Raises UserError."""
    split = open_split(trained, "", None)
    count = len(split.subset)
    order = permute(np.arange(count), count, key(trained.config.run.seed, Purpose.GRID))
    return replace(split, subset=split.subset.take(order[:GRID]))


def _named(names: Sequence[str], classes: Sequence[int], shares: Sequence[float]) -> tuple[tuple[str, float], ...]:
    return tuple((names[one], share) for one, share in zip(classes, shares, strict=True))


def _matching(pattern: str) -> list[Path]:
    return [path for path in map(Path, sorted(glob.glob(pattern, recursive=True))) if path.is_file()]
