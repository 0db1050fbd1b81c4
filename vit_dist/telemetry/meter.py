"""Measure training: losses, speed, utilisation, memory."""

from __future__ import annotations

import math

from vit_dist.files import json_number
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.metrics import Line
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.clock import Clock
from vit_dist.telemetry.peak_flops import peak_flops


class Meter:
    """Turns what was counted since the last `train` line into the values of the next."""

    def __init__(self, plan: Plan, runtime: Runtime, clock: Clock, *, flops: int, matmul: float) -> None:
        """flops: of one image's forward pass. matmul: measured FLOP/s of a matrix product on one device."""
        self.plan = plan
        self.runtime = runtime
        self.clock = clock
        self.flops = flops
        self.matmul = matmul
        self.peak = peak_flops(runtime.device_name, runtime.precision)
        self.last: tuple[int, float, float] | None = None

    def restart(self, position: int, waited: float) -> None:
        """Make the next line count from here. waited: seconds waited for data so far."""
        self.last = position, self.clock.seconds, waited

    def line(
        self,
        position: int,
        waited: float,
        sums: tuple[float, float, float],
        *,
        lr: float,
        grad_norm: float,
        skipped: int,
    ) -> Line:
        """Return the values of a `train` line at update `position`. The caller has waited for the device.

        sums: Σ wℓ, Σ w·correct (NaN for mixed targets) and Σ w of the updates applied since the last line, over all
        ranks; without any the loss is NaN.
        """
        assert self.last is not None
        before, seconds_before, waited_before = self.last
        seconds = max(self.clock.seconds - seconds_before, 1e-9)
        loss, correct, weight = sums
        rate = (self.plan.samples_at(position) - self.plan.samples_at(before)) / seconds
        per_device = rate / self.runtime.world_size
        self.restart(position, waited)
        return {
            "loss": json_number(loss / weight if weight else math.nan),
            "top1": None if math.isnan(correct) or not weight else 100 * correct / weight,
            "weight": weight,
            "lr": lr,
            "grad_norm": json_number(grad_norm),
            "samples_per_second": rate,
            "samples_per_second_per_device": per_device,
            "update_seconds": seconds / (position - before),
            "data_wait_fraction": (waited - waited_before) / seconds,
            "mfu": 3 * self.flops * per_device / self.peak if self.peak else None,
            "matmul_fraction": 3 * self.flops * per_device / self.matmul,
            "peak_memory_bytes": self.runtime.peak_memory_bytes(),
            "skipped_updates": skipped,
        }
