"""What a run measures and writes down: meters, the metrics' journal and its one reader."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vit_dist.plan import Plan
from vit_dist.runtime import Runtime

Line = dict[str, Any]

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


class Journal:
    """Appends lines to metrics.jsonl, each flushed; on other ranks than 0 it writes nothing."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        self._file = path.open("a+", encoding="utf-8") if writes else None
        if self._file is not None and self._file.tell() and not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # a killed run's last line may be torn

    def write(self, kind: str, values: Mapping[str, Any]) -> Line:
        """One line, with its kind and the time in seconds since the epoch; returns it."""
        line = {"kind": kind, "time": time.time(), **values}
        if self._file is not None:
            self._file.write(json.dumps(line, allow_nan=False, default=str) + "\n")
            self._file.flush()
        return line

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> list[Line]:
    """The lines that count: a `start` line at update u supersedes earlier lines beyond u; a torn line is left out.

    It also supersedes evaluations of test, which are of an end that was none.
    """
    lines: list[Line] = []
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if line["kind"] == "start":
                lines = standing(lines, line["update"])
            lines.append(line)
    return lines


def standing(lines: Iterable[Line], update: int) -> list[Line]:
    """Those that a `start` line at `update` does not supersede."""
    return [line for line in lines if line["update"] <= update and line.get("split") != "test"]


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replaces a JSON file in one step."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)


def read_json(path: Path) -> Line:
    """A JSON file that `write_json` wrote."""
    values: Line = json.loads(path.read_text(encoding="utf-8"))
    return values


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
            "loss": finite(loss / weight),
            "top1": None if math.isnan(correct) else 100 * correct / weight,
            "lr": lr,
            "grad_norm": finite(grad_norm),
            "samples_per_second": rate,
            "samples_per_second_per_device": per_device,
            "update_seconds": seconds / (position - before),
            "data_wait_fraction": (waited - waited_before) / seconds,
            "mfu": 3 * self.flops * per_device / self.peak if self.peak else None,
            "matmul_fraction": 3 * self.flops * per_device / self.matmul,
            "peak_memory_bytes": self.runtime.peak_memory_bytes(),
            "skipped_updates": skipped,
        }


def place(plan: Plan, position: int) -> Line:
    """Where in the run a line belongs."""
    samples = plan.samples_at(position)
    return {"update": position, "epoch": samples / plan.samples, "samples": samples}


def finite(value: float) -> float | str:
    """NaN and infinity as text, which JSON has no numbers for."""
    return value if abs(value) < float("inf") else str(value)


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
