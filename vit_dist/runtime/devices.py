"""Devices, precision and CPU cores that this process may use."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

import torch

from vit_dist.errors import UserError


def require_device(name: str) -> None:
    """Raises UserError where the device is not there."""
    present = torch.cuda.is_available() if name == "cuda" else torch.backends.mps.is_available()
    if not present:
        raise UserError(f"run.device: no {name} device here: set run.device auto or cpu")


def resolve_precision(precision: str, *, cpu: bool) -> str:
    """fp32, bf16 or fp16; auto is bf16 on a GPU that has it, else fp32. Raises UserError."""
    if precision == "auto":
        return "bf16" if not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(False) else "fp32"
    if precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise UserError("train.precision: fp16 needs a CUDA GPU: set bf16 or fp32")
    return precision


def available_cores() -> int:
    """CPU cores that affinity and the cgroup's quota allow."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    quota = cgroup_quota(Path("/sys/fs/cgroup"))
    return max(1, min(cores, math.floor(quota))) if quota else cores


def cgroup_quota(root: Path) -> float | None:
    """Cores that the control group's CPU quota gives (version 2 or 1); None without one."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return quota_us / int((root / "cpu/cpu.cfs_period_us").read_text()) if quota_us > 0 else None
    return None
