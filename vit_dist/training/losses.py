"""Losses: one value per slot; the update takes their weighted mean."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_dist.config.fields import LossConfig
from vit_dist.config.values import import_function
from vit_dist.data.batch import Batch
from vit_dist.errors import UserError, one_line

# (outputs, targets) → one value per slot.
SlotLoss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross entropy [slots] of logits [slots, classes] (label smoothing: Szegedy et al., 2016).

    targets: class numbers [slots], or probabilities [slots, classes].
    """
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)


def bce(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the binary cross entropy [slots] of logits [slots, classes], mean over classes (Wightman et al., 2021).

    targets: class numbers [slots], or probabilities [slots, classes]. Label smoothing as for cross entropy.
    """
    classes = logits.shape[1]
    wanted = F.one_hot(targets, classes).to(logits.dtype) if targets.ndim == 1 else targets
    wanted = wanted * (1 - label_smoothing) + label_smoothing / classes
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)


def hard_distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the cross entropy [slots] with the class that the teacher ranks first (Touvron et al., "DeiT", 2021)."""
    return F.cross_entropy(logits, teacher.argmax(1), reduction="none")


def soft_distillation(logits: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return temperature² · KL(teacher ‖ logits) [slots], both softened by temperature (Hinton et al., 2015)."""
    softened, wanted = F.log_softmax(logits / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(softened, wanted, reduction="none", log_target=True).sum(1)


class Loss:
    """The loss of a run: (outputs, batch) → one value per slot, [slots].

    With a teacher (images → logits, without gradients), (1 - w) · the loss with the targets + w · the loss with the
    teacher's logits, w being `distillation_weight`.
    """

    def __init__(self, config: LossConfig, teacher: nn.Module | None = None) -> None:
        """Raises UserError if the loss's import path cannot be imported."""
        self.name = config.name
        self.target_loss: SlotLoss
        if ":" in config.name:
            self.target_loss = import_function(config.name, "loss.name")
        else:
            function = {"cross_entropy": cross_entropy, "bce": bce}[config.name]
            self.target_loss = partial(function, label_smoothing=config.label_smoothing)
        self.teacher = teacher
        self.weight = config.distillation_weight
        self.teacher_loss: SlotLoss = (
            hard_distillation
            if config.distillation == "hard"
            else partial(soft_distillation, temperature=config.temperature)
        )

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss [slots]. Raises UserError if the user's function does not return one value per slot."""
        values = self.target_loss(outputs, batch.targets)
        self._check_shape(values, batch.weights)
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher(batch.images).to(outputs.dtype)
            values = (1 - self.weight) * values + self.weight * self.teacher_loss(outputs, taught)
        return values

    def _check_shape(self, values: object, weights: Tensor) -> None:
        shape = getattr(values, "shape", None)
        if shape != weights.shape:
            actual = type(values).__name__ if shape is None else list(shape)
            expected = list(weights.shape)
            raise UserError(f"loss.name: {self.name} must return one value per slot, shape {expected}, not {actual}")

    def check_function(self, classes: int, device: torch.device) -> None:
        """Call the user's function once, without gradients, on two slots. Raises UserError if it does not fit."""
        if ":" not in self.name:
            return
        logits, targets = torch.zeros(2, classes, device=device), torch.arange(2, device=device)
        try:
            with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                values = self.target_loss(logits, targets)
        except Exception as error:  # of any kind: it is the user's function
            what = f"{self.name} fails on outputs [2, {classes}] and class numbers [2]"
            raise UserError(f"loss.name: {what}: {type(error).__name__}: {one_line(error, 200)}") from error
        self._check_shape(values, targets)

    def check_mixed_targets(self, classes: int, field: str) -> None:
        """Check that the loss takes the mixed targets of `field` (mixup or CutMix). Raises UserError."""
        logits = torch.zeros(2, classes)
        try:
            fits = self.target_loss(logits, torch.full((2, classes), 1 / classes)).shape == (2,)
        except Exception:  # of any kind: the user's function may not expect such targets
            fits = False
        if not fits:
            raise UserError(
                f"{field}: loss.name {self.name} takes class numbers alone, not mixed probabilities: use "
                "cross_entropy or bce, or set augment.mixup and augment.cutmix to 0"
            )
