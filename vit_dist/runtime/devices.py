"""The device, the precision and the CPU cores that this process may use."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

import torch

from vit_dist.errors import UserError


def resolve_device(name: str) -> str:
    """Return cuda, mps or cpu for a `run.device`.

    auto: cpu under `accelerate launch --cpu`, else the best that is here. Raises UserError for one that is not here, or
    that contradicts the launcher.
    """
    on_cpu = _launched_on_cpu()
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return "cpu" if on_cpu else next(device for device in present if present[device])
    if on_cpu and name != "cpu":
        raise UserError(
            f"run.device: {name}, and the launcher was asked for the CPU (--cpu, use_cpu): drop one of them"
        )
    if not present[name]:
        raise UserError(f"run.device: no {name} device here: set run.device auto or cpu")
    return name


def uses_cuda(device: str) -> bool:
    """Return whether a run with this `run.device` computes on a CUDA GPU."""
    return torch.cuda.is_available() and (device == "cuda" or (device == "auto" and not _launched_on_cpu()))


def _launched_on_cpu() -> bool:
    """Return whether accelerate's launcher was asked for the CPU: `--cpu`, or use_cpu in its config."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")


def resolve_precision(precision: str, device: str) -> str:
    """Return fp32, bf16 or fp16 for a `train.precision` and a `run.device`.

    auto: bf16 on a GPU that has it, else fp32. Raises UserError for fp16 without a CUDA GPU.
    """
    if precision == "auto":
        return "bf16" if uses_cuda(device) and torch.cuda.is_bf16_supported(False) else "fp32"
    if precision == "fp16" and not uses_cuda(device):
        raise UserError("train.precision: fp16 needs a CUDA GPU: set bf16 or fp32")
    return precision


def available_cores() -> int:
    """Return how many CPU cores the affinity mask and the cgroup's quota allow, at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    quota = cgroup_quota(Path("/sys/fs/cgroup"))
    return max(1, min(cores, math.floor(quota))) if quota else cores


def machine_memory() -> int | None:
    """Return the bytes of memory that this machine, or its cgroup, has; None if it does not say."""
    found = []
    with contextlib.suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            found.append(int((Path("/sys/fs/cgroup") / limit).read_text()))
    return min(found, default=None)


def cgroup_quota(root: Path) -> float | None:
    """Return the cores in the CPU quota of a cgroup (version 2 or 1), which may be a fraction; None without a quota."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return quota_us / int((root / "cpu/cpu.cfs_period_us").read_text()) if quota_us > 0 else None
    return None
