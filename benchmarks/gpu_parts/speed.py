"""Images/s, FLOPs and memory of whole updates on a batch that stays on the device, eager and compiled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from gpu_parts.setting import SKIPPED, Found, Setting, runtime_of, updater_of
from vit_dist.config.config import Config
from vit_dist.config.fields import BatchConfig, ModelConfig, RunConfig, ScheduleConfig, TrainConfig
from vit_dist.data.batch import Batch
from vit_dist.models.compile import compile_blocks
from vit_dist.models.forward import forward_flops
from vit_dist.models.vit import ViT
from vit_dist.plan.plan import Plan
from vit_dist.training.cuda_graph import GraphedPass

BIG = {"vit_small": 256, "vit_base": 256, "vit_large": 128, "vit_tiny": 8}
_PUBLISHED_PEAK = 989e12  # of an H100 and an H200: dense, bf16


def batch_of(setting: Setting, size: int, depth: int = 0) -> Batch:
    """Return a batch of noise with mixed targets, and drop-path draws for so many blocks."""
    device, side = setting.device, setting.side
    images = torch.randn(size, 3, side, side, device=device)
    shares = F.one_hot(torch.randint(0, 1000, (size,), device=device), 1000).float()
    drops = torch.rand(size, depth, 2, device=device) if depth else None
    return Batch(images, shares, torch.ones(size, device=device), torch.arange(size), drops, 1)


def train_rate(
    setting: Setting,
    name: str,
    size: int,
    mode: str = "none",
    *,
    least: float = 1.5,
    tweak: Callable[[ViT], object] | None = None,
    ema: float = 0.0,
    **more: Any,
) -> Found:
    """Measure whole updates (forward, backward, clip, AdamW) of one micro-batch that stays on the device.

    mode: none, blocks, graph (compiled blocks, replayed as a CUDA graph) or model. tweak: changes the model first.
    """
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    if setting.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    config = Config(
        run=RunConfig(device=setting.device.type),  # type: ignore[arg-type]
        model=ModelConfig(patch_size=8),
        batch=BatchConfig(global_size=size, micro_size=size),
        schedule=ScheduleConfig(warmup="0 updates"),
        train=TrainConfig(duration="100000 updates"),
    )
    with runtime_of(config.run, "bf16") as runtime:
        model = setting.model(name, **more)
        flops = 3 * float(forward_flops(model, channels=3, image_size=setting.side))
        if tweak:
            tweak(model)
        if mode in ("blocks", "graph"):
            compile_blocks(model)
        elif mode == "model":
            model.compile(dynamic=False)
        updater = updater_of(config, Plan.from_config(config, size, 1), runtime, model, ema=ema)
        if mode == "graph":
            updater.graphed = GraphedPass(updater.forward_backward, updater.parameters)
        batch = batch_of(setting, size, depth=len(model.blocks) if more.get("drop_path") else 0)
        began = time.perf_counter()
        updater.update([batch], 1, size)
        updater.finish_previous()
        setting.sync()
        first = time.perf_counter() - began
        seconds = setting.seconds(lambda: updater.update([batch], 1, size), least)
        found: Found = {
            "images_per_second": round(size / seconds, 1),
            "ms": round(1e3 * seconds, 2),
            "first_update_s": round(first, 1),
            "tflops": round(flops * size / seconds / 1e12, 1),
            "finite": math.isfinite(updater.take_sums()[0]),
        }
        if setting.cuda:
            found["mfu_989"] = round(flops * size / seconds / _PUBLISHED_PEAK, 4)
            found["peak_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
            if matmul := setting.results.get("rates", {}).get("bf16_matmul_tflops"):
                found["matmul_fraction"] = round(flops * size / seconds / matmul / 1e12, 4)
        if mode != "none":
            counters = dynamo.utils.counters
            found["graphs"] = counters["stats"].get("unique_graphs")
            found["breaks"] = sum(counters["graph_break"].values())
        return found


def eager(setting: Setting) -> Found:
    """Measure without compiling, by model, micro-batch and what else costs."""
    found = {name: train_rate(setting, name, BIG[name]) for name in setting.names}
    if not setting.small:
        for size in (128, 512):
            found[f"vit_small {size}"] = train_rate(setting, "vit_small", size, least=0.8)
        found["vit_small ema"] = train_rate(setting, "vit_small", 256, ema=0.9999, least=0.8)
        found["vit_small drop_path 0.1"] = train_rate(setting, "vit_small", 256, drop_path=0.1, least=0.8)
    return found


def blocks(setting: Setting) -> Found:
    """Measure with compiled blocks."""
    found: Found = {}
    for name in setting.names:
        found[name] = train_rate(setting, name, BIG[name], "blocks") if setting.left() > 45 else "no time"
    return found


def graph(setting: Setting) -> Found:
    """Measure compiled blocks replayed as a CUDA graph: ViT-S, and a model so small that the host cannot keep up."""
    if not setting.cuda:
        return SKIPPED
    tiny = {"width": 192, "depth": 12, "heads": 3}
    return {
        "vit_small": train_rate(setting, "vit_small", 256, "graph"),
        "vit_tiny 128, blocks": train_rate(setting, "vit_small", 128, "blocks", **tiny),
        "vit_tiny 128": train_rate(setting, "vit_small", 128, "graph", **tiny),
    }


def levers(setting: Setting) -> Found:
    """Measure what else could be gained, each with compiled blocks."""
    if not setting.cuda:
        return SKIPPED
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: Found = {}

    def narrow(model: ViT) -> None:
        model.bf16_residual = True

    for name in setting.names:
        if setting.left() > 50:
            found[f"bf16 residual {name}"] = train_rate(setting, name, BIG[name], "blocks", tweak=narrow)
    if setting.left() > 50:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
            found["cudnn attention"] = train_rate(setting, "vit_small", 256, "blocks")
    if setting.left() > 50:
        found["mean pool, 196 tokens"] = train_rate(setting, "vit_small", 256, "blocks", pool="mean")
    if setting.left() > 50:
        found["drop_path 0.1"] = train_rate(setting, "vit_small", 256, "blocks", drop_path=0.1)
    return found


def whole_model(setting: Setting) -> Found:
    """Measure with the whole model compiled as one graph."""
    return {name: train_rate(setting, name, BIG[name], "model") for name in setting.names[:2] if setting.left() > 70}


def max_autotune(setting: Setting) -> Found:
    """Measure compiled blocks with autotuned matrix products (Triton's against cuBLAS's), without CUDA graphs."""
    if not setting.cuda:
        return SKIPPED

    def tuned(model: ViT) -> None:
        for block in model.blocks:
            block.compile(dynamic=False, mode="max-autotune-no-cudagraphs")

    return train_rate(setting, "vit_small", 256, tweak=tuned)
