"""Measure what the host costs the device: waits within updates, the data path, files, and kernels by kind."""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from images import make

from gpu_parts.setting import SKIPPED, Found, Setting, failure, runtime_of, stream_of, update, updater_of
from gpu_parts.speed import batch_of
from vit_dist.config.config import Config
from vit_dist.config.fields import (
    AugmentConfig,
    BatchConfig,
    ModelConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from vit_dist.config.optimizer_fields import OptimizerConfig
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.stream import Stream
from vit_dist.models.build import build_model
from vit_dist.models.compile import compile_blocks
from vit_dist.plan.plan import Plan
from vit_dist.runtime.devices import available_cores

_KINDS = {
    "matmul": ("gemm", "cutlass", "nvjet", "xmma"),
    "attention": ("flash", "fmha", "cudnn_generated", "sdpa"),
    "norm": ("layer_norm", "LayerNorm", "GammaBeta"),
    "optimizer": ("multi_tensor", "foreach", "fused_adam"),
    "copy": ("Memcpy", "Memset"),
    "reduce": ("reduce",),
    "elementwise": ("elementwise", "vectorized", "CatArray", "index"),
}


def _config(setting: Setting, size: int, micro: int, augment: dict[str, Any], **parts: Any) -> Config:
    return Config(
        run=RunConfig(device=setting.device.type),  # type: ignore[arg-type]
        batch=BatchConfig(global_size=size, micro_size=micro),
        augment=AugmentConfig(**augment),
        schedule=ScheduleConfig(warmup="0 updates"),
        train=TrainConfig(duration="100000 updates"),
        **{"model": ModelConfig(patch_size=8), **parts},
    )


def host_syncs(setting: Setting) -> Found:
    """Name the lines at which the host waits for the device within updates, the stream included."""
    if not setting.cuda:
        return SKIPPED
    augment = {"flip": 0.5, "mixup": 0.8, "cutmix": 1.0, "erasing": 0.5, "erasing_mode": "pixel"}
    source, found = setting.noise(256, classes=10, side=64), {}
    model = ModelConfig(patch_size=8, width=64, depth=4, heads=2, drop_path=0.1)
    for name in ("adamw", "sgd", "muon", "timm/lamb"):
        config = _config(setting, 128, 32, augment, model=model, optimizer=OptimizerConfig(name=name))
        try:
            with runtime_of(config.run, "bf16") as runtime:
                plan = Plan.from_config(config, 256, 1)
                module = build_model(config.model, classes=10, channels=3, image_size=64, seed=0)
                updater = updater_of(config, plan, runtime, module, ema=0.9)
                stream = stream_of(config, source, plan, runtime, 64, classes=10, drop_path_depth=4)
                for position in range(3):
                    update(updater, stream, plan, position)
                setting.sync()
                torch.cuda.set_sync_debug_mode("warn")
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    for position in range(3, 7):
                        update(updater, stream, plan, position)
                torch.cuda.set_sync_debug_mode("default")
                stream.close()
            places: dict[str, int] = {}
            for each in said:
                if "synchroniz" in str(each.message):
                    place = f"{Path(each.filename).name}:{each.lineno}"
                    places[place] = places.get(place, 0) + 1
            found[name] = {"per_update": sum(places.values()) / 4, "places": places}
        except Exception as error:
            torch.cuda.set_sync_debug_mode("default")
            found[name] = failure(error)
    return found


def data_path(setting: Setting) -> Found:
    """Compare an update fed by the stream (images in memory) with the same update on a batch that stays."""
    count, size, micro = (64, 32, 16) if setting.small else (512, 512, 128)
    config = _config(setting, size, micro, {"flip": 0.5, "mixup": 0.2})
    with runtime_of(config.run, "bf16") as runtime:
        plan = Plan.from_config(config, count, 1)
        updater = updater_of(config, plan, runtime, setting.model(setting.names[0]))
        stream = stream_of(config, setting.noise(count), plan, runtime, setting.side, classes=1000)
        still = [batch_of(setting, micro) for _ in range(size // micro)]
        fixed = setting.seconds(lambda: updater.update(still, plan.micro_batches_per_rank, size), 1.0)
        for position in range(3):
            update(updater, stream, plan, position)
        setting.sync()
        position, waited, began = 3, stream.wait_seconds, time.perf_counter()
        while time.perf_counter() - began < (0.2 if setting.small else 1.5):
            update(updater, stream, plan, position)
            position += 1
        setting.sync()
        seconds = (time.perf_counter() - began) / (position - 3)
        waiting = (stream.wait_seconds - waited) / (position - 3)  # of the device
        stream.close()
    return {
        "fixed_batch_ms": round(1e3 * fixed, 2),
        "fed_ms": round(1e3 * seconds, 2),
        "cost_of_data": round(seconds / fixed - 1, 4),
        "data_wait_fraction": round(waiting / seconds, 4),
        "data_wait_ms_per_update": round(1e3 * waiting, 2),
    }


def profile(setting: Setting) -> Found:
    """Count kernels, copies and launches of an update of ViT-S by kind, the stream included, eager and compiled."""
    if not setting.cuda:
        return SKIPPED
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    source, found = setting.noise(256), {}
    config = _config(setting, 256, 128, {"flip": 0.5, "mixup": 0.2})
    for mode in ("none", "blocks") if setting.left() > 40 else ("none",):
        with runtime_of(config.run, "bf16") as runtime:
            plan, model = Plan.from_config(config, 256, 1), setting.model("vit_small")
            if mode == "blocks":
                compile_blocks(model)
            updater = updater_of(config, plan, runtime, model, ema=0.9999)
            stream = stream_of(config, source, plan, runtime, setting.side, classes=1000)
            for position in range(4):
                update(updater, stream, plan, position)
            setting.sync()
            with profiled(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
                for position in range(4, 6):
                    update(updater, stream, plan, position)
                setting.sync()
            found[mode] = by_kind(recorded.events(), updates=2)
            stream.close()
    return found


def by_kind(events: Any, updates: int) -> Found:
    """Return counts per update, and the share of the device's time by kind of kernel and of the longest kernels."""
    share: dict[str, float] = {}
    names: dict[str, float] = {}
    count = {"kernels": 0, "h2d": 0, "d2h": 0, "launches": 0}
    for event in events:
        if "CUDA" not in str(event.device_type):
            count["launches"] += event.name.startswith(("cudaLaunchKernel", "cuLaunchKernel"))
            continue
        marks = ("Optimizer.", "ProfilerStep", "## ", "vit_dist")
        if getattr(event, "is_user_annotation", False) or event.name.startswith(marks):
            continue
        if "Memcpy" in event.name:
            count["h2d"] += "HtoD" in event.name
            count["d2h"] += "DtoH" in event.name
        elif "Memset" not in event.name:
            count["kernels"] += 1
        kinds = (kind for kind, words in _KINDS.items() if any(word in event.name for word in words))
        kind = next(kinds, "triton" if event.name.startswith("triton") else "other")
        share[kind] = share.get(kind, 0.0) + float(event.device_time)
        names[event.name[:70]] = names.get(event.name[:70], 0.0) + float(event.device_time)
    whole = sum(share.values()) or 1.0
    longest = sorted(names.items(), key=lambda pair: -pair[1])[:8]
    return {
        "per_update": {name: value / updates for name, value in count.items()},
        "device_ms_per_update": round(whole / updates / 1e3, 2),
        "share": {kind: round(each / whole, 3) for kind, each in sorted(share.items(), key=lambda pair: -pair[1])},
        "longest": {name: round(each / whole, 3) for name, each in longest},
    }


def loader(setting: Setting) -> Found:
    """Read JPEG files as the ImageNet recipe does: images/s of all cores, against what the device takes."""
    size, workers = (8, 1) if setting.small else (128, min(16, available_cores()))
    with tempfile.TemporaryDirectory() as folder, runtime_of(RunConfig(device=setting.device.type), "fp32") as runtime:  # type: ignore[arg-type]
        make(Path(folder), 8 if setting.small else 96)
        fields = {"data.root": folder, "data.val_fraction": 0.0, "batch.global_size": size, "batch.micro_size": size}
        fields |= {"schedule.warmup": "0 updates", "train.duration": "4000 updates"}
        config = Config.load("imagenet_vit_s16_90ep", fields)
        subset = read_folder(Path(folder)).splits["train"]
        plan, form = Plan.from_config(config, len(subset), 1), Preprocessing(224, (0.5,) * 3, (0.5,) * 3)
        stream = Stream(subset, plan, form, config.augment, runtime, workers=workers, classes=2)
        try:
            position, done = 0, 0
            for position in range(2 * workers + 1):  # what was read before the clock started
                list(stream.window(position))
            began = time.perf_counter()
            while time.perf_counter() - began < (0.5 if setting.small else 6):
                position += 1
                list(stream.window(position))
                done += size
            rate = done / (time.perf_counter() - began)
        finally:
            stream.close()
    fastest = setting.results.get("blocks", {}).get("vit_small", {})
    takes = fastest.get("images_per_second") if isinstance(fastest, dict) else None
    return {
        "workers": workers,
        "images_per_second": round(rate, 1),
        "per_core": round(rate / workers, 1),
        "vit_small_would_wait": round(max(0.0, 1 - rate / takes), 3) if takes else None,
    }
