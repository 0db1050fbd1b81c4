"""The meter against values by hand, the peaks, the clock."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from vit_dist.config.config import Config
from vit_dist.config.fields import BatchConfig, RunConfig, ScheduleConfig, TrainConfig
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.metrics import position_fields
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.clock import Clock
from vit_dist.telemetry.meter import Meter
from vit_dist.telemetry.peak_flops import matmul_flops, peak_flops


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    yield runtime
    runtime.end()


def plan() -> Plan:
    """Return a plan of 50 updates of 4 samples (the last has 2) and 30 samples an epoch."""
    config = Config(
        batch=BatchConfig(global_size=4, micro_size=4),
        schedule=ScheduleConfig(warmup="0 updates"),
        train=TrainConfig(duration="198 samples"),
    )
    return Plan.from_config(config, 30, 1)


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA H200", "fp32", 67e12),
        ("NVIDIA H100 80GB HBM3", "fp16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA GeForce RTX 4090", "fp16", 165e12),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA H2000", "bf16", None),
        ("cpu", "fp32", None),
    ],
)
def test_peak_flops_equal_the_data_sheets(device: str, precision: str, peak: float | None) -> None:
    assert peak_flops(device, precision) == peak


class Watch(Clock):
    """A clock that is set by hand."""

    now = 0.0

    @property
    def seconds(self) -> float:
        return self.now


def test_values_of_a_train_line(runtime: Runtime) -> None:
    watch = Watch()
    meter = Meter(plan(), runtime, watch, flops=1000, matmul=1e6)
    assert meter.peak is None
    watch.now = 100.0
    meter.restart(10, 1.0)
    watch.now = 105.0
    line = meter.line(20, 2.5, (30.0, 10.0, 40.0), lr=0.25, grad_norm=3.0, skipped=2)
    assert line.pop("peak_memory_bytes") > 2**20
    assert line == {
        "loss": 0.75,
        "top1": 25.0,
        "weight": 40.0,
        "lr": 0.25,
        "grad_norm": 3.0,
        "samples_per_second": 8.0,
        "samples_per_second_per_device": 8.0,
        "update_seconds": 0.5,
        "data_wait_fraction": pytest.approx(0.3, rel=1e-15),
        "mfu": None,
        "matmul_fraction": pytest.approx(0.024, rel=1e-15),
        "skipped_updates": 2,
    }
    # The next line counts from this one, and the run's last update is short.
    meter.peak, runtime.world_size, watch.now = 1e5, 2, 108.0
    line = meter.line(50, 2.5, (math.nan, 0.0, 118.0), lr=0.0, grad_norm=math.inf, skipped=0)
    assert (line["loss"], line["grad_norm"]) == ("nan", "inf")
    assert line["samples_per_second"] == pytest.approx(118 / 3, rel=1e-15)
    assert line["samples_per_second_per_device"] == pytest.approx(118 / 6, rel=1e-15)
    assert line["mfu"] == pytest.approx(3 * 1000 * 118 / 6 / 1e5, rel=1e-15)
    assert (line["data_wait_fraction"], line["update_seconds"]) == (0.0, 0.1)
    # Every update since the last line was skipped.
    watch.now = 109.0
    line = meter.line(51, 2.5, (0.0, 0.0, 0.0), lr=0.0, grad_norm=math.nan, skipped=1)
    assert (line["loss"], line["top1"], line["grad_norm"], line["skipped_updates"]) == ("nan", None, "nan", 1)
    assert line["weight"] == 0.0


def test_position_fields() -> None:
    assert position_fields(plan(), 0) == {"update": 0, "epoch": 0.0, "samples": 0}
    assert position_fields(plan(), 15) == {"update": 15, "epoch": 2.0, "samples": 60}
    assert position_fields(plan(), 50) == {"update": 50, "epoch": 6.6, "samples": 198}


def test_the_clock_stands_still_while_paused(runtime: Runtime) -> None:
    clock = Clock(10.0)
    assert clock.seconds == 10.0
    clock.start()
    first = clock.seconds
    assert 10.0 < first < 20.0
    with clock.paused(runtime):
        paused = clock.seconds
        matmul = matmul_flops(runtime)
        assert clock.seconds == paused >= first
    assert clock.seconds > paused
    assert 1e8 < matmul < 1e13
