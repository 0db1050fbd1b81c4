"""What a run measures: its clock, its meters, and the peaks that its speed is held against."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import torch

from vit_dist.files import json_number
from vit_dist.journal import Line, place
from vit_dist.plan.plan import Plan
from vit_dist.runtime import Runtime

# Dense peaks of the data sheets, in FLOP/s, without sparsity; SXM parts where a name has several.
PEAKS: dict[str, dict[str, float]] = {
    "B200": {"bf16": 2250e12, "fp16": 2250e12},
    "H200": {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12},
    "H100": {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12},
    "L40S": {"bf16": 362e12, "fp16": 362e12, "fp32": 91.6e12},
    "L4": {"bf16": 121e12, "fp16": 121e12, "fp32": 30.3e12},
    "A10": {"bf16": 125e12, "fp16": 125e12, "fp32": 31.2e12},
    "V100": {"fp16": 125e12, "fp32": 15.7e12},
    "T4": {"fp16": 65e12, "fp32": 8.1e12},
    "RTX 4090": {"bf16": 165e12, "fp16": 165e12, "fp32": 82.6e12},
    "RTX 3090": {"bf16": 71e12, "fp16": 71e12, "fp32": 35.6e12},
}


class Clock:
    """Seconds of training: it stands still inside `paused`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def start(self) -> None:
        """Runs on."""
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self, runtime: Runtime) -> Iterator[None]:
        """For what is not training; the device finishes its updates first, which belong to training."""
        runtime.synchronize()
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self.start()


class Meter:
    """Turns sums and times since the last line into a `train` line."""

    def __init__(self, plan: Plan, runtime: Runtime, clock: Clock, *, flops: int, matmul: float) -> None:
        """flops: of one image's forward pass. matmul: measured FLOP/s of one device."""
        self.plan = plan
        self.runtime = runtime
        self.clock = clock
        self.flops = flops
        self.matmul = matmul
        self.peak = peak_flops(runtime.device_name, runtime.precision)
        self.last: tuple[int, float, float] | None = None

    def restart(self, position: int, waited: float) -> None:
        """The next line counts from here."""
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
        """The measures since the last line. The caller has waited for the device."""
        assert self.last is not None
        before, seconds_before, waited_before = self.last
        seconds = max(self.clock.seconds - seconds_before, 1e-9)
        loss, correct, weight = sums
        rate = (self.plan.samples_at(position) - self.plan.samples_at(before)) / seconds
        per_device = rate / self.runtime.world_size
        self.restart(position, waited)
        return {
            **place(self.plan, position),
            "loss": json_number(loss / weight),
            "top1": None if math.isnan(correct) else 100 * correct / weight,
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


def peak_flops(device_name: str, precision: str) -> float | None:
    """The data sheet's dense peak for a device and a precision (fp32 without TF32), if known."""
    words = device_name.replace("-", " ")
    for name, peaks in PEAKS.items():
        if f" {name} " in f" {words} ":
            return peaks.get(precision)
    return None


def matmul_flops(runtime: Runtime) -> float:
    """FLOP/s of a square matrix product on one device in the run's precision: the best of a few, about 0.2 s."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    size = 1024 if runtime.device.type == "cpu" else 8192
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(size, size, generator=generator).to(runtime.device, kinds[runtime.precision])
    best = float("inf")
    for _ in range(5):
        runtime.synchronize()
        start = time.perf_counter()
        torch.mm(a, a)
        runtime.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
