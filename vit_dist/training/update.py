"""The exact update: the only place where weights change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit_dist.checkpointing.state import TrainState
from vit_dist.data.batch import Batch
from vit_dist.models.forward import at_least_float32
from vit_dist.optim.ema import EMA
from vit_dist.optim.optimizers import masks_its_step
from vit_dist.optim.schedules import Schedule
from vit_dist.runtime.marks import BACKWARD, FORWARD, OPTIMIZER, UPDATE, mark
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.cuda_graph import GraphedPass
from vit_dist.training.losses import Loss


class DivergedError(Exception):
    """Raised when max_bad_updates of the last 2·max_bad_updates updates had no finite loss and gradient."""


class Updater:
    """Makes updates: the gradient is Σ wᵢ∇ℓᵢ / Σ wᵢ over the whole global batch, however it is split.

    Each update makes one pass of gradient all-reduce, one clip, one optimizer step and one schedule step; an update
    whose loss or gradient is not finite makes neither step, on all ranks alike. `sums` holds, on the device, this
    rank's Σ wℓ, Σ w·correct (NaN for mixed targets) and Σ w of the updates applied since the last `take_sums`.
    before_step: called before weights and moments change. graphed: replays `forward_backward`, where that is faster.
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
        max_bad_updates: int = 20,
        average: EMA | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.schedule = schedule
        self.state = state
        self.runtime = runtime
        self.clip_norm = clip_norm
        self.max_bad_updates = max_bad_updates
        self.average = average
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.grad_norm = torch.zeros((), device=runtime.device)
        self.sums = torch.zeros(3, device=runtime.device, dtype=runtime.sum_dtype)
        self._sums_before = self.sums
        self.before_step: Callable[[], None] = lambda: None
        self._skipped: Callable[[], float] | None = None
        self.graphed: GraphedPass | None = None

    def update(self, window: Iterable[Batch], length: int, weight: float) -> None:
        """Make one update from this rank's `length` micro-batches of a global batch of total weight `weight`.

        Raises DivergedError, on all ranks alike.
        """
        with mark(UPDATE):
            self.accumulate(window, length, weight)
            with mark(OPTIMIZER):
                self.finish_previous()
            self.before_step()
            with mark(OPTIMIZER):
                self.apply()
        self.state.position += 1

    def accumulate(
        self, window: Iterable[Batch], length: int, weight: float, *, spread_nan: bool = True
    ) -> list[Tensor]:
        """Leave the gradient of the whole global batch in the parameters of every rank.

        spread_nan: whether a loss that is not finite, on any rank, makes the gradient NaN; it reaches the other ranks
        through the gradient's own all-reduce, and slots of weight 0 do not count. Return the loss of each slot, by
        micro-batch of this rank.
        """
        self._sums_before = self.sums
        everything: list[Tensor] = []
        total = torch.zeros((), device=self.runtime.device)
        for number, batch in enumerate(window, 1):
            last = number == length
            self.runtime.seed(batch.seed)
            # DDP takes the mean over ranks; times world_size, that is the sum.
            factor = self.runtime.world_size / weight
            with self.runtime.gradient_sync(self.model, last=last):
                make = self.graphed or self.forward_backward
                values, total, sums = make(batch, total, factor, last and spread_nan)
            self.sums = self.sums + sums
            everything.append(values)
        return everything

    def forward_backward(
        self, batch: Batch, total: Tensor, factor: float | Tensor, spread: bool | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add a micro-batch's part to the gradient.

        total: Σ wℓ of this rank's micro-batches before. factor: what the loss is multiplied by. spread: whether the
        gradient becomes NaN if the new total is not finite. Return the loss of each slot, the new total, and the
        micro-batch's part of `sums`.
        """
        with mark(FORWARD):
            outputs = at_least_float32(self.model(*batch.inputs))
            values = self.loss(outputs, batch)
            loss = (values.masked_fill(batch.weights == 0, 0) * batch.weights).sum()
            total = total + loss.detach()
            if spread is not False:
                # At the outputs, not in the loss, whose derivative may be 0. Times exactly 1 if all is finite.
                unless = 0 * total + 1
                if isinstance(spread, Tensor):
                    unless = unless.where(spread, 1)
                outputs.register_hook(partial(torch.mul, unless))  # type: ignore[no-untyped-call]
        with mark(BACKWARD):
            self.runtime.backward(loss * factor)
        with mark(FORWARD), torch.no_grad():
            hits = outputs.argmax(1) == batch.targets if batch.targets.ndim == 1 else batch.weights * torch.nan
            correct = hits * batch.weights
            sums = torch.stack([loss, correct.sum(), batch.weights.sum()])
        return values.detach(), total, sums

    def apply(self) -> None:
        """Clip the gradient and, if it is finite, step the optimizer and the average, and keep the update's sums."""
        scaler = self.runtime.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.grad_norm = nn.utils.get_total_norm(gradients)
        if self.clip_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, self.grad_norm)
        finite = self.grad_norm.isfinite()
        found_inf = (~finite).float()
        self.sums = torch.where(finite, self.sums, self._sums_before)
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
        self.optimizer.zero_grad(set_to_none=self.graphed is None)

    def _step(self, found_inf: Tensor) -> None:
        """Step the optimizer and take the new weights into the average. found_inf: 1 if the step is masked, else 0."""
        self.optimizer.step()
        self._bound()
        if self.average is not None:
            self.average.update(self.state.applied_updates + 1, 1 - found_inf)

    def _bound(self) -> None:
        """Bring weights that a step has taken beyond their bounds back; here none has any."""

    def finish_previous(self) -> None:
        """Count the last update and step its schedule, now that it is known whether it was skipped.

        Call it just before the next optimizer step, and before anything that reads the state. Raises
        DivergedError, on all ranks alike.
        """
        if self._skipped is None:
            return
        skipped, self._skipped = self._skipped(), None
        if not skipped:
            self.schedule.step()
            self.state.applied_updates += 1
            return
        self.state.count_skipped(self.max_bad_updates)
        skips, bound = self.state.last_skipped, self.max_bad_updates
        if len(skips) == bound and self.state.position - skips[0] < 2 * bound:
            raise DivergedError

    @torch.no_grad()
    def weights_are_finite(self) -> bool:
        """Return whether the trained weights, and the square of their norm, are finite. Waits for the device."""
        return bool(nn.utils.get_total_norm(self.parameters).square().isfinite().item())

    def take_sums(self) -> tuple[float, float, float]:
        """Return Σ wℓ, Σ w·correct, Σ w over all ranks since the last call. Waits for the device."""
        loss, correct, weight = self.runtime.all_reduce_sum(self.sums).tolist()
        self.sums.zero_()
        return loss, correct, weight
