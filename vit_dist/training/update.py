"""The exact update: the only place where weights change."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit_dist.checkpointing.state import TrainState
from vit_dist.data.batch import Batch
from vit_dist.models.forward import at_least_float32
from vit_dist.optim.ema import EMA
from vit_dist.optim.optimizers import masks_its_step
from vit_dist.optim.schedules import Schedule
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.losses import Loss


class Updater:
    """Makes updates: the gradient is Σ wᵢ∇ℓᵢ / Σ wᵢ over the whole global batch, however it is split.

    Each update makes one pass of gradient all-reduce, one clip, one optimizer step and one schedule step; an update
    whose gradient is not finite makes neither step, on all ranks alike. `sums` holds, on the device, this rank's
    Σ wℓ, Σ w·correct (NaN for mixed targets) and Σ w since the last `take_sums`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        schedule: Schedule,
        state: TrainState,
        runtime: Runtime,
        *,
        clip_norm: float,
        average: EMA | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.schedule = schedule
        self.state = state
        self.runtime = runtime
        self.clip_norm = clip_norm
        self.average = average
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.grad_norm = torch.zeros((), device=runtime.device)
        self.sums = torch.zeros(3, device=runtime.device, dtype=runtime.sum_dtype)
        self._skipped: Callable[[], float] | None = None

    def update(self, window: Iterable[Batch], length: int, weight: int) -> None:
        """Make one update from this rank's `length` micro-batches of a global batch of total weight `weight`."""
        self.accumulate(window, length, weight)
        self.finish_previous()
        self.apply()
        self.state.position += 1

    def accumulate(self, window: Iterable[Batch], length: int, weight: int) -> None:
        """Leave the gradient of the whole global batch in the parameters of every rank."""
        for number, batch in enumerate(window, 1):
            self.runtime.seed(batch.seed)
            with self.runtime.gradient_sync(self.model, last=number == length):
                inputs = (batch.images,) if batch.drop_path is None else (batch.images, batch.drop_path)
                outputs = at_least_float32(self.model(*inputs))
                losses = self.loss(outputs, batch) * batch.weights
                # DDP takes the mean over ranks; times world_size, that is the sum.
                self.runtime.backward(losses.sum() * (self.runtime.world_size / weight))
            with torch.no_grad():
                hits = outputs.argmax(1) == batch.targets if batch.targets.ndim == 1 else batch.weights * torch.nan
                correct = hits * batch.weights
                self.sums += torch.stack([losses.sum(), correct.sum(), batch.weights.sum()])

    def apply(self) -> None:
        """Clip the gradient and, if it is finite, step the optimizer and the average."""
        scaler = self.runtime.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.grad_norm = nn.utils.get_total_norm(gradients)
        if self.clip_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, self.grad_norm)
        found_inf = (~self.grad_norm.isfinite()).float()
        if masks_its_step(self.optimizer):
            self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            self._step(found_inf)
            self._skipped = self.runtime.copy_scalar_async(found_inf)
        else:
            skipped = found_inf.item()
            if not skipped:
                self._step(found_inf)
            self._skipped = lambda: skipped
        if scaler is not None:
            scaler.update()
        self.optimizer.zero_grad()

    def _step(self, found_inf: Tensor) -> None:
        """Step the optimizer and take the new weights into the average. found_inf: 1 if the step is masked, else 0."""
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.state.applied_updates + 1, 1 - found_inf)

    def finish_previous(self) -> None:
        """Count the last update and step its schedule, now that it is known whether it was skipped.

        Call it just before the next optimizer step, and before anything that reads the state.
        """
        if self._skipped is None:
            return
        if self._skipped():
            self.state.skipped_updates += 1
        else:
            self.schedule.step()
            self.state.applied_updates += 1
        self._skipped = None

    def take_sums(self) -> tuple[float, float, float]:
        """Return Σ wℓ, Σ w·correct, Σ w over all ranks since the last call. Waits for the device."""
        loss, correct, weight = self.runtime.all_reduce_sum(self.sums).tolist()
        self.sums.zero_()
        return loss, correct, weight
