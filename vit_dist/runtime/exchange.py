"""Values that JSON can hold, sent between the ranks of a gloo group."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def broadcast_value(value: Any, group: dist.ProcessGroup, *, is_main: bool) -> Any:
    """Return rank 0's value on every rank."""
    text = _encode(value) if is_main else torch.zeros(0, dtype=torch.uint8)
    length = torch.tensor([len(text)])
    dist.broadcast(length, src=0, group=group)
    if not is_main:
        text = torch.zeros(int(length.item()), dtype=torch.uint8)
    dist.broadcast(text, src=0, group=group)
    return _decode(text)


def gather_values(value: Any, group: dist.ProcessGroup, world_size: int) -> list[Any]:
    """Return every rank's value, by rank, on every rank."""
    text = _encode(value)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size)]
    dist.all_gather(lengths, torch.tensor([len(text)]), group=group)
    padded = torch.zeros(int(max(lengths).item()), dtype=torch.uint8)
    padded[: len(text)] = text
    texts = [torch.zeros_like(padded) for _ in lengths]
    dist.all_gather(texts, padded, group=group)
    return [_decode(text[: int(length)]) for text, length in zip(texts, lengths, strict=True)]


def _encode(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decode(text: Tensor) -> Any:
    return json.loads(text.numpy().tobytes())
