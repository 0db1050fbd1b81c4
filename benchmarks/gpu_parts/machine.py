"""The machine, and what it can do at most: matrix products, copies, attention by backend."""

from __future__ import annotations

import contextlib
import os
import platform
import time
import types
from importlib.metadata import version

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu_parts.setting import Found, Setting, failure
from vit_dist.telemetry.peak_flops import matmul_flops


def machine(setting: Setting) -> Found:
    """Return versions, cores and the GPU."""
    found: Found = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    if hasattr(os, "sched_getaffinity"):
        found["cores"] = len(os.sched_getaffinity(0))
    for name in ("accelerate", "timm", "torchvision", "triton", "torchao"):
        with contextlib.suppress(Exception):
            found[name] = version(name)
    with contextlib.suppress(Exception):
        stat = os.statvfs("/dev/shm")
        found["shm_gb"] = round(stat.f_bavail * stat.f_frsize / 1e9, 1)
    if setting.cuda:
        gpu = torch.cuda.get_device_properties(0)
        found |= {
            "device": gpu.name,
            "sms": gpu.multi_processor_count,
            "gb": round(gpu.total_memory / 2**30, 1),
            "capability": torch.cuda.get_device_capability(),
            "cudnn": torch.backends.cudnn.version(),
        }
        with contextlib.suppress(Exception):
            from torch.nn.attention import list_flash_attention_impls

            found["flash_impls"] = list_flash_attention_impls()
    return found


def rates(setting: Setting) -> Found:
    """Measure what the device can do at most: a matrix product, a copy, a transfer from the host."""
    device, size = setting.device, 8192 if setting.cuda else 256
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = setting.seconds(lambda: torch.mm(a, b), 0.5, 20)
    found: Found = {"bf16_matmul_tflops": round(2 * size**3 / seconds / 1e12, 1)}
    if not setting.cuda:
        return found
    found |= _copies(setting)
    for width in (384, 768, 1024):  # the products of ViT-S, B, L at 128 images
        found |= _products(setting, width, 128 * 197)
    # What the project itself takes for the denominator.
    began = time.perf_counter()
    holder = types.SimpleNamespace(device=device, precision="bf16", synchronize=setting.sync)
    found["project_matmul_tflops"] = round(matmul_flops(holder) / 1e12, 1)  # type: ignore[arg-type]
    found["project_matmul_seconds"] = round(time.perf_counter() - began, 2)
    torch.cuda.empty_cache()
    return found


def _copies(setting: Setting) -> Found:
    """Return the rates of copies within the device's memory, and to it from the host's."""
    x = torch.empty(2**29, device=setting.device, dtype=torch.float16)
    y = torch.empty_like(x)
    within = setting.seconds(lambda: y.copy_(x))
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(2**28, dtype=torch.uint8, device=setting.device)
    to_it = setting.seconds(lambda: there.copy_(host, non_blocking=True))
    return {"copy_tb_s": round(2 * 2**30 / within / 1e12, 2), "h2d_gb_s": round(2**28 / to_it / 1e9, 1)}


def _products(setting: Setting, width: int, rows: int) -> Found:
    """Return the rate of an MLP's first product; fp8: the product alone, casts not counted."""
    left = torch.randn(rows, width, device=setting.device, dtype=torch.bfloat16)
    weight = torch.randn(4 * width, width, device=setting.device, dtype=torch.bfloat16)
    flops = 2 * rows * width * 4 * width
    found: Found = {
        f"fc1_width{width}_tflops": round(flops / setting.seconds(lambda: F.linear(left, weight), 0.1) / 1e12)
    }
    with contextlib.suppress(Exception):
        one = torch.ones((), device=setting.device)
        a, b = left.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
        fp8 = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16, "use_fast_accum": True}
        seconds = setting.seconds(lambda: torch._scaled_mm(a, b.t(), **fp8), 0.1)
        found[f"fc1_width{width}_fp8_tflops"] = round(flops / seconds / 1e12)
    return found


def attention(setting: Setting) -> Found:
    """Time one layer's attention, forward and backward, by backend: ms at 256 images of width 768 (12 heads of 64)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
    found: Found = {}
    for tokens in (196, 197, 256) if setting.cuda else (65,):
        for backend in backends if setting.cuda else backends[:1]:
            name = f"{tokens} {backend.name.split('_')[0].lower()}"
            try:
                shape = 256 if setting.cuda else 2, tokens, 3, 12, 64
                qkv = torch.randn(shape, device=setting.device, dtype=torch.bfloat16, requires_grad=True)
                with sdpa_kernel(backend):
                    found[name] = round(1e3 * setting.seconds(lambda qkv=qkv: _both_ways(qkv), 0.15), 3)  # type: ignore[misc]
            except Exception as error:
                found[name] = failure(error)
    return found


def _both_ways(qkv: Tensor) -> None:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    F.scaled_dot_product_attention(q, k, v).transpose(1, 2).sum().backward()  # type: ignore[no-untyped-call]
    qkv.grad = None
