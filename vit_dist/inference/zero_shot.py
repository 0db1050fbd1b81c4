"""A model of two towers as a classifier: its classes are texts, whose embeddings are the weights of its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.data.text.tokenizer import Tokenizer, open_tokenizer
from vit_dist.errors import UserError
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.retrieval import class_embeddings, prompts_of
from vit_dist.models.forward import eval_mode
from vit_dist.models.two_tower import TwoTower

_AS_IT_IS = ("{}",)


class ZeroShotClassifier(nn.Module):
    """Images → logits [batch, classes]: cosines to the embeddings of classes, times the scale of the training."""

    classes: Tensor
    scale: Tensor

    def __init__(self, image: nn.Module, classes: Tensor, scale: Tensor) -> None:
        """image: the image tower. classes: float32 [classes, dim], of length 1. scale: of the cosines."""
        super().__init__()
        self.image = image
        self.register_buffer("classes", classes)
        self.register_buffer("scale", scale)

    def forward(self, images: Tensor) -> Tensor:
        embeddings = nn.functional.normalize(self.image(images).float(), dim=1)
        # Autocast would round the cosines to 16 bits before they are multiplied by up to 100.
        with torch.autocast(images.device.type, enabled=False):
            return self.scale * (embeddings @ self.classes.T)


def has_two_towers(trained: TrainedModel) -> bool:
    """Return whether a trained model embeds images and texts."""
    return isinstance(trained.model, TwoTower)


def tokenizer_of(trained: TrainedModel) -> Tokenizer:
    """Return the tokenizer of a model of two towers. Raises UserError if its file is no longer there."""
    text = trained.config.text
    return open_tokenizer(text.tokenizer, text.context_length)


def encode_texts(trained: TrainedModel, texts: Sequence[str], device: torch.device, autocast: Any) -> Tensor:
    """Return the embeddings of texts, float32 [texts, dim], of length 1, on a device. Raises UserError for no texts."""
    if not texts:
        raise UserError("texts: there is none: give one or more")
    model: Any = trained.model.to(device)
    tokens = torch.from_numpy(tokenizer_of(trained)(list(texts)))
    made = []
    with eval_mode(model):
        for part in torch.split(tokens, trained.config.evaluate.batch_size):
            with autocast():
                made.append(model.encode_text(part.to(device)).float())
    return torch.cat(made)


def zero_shot(
    trained: TrainedModel,
    classes: Sequence[str],
    device: torch.device,
    autocast: Any,
    templates: Sequence[str] = _AS_IT_IS,
) -> TrainedModel:
    """Return a classifier of these classes, each the mean of the templates with its name. Raises UserError.

    templates: by default each class is a text as it is.
    """
    towers = trained.model
    assert isinstance(towers, TwoTower)
    of_prompts = encode_texts(trained, prompts_of(classes, templates), device, autocast)
    scale = towers.logit_scale.detach().exp()
    model = ZeroShotClassifier(towers.image, class_embeddings(of_prompts, len(classes)), scale)
    return replace(trained, model=model, classes=list(classes), names=list(classes))


def of_run_classes(trained: TrainedModel, device: torch.device, autocast: Any, instead: str) -> TrainedModel:
    """Return the classifier of the classes that the run's data has, by text.prompts.

    Raises UserError if it has none, with what to do instead.
    """
    if len(trained.classes) < 2:
        raise UserError(f"predict: the data of this run has captions and no classes: {instead}")
    return zero_shot(trained, trained.classes, device, autocast, trained.config.text.prompts)
