"""Losses: one value per slot; the update takes the weighted mean."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_dist.config.schema import LossConfig
from vit_dist.config.values import import_function
from vit_dist.data.batch import Batch
from vit_dist.errors import UserError

# (outputs, targets) → one value per slot.
SlotLoss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy [slots] of logits [slots, classes] (smoothing: Szegedy et al., 2016).

    targets: class numbers [slots], or probabilities [slots, classes].
    """
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)


def bce(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross entropy [slots] of logits [slots, classes], the mean over classes (Wightman et al., 2021).

    targets: class numbers [slots], or probabilities [slots, classes]. Smoothing as for cross entropy.
    """
    classes = logits.shape[1]
    wanted = F.one_hot(targets, classes).to(logits.dtype) if targets.ndim == 1 else targets
    wanted = wanted * (1 - label_smoothing) + label_smoothing / classes
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)


def hard_distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy [slots] with the class that the teacher's logits choose (Touvron et al., "DeiT", 2021)."""
    return F.cross_entropy(logits, teacher.argmax(1), reduction="none")


def soft_distillation(logits: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """temperature² · KL(teacher ‖ logits) [slots], both softened by it (Hinton et al., 2015), summed over classes."""
    softened, wanted = F.log_softmax(logits / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(softened, wanted, reduction="none", log_target=True).sum(1)


class Loss:
    """The loss of a run: (outputs, batch) → one value per slot, [slots].

    With a teacher (images → logits, without gradients), distillation_weight of it is what the teacher says.
    """

    def __init__(self, config: LossConfig, teacher: nn.Module | None = None) -> None:
        """Raises UserError where the loss's import path leads nowhere."""
        self.name = config.name
        self.of_targets: SlotLoss
        if ":" in config.name:
            self.of_targets = import_function(config.name, "loss.name")
        else:
            function = {"cross_entropy": cross_entropy, "bce": bce}[config.name]
            self.of_targets = partial(function, label_smoothing=config.label_smoothing)
        self.teacher = teacher
        self.weight = config.distillation_weight
        self.of_teacher: SlotLoss = (
            hard_distillation
            if config.distillation == "hard"
            else partial(soft_distillation, temperature=config.temperature)
        )

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Raises UserError where a function of the user's returns something else than a value per slot."""
        values = self.of_targets(outputs, batch.targets)
        shape = getattr(values, "shape", None)
        if shape != batch.weights.shape:
            found = type(values).__name__ if shape is None else list(shape)
            raise UserError(
                f"loss.name: {self.name} must return one value per slot, shape {list(batch.weights.shape)}, not {found}"
            )
        if self.teacher is not None:
            with torch.no_grad():
                said = self.teacher(batch.images).to(outputs.dtype)
            values = (1 - self.weight) * values + self.weight * self.of_teacher(outputs, said)
        return values

    def refuse_numbers_only(self, classes: int, field: str) -> None:
        """Raises UserError where the loss takes no mixed targets, as mixup and CutMix make them."""
        logits = torch.zeros(2, classes)
        try:
            fits = self.of_targets(logits, torch.full((2, classes), 1 / classes)).shape == (2,)
        except Exception:  # whatever a function of the user's does with targets that it does not expect
            fits = False
        if not fits:
            raise UserError(
                f"{field}: loss.name {self.name} takes class numbers alone, not mixed probabilities: use "
                "cross_entropy or bce, or set augment.mixup and augment.cutmix to 0"
            )
