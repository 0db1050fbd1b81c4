# ruff: noqa: B023  (each function runs before its loop goes on)
"""Check and time vit_dist on one GPU, part by part, in a few minutes; print one JSON line at the end.

    python benchmarks/gpu.py [--budget SECONDS] [--out FILE] [--only NAME,NAME] [--skip NAME] [--device cpu] [--small]

Run it in the root of the repository. Parts: augmentation, exact updates, skipped updates and resuming, on the GPU
against the CPU; updates per second of ViT-S, B and L, eager and compiled; where the host waits for the device; what
the data path costs; a profile by kind of kernel. A part that fails leaves its error in the JSON, and the rest goes on.
When the budget is spent, what there is so far is printed. `matmul_fraction` is of a product of two random
8192-square bf16 matrices that ran for half a second. docs/log.md and benchmarks/results/ keep what was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from pathlib import Path
from typing import Any

START = time.perf_counter()
RESULTS: dict[str, Any] = {}
TAKEN: dict[str, float] = {}
ARGS = argparse.Namespace()


def left() -> float:
    return ARGS.budget - (time.perf_counter() - START)


def finish(code: int = 0) -> None:
    RESULTS["seconds"] = {
        **{k: round(v, 1) for k, v in list(TAKEN.items())},
        "all": round(time.perf_counter() - START, 1),
    }
    text = "{}"
    for _ in range(5):  # the main thread may be adding to it
        with contextlib.suppress(RuntimeError):
            text = json.dumps(RESULTS, default=str)
            break
    if ARGS.out:
        Path(ARGS.out).write_text(text + "\n", encoding="utf-8")
    sys.stdout.flush()
    print(text, flush=True)
    os._exit(code)


def watch() -> None:
    while left() > 0:
        time.sleep(0.5)
    RESULTS["cut_off"] = f"budget of {ARGS.budget} s spent"
    finish()


def part(name: str, needs: float = 5.0):  # type: ignore[no-untyped-def]
    """Runs a function of that name now, unless it is not wanted or no time is left for it."""

    def run(function):  # type: ignore[no-untyped-def]
        if (ARGS.only and name not in ARGS.only) or name in ARGS.skip:
            return function
        if left() < needs:
            RESULTS[name] = {"skipped": f"{left():.0f} s left"}
            return function
        began = time.perf_counter()
        try:
            RESULTS[name] = function()
        except BaseException as error:
            lines = traceback.format_exc().strip().splitlines()
            RESULTS[name] = {
                "error": f"{type(error).__name__}: {str(error)[:300]}",
                "at": [x.strip() for x in lines[-7:-1]],
            }
        TAKEN[name] = time.perf_counter() - began
        print(
            f"[{time.perf_counter() - START:5.0f} s] {name}: {json.dumps(RESULTS[name], default=str)[:260]}",
            file=sys.stderr,
            flush=True,
        )
        return function

    return run


def parse() -> None:
    global ARGS
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=float, default=450)
    parser.add_argument("--out", default=str(Path(os.environ["OUT"]) / "gpu.json") if os.environ.get("OUT") else "")
    parser.add_argument("--only", type=lambda t: set(filter(None, t.split(","))), default=set())
    parser.add_argument("--skip", type=lambda t: set(filter(None, t.split(","))), default=set())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true", help="tiny models: to try this script on a CPU")
    parser.add_argument("--repo", default=os.getcwd())
    parser.add_argument("--child", default="")
    ARGS = parser.parse_args()


parse()
sys.path.insert(0, ARGS.repo)
os.environ.setdefault("WANDB_MODE", "disabled")
if not ARGS.child:
    threading.Thread(target=watch, daemon=True).start()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

CUDA = ARGS.device != "cpu" and torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
SMALL = ARGS.small

from vit_dist.checkpointing.state import TrainState  # noqa: E402
from vit_dist.config.config import Config  # noqa: E402
from vit_dist.config.fields import (  # noqa: E402
    AugmentConfig,
    BatchConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from vit_dist.config.optimizer_fields import OptimizerConfig  # noqa: E402
from vit_dist.data.batch import Batch  # noqa: E402
from vit_dist.data.preprocessing import Preprocessing  # noqa: E402
from vit_dist.data.sources.source import MemorySource  # noqa: E402
from vit_dist.data.sources.splits import all_of  # noqa: E402
from vit_dist.data.stream import Stream  # noqa: E402
from vit_dist.models.build import build_model  # noqa: E402
from vit_dist.models.forward import forward_flops  # noqa: E402
from vit_dist.models.vit import PRESETS, ViT  # noqa: E402
from vit_dist.optim.ema import EMA  # noqa: E402
from vit_dist.optim.optimizers import build_optimizer  # noqa: E402
from vit_dist.optim.schedules import Schedule  # noqa: E402
from vit_dist.plan.plan import Plan  # noqa: E402
from vit_dist.runtime.runtime import Runtime  # noqa: E402
from vit_dist.training.losses import Loss  # noqa: E402
from vit_dist.training.update import Updater  # noqa: E402


def sync() -> None:
    if CUDA:
        torch.cuda.synchronize()


def device_seconds(function: Any, least: float = 0.2, warm: int = 3) -> float:
    """Seconds of one call, by the device's clock, over at least `least` seconds."""
    for _ in range(warm):
        function()
    sync()
    began = time.perf_counter()
    function()
    sync()
    # So many calls, fixed beforehand: the host runs ahead of the device, and its clock would let it issue for minutes.
    count = max(2, min(20_000, int(least / max(time.perf_counter() - began, 1e-6))))
    began = time.perf_counter()
    if CUDA:
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
    for _ in range(count):
        function()
    if CUDA:
        last.record()
        sync()
        return first.elapsed_time(last) / 1e3 / count
    return (time.perf_counter() - began) / count


class Host:
    """As much of a Runtime as a Stream wants, on a device of one's choice."""

    rank, world_size, cores = 0, 1, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flags = types.SimpleNamespace(stop=False)

    def to_device(self, tensor: Tensor) -> Tensor:
        return Runtime.to_device(self, tensor)  # type: ignore[arg-type]


# ---------------------------------------------------------------- what a child process does: a stop and a resume


def child_resume() -> None:
    """Digits in bf16, whole and stopped in the middle; prints whether what both leave is the same."""
    from vit_dist import train

    folder = Path(tempfile.mkdtemp())
    sys.path.insert(0, str(folder))
    (folder / "smoke_loss.py").write_text(
        "import os, signal\nfrom torch.nn import functional as F\nSTOP, SEEN = [0], [0]\n"
        "def loss(outputs, targets):\n    SEEN[0] += 1\n"
        "    if SEEN[0] == STOP[0]:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return F.cross_entropy(outputs, targets, reduction='none', label_smoothing=0.1)\n"
    )
    import smoke_loss  # type: ignore[import-not-found]

    deterministic = ARGS.child.endswith("deterministic")
    updates = 60 if SMALL else 240

    def run(name: str) -> Any:
        return train(
            Config.load(
                "digits",
                {
                    "run.dir": str(folder / name),
                    "run.deterministic": deterministic,
                    "run.device": "cuda" if CUDA else "cpu",
                    "train.precision": "bf16",
                    "train.duration": f"{updates} updates",
                    "train.ema": 0.99,
                    "loss.name": "smoke_loss:loss",
                    "loss.label_smoothing": 0.0,
                    "evaluate.every": "100 updates",
                    "log.every": "20 updates",
                    "log.report": False,
                    "log.level": "warning",
                    "log.trackers": "none",
                    "checkpoint.every": "1000 updates",
                },
            )
        )

    def digest(name: str) -> dict[str, str]:
        last = folder / name / "checkpoints" / f"update_{updates:08d}"
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest()[:12] for f in sorted(last.glob("*.safetensors"))}

    began = time.perf_counter()
    first = run("whole")
    seconds = time.perf_counter() - began
    smoke_loss.SEEN[0], smoke_loss.STOP[0] = 0, updates // 2 + 3
    stopped = run("parts").stopped
    smoke_loss.STOP[0] = 0
    second = run("parts")
    again = run("again")
    lines = [x for x in first.history if x["kind"] == "train"]
    print(
        json.dumps(
            {
                "stopped_in_the_middle": stopped,
                "finished": not second.stopped,
                "resume_bit_identical": digest("whole") == digest("parts"),
                "two_whole_runs_bit_identical": digest("whole") == digest("again"),
                "test_top1": first.summary["test"]["top1"],
                "again_top1": again.summary["test"]["top1"],
                "update_ms": round(1e3 * statistics.median(x["update_seconds"] for x in lines[2:]), 2),
                "data_wait_fraction": round(statistics.median(x["data_wait_fraction"] for x in lines[2:]), 3),
                "seconds_of_one_run": round(seconds, 1),
                "deterministic": deterministic,
            }
        )
    )


if ARGS.child:
    child_resume()
    sys.exit(0)


# ---------------------------------------------------------------- the machine


@part("machine")
def machine() -> Any:
    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
    }
    for name in ("accelerate", "timm", "torchvision", "triton", "torchao"):
        with contextlib.suppress(Exception):
            from importlib.metadata import version

            found[name] = version(name)
    with contextlib.suppress(Exception):
        stat = os.statvfs("/dev/shm")
        found["shm_gb"] = round(stat.f_bavail * stat.f_frsize / 1e9, 1)
    if CUDA:
        p = torch.cuda.get_device_properties(0)
        found |= {
            "device": p.name,
            "sms": p.multi_processor_count,
            "gb": round(p.total_memory / 2**30, 1),
            "capability": torch.cuda.get_device_capability(),
            "cudnn": torch.backends.cudnn.version(),
        }
        with contextlib.suppress(Exception):
            from torch.nn.attention import list_flash_attention_impls

            found["flash_impls"] = list_flash_attention_impls()
    return found


@part("rates")
def rates() -> Any:
    """Measure what the device can do at most: a matrix product, a copy, a transfer from the host."""
    size = 8192 if CUDA else 512
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    found = {"bf16_matmul_tflops": round(2 * size**3 / device_seconds(lambda: torch.mm(a, b), 0.5, 20) / 1e12, 1)}
    if CUDA:
        x = torch.empty(2**29, device=DEVICE, dtype=torch.float16)
        y = torch.empty_like(x)
        found["copy_tb_s"] = round(2 * 2**30 / device_seconds(lambda: y.copy_(x)) / 1e12, 2)
        host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
        there = torch.empty(2**28, dtype=torch.uint8, device=DEVICE)
        found["h2d_gb_s"] = round(2**28 / device_seconds(lambda: there.copy_(host, non_blocking=True)) / 1e9, 1)
        small = torch.zeros(64)
        began = time.perf_counter()
        for _ in range(500):
            small.pin_memory().to(DEVICE, non_blocking=True)
        found["pin_and_copy_small_us"] = round((time.perf_counter() - began) / 500 * 1e6, 1)
        for k in (384, 768, 1024):  # the products of ViT-S, B, L at 128 images
            m = 128 * 197
            u, w = (
                torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16),
                torch.randn(4 * k, k, device=DEVICE, dtype=torch.bfloat16),
            )
            found[f"fc1_width{k}_tflops"] = round(
                2 * m * k * 4 * k / device_seconds(lambda: F.linear(u, w), 0.1) / 1e12
            )
            with contextlib.suppress(Exception):  # what fp8 could give at most: the product alone, casts not counted
                one = torch.ones((), device=DEVICE)
                a8, b8 = u.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
                found[f"fc1_width{k}_fp8_tflops"] = round(
                    2
                    * m
                    * k
                    * 4
                    * k
                    / device_seconds(
                        lambda: torch._scaled_mm(
                            a8, b8.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
                        ),
                        0.1,
                    )
                    / 1e12
                )
        # What the project itself takes for the denominator.
        from vit_dist.telemetry.peak_flops import matmul_flops

        began = time.perf_counter()
        holder = types.SimpleNamespace(device=DEVICE, precision="bf16", synchronize=sync)
        found["project_matmul_tflops"] = round(matmul_flops(holder) / 1e12, 1)  # type: ignore[arg-type]
        found["project_matmul_seconds"] = round(time.perf_counter() - began, 2)
        del x, y, host, there
        torch.cuda.empty_cache()
    return found


# ---------------------------------------------------------------- exactness


@part("augmentation", 20)
def augmentation() -> Any:
    """The same micro-batch made by the CPU and by the device."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
    source = MemorySource(pixels, generator.integers(0, 10, 64))
    cases: dict[str, tuple[dict[str, Any], int]] = {
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
    found = {}
    for name, (values, side) in cases.items():
        config = Config(
            batch=BatchConfig(global_size=32, micro_size=32),
            augment=AugmentConfig(**values),
            model=ModelConfig(patch_size=4),
            schedule=ScheduleConfig(warmup="0 updates"),
        )
        plan = Plan.from_config(config, 64, 1)
        form = Preprocessing(side, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        here, there = (
            next(
                Stream(
                    all_of(source), plan, form, config.augment, Host(d), workers=0, classes=10, drop_path_depth=12
                ).window(1)
            )  # type: ignore[arg-type]
            for d in (torch.device("cpu"), DEVICE)
        )
        same = {
            n: torch.equal(getattr(here, n), getattr(there, n).cpu())
            for n in ("images", "targets", "drop_path", "weights")
        }
        gap = (here.images - there.images.cpu()).abs()
        found[name] = (
            "bit-equal"
            if all(same.values())
            else {
                "max": float(gap.max()),
                "differ": round(float((gap > 0).float().mean()), 5),
                "not_equal": [n for n, s in same.items() if not s],
            }
        )
    return found


def exact_pieces(micro_size: int, device: str, optimizer: dict[str, Any] | None = None) -> tuple[Config, MemorySource]:
    generator = np.random.default_rng(0)
    source = MemorySource(generator.integers(0, 256, (30, 1, 12, 12), dtype=np.uint8), generator.integers(0, 5, 30))
    config = Config(
        run=RunConfig(device=device, threads=1),
        batch=BatchConfig(global_size=21, micro_size=micro_size),  # type: ignore[arg-type]
        model=ModelConfig(patch_size=4, width=16, depth=3, heads=2, drop_path=0.5),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(**(optimizer or {})),
        schedule=ScheduleConfig(warmup="2 updates"),
        train=TrainConfig(duration="60 updates"),
    )
    return config, source


def updater_of(
    config: Config, plan: Plan, runtime: Runtime, module: nn.Module, loss: Any = None, ema: float = 0.9
) -> Updater:
    prepared = runtime.prepare(module)
    optimizer = build_optimizer(config.optimizer, module, config.optimizer.lr)
    schedule = Schedule(config.schedule, optimizer, plan, config.optimizer.lr)
    return Updater(
        prepared,
        loss or Loss(config.loss),
        optimizer,
        schedule,
        TrainState(),
        runtime,
        clip_norm=config.optimizer.clip_norm,
        average=EMA(module, ema) if ema else None,
    )


@part("exact_update_float64", 10)
def exact_update() -> Any:
    """Gradients of one global batch, split four ways, on the device and on the CPU."""
    gradients: dict[str, Tensor] = {}
    for device in dict.fromkeys(["cpu", DEVICE.type]):
        for micro_size in (2, 4, 8, 32):
            config, source = exact_pieces(micro_size, device)
            runtime = Runtime(config.run, "fp32")
            plan = Plan.from_config(config, 30, 1)
            module = build_model(config.model, classes=5, channels=1, image_size=12, seed=0).double()
            one = updater_of(config, plan, runtime, module)
            stream = Stream(
                all_of(source),
                plan,
                Preprocessing(12, (0.5,), (0.25,)),
                AugmentConfig(shift=1, flip=0.5),
                runtime,
                workers=0,
                drop_path_depth=3,
            )
            import dataclasses

            window = [dataclasses.replace(b, images=b.images.double()) for b in stream.window(1)]
            one.accumulate(window, plan.micro_batches_per_rank, plan.weight(1))
            gradients[f"{device} {micro_size}"] = torch.cat([p.grad.flatten().cpu() for p in module.parameters()])
            runtime.end()
    reference = gradients["cpu 32"]
    gaps = {n: float((g - reference).norm() / reference.norm()) for n, g in gradients.items()}
    return {"largest_relative_gap": max(gaps.values()), "holds_1e-12": max(gaps.values()) < 1e-12, "gaps": gaps}


@part("skipped_updates", 10)
def skipped_updates() -> Any:
    """Four updates, the gradient of the second not finite: nothing may move in it, and the scaler must halve."""
    found = {}
    for precision in ("fp16", "bf16", "fp32") if CUDA else ("fp32",):
        for name in ("adamw", "sgd", "muon"):
            config, source = exact_pieces(8, DEVICE.type, {"name": name, "lr": 1e-3})
            runtime = Runtime(config.run, precision)
            plan = Plan.from_config(config, 30, 1)
            if runtime.scaler is not None:
                runtime.scaler._init_scale = 1024.0  # so that nothing overflows that is not made to
            module = build_model(config.model, classes=5, channels=1, image_size=12, seed=0)
            factor = [1.0]
            inner = Loss(config.loss)
            one = updater_of(config, plan, runtime, module, lambda outputs, batch: inner(outputs, batch) * factor[0])
            stream = Stream(
                all_of(source),
                plan,
                Preprocessing(12, (0.5,), (0.25,)),
                AugmentConfig(),
                runtime,
                workers=0,
                drop_path_depth=3,
            )

            def state() -> list[Tensor]:
                slots = [v for s in one.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
                assert one.average is not None
                return [t.detach().cpu().clone() for t in (*module.parameters(), *slots, *one.average._average)]

            moved, scales = [], []
            for position in range(4):
                factor[0] = float("inf") if position == 1 else 1.0
                before = state()
                one.update(stream.window(position), plan.micro_batches_per_rank, plan.weight(position))
                after = state()
                moved.append(
                    len(before) != len(after) or any(not torch.equal(a, b) for a, b in zip(before, after, strict=False))
                )
                scales.append(runtime.scaler.get_scale() if runtime.scaler else None)
            one.finish_previous()
            good = moved == [True, False, True, True] and (one.state.applied_updates, one.state.skipped_updates) == (
                3,
                1,
            )
            finite = all(bool(t.isfinite().all()) for t in state())
            found[f"{precision} {name}"] = (
                "ok"
                if good and finite and (scales[0] is None or scales[1] < scales[0])
                else {
                    "moved": moved,
                    "applied": one.state.applied_updates,
                    "skipped": one.state.skipped_updates,
                    "scales": scales,
                    "finite": finite,
                }
            )
            runtime.end()
    return found


def run_child(kind: str) -> Any:
    command = [
        sys.executable,
        __file__,
        "--child",
        kind,
        "--repo",
        ARGS.repo,
        "--device",
        "cuda" if CUDA else "cpu",
        "--budget",
        "999",
    ]
    done = subprocess.run(
        command + (["--small"] if SMALL else []),
        capture_output=True,
        text=True,
        timeout=max(10.0, min(150.0, left() - 5)),
    )
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-6:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


@part("resume_deterministic", 40)
def resume_deterministic() -> Any:
    return run_child("resume deterministic")


# ---------------------------------------------------------------- speed


def flops_of(model: nn.Module, side: int) -> float:
    """Return the FLOPs of one image's forward pass, attention included."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        return float(forward_flops(model, channels=3, image_size=side))


SIDE = 32 if SMALL else 224
NAMES = ["vit_tiny"] if SMALL else ["vit_small", "vit_base", "vit_large"]


def made(name: str, **more: Any) -> ViT:
    sizes = {"width": 48, "depth": 2, "heads": 3} if SMALL else PRESETS[name]
    with torch.device(DEVICE):
        return ViT(image_size=SIDE, patch_size=8 if SMALL else 16, channels=3, classes=1000, **sizes, **more)


@part("flops")
def flops() -> Any:
    """forward_flops as the project calls it (model on the CPU) against the count with attention."""
    found = {}
    for name in NAMES[:2]:
        model = made(name)
        true, here = flops_of(model, SIDE), float(forward_flops(model, channels=3, image_size=SIDE))
        cpu = float(forward_flops(model.cpu(), channels=3, image_size=SIDE))
        found[name] = {
            "gflops": round(true / 1e9, 2),
            "project_on_cpu": round(cpu / true, 4),
            "project_on_device": round(here / true, 4),
        }
    return found


def batch_of(size: int, mixed: bool = True, depth: int = 0) -> Batch:
    images = torch.randn(size, 3, SIDE, SIDE, device=DEVICE)
    targets = torch.randint(0, 1000, (size,), device=DEVICE)
    share = F.one_hot(targets, 1000).float() if mixed else targets
    drops = torch.rand(size, depth, 2, device=DEVICE) if depth else None
    return Batch(images, share, torch.ones(size, device=DEVICE), torch.arange(size), drops, 1)


def train_rate(
    name: str, size: int, mode: str = "none", *, least: float = 1.5, tweak: Any = None, ema: float = 0.0, **more: Any
) -> dict[str, Any]:
    """Images/s of whole updates (forward, backward, clip, AdamW) of one micro-batch that stays on the device."""
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    runtime = Runtime(RunConfig(device=DEVICE.type), "bf16")  # type: ignore[arg-type]
    try:
        model = made(name, **more)
        per_image = flops_of(model, SIDE)
        if tweak:
            tweak(model)
        if mode == "blocks":
            for block in model.blocks:
                block.compile(dynamic=False)
        elif mode != "none":
            model.compile(dynamic=False, mode=None if mode == "model" else mode)
        config = Config(model=ModelConfig(patch_size=8))
        prepared = runtime.prepare(model)
        prepared.train()
        optimizer = build_optimizer(OptimizerConfig(), model, 1e-3)
        schedule: Any = types.SimpleNamespace(step=lambda: None, rate=0.0)
        one = Updater(
            prepared,
            Loss(config.loss),
            optimizer,
            schedule,
            TrainState(),
            runtime,
            clip_norm=1.0,
            average=EMA(model, ema) if ema else None,
        )
        batch = batch_of(size, depth=len(model.blocks) if more.get("drop_path") else 0)
        began = time.perf_counter()
        one.update([batch], 1, size)
        one.finish_previous()
        sync()
        first = time.perf_counter() - began
        seconds = device_seconds(lambda: one.update([batch], 1, size), least)
        rate = size / seconds
        loss = one.take_sums()
        matmul = RESULTS.get("rates", {}).get("bf16_matmul_tflops")
        found = {
            "images_per_second": round(rate, 1),
            "ms": round(1e3 * seconds, 2),
            "first_update_s": round(first, 1),
            "tflops": round(3 * per_image * rate / 1e12, 1),
            "finite": bool(np.isfinite(loss[0])),
        }
        if CUDA:
            found["mfu_989"] = round(3 * per_image * rate / 989e12, 4)
            found["peak_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
            if matmul:
                found["matmul_fraction"] = round(3 * per_image * rate / matmul / 1e12, 4)
        if mode != "none":
            counters = dynamo.utils.counters
            found["graphs"] = counters["stats"].get("unique_graphs")
            found["breaks"] = sum(counters["graph_break"].values())
        return found
    finally:
        runtime.end()


BIG = {"vit_small": 256, "vit_base": 256, "vit_large": 128, "vit_tiny": 8}


@part("eager", 30)
def eager() -> Any:
    found: dict[str, Any] = {}
    for name in NAMES:
        found[name] = train_rate(name, BIG[name])
    if not SMALL:
        for size in (128, 512):
            found[f"vit_small {size}"] = train_rate("vit_small", size, least=0.8)
        found["vit_small ema"] = train_rate("vit_small", 256, ema=0.9999, least=0.8)
        found["vit_small drop_path 0.1"] = train_rate("vit_small", 256, drop_path=0.1, least=0.8)
    return found


@part("blocks", 60)
def blocks() -> Any:
    found: dict[str, Any] = {}
    for name in NAMES:
        if left() < 45:
            found[name] = "no time"
            continue
        found[name] = train_rate(name, BIG[name], "blocks")
    return found


@part("host_syncs", 10)
def host_syncs() -> Any:
    """Places where the host waits for the device within updates, the stream and its augmentation included."""
    if not CUDA:
        return {"skipped": "no GPU"}
    found: dict[str, Any] = {}
    generator = np.random.default_rng(0)
    source = MemorySource(generator.integers(0, 256, (256, 3, 64, 64), dtype=np.uint8), generator.integers(0, 10, 256))
    augment = {"flip": 0.5, "mixup": 0.8, "cutmix": 1.0, "erasing": 0.5, "erasing_mode": "pixel"}
    for name in ("adamw", "sgd", "muon", "timm/lamb"):
        config = Config(
            run=RunConfig(device="cuda"),
            batch=BatchConfig(global_size=128, micro_size=32),
            augment=AugmentConfig(**augment),
            model=ModelConfig(patch_size=8, width=64, depth=4, heads=2, drop_path=0.1),
            optimizer=OptimizerConfig(name=name),
            schedule=ScheduleConfig(warmup="0 updates"),
            train=TrainConfig(duration="100 updates"),
        )
        runtime = Runtime(config.run, "bf16")
        try:
            plan = Plan.from_config(config, 256, 1)
            module = build_model(config.model, classes=10, channels=3, image_size=64, seed=0)
            one = updater_of(config, plan, runtime, module)
            stream = Stream(
                all_of(source),
                plan,
                Preprocessing(64, (0.5,) * 3, (0.5,) * 3),
                config.augment,
                runtime,
                workers=0,
                classes=10,
                drop_path_depth=4,
            )
            for position in range(3):
                one.update(stream.window(position), plan.micro_batches_per_rank, plan.weight(position))
            sync()
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                for position in range(3, 7):
                    one.update(stream.window(position), plan.micro_batches_per_rank, plan.weight(position))
            torch.cuda.set_sync_debug_mode("default")
            places: dict[str, int] = {}
            for w in said:
                if "synchroniz" in str(w.message):
                    place = f"{Path(w.filename).name}:{w.lineno}"
                    places[place] = places.get(place, 0) + 1
            found[name] = {"per_update": sum(places.values()) / 4, "places": places}
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error)[:200]}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
            runtime.end()
    return found


@part("data_path", 20)
def data_path() -> Any:
    """The recipe's update fed by the stream (images in memory) against the same update on a batch that stays."""
    generator = np.random.default_rng(0)
    count = 64 if SMALL else 512
    source = MemorySource(
        generator.integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8), generator.integers(0, 1000, count)
    )
    size, micro = (32, 16) if SMALL else (512, 128)
    config = Config(
        run=RunConfig(device=DEVICE.type),
        batch=BatchConfig(global_size=size, micro_size=micro),  # type: ignore[arg-type]
        augment=AugmentConfig(flip=0.5, mixup=0.2),
        model=ModelConfig(patch_size=8),
        schedule=ScheduleConfig(warmup="0 updates"),
        train=TrainConfig(duration="1000 updates"),
    )
    runtime = Runtime(config.run, "bf16")
    try:
        plan = Plan.from_config(config, count, 1)
        model = made(NAMES[0])
        one = updater_of(config, plan, runtime, model, ema=0.0)
        form = Preprocessing(SIDE, (0.5,) * 3, (0.5,) * 3)
        stream = Stream(all_of(source), plan, form, config.augment, runtime, workers=0, classes=1000)
        still = [batch_of(micro) for _ in range(size // micro)]
        fixed = device_seconds(lambda: one.update(still, plan.micro_batches_per_rank, size), 1.0)
        position = [0]

        def fed() -> None:
            one.update(stream.window(position[0]), plan.micro_batches_per_rank, size)
            position[0] += 1

        for _ in range(3):
            fed()
        sync()
        waited, began, start = stream.wait_seconds, time.perf_counter(), position[0]
        while time.perf_counter() - began < 1.5:
            fed()
        sync()
        seconds = (time.perf_counter() - began) / (position[0] - start)
        waiting = (stream.wait_seconds - waited) / (position[0] - start)  # of the device
        found = {
            "fixed_batch_ms": round(1e3 * fixed, 2),
            "fed_ms": round(1e3 * seconds, 2),
            "cost_of_data": round(seconds / fixed - 1, 4),
            "data_wait_fraction": round(waiting / seconds, 4),
            "data_wait_ms_per_update": round(1e3 * waiting, 2),
        }
        if CUDA:
            pixels = torch.from_numpy(source.pixels[:micro]).pin_memory()
            found["h2d_ms_per_micro_batch"] = round(
                1e3 * device_seconds(lambda: pixels.to(DEVICE, non_blocking=True), 0.1), 3
            )
            from vit_dist.data.augmentation.ops import flip, mix, normalise

            there = pixels.to(DEVICE)
            chosen, kept = torch.rand(micro, device=DEVICE) < 0.5, torch.rand(micro // 2, device=DEVICE)
            cut, boxes = (
                torch.zeros(micro // 2, dtype=torch.bool, device=DEVICE),
                torch.zeros(micro // 2, 4, dtype=torch.int64, device=DEVICE),
            )
            mean = torch.full((3,), 0.5, device=DEVICE)
            found["augment_ms_per_micro_batch"] = round(
                1e3
                * device_seconds(lambda: mix(normalise(flip(there, chosen), SIDE, mean, mean), kept, cut, boxes), 0.1),
                3,
            )
        return found
    finally:
        runtime.end()


@part("profile", 15)
def profile() -> Any:
    """Kernels, copies and launches of one eager update of ViT-S by kind, the stream included."""
    if not CUDA:
        return {"skipped": "no GPU"}
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    generator = np.random.default_rng(0)
    source = MemorySource(
        generator.integers(0, 256, (256, 3, SIDE, SIDE), dtype=np.uint8), generator.integers(0, 1000, 256)
    )
    config = Config(
        run=RunConfig(device="cuda"),
        batch=BatchConfig(global_size=256, micro_size=128),
        augment=AugmentConfig(flip=0.5, mixup=0.2),
        model=ModelConfig(patch_size=8),
        schedule=ScheduleConfig(warmup="0 updates"),
        train=TrainConfig(duration="1000 updates"),
    )
    kinds = {
        "matmul": ("gemm", "cutlass", "nvjet", "xmma"),
        "attention": ("flash", "fmha", "cudnn_generated", "sdpa"),
        "norm": ("layer_norm", "LayerNorm", "GammaBeta"),
        "optimizer": ("multi_tensor", "foreach", "fused_adam"),
        "copy": ("Memcpy", "Memset"),
        "reduce": ("reduce",),
        "elementwise": ("elementwise", "vectorized", "CatArray", "index"),
    }
    found: dict[str, Any] = {}
    for mode in ("none", "blocks"):
        if mode == "blocks" and left() < 40:
            break
        runtime = Runtime(config.run, "bf16")
        try:
            plan = Plan.from_config(config, 256, 1)
            model = made(NAMES[0])
            if mode == "blocks":
                for block in model.blocks:
                    block.compile(dynamic=False)
            one = updater_of(config, plan, runtime, model, ema=0.9999)
            stream = Stream(
                all_of(source),
                plan,
                Preprocessing(SIDE, (0.5,) * 3, (0.5,) * 3),
                config.augment,
                runtime,
                workers=0,
                classes=1000,
            )
            for position in range(4):
                one.update(stream.window(position), plan.micro_batches_per_rank, plan.weight(position))
            sync()
            with profiled(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as p:
                for position in range(4, 6):
                    one.update(stream.window(position), plan.micro_batches_per_rank, plan.weight(position))
                sync()
            share: dict[str, float] = {}
            count = {"kernels": 0, "h2d": 0, "d2h": 0, "launches": 0}
            names: dict[str, float] = {}
            for event in p.events():
                if "CUDA" not in str(event.device_type):
                    count["launches"] += event.name.startswith(("cudaLaunchKernel", "cuLaunchKernel"))
                    continue
                if getattr(event, "is_user_annotation", False) or event.name.startswith(
                    ("Optimizer.", "ProfilerStep", "## ")
                ):
                    continue
                micros = float(event.device_time if hasattr(event, "device_time") else event.cuda_time)
                if "Memcpy" in event.name:
                    count["h2d"] += "HtoD" in event.name
                    count["d2h"] += "DtoH" in event.name
                elif "Memset" not in event.name:
                    count["kernels"] += 1
                kind = next(
                    (k for k, words in kinds.items() if any(w in event.name for w in words)),
                    "triton" if event.name.startswith("triton") else "other",
                )
                share[kind] = share.get(kind, 0.0) + micros
                names[event.name[:70]] = names.get(event.name[:70], 0.0) + micros
            whole_time = sum(share.values()) or 1.0
            found[mode] = {
                "per_update": {k: v / 2 for k, v in count.items()},
                "device_ms_per_update": round(whole_time / 2e3, 2),
                "share": {k: round(v / whole_time, 3) for k, v in sorted(share.items(), key=lambda x: -x[1])},
                "longest": {k: round(v / whole_time, 3) for k, v in sorted(names.items(), key=lambda x: -x[1])[:8]},
            }
        finally:
            runtime.end()
    return found


@part("loader", 25)
def loader_rate() -> Any:
    """Files as the recipe reads them: images/s of all cores, against what the device takes."""
    from PIL import Image

    from vit_dist.data.sources.folder import read_folder

    folder = Path(tempfile.mkdtemp())
    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / "train" / label).mkdir(parents=True)
        for i in range(4 if SMALL else 48):
            low = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(low).resize((500, 375), Image.Resampling.BICUBIC).save(
                folder / "train" / label / f"{i}.jpg", quality=95
            )
    size = 16 if SMALL else 128
    config = Config.load(
        "imagenet_vit_s16_90ep",
        {
            "data.root": str(folder),
            "data.val_fraction": 0.0,
            "batch.global_size": size,
            "batch.micro_size": size,
            "schedule.warmup": "0 updates",
            "train.duration": "4000 updates",
        },
    )
    data = read_folder(folder)
    workers = 1 if SMALL else min(16, len(os.sched_getaffinity(0)))
    plan = Plan.from_config(config, len(data.splits["train"]), 1)
    stream = Stream(
        data.splits["train"],
        plan,
        Preprocessing(224, (0.5,) * 3, (0.5,) * 3),
        config.augment,
        Host(DEVICE),
        workers=workers,
        classes=2,
    )  # type: ignore[arg-type]
    try:
        for position in range(1 if SMALL else workers + 2):
            for _ in stream.window(position):
                pass
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < (2 if SMALL else 6):
            position += 1
            for _ in stream.window(position):
                done += size
        rate = done / (time.perf_counter() - began)
    finally:
        stream.close()
    fastest = RESULTS.get("blocks", {}).get("vit_small", {})
    takes = fastest.get("images_per_second") if isinstance(fastest, dict) else None
    return {
        "workers": workers,
        "images_per_second": round(rate, 1),
        "per_core": round(rate / workers, 1),
        "vit_small_would_wait": round(1 - rate / takes, 3) if takes and rate < takes else 0.0 if takes else None,
    }


@part("attention", 10)
def attention() -> Any:
    """One layer's attention, forward and backward, by backend: ms at 256 images of width 768 (12 heads of 64)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: dict[str, Any] = {}
    size = 256 if CUDA else 2
    for tokens in (196, 197, 256):
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            if not CUDA and backend is not SDPBackend.FLASH_ATTENTION:
                continue
            try:
                qkv = torch.randn(size, tokens, 3, 12, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)

                def both() -> None:
                    q, k, v = qkv.permute(2, 0, 3, 1, 4)
                    F.scaled_dot_product_attention(q, k, v).transpose(1, 2).sum().backward()
                    qkv.grad = None

                with sdpa_kernel(backend):
                    found[f"{tokens} {backend.name.split('_')[0].lower()}"] = round(1e3 * device_seconds(both, 0.15), 3)
            except Exception as error:
                found[f"{tokens} {backend.name}"] = f"{type(error).__name__}: {str(error)[:80]}"
    return found


@part("matrix_of_levers", 60)
def levers() -> Any:
    """What else could be gained, each with compiled blocks: a bf16 residual, cuDNN's attention, no class token."""
    if not CUDA:
        return {"skipped": "no GPU"}
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: dict[str, Any] = {}
    name = NAMES[0]

    def narrow(model: ViT) -> None:
        model.pos_drop.register_forward_hook(lambda module, given, out: out.to(torch.bfloat16))

    found["bf16 residual"] = train_rate(name, 256, "blocks", tweak=narrow)
    if left() > 50:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
            found["cudnn attention"] = train_rate(name, 256, "blocks")
    if left() > 50:
        found["mean pool, 196 tokens"] = train_rate(name, 256, "blocks", pool="mean")
    if left() > 50:
        found["drop_path 0.1 (recompiles?)"] = train_rate(name, 256, "blocks", drop_path=0.1)
    return found


@part("model", 80)
def whole_model() -> Any:
    found: dict[str, Any] = {}
    for name in NAMES[:2]:
        if left() < 70:
            break
        found[name] = train_rate(name, BIG[name], "model")
    return found


@part("max_autotune", 170)
def max_autotune() -> Any:
    """Compiled blocks with autotuned matrix products (Triton's against cuBLAS's), without CUDA graphs."""
    if not CUDA:
        return {"skipped": "no GPU"}

    def tuned(model: ViT) -> None:
        for block in model.blocks:
            block.compile(dynamic=False, mode="max-autotune-no-cudagraphs")

    return train_rate(NAMES[0], 256, "none", tweak=tuned)


@part("resume_plain", 40)
def resume_plain() -> Any:
    """The same without run.deterministic: for information."""
    return run_child("resume plain")


finish()
