"""The teacher of a distillation: a frozen model that sees the student's images as it knows them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_dist.config.catalog import is_timm
from vit_dist.config.schema import LossConfig, ModelConfig
from vit_dist.data.preprocessing import Preprocessing, timm_preprocessing
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.errors import UserError
from vit_dist.inference.load import load_run_model
from vit_dist.models.build import build_model
from vit_dist.models.weights import load_weights

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


class Teacher(nn.Module):
    """Images as the student sees them → the teacher's logits; in evaluation mode, without gradients.

    Where the teacher was made for another mean, deviation or size, images are brought to these first.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, model: nn.Module, own: Preprocessing, students: Preprocessing, autocast: Autocast) -> None:
        super().__init__()
        self.autocast = autocast
        self.model = model
        self.image_size = own.image_size
        mean, std = torch.tensor(own.mean), torch.tensor(own.std)
        theirs, deviation = torch.tensor(students.mean), torch.tensor(students.std)
        self.register_buffer("scale", (deviation / std)[:, None, None])
        self.register_buffer("offset", ((theirs - mean) / std)[:, None, None])
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [slots, classes] of the student's images [slots, channels, side, side]."""
        seen = images * self.scale + self.offset
        if seen.shape[-1] != self.image_size:
            seen = F.interpolate(seen, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        with self.autocast():
            logits: Tensor = self.model(seen)
        return logits


def build_teacher(
    config: LossConfig, data: LabelledSplits, students: Preprocessing, device: torch.device, autocast: Autocast
) -> Teacher | None:
    """The teacher of a config on the device; None where it has none. autocast: the precision it runs in.

    Raises UserError where it does not fit.
    """
    if not config.teacher:
        return None
    if is_timm(config.teacher):
        named = ModelConfig(name=config.teacher)
        made = timm_preprocessing(named)
        choices = [students]
        if made is not None:
            fits = len(made.mean) == data.channels
            theirs = Preprocessing(made.image_size, *((made.mean, made.std) if fits else (students.mean, students.std)))
            choices = [theirs] if fits else [students, theirs]
        model, own = _built(named, data, choices)
        weights = Path(config.teacher_weights).expanduser()
        if not weights.is_file():
            raise UserError(f"loss.teacher_weights: {weights} does not exist")
        load_weights(model, weights)
    else:
        found = load_run_model(Path(config.teacher).expanduser(), "loss.teacher")
        if found.classes != list(data.classes) or found.channels != data.channels:
            told = f"{config.teacher} knows {_kind(found.classes, found.channels)}"
            differ = f"the data is {_kind(data.classes, data.channels)}"
            raise UserError(f"loss.teacher: {told}, {differ}: take a teacher of the same data")
        model, own = found.model, found.preprocessing
    return Teacher(model, own, students, autocast).to(device)


def _built(
    named: ModelConfig, data: LabelledSplits, choices: Sequence[Preprocessing]
) -> tuple[nn.Module, Preprocessing]:
    """A timm teacher for the first of the forms whose size it takes. Raises UserError."""
    failure = UserError()
    for preprocessing in choices:
        try:
            model = build_model(
                named,
                classes=len(data.classes),
                channels=data.channels,
                image_size=preprocessing.image_size,
                seed=0,
                trained=False,
            )
        except UserError as error:
            failure = UserError(f"loss.teacher: {str(error).partition(': ')[2]}")
            continue
        return model, preprocessing
    raise failure


def _kind(classes: Sequence[str], channels: int) -> str:
    """Of data, for people."""
    return f"{len(classes)} classes ({', '.join(classes[:3])} …) in {channels} channels"
