"""Real launchers with the real script: the world that runs is the one that was asked for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY
from vit_dist.run_folder.metrics import Line, read_metrics
from vit_dist.run_folder.status import status

ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
SHORT = ["--train.duration", "6 updates", "--schedule.warmup", "1 updates", "--evaluate.every", "3 updates"]
SHORT += ["--run.threads", "auto", "--log.report", "false"]


def environment() -> dict[str, str]:
    """Return this process's environment without what a launcher or an earlier run left in it."""
    dropped = ("ACCELERATE_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "OMP_", "KMP_", "TORCHELASTIC", "FSDP_")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}


def launch(command: list[str], folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *SHORT, "--run.dir", str(folder), *more],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start_line(folder: Path) -> Line:
    return next(line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "start")


@pytest.mark.parametrize(
    ("launcher", "world"),
    [
        ([sys.executable, "scripts/train.py"], 1),
        ([sys.executable, "-m", "vit_dist", "train"], 1),
        ([*ACCELERATE, "--cpu", "scripts/train.py"], 1),
        ([*ACCELERATE, "--config_file", "accelerate_configs/cpu.yaml", "scripts/train.py"], 1),
        ([*ACCELERATE, "--config_file", "accelerate_configs/single_gpu.yaml", "scripts/train.py"], 1),
        ([*ACCELERATE, "--config_file", "accelerate_configs/multi_gpu.yaml", "scripts/train.py"], 2),
        ([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "scripts/train.py"], 2),
    ],
    ids=["python", "module", "cpu flag", "cpu.yaml", "single_gpu.yaml", "multi_gpu.yaml", "torchrun"],
)
def test_each_launcher_starts_the_world_it_should(launcher: list[str], world: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if "torch.distributed.run" in launcher:
        launcher = [*launcher[:3], "--master_port", free_port(), *launcher[3:]]
    if "accelerate_configs/multi_gpu.yaml" in launcher:
        launcher = [*launcher[:-1], "--main_process_port", free_port(), launcher[-1]]
    done = launch(launcher, folder)
    gpus = 0 if "--cpu" in launcher or "accelerate_configs/cpu.yaml" in launcher else torch.cuda.device_count()
    if gpus and world > gpus:
        assert done.returncode == 1  # the launcher's own
        assert f"vit-dist: {world} processes were launched on this host, which has {gpus} GPU" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert status(folder)["state"] == "finished"
    start = start_line(folder)
    assert start["world_size"] == world
    cores = len(os.sched_getaffinity(0))
    assert start["threads"] == max(1, cores // world)
    assert done.stdout.count("finished") == 1
    device = f"{torch.cuda.get_device_name()}, bf16" if gpus else "cpu, fp32"
    threads = f"{start['threads']} thread{'s' if start['threads'] > 1 else ''}"
    where = f"{device}, {threads}" if world == 1 else f"{world} × {device}, {threads} each"
    assert f"  on       {where}\n" in done.stdout


def test_two_machines_train_one_run(tmp_path: Path) -> None:
    folder, port = tmp_path / "run", free_port()
    configured = [*ACCELERATE, "--config_file", "accelerate_configs/multi_node.yaml", "--main_process_port", port]
    machines = [
        subprocess.Popen(
            [*configured, "--machine_rank", str(rank), "scripts/train.py", *SHORT, "--run.dir", str(folder)],
            cwd=REPOSITORY,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [machine.communicate(timeout=120)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert start_line(folder)["world_size"] == 2
    assert [output.count("top1") > 0 for output in outputs] == [True, False]


@pytest.mark.parametrize(
    "flags",
    [["--cpu", "--num_processes", "2"], ["--cpu", "--num_machines", "2", "--main_process_ip", "127.0.0.1"]],
    ids=["processes", "machines"],
)
def test_a_launch_that_would_silently_run_one_process_is_refused(flags: list[str], tmp_path: Path) -> None:
    more = ["--machine_rank", "0", "--main_process_port", free_port()] if "--num_machines" in flags else []
    done = launch([*ACCELERATE, *flags, *more, "scripts/train.py"], tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.count("vit-dist: ") == 1
    assert "vit-dist: accelerate launch was asked for several processes or machines and started a single one" in (
        done.stderr
    )
    assert not (tmp_path / "run").exists()


def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = launch([sys.executable, "scripts/train.py"], tmp_path / "run", "--optimizer.name", "adamm", "--lr", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "vit-dist: --lr: here it is --optimizer.lr 1",
        "vit-dist: optimizer.name: no optimizer adamm (did you mean adam?); if timm has it: timm/adamm",
    ]
    done = launch([sys.executable, "scripts/train.py"], tmp_path / "run", "--data.name", "folder")
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "vit-dist: data.root: set the folder of your images\n",
    )
    assert not (tmp_path / "run").exists()


def test_under_a_launcher_only_rank_0_prints_the_error(tmp_path: Path) -> None:
    launcher = [*ACCELERATE, "--config_file", "accelerate_configs/multi_gpu.yaml", "--main_process_port", free_port()]
    done = launch([*launcher, "scripts/train.py"], tmp_path / "run", "--data.name", "folder")
    assert done.returncode == 1
    assert done.stderr.count("vit-dist: data.root: set the folder of your images") == 1


def test_torchrun_shows_the_error_as_the_root_cause(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = launch([*command, "scripts/train.py"], tmp_path / "run", "--data.root", str(tmp_path / "nothing"))
    assert done.returncode == 1
    cause = done.stderr.partition("Root Cause")[2]
    assert f"traceback : data.root: no folder {tmp_path / 'nothing'}" in cause
    assert done.stderr.count("vit-dist: data.root: no folder") == 1


def test_sigterm_saves_and_exits_75(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-u", "scripts/train.py", "--run.dir", str(folder), "--log.every", "1 updates"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("update 5/"):
                run.terminate()
        assert run.wait(60) == 75
    at = status(folder)["update"]
    assert status(folder)["state"] == "stopped"
    assert at >= 5
    assert (folder / "checkpoints" / f"update_{at:08d}" / "manifest.json").is_file()


SCRIPT = """
import os, signal, sys
from vit_dist import Config, train

def crash(line):
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and line["update"] >= 6 and "killed" in sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)

for rate in (1e-3, 3e-3):
    folder = f"{sys.argv[1]}/{rate}"
    values = {"optimizer.lr": rate, "run.dir": folder, "run.device": "cpu", "run.threads": 1, "log.every": "1 updates"}
    values |= {"train.duration": "12 updates", "schedule.warmup": "1 updates", "checkpoint.every": "2 updates"}
    values |= {"batch.micro_size": 16, "log.trackers": "none", "log.report": False, "log.level": "warning"}
    train(Config.load("digits", values), on_update=crash)
"""


@pytest.mark.slow
def test_a_restarted_world_goes_on_and_trains_several_runs(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    for name in ("killed", "whole"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += ["--max_restarts", "1", str(tmp_path / "script.py"), str(tmp_path / name)]
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**environment(), "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    for rate in ("0.001", "0.003"):
        killed, whole = (
            (tmp_path / name / rate / "checkpoints" / "last" / "model.safetensors").read_bytes()
            for name in ("killed", "whole")
        )
        assert killed == whole
    starts = [line for line in read_metrics(tmp_path / "killed" / "0.001" / "metrics.jsonl") if line["kind"] == "start"]
    assert len(starts) == 2
