"""A micro-batch's forward and backward pass, recorded as a CUDA graph and replayed: for models with short kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vit_dist.data.batch import Batch
from vit_dist.runtime.marks import PASS, mark

# (batch, Σ wℓ so far, factor, spread) → (the loss of each slot, Σ wℓ, three sums): `Updater.forward_backward`.
Pass = Callable[[Batch, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class _Recording:
    """A graph, with the tensors that it reads and writes, and where parameters and gradients are."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: tuple[Tensor, Tensor, Tensor]
    addresses: tuple[int, ...]


class GraphedPass:
    """Makes the pass of a micro-batch by replaying a CUDA graph, one for each shape of the inputs.

    The host starts one graph where it would start some thousand kernels, which takes longer than the kernels of a small
    model. The kernels are the same, so the numbers are, too. Gradients must stay where they are: zero them, and do not
    set them to None. It must do nothing on the host that a later pass needs, as losses or models of the user's may.
    """

    def __init__(self, forward_backward: Pass, parameters: Sequence[Tensor]) -> None:
        """parameters: all that may have gradients."""
        self._pass = forward_backward
        self._parameters = parameters
        self._recordings: dict[tuple[object, ...], _Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()
        device = parameters[0].device
        self._factor, self._spread = torch.ones((), device=device), torch.zeros((), dtype=torch.bool, device=device)
        self._scalars: tuple[float, bool] = (1.0, False)

    def __call__(self, batch: Batch, total: Tensor, factor: float, spread: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Add a micro-batch's part to the gradient; see `Updater.forward_backward`."""
        if (factor, spread) != self._scalars:
            self._factor.fill_(factor)
            self._spread.fill_(spread)
            self._scalars = factor, spread
        given = [batch.images, batch.targets, batch.weights, *[each for each in (batch.drop_path,) if each is not None]]
        given.append(total)
        shapes = tuple((each.shape, each.dtype) for each in given)
        recording = self._recordings.get(shapes)
        if recording is None or recording.addresses != self._addresses():
            self._recordings.pop(shapes, None)
            with torch.random.fork_rng([batch.images.device]):  # recording draws, and the pass must draw as without it
                recording = self._recordings[shapes] = self._record(batch, given)
        with mark(PASS):
            torch._foreach_copy_(recording.inputs, given)
            recording.graph.replay()
            values, total, sums = (each.clone() for each in recording.outputs)  # the next replay writes there again
        return values, total, sums

    def _record(self, batch: Batch, given: Sequence[Tensor]) -> _Recording:
        """Record the pass of a batch of such shapes; the gradients stay as they are."""
        inputs = [each.clone() for each in given]
        images, targets, weights, *drop_path, total = inputs
        static = replace(
            batch, images=images, targets=targets, weights=weights, drop_path=drop_path[0] if drop_path else None
        )
        before = [None if each.grad is None else each.grad.clone() for each in self._parameters]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # the first passes choose kernels, and allocate gradients and workspaces
                self._pass(static, total, self._factor, self._spread)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads read and copy batches meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = self._pass(static, total, self._factor, self._spread)
        for parameter, gradient in zip(self._parameters, before, strict=True):
            if parameter.grad is not None:
                if gradient is None:
                    parameter.grad.zero_()
                else:
                    parameter.grad.copy_(gradient)
        return _Recording(graph, inputs, outputs, self._addresses())

    def _addresses(self) -> tuple[int, ...]:
        """Return where weights and gradients are: a graph knows them by their addresses."""
        gradients = (0 if each.grad is None else each.grad.data_ptr() for each in self._parameters)
        return (*(each.data_ptr() for each in self._parameters), *gradients)
