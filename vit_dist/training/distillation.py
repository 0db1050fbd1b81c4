"""Distillation: a frozen teacher that gets the student's images in its own preprocessing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_dist.config.catalog import is_timm
from vit_dist.config.fields import LossConfig, ModelConfig
from vit_dist.data.preprocessing import Preprocessing, timm_preprocessing
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.errors import UserError
from vit_dist.formatting import data_text
from vit_dist.inference.load import load_run_model
from vit_dist.inference.zero_shot import has_two_towers, zero_shot
from vit_dist.models.build import build_model
from vit_dist.models.weights import load_weights

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


class Teacher(nn.Module):
    """Maps the student's images to the teacher's logits; in evaluation mode, without gradients.

    Images are first brought to the teacher's own mean, standard deviation and size. notes: lines for the user.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        model: nn.Module,
        own: Preprocessing,
        student: Preprocessing,
        autocast: Autocast,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.notes = [f"loss.teacher: {note}" for note in notes]
        self.autocast = autocast
        self.model = model
        self.image_size = own.image_size
        mean, std = torch.tensor(own.mean), torch.tensor(own.std)
        student_mean, student_std = torch.tensor(student.mean), torch.tensor(student.std)
        self.register_buffer("scale", (student_std / std)[:, None, None])
        self.register_buffer("offset", ((student_mean - mean) / std)[:, None, None])
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode, whatever the student's mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [slots, classes] for the student's images [slots, channels, side, side]."""
        inputs = images * self.scale + self.offset
        if inputs.shape[-1] != self.image_size:
            inputs = F.interpolate(inputs, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        with self.autocast():
            logits: Tensor = self.model(inputs)
        return logits


def build_teacher(
    config: LossConfig,
    data: LabelledSplits,
    student: Preprocessing,
    device: torch.device,
    autocast: Autocast,
    *,
    trust_code: bool = False,
    named: str = "",
) -> Teacher | None:
    """Return the config's teacher on the device, or None if it has none.

    student: the student's preprocessing. autocast: the precision that the teacher runs in. trust_code, named: as for
    `load_run_model`. Raises UserError if it does not fit the data.
    """
    if not config.teacher:
        return None
    notes: tuple[str, ...] = ()
    if is_timm(config.teacher):
        timms_model = ModelConfig(name=config.teacher)
        timms = timm_preprocessing(timms_model)
        candidates = [student]
        if timms is not None:
            fits = len(timms.mean) == data.channels
            mean, std = (timms.mean, timms.std) if fits else (student.mean, student.std)
            resized = Preprocessing(timms.image_size, mean, std)
            candidates = [resized] if fits else [student, resized]
        model, own = _build_first(timms_model, data, candidates)
        weights = Path(config.teacher_weights).expanduser()
        if not weights.is_file():
            raise UserError(f"loss.teacher_weights: {weights} does not exist")
        load_weights(model, weights)
    else:
        path = Path(config.teacher).expanduser()
        trained = load_run_model(path, "loss.teacher", trust_code=trust_code, named=named)
        if trained.classes != list(data.classes) or trained.channels != data.channels:
            known = f"{config.teacher} knows {data_text(trained.classes, trained.channels)}"
            actual = f"the data is {data_text(data.classes, data.channels)}"
            raise UserError(f"loss.teacher: {known}, {actual}: set a teacher of the same data")
        if has_two_towers(trained):
            trained = zero_shot(trained, trained.classes, device, autocast, trained.config.text.prompts)
        model, own, notes = trained.model, trained.preprocessing, trained.notes
    return Teacher(model, own, student, autocast, notes).to(device)


def _build_first(
    named: ModelConfig, data: LabelledSplits, candidates: Sequence[Preprocessing]
) -> tuple[nn.Module, Preprocessing]:
    """Build a timm teacher for the first preprocessing whose image size it takes. Raises UserError if none fits."""
    failure = UserError()
    for preprocessing in candidates:
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
