"""The launcher's environment, cgroups' CPU quotas and the rule for precision."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from vit_dist.errors import UserError
from vit_dist.runtime import launch
from vit_dist.runtime.devices import available_cores, cgroup_quota, resolve_device, resolve_precision, uses_cuda


def test_precision_auto_is_a_fixed_rule() -> None:
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"


@pytest.mark.parametrize(
    ("cuda", "bf16", "device", "auto"),
    [
        (True, True, "auto", "bf16"),
        (True, True, "cuda", "bf16"),
        (True, False, "auto", "fp32"),
        (True, True, "cpu", "fp32"),
        (False, True, "auto", "fp32"),
        (False, True, "mps", "fp32"),
    ],
)
def test_precision_follows_the_device(
    cuda: bool, bf16: bool, device: str, auto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert uses_cuda(device) == (cuda and device != "cpu")
    assert resolve_precision("auto", device) == auto
    assert resolve_precision("bf16", device) == "bf16"
    if uses_cuda(device):
        assert resolve_precision("fp16", device) == "fp16"
    else:
        with pytest.raises(UserError, match=r"^train.precision: fp16 needs a CUDA GPU: set bf16 or fp32$"):
            resolve_precision("fp16", device)


@pytest.mark.parametrize(
    ("cuda", "launcher", "device", "chosen"),
    [
        (True, None, "auto", "cuda"),
        (True, "False", "auto", "cuda"),
        (True, "True", "auto", "cpu"),
        (True, "true", "cpu", "cpu"),
        (False, None, "auto", "cpu"),
        (True, None, "cuda", "cuda"),
    ],
)
def test_the_launchers_cpu_flag_decides_where_the_config_leaves_it_open(
    cuda: bool, launcher: str | None, device: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    if launcher is None:
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    else:
        monkeypatch.setenv("ACCELERATE_USE_CPU", launcher)
    assert resolve_device(device) == chosen
    assert uses_cuda(device) == (chosen == "cuda")


def test_a_device_that_contradicts_the_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with pytest.raises(
        UserError, match=r"^run.device: cuda, and the launcher was asked for the CPU .*drop one of them$"
    ):
        resolve_device("cuda")


def test_each_process_of_a_host_needs_a_gpu() -> None:
    launch.check_gpus(2, 2)
    message = (
        r"^3 processes were launched on this host, which has {}: launch {} \(--num_processes\), or set run.device cpu$"
    )
    with pytest.raises(UserError, match=message.format("1 GPU", 1)):
        launch.check_gpus(3, 1)
    with pytest.raises(UserError, match=message.format("2 GPUs", 2)):
        launch.check_gpus(3, 2)


def test_ignored_settings_of_the_launcher_are_noted() -> None:
    environ = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    environ["ACCELERATE_DYNAMO_BACKEND"] = "INDUCTOR"
    assert list(launch.ignored_settings(environ, "fp32")) == [
        "the launcher's mixed_precision bf16 is not used: train.precision decides, fp32",
        "the launcher's dynamo_backend inductor is not used: the model is not compiled",
        "the launcher's gradient_accumulation_steps 4 is not used: batch.global_size and micro_size decide",
    ]
    off = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
    assert list(launch.ignored_settings(off, "bf16")) == []
    assert list(launch.ignored_settings({"ACCELERATE_MIXED_PRECISION": "bf16"}, "bf16")) == []


def test_threads_that_are_not_taken_from_the_environment_are_noted() -> None:
    [note] = launch.ignored_threads({"OMP_NUM_THREADS": "3"}, 2)
    assert note == (
        "OMP_NUM_THREADS 3 is not used: run.threads auto takes 2 threads; set run.threads to take another number"
    )
    assert list(launch.ignored_threads({"OMP_NUM_THREADS": "2"}, 2)) == []
    assert list(launch.ignored_threads({}, 2)) == []
    launched = {"OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}  # torchrun's own default
    assert list(launch.ignored_threads(launched, 2)) == []


def test_a_world_other_than_the_launched_one_is_refused() -> None:
    launched = {"ACCELERATE_DYNAMO_BACKEND": "NO", "MASTER_ADDR": "127.0.0.1"}
    with pytest.raises(UserError, match=r"^accelerate launch was asked for several processes"):
        launch.check_launch(launched)
    launch.check_launch({**launched, **WORLD})
    launch.check_launch({"MASTER_ADDR": "a cluster's script exports this"})
    with pytest.raises(UserError, match=r"^the launcher started 2 processes and 1 found each other: see WORLD_SIZE$"):
        launch.check_world({"WORLD_SIZE": "2"}, 1)


WORLD = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environ", "there", "missing"),
    [
        ({"RANK": "1"}, "RANK", "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({name: value for name, value in WORLD.items() if name != "LOCAL_RANK"}, "RANK, WORLD_SIZE", "LOCAL_RANK"),
        ({"WORLD_SIZE": "4", "MASTER_ADDR": "node0"}, "WORLD_SIZE", "RANK, LOCAL_RANK, MASTER_PORT"),
    ],
)
def test_half_an_environment_is_explained_by_every_process(environ: dict[str, str], there: str, missing: str) -> None:
    assert launch.is_first_process(environ)
    with pytest.raises(UserError) as caught:
        launch.check_launch(environ)
    assert str(caught.value) == (
        f"half of a launcher's environment: {there} without {missing}: start with torchrun or accelerate launch, or, "
        f"for one process, unset {there}"
    )


def test_the_first_process_of_a_whole_world_speaks() -> None:
    launch.check_launch(WORLD)
    assert not launch.is_first_process(WORLD)
    assert launch.is_first_process({**WORLD, "RANK": "0"})
    assert launch.is_first_process({})


def test_one_process_of_each_host_speaks_before_they_know_of_each_other() -> None:
    assert launch.speaks_for_host({**WORLD, "RANK": "4", "LOCAL_RANK": "0"})
    assert not launch.speaks_for_host({**WORLD, "RANK": "5", "LOCAL_RANK": "1"})
    assert launch.speaks_for_host({"LOCAL_RANK": "1"})  # half an environment
    assert launch.speaks_for_host({})


@pytest.mark.parametrize(
    ("variable", "program"),
    [("SLURM_STEP_NUM_TASKS", "srun"), ("OMPI_COMM_WORLD_SIZE", "mpirun"), ("PMI_SIZE", "mpirun")],
)
def test_tasks_that_do_not_know_of_each_other_are_refused(variable: str, program: str) -> None:
    with pytest.raises(
        UserError, match=rf"^{program} started 4 tasks \({variable}\), and none would know of the others: "
    ):
        launch.check_launch({variable: "4"})
    launch.check_launch({variable: "1"})
    launch.check_launch({variable: "4", **WORLD})  # torchrun in each task
    launch.check_launch({"SLURM_NTASKS": "4"})  # a batch script, of which there is one


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism_config"),
    ],
)
def test_what_the_launcher_asks_for_and_we_lack_is_refused(variable: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"^the launcher asks for {name}, which vit_dist does not support: "):
        launch.check_launch({**WORLD, variable: "true"})
    launch.check_launch({**WORLD, variable: "false"})


def test_cores_are_limited_by_the_cgroups_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("350000\n")
    assert cgroup_quota(tmp_path) == 3.5
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cgroup_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cgroup_quota(tmp_path) is None
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
