"""Peak FLOP/s of devices: from data sheets, and measured with a matrix product."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from vit_dist.runtime.runtime import Runtime

_SUSTAINED_SECONDS = 0.3
# Dense peaks from the data sheets, in FLOP/s, without sparsity; the SXM part where a name has several.
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


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the data sheet's dense peak in FLOP/s for a precision (fp32 without TF32); None if not known."""
    words = device_name.replace("-", " ")
    for name, peaks in PEAKS.items():
        if f" {name} " in f" {words} ":
            return peaks.get(precision)
    return None


def matmul_flops(runtime: Runtime) -> float:
    """Measure the FLOP/s of a square matrix product on one device in the run's precision; takes under half a second.

    On CUDA the rate that it keeps up for 0.3 s, by the device's clock: in a single product, after a rest, a GPU's clock
    is higher than in training. Elsewhere the best of five, since other programs may use the same cores.
    """
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    size = 1024 if runtime.device.type == "cpu" else 8192
    generator = torch.Generator(runtime.device).manual_seed(0)
    a = torch.randn(size, size, generator=generator, device=runtime.device, dtype=dtypes[runtime.precision])
    if runtime.device.type == "cuda":
        _products_seconds(a, 2)  # chooses the kernel
        count = max(3, round(_SUSTAINED_SECONDS / _products_seconds(a, 1)))
        return 2 * size**3 * count / _products_seconds(a, count)
    best = float("inf")
    for _ in range(5):
        runtime.synchronize()
        start = time.perf_counter()
        torch.mm(a, a)
        runtime.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _products_seconds(a: Tensor, count: int) -> float:
    """Return the seconds of `count` products on a CUDA device, one after the other."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    for _ in range(count):
        torch.mm(a, a)
    last.record()
    last.synchronize()
    milliseconds: float = first.elapsed_time(last)
    return milliseconds / 1e3
