"""Copy micro-batches to the device: the pixels in one transfer, all small arrays in another; ahead of their use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_dist.data.ahead import Ahead
from vit_dist.runtime.copies import Copies

_ALIGNED = 16  # bytes, enough for every type
# Micro-batches that are copied to a GPU before they are asked for.
_AHEAD = 2


@dataclass(frozen=True)
class Copied:
    """A micro-batch on its way to the device: uint8 pixels, and by name all else, draws included.

    done: when the device has them; None if it has. ids: on the host. bad: what was wrong, by slot. side: of the images
    that are made of the pixels. erased_pixels: in all boxes that noise erases.
    """

    pixels: Tensor
    tensors: Mapping[str, Tensor]
    done: torch.cuda.Event | None
    ids: Tensor
    bad: Mapping[int, str]
    side: int
    erased_pixels: int

    def receive(self, copies: Copies) -> None:
        """Let what the device is given from here on wait for the copies."""
        copies.receive(self.done, self.pixels, next(iter(self.tensors.values())))


def copy_batch(
    pixels: Tensor,
    arrays: Mapping[str, NDArray[Any]],
    copies: Copies,
    to_device: Callable[[Tensor], Tensor],
    *,
    ids: Tensor,
    bad: Mapping[int, str],
    side: int = 0,
    erased_pixels: int = 0,
) -> Copied:
    """Copy pixels, and arrays by name, to the device in two transfers; the other arguments are handed on."""
    with copies.beside():
        tensors = copy_together(arrays, to_device, copies.buffer)
        there = to_device(copies.staged(pixels))
        return Copied(there, tensors, copies.record(), ids, bad, side, erased_pixels)


def ahead(batches: Iterator[Copied], copies: Copies) -> Iterator[Copied]:
    """Return the batches, made ahead of their use where that is of use."""
    return Ahead(batches, _AHEAD) if copies.ahead else batches


def _unpinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


def copy_together(
    arrays: Mapping[str, NDArray[Any]],
    to_device: Callable[[Tensor], Tensor],
    buffer: Callable[[int], Tensor] = _unpinned,
) -> dict[str, Tensor]:
    """Return the arrays as tensors on the device, of the same shapes and types, with one copy for all.

    to_device: copies a tensor. buffer: gives so many bytes on the host, uint8. A transfer takes some ten microseconds
    of the host's time, however small it is.
    """
    offsets, end = {}, 0
    for name, array in arrays.items():
        offsets[name] = end
        end += -(-array.nbytes // _ALIGNED) * _ALIGNED
    host = buffer(end)
    packed = host.numpy()
    for name, array in arrays.items():
        start = offsets[name]
        packed[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    copied = to_device(host)
    return {
        name: copied[offsets[name] : offsets[name] + array.nbytes].view(_torch_type(array.dtype)).view(array.shape)
        for name, array in arrays.items()
    }


@lru_cache(maxsize=32)
def _torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
