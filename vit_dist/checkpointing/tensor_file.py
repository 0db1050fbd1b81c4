"""Write tensors as a safetensors file in pieces, hashing what is written: no second copy in memory, no second read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

# Element types in the order in which the safetensors library lays tensors out: the widest first, so that all of them
# are aligned.
_TYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_RANK = {dtype: rank for rank, dtype in enumerate(_TYPES)}
_PIECE = 8 * 2**20


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], before_each: Callable[[], None] = lambda: None
) -> dict[str, int | str]:
    """Write contiguous tensors on the host as the safetensors library would; return the file's `bytes` and `sha256`.

    Neither hashing nor writing holds Python's lock, so that training goes on meanwhile. before_each: called before each
    piece of some MiB; what it raises ends the writing. Raises OSError.
    """
    ordered = sorted(tensors.items(), key=lambda item: (_RANK[item[1].dtype], item[0]))
    return write_hashed(path, _pieces(ordered), before_each)


def write_hashed(
    path: Path, pieces: Iterator[bytes | memoryview], before_each: Callable[[], None] = lambda: None
) -> dict[str, int | str]:
    """Write a file from pieces; return its `bytes` and `sha256`, as the manifest holds them. Raises OSError."""
    digest = hashlib.sha256()
    size = 0
    with path.open("wb") as file:
        for piece in pieces:
            before_each()
            file.write(piece)
            digest.update(piece)
            size += len(piece)
    return {"bytes": size, "sha256": digest.hexdigest()}


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _pieces(tensors: list[tuple[str, Tensor]]) -> Iterator[bytes | memoryview]:
    """Yield the header of a safetensors file and then its data, some MiB at a time."""
    header: dict[str, dict[str, object]] = {}
    end = 0
    for name, tensor in tensors:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in tensors:
        if tensor.numel():
            data = tensor.reshape(-1).view(torch.uint8).numpy().data
            yield from (data[start : start + _PIECE] for start in range(0, len(data), _PIECE))
