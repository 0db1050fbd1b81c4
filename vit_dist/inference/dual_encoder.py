"""A trained model of two towers in Python: embed images and texts, rank texts for images and images for a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vit_dist.data.sources.splits import Subset
from vit_dist.errors import UserError
from vit_dist.inference.classifier import Classifier
from vit_dist.inference.contrastive import ContrastiveEvaluation, evaluate_pairs
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.prediction import Floats, PredictionList
from vit_dist.inference.zero_shot import encode_texts, of_run_classes, zero_shot
from vit_dist.models.forward import eval_mode
from vit_dist.runtime.runtime import Runtime


class DualEncoder(Classifier):
    """A trained model of two towers, ready for use; images are taken in any form that a `Classifier` takes.

    classes: those of the run's data, which `predict` tells apart without having been trained to; one empty name if
    that has only captions. module: the TwoTower, in evaluation mode on `device`.
    """

    def encode_images(self, images: Any) -> Floats:
        """Return the embeddings of images, float32 [images, dim], of length 1. Raises UserError."""
        return self._embedded(images)[0]

    def encode_texts(self, texts: str | Sequence[str]) -> Floats:
        """Return the embeddings of texts, float32 [texts, dim], of length 1. Raises UserError."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        made: Floats = encode_texts(self._trained, texts, self.device, self._autocast).cpu().numpy()
        return made

    def rank(self, images: Any, texts: Sequence[str]) -> PredictionList:
        """Return for each image the texts, likeliest first, with the probabilities that it is one of these.

        They are the softmax of the cosines times the scale of the training. Raises UserError.
        """
        if isinstance(texts, str) or len(texts) < 2:
            raise UserError("texts: to rank them takes two or more, in a list")
        return self.classifier(texts).predict(images)

    def search(self, text: str, images: Any, top: int = 10) -> list[tuple[str, float]]:
        """Return the names of the images most like a text, best first, with their cosines. Raises UserError."""
        found, names = self._embedded(images)
        cosines = torch.from_numpy(found) @ torch.from_numpy(self.encode_texts(text)[0])
        order = cosines.argsort(descending=True, stable=True)[:top].tolist()
        return [(names[number], float(cosines[number])) for number in order]

    def predict(self, images: Any) -> PredictionList:
        """Return which of the run's classes each image is, by `text.prompts`. Raises UserError if it has none."""
        instead = "rank(images, texts) ranks texts of your own"
        return self._classifier(of_run_classes(self._trained, self.device, self._autocast, instead)).predict(images)

    def embed(self, images: Any) -> Floats:
        """Return the embeddings of images: `encode_images`."""
        return self.encode_images(images)

    def evaluate(self, source: Any = None, *, split: str = "") -> ContrastiveEvaluation:  # type: ignore[override]
        """Return the exact recalls and the zero-shot accuracy on images with captions, by default those of the run.

        source, split: as for a `Classifier`. Class folders have no captions: `classifier(names).evaluate(folder)`.
        Raises UserError.
        """
        return super().evaluate(source, split=split)  # type: ignore[return-value]

    def classifier(self, classes: Sequence[str], prompts: Sequence[str] = ("{}",)) -> Classifier:
        """Return a `Classifier` of classes by their names, each the mean of the prompts with it. Raises UserError."""
        return self._classifier(zero_shot(self._trained, classes, self.device, self._autocast, prompts))

    def _measure(self, subset: Subset, runtime: Runtime) -> ContrastiveEvaluation:  # type: ignore[override]
        return evaluate_pairs(self._trained, subset, runtime, keep=True)

    def _embedded(self, images: Any) -> tuple[Floats, list[str]]:
        """Return the embeddings of images and the name of each."""
        module: Any = self.module

        def embeddings(pixels: Tensor) -> Tensor:
            with eval_mode(module), self._autocast():
                made: Tensor = module.encode_image(self._trained.preprocessing.normalise(pixels))
            return made

        return self._in_batches(images, embeddings)

    def _classifier(self, trained: TrainedModel) -> Classifier:
        return Classifier(trained, self.device)

    def __repr__(self) -> str:
        """Return what it is in words."""
        return super().__repr__().replace("Classifier(", "DualEncoder(", 1)
