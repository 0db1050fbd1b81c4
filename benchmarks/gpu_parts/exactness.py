"""The same numbers as on the CPU: augmented pixels, the exact update, skipped updates, a run stopped and resumed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpu_parts.setting import Found, Setting, runtime_of, stream_of, updater_of
from vit_dist.config.config import Config
from vit_dist.config.fields import (
    AugmentConfig,
    BatchConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from vit_dist.config.optimizer_fields import OptimizerConfig
from vit_dist.data.batch import Batch
from vit_dist.data.sources.source import MemorySource
from vit_dist.models.build import build_model
from vit_dist.plan.plan import Plan
from vit_dist.training.losses import Loss
from vit_dist.training.update import Updater

_CASES: dict[str, tuple[dict[str, Any], int]] = {
    "normalise": ({}, 32),
    "resize 32 to 48": ({}, 48),
    "flip": ({"flip": 0.5}, 32),
    "shift": ({"shift": 4}, 32),
    "affine": ({"rotate": 15, "translate": 0.1, "scale": 0.1, "flip": 0.5}, 32),
    "mixup": ({"mixup": 0.8}, 32),
    "cutmix": ({"cutmix": 1.0}, 32),
    "erase const": ({"erasing": 0.5}, 32),
    "erase rand": ({"erasing": 0.5, "erasing_mode": "rand"}, 32),
    "erase pixel": ({"erasing": 0.5, "erasing_mode": "pixel"}, 32),
    "imagenet (flip, mixup, cutmix, erase)": ({"flip": 0.5, "mixup": 0.8, "cutmix": 1.0, "erasing": 0.25}, 32),
}


def augmentation(setting: Setting) -> Found:
    """Compare the same micro-batch made by the CPU and by the device."""
    source = setting.noise(64, classes=10, side=32)
    return {name: _one_case(setting, source, *case) for name, case in _CASES.items()}


def _one_case(setting: Setting, source: MemorySource, augment: dict[str, Any], side: int) -> str | Found:
    config = Config(
        batch=BatchConfig(global_size=32, micro_size=32),
        augment=AugmentConfig(**augment),
        model=ModelConfig(patch_size=4),
        schedule=ScheduleConfig(warmup="0 updates"),
    )
    made: list[Batch] = []
    for device in ("cpu", setting.device.type):
        with runtime_of(RunConfig(device=device), "fp32") as runtime:  # type: ignore[arg-type]
            plan = Plan.from_config(config, 64, 1)
            stream = stream_of(config, source, plan, runtime, side, classes=10, drop_path_depth=12)
            made.append(next(stream.window(1)))
            setting.sync()
            stream.close()
    here, there = made
    names = ("images", "targets", "drop_path", "weights")
    differ = [name for name in names if not torch.equal(getattr(here, name), getattr(there, name).cpu())]
    if not differ:
        return "bit-equal"
    gap = (here.images - there.images.cpu()).abs()
    return {"max": float(gap.max()), "differ": round(float((gap > 0).float().mean()), 5), "not_equal": differ}


def _config(micro_size: int, device: str, optimizer: dict[str, Any] | None = None) -> Config:
    return Config(
        run=RunConfig(device=device, threads=1),  # type: ignore[arg-type]
        batch=BatchConfig(global_size=21, micro_size=micro_size),
        augment=AugmentConfig(shift=1, flip=0.5),
        model=ModelConfig(patch_size=4, width=16, depth=3, heads=2, drop_path=0.5),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(**(optimizer or {})),
        schedule=ScheduleConfig(warmup="2 updates"),
        train=TrainConfig(duration="60 updates"),
    )


def _source() -> MemorySource:
    draw = np.random.default_rng(0)
    return MemorySource(draw.integers(0, 256, (30, 1, 12, 12), dtype=np.uint8), draw.integers(0, 5, 30))


def exact_update(setting: Setting) -> Found:
    """Compare gradients of one global batch in float64, split four ways, on the device and on the CPU."""
    gradients: dict[str, Tensor] = {}
    for device in dict.fromkeys(["cpu", setting.device.type]):
        for micro_size in (2, 4, 8, 32):
            config = _config(micro_size, device)
            with runtime_of(config.run, "fp32") as runtime:
                plan = Plan.from_config(config, 30, 1)
                module = build_model(config.model, classes=5, channels=1, image_size=12, seed=0).double()
                updater = updater_of(config, plan, runtime, module)
                stream = stream_of(config, _source(), plan, runtime, 12, drop_path_depth=3)
                window = [dataclasses.replace(batch, images=batch.images.double()) for batch in stream.window(1)]
                updater.accumulate(window, plan.micro_batches_per_rank, plan.weight(1))
                parts = [p.grad.flatten().cpu() for p in module.parameters() if p.grad is not None]
                gradients[f"{device} {micro_size}"] = torch.cat(parts)
                stream.close()
    reference = gradients["cpu 32"]
    gaps = {name: float((each - reference).norm() / reference.norm()) for name, each in gradients.items()}
    return {"largest_relative_gap": max(gaps.values()), "holds_1e-12": max(gaps.values()) < 1e-12, "gaps": gaps}


def skipped_updates(setting: Setting) -> Found:
    """Make four updates, the gradient of the second not finite: nothing may move in it, and the scaler must halve."""
    precisions = ("fp16", "bf16", "fp32") if setting.cuda else ("fp32",)
    return {
        f"{precision} {name}": _four_updates(setting, precision, name)
        for precision in precisions
        for name in ("adamw", "sgd", "muon")
    }


def _four_updates(setting: Setting, precision: str, optimizer: str) -> str | Found:
    config = _config(8, setting.device.type, {"name": optimizer, "lr": 1e-3})
    with runtime_of(config.run, precision) as runtime:
        plan, scaler = Plan.from_config(config, 30, 1), runtime.scaler
        if scaler is not None:
            scaler._init_scale = 1024.0  # so that nothing overflows that is not made to
        module = build_model(config.model, classes=5, channels=1, image_size=12, seed=0)
        inner, factor = Loss(config.loss), [1.0]
        updater = updater_of(
            config, plan, runtime, module, loss=lambda outputs, batch: inner(outputs, batch) * factor[0], ema=0.9
        )
        stream = stream_of(config, _source(), plan, runtime, 12, drop_path_depth=3)
        moved, scales = [], []
        for position in range(4):
            factor[0] = float("inf") if position == 1 else 1.0
            before = _tensors(updater, module)
            updater.update(stream.window(position), plan.micro_batches_per_rank, plan.weight(position))
            after = _tensors(updater, module)
            same = len(before) == len(after) and all(map(torch.equal, before, after))
            moved.append(not same)
            scales.append(scaler.get_scale() if scaler else None)
        updater.finish_previous()
        stream.close()
        state, finite = updater.state, all(bool(each.isfinite().all()) for each in _tensors(updater, module))
    right = moved == [True, False, True, True] and (state.applied_updates, state.skipped_updates) == (3, 1)
    if right and finite and (scales[0] is None or scales[1] < scales[0]):
        return "ok"
    return {"moved": moved, "applied": state.applied_updates, "scales": scales, "finite": finite}


def _tensors(updater: Updater, module: nn.Module) -> list[Tensor]:
    """Return copies of weights, moments and average."""
    assert updater.average is not None
    moments = [each for slot in updater.optimizer.state.values() for each in slot.values() if isinstance(each, Tensor)]
    return [each.detach().cpu().clone() for each in (*module.parameters(), *moments, *updater.average._average)]


def resume(setting: Setting) -> Found:
    """Stop a run of digits in bf16 in the middle and resume it, in a process of its own: the same bytes?"""
    command = [sys.executable, str(Path(__file__).with_name("resume_child.py")), setting.device.type]
    command.append("60" if setting.small else "240")
    limit = max(10.0, min(150.0, setting.left() - 5))
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-6:]}
    found: Found = json.loads(done.stdout.strip().splitlines()[-1])
    return found
