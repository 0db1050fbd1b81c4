"""Check that the launcher started the world that was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vit_dist.errors import UserError

_LAUNCHED_BY_ACCELERATE = "ACCELERATE_DYNAMO_BACKEND"


def check_launch(environ: Mapping[str, str]) -> None:
    """Refuse a launch that silently starts one process where several were asked for. Raises UserError."""
    if _LAUNCHED_BY_ACCELERATE in environ and "MASTER_ADDR" in environ and "WORLD_SIZE" not in environ:
        raise UserError(
            "accelerate launch was asked for several processes or machines and started a single one: "
            "use --config_file accelerate_configs/multi_gpu.yaml (it runs on CPUs too), not --cpu or MULTI_CPU"
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
    steps = environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        yield f"the launcher's gradient_accumulation_steps {steps} is not used: batch.global_size and micro_size decide"
