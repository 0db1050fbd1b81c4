"""Copy several small arrays to the device in one transfer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNED = 16  # bytes, enough for every type


def copy_together(arrays: Mapping[str, NDArray[Any]], to_device: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return the arrays as tensors on the device, of the same shapes and types, with one copy for all.

    to_device: copies a tensor. A transfer takes some ten microseconds of the host's time, however small it is.
    """
    offsets, end = {}, 0
    for name, array in arrays.items():
        offsets[name] = end
        end += -(-array.nbytes // _ALIGNED) * _ALIGNED
    packed = np.empty(end, np.uint8)
    for name, array in arrays.items():
        start = offsets[name]
        packed[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    copied = to_device(torch.from_numpy(packed))
    return {
        name: copied[offsets[name] : offsets[name] + array.nbytes].view(_torch_type(array)).view(array.shape)
        for name, array in arrays.items()
    }


def _torch_type(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype
