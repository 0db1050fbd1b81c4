"""What the launcher and the machine give a process, and whether it is what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vit_dist.errors import UserError

_LAUNCHED_BY_ACCELERATE = "ACCELERATE_DYNAMO_BACKEND"


def check_launch(environ: Mapping[str, str]) -> None:
    """Refuses a launch that quietly starts one process where several were asked for. Raises UserError."""
    if _LAUNCHED_BY_ACCELERATE in environ and "MASTER_ADDR" in environ and "WORLD_SIZE" not in environ:
        raise UserError(
            "accelerate launch was asked for several processes or machines and started a single one: "
            "use --config_file accelerate_configs/multi_gpu.yaml (it runs on CPUs too), not --cpu or MULTI_CPU"
        )


def check_world(environ: Mapping[str, str], world_size: int) -> None:
    """The world that runs must be the world that was asked for. Raises UserError."""
    asked = int(environ.get("WORLD_SIZE", "1"))
    if asked != world_size:
        raise UserError(f"the launcher started {asked} processes and {world_size} found each other: see WORLD_SIZE")


def overruled(environ: Mapping[str, str], precision: str) -> Iterator[str]:
    """What the launcher was told and the config decides otherwise."""
    told = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if told not in ("no", precision):
        yield f"the launcher's mixed_precision {told} is not used: train.precision decides, {precision}"
    steps = environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        yield f"the launcher's gradient_accumulation_steps {steps} is not used: batch.global_size and micro_size decide"
