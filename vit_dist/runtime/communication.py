"""Time the gradient's all-reduce, as far as computing does not hide it, with DDP's own timers."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

_NEVER = 2**31 - 1
_NANOSECONDS = 1e-9


class CommunicationTimer:
    """Times the exposed communication of updates: from the end of a rank's backward pass to that of its all-reduce.

    So it includes waiting for ranks whose backward pass ends later. On a CPU every update is timed, for some tens of
    microseconds. On a GPU the timers are CUDA events, whose reading waits for the device, so there updates are timed
    on request (and the first ten, by DDP's own choice).
    """

    def __init__(self, model: nn.Module) -> None:
        """model: prepared by the runtime; one that is not wrapped has no communication."""
        self._model = model if isinstance(model, DistributedDataParallel) else None
        self.every_update = next(model.parameters()).device.type != "cuda"
        self._read = 0  # number of the forward pass that was read last
        self.time_next(self.every_update)

    def time_next(self, wanted: bool) -> None:
        """Choose whether the updates from the next one on are timed. It also decides whether the last can be read."""
        if self._model is not None:
            self._model._set_ddp_runtime_logging_sample_rate(1 if wanted else _NEVER)  # type: ignore[no-untyped-call]

    def read(self) -> float | None:
        """Return the exposed communication of the last update in seconds; None if it was not timed, or read before."""
        if self._model is None:
            return None
        logger = self._model.logger
        assert logger is not None
        logger.set_runtime_stats_and_log()
        times = logger._get_ddp_logging_data().ints_map
        number = times["iteration"]
        if number == self._read:
            return None
        self._read = number
        exposed: int = times["backward_comm_time"] - times["backward_compute_comm_overlap_time"]
        return max(0, exposed) * _NANOSECONDS
