"""Check that the launcher started the world that was asked for."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from vit_dist.errors import UserError

_LAUNCHED_BY_ACCELERATE = "ACCELERATE_DYNAMO_BACKEND"
_LAUNCHED = ("LOCAL_RANK", _LAUNCHED_BY_ACCELERATE, "TORCHELASTIC_RUN_ID")
_PR_SET_PDEATHSIG = 1
_at_import = os.getpid(), os.getppid()  # early: the parent is the launcher, unless that was gone by then
_WORLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_RENDEZVOUS = (*_WORLD, "MASTER_ADDR", "MASTER_PORT")
# The number of tasks that a scheduler or MPI has started this process among.
_TASKS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpirun"}
_NOT_SUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's own launcher",
}


def is_launched(environ: Mapping[str, str]) -> bool:
    """Return whether a launcher started this process."""
    return any(name in environ for name in _LAUNCHED)


def end_with_launcher(environ: Mapping[str, str]) -> None:
    """Ask the kernel for a SIGTERM when the launcher that started this process, if one did, ends or is killed.

    On Linux alone. To the kernel the launcher is the thread that started this process. Its own children do not inherit
    the request.
    """
    if sys.platform != "linux" or not is_launched(environ):
        return
    _signal_at_its_end(signal.SIGTERM)
    process, parent = _at_import
    if process == os.getpid() and parent != os.getppid():  # it ended before the kernel was asked
        os.kill(process, signal.SIGTERM)


def outlive_launcher(environ: Mapping[str, str]) -> None:
    """Take that back, once the run stops: the end of a launcher of several threads is several signals."""
    if sys.platform == "linux" and is_launched(environ):
        _signal_at_its_end(0)


def _signal_at_its_end(number: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def check_one_process(command: str, environ: MutableMapping[str, str]) -> None:
    """Refuse a command that is one process's work if several were launched; else forget what a launcher has set.

    So a stale or half environment, which other commands refuse, does not matter to it. Raises UserError.
    """
    processes = environ.get("WORLD_SIZE", "1")
    if not missing_from_world(environ) and processes.isdecimal() and int(processes) > 1:
        raise UserError(
            f"{command} is one process's work, and WORLD_SIZE is {processes}: start it without a launcher, as "
            f"vit-dist {command} …"
        )
    for name in (*_RENDEZVOUS, "LOCAL_WORLD_SIZE"):
        environ.pop(name, None)


def missing_from_world(environ: Mapping[str, str]) -> list[str]:
    """Return the variables of a launched process that are missing, if there are some of them and not all."""
    return [name for name in _RENDEZVOUS if name not in environ] if any(name in environ for name in _WORLD) else []


def is_first_process(environ: Mapping[str, str]) -> bool:
    """Return whether this process speaks: rank 0, or one that a stale or half environment calls another."""
    return environ.get("RANK", "0") == "0" or bool(missing_from_world(environ))


def speaks_for_host(environ: Mapping[str, str]) -> bool:
    """Return whether this process says what is wrong on its host, while the processes do not know of each other yet."""
    return environ.get("LOCAL_RANK", "0") == "0" or bool(missing_from_world(environ))


def check_launch(environ: Mapping[str, str]) -> None:
    """Refuse a launch that would not start what was asked for. Raises UserError."""
    missing = missing_from_world(environ)
    if missing:
        there = ", ".join(name for name in _WORLD if name in environ)
        raise UserError(
            f"half of a launcher's environment: {there} without {', '.join(missing)}: start with torchrun or "
            f"accelerate launch, or, for one process, unset {there}"
        )
    if _LAUNCHED_BY_ACCELERATE in environ and "MASTER_ADDR" in environ and "WORLD_SIZE" not in environ:
        raise UserError(
            "accelerate launch was asked for several processes or machines and started a single one: "
            "use --config_file accelerate_configs/multi_gpu.yaml (it runs on CPUs too), not --cpu or MULTI_CPU"
        )
    for variable, program in _TASKS.items():
        tasks = environ.get(variable, "1")
        if "WORLD_SIZE" not in environ and "MASTER_ADDR" not in environ and tasks.isdecimal() and int(tasks) > 1:
            raise UserError(
                f"{program} started {tasks} tasks ({variable}), and none would know of the others: start one task a "
                "host, and in it torchrun or accelerate launch (docs/many_gpus.md)"
            )
    asked = [name for variable, name in _NOT_SUPPORTED.items() if environ.get(variable, "").lower() in ("true", "1")]
    if asked:
        raise UserError(
            f"the launcher asks for {' and '.join(asked)}, which vit_dist does not support: each process holds the "
            "whole model (DDP): use accelerate_configs/multi_gpu.yaml, or take it out of your accelerate config"
        )


def check_gpus(processes: int, gpus: int) -> None:
    """Check that each process of this host has a GPU of its own. Raises UserError."""
    if processes > gpus:
        raise UserError(
            f"{processes} processes were launched on this host, which has {gpus} GPU{'s'[: gpus != 1]}: launch {gpus} "
            "(--num_processes), or set run.device cpu"
        )


def check_world(environ: Mapping[str, str], world_size: int) -> None:
    """Check that as many processes run as the launcher started. Raises UserError."""
    launched = int(environ.get("WORLD_SIZE", "1"))
    if launched != world_size:
        raise UserError(f"the launcher started {launched} processes and {world_size} found each other: see WORLD_SIZE")


def ignored_settings(environ: Mapping[str, str], precision: str) -> Iterator[str]:
    """Yield a note for each of the launcher's settings that the config overrides."""
    mixed_precision = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed_precision not in ("no", precision):
        yield f"the launcher's mixed_precision {mixed_precision} is not used: train.precision decides, {precision}"
    dynamo = environ.get(_LAUNCHED_BY_ACCELERATE, "no")
    if dynamo.lower() != "no":
        yield f"the launcher's dynamo_backend {dynamo.lower()} is not used: the model is not compiled"
    steps = environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        yield f"the launcher's gradient_accumulation_steps {steps} is not used: batch.global_size and micro_size decide"


def ignored_threads(environ: Mapping[str, str], threads: int) -> Iterator[str]:
    """Yield a note if a person has set another number of threads for OpenMP: torchrun sets 1 by itself."""
    asked = environ.get("OMP_NUM_THREADS", "")
    if asked not in ("", str(threads)) and not is_launched(environ):
        yield (
            f"OMP_NUM_THREADS {asked} is not used: run.threads auto takes {threads} thread{'s'[: threads != 1]}; set "
            "run.threads to take another number"
        )


def tell_launcher(text: str, environ: Mapping[str, str] = os.environ) -> None:
    """Leave why this process ends for torchrun and accelerate launch, which show it under "Root Cause" on each host."""
    path = environ.get("TORCHELASTIC_ERROR_FILE")
    if not path or os.path.exists(path):
        return
    about = {"py_callstack": text, "timestamp": str(int(time.time()))}
    with contextlib.suppress(OSError):
        Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": about}}), encoding="utf-8")
