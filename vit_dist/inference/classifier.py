"""A trained model in Python: load it, and predict, embed and evaluate images with it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.arrays import ArraySource
from vit_dist.data.sources.custom import numbered, open_parts
from vit_dist.data.sources.images import ImageList, list_images
from vit_dist.data.sources.listing import columns_read
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import SPLITS, Subset
from vit_dist.data.workers import worker_count
from vit_dist.errors import UserError, nearest
from vit_dist.files import user_path
from vit_dist.formatting import weights_text
from vit_dist.inference.batches import read_batches
from vit_dist.inference.evaluation import Evaluation, evaluate_subset, precision_of
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.predict import find_images
from vit_dist.inference.prediction import Floats, PredictionList
from vit_dist.inference.probabilities import predict_pixels
from vit_dist.inference.splits import open_split
from vit_dist.models.forward import eval_mode
from vit_dist.run_folder.predictions import TOP_K
from vit_dist.runtime.devices import available_cores, resolve_device
from vit_dist.runtime.runtime import Runtime

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Classifier:
    """A trained model, ready for use.

    Images may be given as paths (files, folders, patterns), PIL images of any mode, uint8 arrays and tensors, batches
    of these, or any list of all that: see docs/python.md.

    classes: names, in the order of the outputs. preprocess: image → the model's input, float32 [channels, side, side].
    module: the torch module, in evaluation mode on `device`. precision: that it computes in.
    """

    def __init__(self, trained: TrainedModel, device: torch.device | None = None) -> None:
        """Move a trained model to a device; None: that of its config. Raises UserError."""
        self._trained = trained
        self.device = torch.device(resolve_device(trained.config.run.device)) if device is None else device
        self.precision = precision_of(trained)
        self.classes = list(trained.names)
        self.module: nn.Module = trained.model.to(self.device).eval()
        self.preprocess = Preprocess(trained.preprocessing, self._mode, trained.config.data.max_pixels)

    def predict(self, images: Any) -> PredictionList:
        """Return the prediction for each image, in order. Raises UserError that names an image that cannot be read."""

        def probabilities(pixels: Tensor) -> Tensor:
            return predict_pixels(self.module, pixels, self._trained.preprocessing, self._autocast).softmax(1)

        return PredictionList(*self._in_batches(images, probabilities), self.classes)

    def embed(self, images: Any) -> Floats:
        """Return the features that the model's head reads, float32 [images, width], for images as `predict` takes them.

        Raises UserError, also for a model without timm's forward_features and forward_head.
        """
        module: Any = self.module
        if not hasattr(module, "forward_features") or not hasattr(module, "forward_head"):
            kind = type(module).__name__
            raise UserError(f"embed: {kind} has no forward_features and forward_head, which timm's models have")

        def features(pixels: Tensor) -> Tensor:
            with eval_mode(module), self._autocast():
                tokens = module.forward_features(self._trained.preprocessing.normalise(pixels))
                return module.forward_head(tokens, pre_logits=True)  # type: ignore[no-any-return]

        return self._in_batches(images, features)[0]

    def evaluate(self, source: Any = None, *, split: str = "") -> Evaluation:
        """Return the exact loss and accuracies on labelled images, by default those of the model's run.

        source: a folder of class folders, or anything that `train` takes as its source. split: of those that the data
        has; by default test, else val, else train. Warns if the run's data is not what it was. Raises UserError, also
        for classes that the model does not have.
        """
        threads = torch.get_num_threads()
        runtime = Runtime(self._trained.config.run, self.precision)
        try:
            return self._measure(self._open(source, split), runtime)
        finally:
            runtime.end()
            torch.set_num_threads(threads)

    def _measure(self, subset: Subset, runtime: Runtime) -> Evaluation:
        return evaluate_subset(self._trained, subset, runtime, keep=TOP_K)

    @property
    def batch_size(self) -> int:
        """Return the number of images of one forward pass."""
        return self._trained.config.evaluate.batch_size

    def __repr__(self) -> str:
        """Return what it is in words."""
        trained, side = self._trained, self._trained.preprocessing.image_size
        of_run = f", {weights_text(trained.weights)} of update {trained.update}" if trained.update is not None else ""
        classes = f"{len(self.classes)} classes"
        return f"Classifier({trained.config.model.name}, {classes}, {side} pixels{of_run}, on {self.device})"

    @property
    def _mode(self) -> str:
        return "L" if self._trained.channels == 1 else "RGB"

    def _open(self, source: Any, split: str) -> Subset:
        """Return the labelled images of a source, or of the run's data. Raises UserError."""
        trained = self._trained
        if source is None or (isinstance(source, (str, Path)) and user_path(str(source), "source").is_dir()):
            opened = open_split(trained, split, None if source is None else user_path(str(source), "source"), "source")
            for note in opened.notes:
                warnings.warn(note, stacklevel=3)
            return opened.subset
        parts = open_parts(source, trained.config.data.max_pixels, columns_read(trained.config.data.columns, False))
        name = SPLITS.get(split, split) or next(known for known in ("test", "val", "train") if known in parts)
        if name not in parts:
            raise UserError(f"split: there is no split {split}{nearest(split, sorted(parts))}")
        own = set(parts[name].classes or ()) <= set(trained.classes)
        subset = numbered(parts[name], trained.classes if own else trained.names, self._mode)
        made, images = trained.preprocessing, subset.source
        if type(images) is MemorySource and (made.crop, made.image_size) != (1, images.pixels.shape[2]):
            subset = replace(subset, source=ArraySource(images.pixels, images.labels, self._mode))
        return subset

    def _in_batches(self, images: Any, compute: Callable[[Tensor], Tensor]) -> tuple[Floats, list[str]]:
        """Return what is computed of the pixels of each image, float32 [images, …], and the name of each image."""
        data = self._trained.config.data
        items, names = list_images(images, lambda path: find_images([path]))
        source = ImageList(items, names, self._mode, data.max_pixels)
        in_files = all(isinstance(item, Path) for item in items)
        workers = worker_count(data.workers, available_cores()) if in_files else 0
        rows = []
        with _exact_convolutions():
            for batch in read_batches(self._trained, source, "fail", batch_size=self.batch_size, workers=workers):
                made = compute(batch.pixels.to(self.device)).float()
                rows.append(made[batch.weights.to(self.device) > 0].cpu())
        return torch.cat(rows).numpy(), names

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        half = _HALF.get(self.precision)
        return contextlib.nullcontext() if half is None else torch.autocast(self.device.type, dtype=half)


@dataclass(frozen=True)
class Preprocess:
    """Turns an image into the model's input, as prediction does; also a transform for a torch Dataset.

    mode: Pillow's, RGB or L. max_pixels: of the largest file that is decoded.
    """

    preprocessing: Preprocessing
    mode: str
    max_pixels: int

    def __call__(self, image: Any) -> Tensor:
        """Return one image (a path, a PIL image, a uint8 array or tensor) as float32 [channels, side, side].

        Raises UserError.
        """
        item = Path(image) if isinstance(image, str) else image
        source = ImageList([item], [str(item) if isinstance(item, Path) else "image"], self.mode, self.max_pixels)
        made = self.preprocessing
        pixels = made.transform()(source.image(0), 0, made.image_size)
        return made.normalise(pixels[None])[0]


@contextlib.contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Compute convolutions in float32 as such, without TF32, as training and evaluation do."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
