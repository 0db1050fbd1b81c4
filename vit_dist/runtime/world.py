"""The processes of a run: they join, exchange values, agree on errors, and end together."""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from torch import Tensor

from vit_dist.errors import PeerError, UserError, described
from vit_dist.runtime.exchange import broadcast_value, gather_values
from vit_dist.runtime.flags import Flags, Stopped
from vit_dist.runtime.interface import choose_interface
from vit_dist.runtime.launch import check_world, tell_launcher
from vit_dist.runtime.store import own_store
from vit_dist.runtime.watch import Failure, Watch

Result = TypeVar("Result")

# Of the process groups: how long a wait for another process may last is decided by the watch, which knows more.
_NEVER = timedelta(days=7)
_STOPPED, _INTERRUPTED = 75, 130
# What torch and its backends say of a connection that broke; they raise RuntimeError for all.
_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class World:
    """The processes of a run, as one of them sees it.

    rank, world_size, device, flags (that ranks raise and agree on), watch (None for a single process).
    """

    def __init__(self, device: str, timeout: float) -> None:
        """Join the other processes. timeout: the longest wait for one of them, in seconds.

        Raises UserError if fewer run than were launched.
        """
        group = own_store(os.environ)
        self.watch: Watch | None = None
        if group and group["world_size"] > 1:
            self.watch = Watch(group["store"], group["rank"], group["world_size"], timeout)
        self._failure: PeerError | None = None
        self._failed = False
        self._host_group: dist.ProcessGroup | None = None
        with self.waiting("all processes to connect"):
            if group:
                choose_interface(os.environ, group["store"], group["rank"], group["world_size"])
            world = PartialState(cpu=device == "cpu", timeout=_NEVER, **group)
            self.rank: int = world.process_index
            self.world_size: int = world.num_processes
            self.device: torch.device = world.device
            check_world(os.environ, self.world_size)
            if self.world_size > 1:
                host_group = dist.new_group(backend="gloo", timeout=_NEVER)
                assert isinstance(host_group, dist.ProcessGroup)
                self._host_group = host_group
        self.flags = Flags(self._host_group, waiting=self.waiting)

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, the process that writes files."""
        return self.rank == 0

    def waiting(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Return a context for a wait for other processes, which ends this one if it lasts longer than run.timeout."""
        return self.watch.waiting(what) if self.watch is not None else contextlib.nullcontext()

    def working(self) -> contextlib.AbstractContextManager[None]:
        """Return a context for work that others wait for, however long it takes: a download, a scan of a folder."""
        return self.watch.working() if self.watch is not None else contextlib.nullcontext()

    def move(self) -> None:
        """Tell the others that this process gets on."""
        if self.watch is not None:
            self.watch.move()

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place, and return it, on the host's clock as well."""
        if self.world_size > 1:
            with self.waiting("sums over all processes"):
                dist.all_reduce(values)
        return values

    def gather_tensors(self, *tensors: Tensor) -> list[Tensor]:
        """Return each tensor of all ranks, by rank, [world_size, …]: in one exchange for all of them.

        They have the same shapes on every rank.
        """
        if self.world_size == 1:
            return [tensor[None] for tensor in tensors]
        packed = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors])
        gathered = packed.new_empty(self.world_size * len(packed))
        with self.waiting("the embeddings of all processes"):
            dist.all_gather_into_tensor(gathered, packed)
        everyone = gathered.view(self.world_size, -1)
        found, start = [], 0
        for tensor in tensors:
            end = start + tensor.numel() * tensor.element_size()
            own = everyone[:, start:end].clone(memory_format=torch.contiguous_format)
            found.append(own.view(tensor.dtype).view(self.world_size, *tensor.shape))
            start = end
        return found

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value, which JSON must be able to hold, on every rank."""
        if self._host_group is None:
            return value
        with self.waiting("word from process 0"):
            return broadcast_value(value, self._host_group, is_main=self.is_main)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, which JSON must be able to hold, by rank, on every rank."""
        if self._host_group is None:
            return [value]
        with self.waiting("word from all processes"):
            return gather_values(value, self._host_group, self.world_size)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._host_group is not None:
            with self.waiting("all processes"):
                dist.barrier(group=self._host_group)

    def run_on_all(self, work: Callable[[], Result]) -> Result:
        """Run `work` on every rank and return its own result on each.

        An error on any of them is raised on all, with the rank and host that it comes from unless it is rank 0's. One
        that is no UserError is raised as it is where it comes from, and as a PeerError elsewhere.
        """
        error, result = None, []
        try:
            with self.working():
                result = [work()]
        except Exception as caught:
            if self._host_group is None:
                raise
            error = caught
        failures = self.gather(None if error is None else self._described(error))
        self._raise_first(error, failures)
        return result[0]

    def run_on_main(self, work: Callable[[], Any]) -> Any:
        """Run `work` on rank 0 and return its result, which JSON must be able to hold, on every rank.

        An error that it raises is raised on all ranks, as in `run_on_all`.
        """
        if self._host_group is None:
            return work()
        error, result = None, None
        if self.is_main:
            try:
                with self.working():
                    result = work()
            except Exception as caught:
                error = caught
        failure = None if error is None else self._described(error)
        failure, result = self.broadcast([failure, result])
        self._raise_first(error, [failure])
        return result

    def run_main_first(self, work: Callable[[], Result]) -> Result:
        """Run `work` on rank 0, then on the others, so that a download happens once; else as `run_on_all`."""

        def in_turn() -> Result:
            if not self.is_main:
                self.barrier()
            try:
                return work()
            finally:
                if self.is_main:
                    self.barrier()

        return self.run_on_all(in_turn)

    def _described(self, error: BaseException) -> list[Any]:
        """Return the text of an error of this rank, as the others are told it, and its exit code."""
        if isinstance(error, UserError):
            text, code = str(error), error.exit_code
        elif isinstance(error, Stopped):
            text, code = f"was asked to stop ({self.flags.reason})", _STOPPED
        elif isinstance(error, KeyboardInterrupt):
            text, code = "was interrupted", _INTERRUPTED
        else:
            text, code = described(error, 300), 1
        alone = self.rank == 0 and isinstance(error, UserError)
        return [text if alone else f"process {self.rank} on {socket.gethostname()}: {text}", code]

    def _raise_first(self, own: Exception | None, failures: list[Any]) -> None:
        """Raise the first rank's failure, if there is one: on all ranks the same. own: this rank's error."""
        if own is not None and not isinstance(own, UserError):
            raise own
        for text, code in filter(None, failures):
            raise PeerError(text, code, speaks=self.is_main)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run a block whose error ends the other processes too, each with the reason.

        Where the connection to another process breaks in the block, raise PeerError with what that process has left or,
        if it has left nothing, which are gone. Put it inside `flags.on_signals`: launchers send a signal then.
        """
        try:
            yield
        except BaseException as error:
            cause = self.cause(error)
            if cause is error:
                raise
            raise cause from None

    def cause(self, error: BaseException) -> BaseException:
        """Return what an error comes of: a PeerError if it is of another process, else itself, which the others learn.

        The answer to the first error stays.
        """
        if self.watch is None or isinstance(error, PeerError):
            self._failed = True
            return error
        if self._failed:
            return self._failure or error
        self._failed = True
        lost = isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
        )
        if lost:
            failure = self.watch.find_failure()
        elif isinstance(error, (Stopped, KeyboardInterrupt)) and (told := self.watch.left_by_another()):
            if told.code in (_STOPPED, _INTERRUPTED):
                return error
            failure = told  # a launcher asks the others to stop as soon as one has failed
        else:
            if not isinstance(error, (UserError, Stopped, KeyboardInterrupt)):
                tell_launcher("".join(traceback.format_exception(error)))
            self.watch.fail(Failure([self.rank], *self._described(error)))
            if isinstance(error, UserError):
                error.speaks = self.is_main
            return error
        self._failure = PeerError(failure.text, failure.code, speaks=failure.speaker == self.rank)
        return self._failure

    def leave(self) -> None:
        """Leave the process group."""
        with self.waiting("the end"):
            if not self._failed:
                with contextlib.suppress(RuntimeError):  # a process is gone: what still travels is of no use to anyone
                    self.flags.close()
            try:
                if self._failed and self.device.type == "cuda" and dist.is_initialized():
                    dist.distributed_c10d._abort_process_group()  # NCCL would wait for what never comes
                elif dist.is_initialized():
                    dist.destroy_process_group()
            except RuntimeError:
                if not self._failed:  # else the first error is the one to be seen
                    raise
        if self.watch is not None:
            agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            self.watch.close(failed=self._failed, hosts_store=self.rank == 0 and not agents)
