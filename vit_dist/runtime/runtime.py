"""The device that a process of a run computes on, and how: precision, wrapping, streams, memory.

No other package imports torch.distributed or builds an Accelerator; they take a `Runtime`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vit_dist.config.fields import RunConfig
from vit_dist.errors import UserError
from vit_dist.runtime.buckets import fix_buckets
from vit_dist.runtime.devices import available_cores, resolve_device, resolve_precision
from vit_dist.runtime.launch import check_gpus, check_launch, ignored_settings, ignored_threads
from vit_dist.runtime.world import World

# What torch says of an operation under `run.deterministic`, after its name.
_NOT_DETERMINISTIC = " does not have a deterministic implementation"
_ACCELERATE_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Runtime(World):
    """This process, as one of the `world_size` processes of a run, and the device that it computes on.

    precision (fp32, bf16 or fp16), threads (of torch), cores (CPU cores that this process may use), notes (lines for
    the user), started (in seconds since the epoch).
    """

    _running = False
    _openmp: str | None = None  # the OMP_NUM_THREADS that a run of this process has set

    def __init__(self, config: RunConfig, precision: str | None = "auto") -> None:
        """Join the process group and choose the device, and the precision unless it is None: see `use_precision`.

        Raises UserError if fewer processes run than were launched, or the device or precision is not available.
        """
        self.started = time.time()
        if Runtime._running:
            raise UserError("another run or evaluation of this process has not ended: do one after the other")
        check_launch(os.environ)
        device = resolve_device(config.device)
        self.local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if device == "cuda":
            check_gpus(self.local_processes, torch.cuda.device_count())
        self.cores = max(1, available_cores() // self.local_processes)
        self.threads = self.cores if config.threads == "auto" else config.threads
        torch.set_num_threads(self.threads)
        if os.environ.get("OMP_NUM_THREADS") in (None, Runtime._openmp):  # else accelerate warns, and sets its own
            os.environ["OMP_NUM_THREADS"] = Runtime._openmp = str(self.threads)
        self._ignored = list(ignored_threads(os.environ, self.threads)) if config.threads == "auto" else []
        # fp32 is fp32 on every device: TF32 rounds to 10 bits, and a GPU's losses would drift from a CPU's.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        self._deterministic_before = torch.are_deterministic_algorithms_enabled()
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            # It takes a third of an update, and nothing here reads such memory.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = False
        super().__init__(device, config.timeout)
        self.notes = self._ignored
        self._reduces = False
        if precision is not None:
            self.use_precision(precision, config.device)
        Runtime._running = True

    def use_precision(self, precision: str, device: str) -> None:
        """Compute in a `train.precision` on a `run.device` from here on: on all ranks in the same.

        Raises UserError, on all ranks, if it is not available, or auto is not the same on all GPUs.
        """
        found = self.gather([socket.gethostname(), self.run_on_all(lambda: resolve_precision(precision, device))])
        self.precision = found[0][1]
        for rank, (host, other) in enumerate(found):
            if other != self.precision:  # all were given the same
                raise UserError(
                    f"train.precision: auto is {self.precision} on process 0 and {other} on process {rank} "
                    f"({host}): set one that all of them have"
                )
        self._accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision=_ACCELERATE_PRECISION[self.precision],
            dynamo_backend="no",  # else the launcher's would compile the model, and change its numbers and names
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
        self.notes = [*self._ignored, *ignored_settings(os.environ, self.precision)]

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, the process that writes files."""
        return self.rank == 0

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """Return fp16's loss scaler; None in other precisions."""
        scaler: torch.amp.GradScaler | None = self._accelerator.scaler
        return scaler

    @property
    def device_name(self) -> str:
        """Return the GPU's product name, else `cpu` or `mps`."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return self.device.type

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model on the device, under autocast, wrapped in DDP if there are several ranks.

        `model` itself stays the bare module.
        """
        with warnings.catch_warnings():
            # Its successor, forward_sync_buffers, is not in torch 2.11.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            with self.waiting("the first weights"):
                prepared: nn.Module = self._accelerator.prepare_model(model)
                if isinstance(prepared, DistributedDataParallel):
                    fix_buckets(prepared)
        return prepared

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, scaled in fp16; of the last micro-batch, those of all ranks."""
        with self.waiting("the gradients") if self._reduces else contextlib.nullcontext():
            self._accelerator.backward(loss)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which a module that was not prepared computes in the run's precision."""
        context: contextlib.AbstractContextManager[Any] = self._accelerator.autocast()
        return context

    @contextlib.contextmanager
    def gradient_sync(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        """Run the forward and backward pass of one micro-batch: only the last reduces gradients.

        Raises UserError for an operation that `run.deterministic` does not allow.
        """
        self._reduces = last
        self.move()
        try:
            with contextlib.nullcontext() if last else self._accelerator.no_sync(model):
                yield
        except RuntimeError as error:
            operation, found, _ = str(error).partition(_NOT_DETERMINISTIC)
            if not found:
                raise
            raise UserError(
                f"run.deterministic: the model needs {operation}, which can add up in any order on "
                f"{self.device.type}: set run.deterministic false, or another model"
            ) from None

    def to_device(self, tensor: Tensor) -> Tensor:
        """Return a copy on the device; the host does not wait for it."""
        if self.device.type == "cuda" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def seed(self, seed: int) -> None:
        """Seed the default generators, which dropout on this device draws from."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    @property
    def sum_dtype(self) -> torch.dtype:
        """Return the widest float type that the device computes in."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def copy_scalar_async(self, value: Tensor) -> Callable[[], float]:
        """Start to copy a scalar to the host; the function returned waits for that copy alone and gives its value."""
        if self.device.type != "cuda":
            return value.item
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        host.copy_(value, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()

        def read() -> float:
            with self.waiting("the device"):
                event.synchronize()
            return float(host.item())

        return read

    def record_event(self) -> torch.cuda.Event | None:
        """Return an event of what the device has been given so far; None where the host computes in order."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    @contextlib.contextmanager
    def side_stream(self, after: torch.cuda.Event | None) -> Iterator[None]:
        """Run the block's copies on a stream of their own, after an event, while the device computes on."""
        if after is None:
            yield
            return
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_event(after)
        with torch.cuda.stream(stream):
            yield

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            with self.waiting("the device"):
                torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def all_reduce_cost(self, model: nn.Module) -> tuple[int, int]:
        """Return (bytes, calls) of gradient all-reduce in one update of a prepared model, after its first update.

        Follows DDP's rule for buckets, which DDP applies once it has seen in which order gradients arrive.
        """
        if not isinstance(model, DistributedDataParallel):
            return 0, 0
        parameters: list[Tensor] = [p for p in reversed(list(model.parameters())) if p.requires_grad]
        limits = [dist._DEFAULT_FIRST_BUCKET_BYTES, model.bucket_bytes_cap]  # type: ignore[attr-defined]
        buckets, _ = dist._compute_bucket_assignment_by_size(parameters, limits)  # type: ignore[attr-defined]
        return sum(p.numel() * p.element_size() for p in parameters), len(buckets)

    def peak_memory_bytes(self) -> int:
        """Return the peak memory so far, in bytes: the GPU's on CUDA, else the process's."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            import resource
        except ImportError:
            return 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if os.uname().sysname == "Darwin" else peak * 1024

    def restart_peak_memory(self) -> None:
        """Give cached memory of a GPU back, and count its peak from here on."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def reserved_memory(self) -> int:
        """Return the peak bytes that this process has taken of a GPU since `restart_peak_memory`; 0 elsewhere."""
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else 0

    def memory_for_all(self) -> int | None:
        """Return the bytes of a GPU that this process has or can still take; None elsewhere."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)

    def generator_states(self) -> list[Tensor]:
        """Return the states of the default generators, which dropout on this device draws from."""
        states = [torch.default_generator.get_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        elif self.device.type == "mps":
            states.append(torch.mps.get_rng_state())
        return states

    def end(self) -> None:
        """Leave the process group, and let the next run in this process choose its own precision."""
        Runtime._running = False
        torch.use_deterministic_algorithms(self._deterministic_before)
        try:
            self.leave()
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
