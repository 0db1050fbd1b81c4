"""The exponential moving average (EMA) of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a model's weights and buffers (Polyak and Juditsky, 1992), on its device.

    After update n (from 1; skipped ones do not count) it becomes d·average + (1-d)·weights, where d is the smaller of
    `decay` and n/(9+n), so that the random start is forgotten fast.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        trained = set(model.parameters())
        # Tied weights are one tensor, averaged once: a swap changes it under both of its names.
        self._live = list(dict.fromkeys([*model.parameters(), *model.buffers()]))
        self._average = [tensor.detach().clone() for tensor in self._live]
        self._names = {id(tensor): name for name, tensor in reversed(list(model.state_dict(keep_vars=True).items()))}
        self._weights = [i for i, tensor in enumerate(self._live) if tensor in trained]
        self._buffers = [i for i, tensor in enumerate(self._live) if tensor not in trained]

    @torch.no_grad()
    def update(self, applied: int, keep: Tensor) -> None:
        """Add the weights after update number `applied` (from 1) if `keep`, a scalar tensor, is 1; not if it is 0."""
        part = 1 - min(self.decay, applied / (9 + applied))
        averages = [self._average[i] for i in self._weights]
        steps = torch._foreach_sub([self._live[i] for i in self._weights], averages)
        torch._foreach_mul_(steps, part * keep)
        torch._foreach_add_(averages, steps)
        for i in self._buffers:
            live, average = self._live[i], self._average[i]
            updated = average + part * (live - average) if live.is_floating_point() else live
            average.copy_(torch.where(keep > 0, updated, average))

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the average into the model for the body, and its own weights back afterwards; nothing is copied."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def tensors(self) -> dict[str, Tensor]:
        """Return the average by the names of the model's state dict, on its device."""
        named = ((self._names.get(id(live)), average) for live, average in zip(self._live, self._average, strict=True))
        return {name: average.contiguous() for name, average in named if name is not None}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `tensors` returned, which must be complete."""
        for live, average in zip(self._live, self._average, strict=True):
            if id(live) in self._names:
                average.copy_(tensors[self._names[id(live)]])

    def swap(self) -> None:
        """Exchange the model's weights and the average."""
        torch.clear_autocast_cache()  # it knows a weight in half precision by its tensor, whatever is in it now
        for i, live in enumerate(self._live):
            live.data, self._average[i] = self._average[i], live.data
