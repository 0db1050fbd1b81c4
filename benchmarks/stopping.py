"""Measure the seconds from a stop signal to the end of the run, by signal, phase and launcher.

    python benchmarks/stopping.py --data.root MNIST [--section.field VALUE …]

Phases: start-up (the first line is printed), training (a line of an update is), evaluation (the line before one is).
Launchers: none, `accelerate launch` of one process and of two; the signal goes to the launcher. A run under it ends
when its folder's lock is free.
"""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vit_dist.run_folder.status import status

_LAUNCHERS = {
    "none": [sys.executable, "-m", "vit_dist"],
    "accelerate, 1": [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "-m",
        "vit_dist",
    ],
    "accelerate, 2": [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/multi_gpu.yaml"),
        *("--num_processes", "2", "-m", "vit_dist"),
    ],
}
_PHASES = {"start-up": "vit_dist ", "training": "update 20/", "evaluation": "update 100/"}
_RUN = ["train", "--config", "mnist", "--log.trackers", "none", "--log.report", "false", "--run.threads", "1"]
_RUN += ["--train.duration", "20 epochs", "--log.every", "20 updates", "--evaluate.every", "100 updates"]
_RUN += ["--checkpoint.every", "50 updates", "--run.device", "cpu"]


def measure(launcher: str, number: signal.Signals, phase: str, flags: list[str]) -> tuple[float, str]:
    """Return the seconds from the signal to the end, and the state that the run then has."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [*_LAUNCHERS[launcher], *_RUN, *flags, "--run.dir", str(run)]
        micro = ["--batch.micro_size", "64"] if launcher.endswith("2") else []
        process = subprocess.Popen([*command, *micro], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(_PHASES[phase]):
                break
        start = time.perf_counter()
        process.send_signal(number)
        process.stdout.close()
        process.wait()
        with (run / ".lock").open("r+") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
        return time.perf_counter() - start, status(run).get("state", "none")


def main() -> None:
    """Print a row for each launcher, phase and signal."""
    for launcher in _LAUNCHERS:
        for phase in _PHASES:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
                if launcher == "none" or number in (signal.SIGTERM, signal.SIGINT):
                    seconds, state = measure(launcher, number, phase, sys.argv[1:])
                    print(f"{launcher:<14} {phase:<11} {number.name:<8} {seconds:6.2f} s  {state}", flush=True)


if __name__ == "__main__":
    main()
