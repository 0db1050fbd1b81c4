"""The machines: device, precision, processes, reductions, signals, trackers.

The only importer of accelerate and torch.distributed; others are handed the `Runtime`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vit_dist.config.schema import RunConfig
from vit_dist.errors import UserError
from vit_dist.runtime.devices import available_cores, require_device, resolve_precision
from vit_dist.runtime.launch import check_launch, check_world, overruled

_ACCELERATE_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Runtime:
    """This process among the others of the run.

    rank, world_size, device, precision (fp32, bf16 or fp16), threads, cores (CPU cores this process may use),
    notes (lines for the user).
    Raises UserError where the launcher's world is not the one that runs, or the precision does not run here.
    """

    def __init__(self, config: RunConfig, precision: str = "auto") -> None:
        cpu = config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
        if config.device not in ("auto", "cpu"):
            require_device(config.device)
        check_launch(os.environ)
        self.local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.cores = max(1, available_cores() // self.local_processes)
        self.threads = self.cores if config.threads == "auto" else config.threads
        torch.set_num_threads(self.threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))  # else accelerate sets, and says, its own
        self.precision = resolve_precision(precision, cpu=cpu)
        # fp32 is fp32 on every device: TF32 would part a GPU's curve from a CPU's by its rounding to 10 bits.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        self._accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=_ACCELERATE_PRECISION[self.precision],
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        check_world(os.environ, self.world_size)
        self._flags: dist.ProcessGroup | None = None
        if self.world_size > 1:
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._flags = group
        self.notes = list(overruled(os.environ, self.precision))
        self._pending: tuple[Tensor, Any] | None = None
        self._stop = False

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """fp16's loss scaler; None in other precisions."""
        scaler: torch.amp.GradScaler | None = self._accelerator.scaler
        return scaler

    @property
    def device_name(self) -> str:
        """The device's name for people."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return self.device.type

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model on the device, under autocast, wrapped for the world. `model` itself stays the bare module."""
        with warnings.catch_warnings():
            # Its successor, forward_sync_buffers, is not in torch 2.11.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            prepared: nn.Module = self._accelerator.prepare_model(model)
        return prepared

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, scaled in fp16."""
        self._accelerator.backward(loss)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Around the forward pass of a module that was not prepared: the run's precision."""
        context: contextlib.AbstractContextManager[Any] = self._accelerator.autocast()
        return context

    def gradient_sync(self, model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward of one micro-batch: gradients travel between ranks only on the last."""
        return contextlib.nullcontext() if last else self._accelerator.no_sync(model)

    def to_device(self, tensor: Tensor) -> Tensor:
        """A copy on the device that the host does not wait for."""
        if self.device.type == "cuda" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def seed(self, seed: int) -> None:
        """Sets the default generators that dropout on this device draws from."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place; float64 sums are made on the host where the device has none."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    @property
    def sum_dtype(self) -> torch.dtype:
        """The widest float the device sums in."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank; plain, as JSON holds it."""
        if self._flags is None:
            return value
        text = json.dumps(value).encode() if self.is_main else b""
        length = torch.tensor([len(text)])
        dist.broadcast(length, src=0, group=self._flags)
        content = torch.zeros(int(length.item()), dtype=torch.uint8)
        if self.is_main:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(content, src=0, group=self._flags)
        return json.loads(content.numpy().tobytes())

    def run_on_main(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on rank 0, plain as JSON holds it, on every rank. Raises its UserError on all alike."""
        answer: dict[str, Any] = {}
        if self.is_main:
            try:
                answer["value"] = work()
            except UserError as error:
                answer["failure"] = str(error)
        answer = self.broadcast(answer)
        if "failure" in answer:
            raise UserError(answer["failure"])
        return answer["value"]

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 runs the block before the others do, so that a download happens once."""
        if not self.is_main:
            self.barrier()
        try:
            yield
        finally:
            if self.is_main:
                self.barrier()

    def copy_scalar_async(self, value: Tensor) -> Callable[[], float]:
        """Starts copying a scalar off the device; the function returned waits for that copy alone."""
        if self.device.type != "cuda":
            return value.item
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        host.copy_(value, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()

        def read() -> float:
            event.synchronize()
            return float(host.item())

        return read

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self._flags is not None:
            dist.barrier(group=self._flags)

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def all_reduce_cost(self, model: nn.Module) -> tuple[int, int]:
        """(bytes, calls) of gradient all-reduce in one update of a prepared model, after its first update.

        By DDP's own rule for buckets, which it applies once it has seen in which order gradients arrive.
        """
        if not isinstance(model, DistributedDataParallel):
            return 0, 0
        parameters: list[Tensor] = [p for p in reversed(list(model.parameters())) if p.requires_grad]
        limits = [dist._DEFAULT_FIRST_BUCKET_BYTES, model.bucket_bytes_cap]  # type: ignore[attr-defined]
        buckets, _ = dist._compute_bucket_assignment_by_size(parameters, limits)  # type: ignore[attr-defined]
        return sum(p.numel() * p.element_size() for p in parameters), len(buckets)

    def peak_memory_bytes(self) -> int:
        """The most memory used so far: the device's for CUDA, else the process's."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            import resource
        except ImportError:
            return 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if os.uname().sysname == "Darwin" else peak * 1024

    @contextlib.contextmanager
    def stop_signals(self) -> Iterator[None]:
        """SIGTERM and the first Ctrl-C ask the run to save and stop; a second Ctrl-C ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            if self._stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop_agreed(self) -> bool:
        """Whether any rank was asked to stop, the same answer on all: asked at one update, read at the next."""
        if self._flags is None:
            return self._stop
        before = self._pending
        flag = torch.tensor([int(self._stop)])
        self._pending = (flag, dist.all_reduce(flag, group=self._flags, async_op=True))
        if before is None:
            return False
        before[1].wait()
        return bool(before[0].item())

    def start_trackers(
        self, names: list[str], project: str, config: Mapping[str, Any], settings: Mapping[str, Any], folder: Path
    ) -> None:
        """Starts trackers by name, on rank 0, anew where some had started; settings: of each. Files go to `folder`."""
        self._accelerator.log_with = names
        self._accelerator.project_configuration.logging_dir = str(folder)
        project = "tensorboard" if names == ["tensorboard"] else project  # there the name is that of a folder
        self._accelerator.init_trackers(project, dict(config), {name: settings[name] for name in names})

    def tracker(self, name: str) -> Any:
        """The named tracker's own run object."""
        return self._accelerator.get_tracker(name, unwrap=True)

    def track(self, values: Mapping[str, float], step: int) -> None:
        """Sends values to the trackers; `step` never falls."""
        self._accelerator.log(dict(values), step=step)

    def end_trackers(self) -> None:
        """Tells the trackers that the run is over, and waits until they have sent everything."""
        for tracker in self._accelerator.trackers:
            tracker.finish()

    def end(self) -> None:
        """Leaves the process group, and lets the next run of this process choose its own precision."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None
        if dist.is_initialized():
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
