"""Damage a checkpoint at random: bytes of its files, or what they say, with a manifest that holds again."""

from __future__ import annotations

import json
import math
import os
import random
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.checkpointing.states import rehash

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
TENSORS = FILES[:3]
VALUES: list[Any] = [None, True, False, -1, 0, 1, 3, 2**31, 2**63, 10**300, 10**400, 0.5, -0.0, 1e308, 1e-320, "", "x"]
VALUES += ["nan", "inf", "1", "../x", "\x00", "\x1b[31m", "x" * 5000, [], [[]], [1, 2], {}, {"x": 1}, {"": None}]
RAW = ["NaN", "Infinity", "1e999", "-1e999", "9" * 5000, "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000]
RAW += ['{"a": 1, "a": 2}', "tru", '"\\ud800"', "'x'", "01", ""]
NAMES = ["more", "", "\x1b[31m", "a\nb", "\u202ex", "x" * 5000, "../x", "='x'"]
_MARK = "@@raw@@"


def mutate(path: Path, seed: int) -> str:
    """Change a checkpoint by the draws of `seed`; return what was changed: the file, a colon and the place in it."""
    draw = random.Random(seed)
    name = draw.choice(FILES)
    kind = draw.random()
    if kind < 0.2:
        return f"{name}: {_bytes(path / name, draw)}"
    if name in TENSORS:
        place = _header(path / name, draw) if kind < 0.6 else _tensors(path / name, draw)
    else:
        place = _json(path / name, draw)
    if name != "manifest.json":
        rehash(path)
    return f"{name}: {place}"


def _bytes(file: Path, draw: random.Random) -> str:
    """Change bytes alone, which the hash must notice."""
    content = bytearray(file.read_bytes())
    how = draw.choice(["flip", "cut", "longer", "empty", "zero", "gone", "folder", "link"])
    if how == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del content[draw.randrange(len(content)) :]
    elif how == "longer":
        content += bytes(draw.randrange(1, 100))
    elif how == "empty":
        content.clear()
    elif how == "zero":
        start = draw.randrange(len(content))
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    if how in ("gone", "folder", "link"):
        file.unlink()
        if how == "folder":
            file.mkdir()
        elif how == "link":
            file.symlink_to(draw.choice(["/dev/zero", "/etc/hostname", file.name, "state.json"]))
    else:
        file.write_bytes(content)
    return f"bytes, {how}"


def _json(file: Path, draw: random.Random) -> str:
    """Change a value, a key or the text of a JSON file at a random place."""
    content = json.loads(file.read_text())
    place, parent, key = _random_place(content, draw)
    how = draw.choice(["value", "value", "value", "raw", "delete", "rename", "add", "swap", "twice"])
    if how == "raw":
        parent[key] = _MARK
        file.write_text(json.dumps(content).replace(f'"{_MARK}"', draw.choice(RAW)))
        return f"{place}, {how}"
    if how == "delete":
        del parent[key]
    elif how == "rename" and isinstance(parent, dict):
        parent[draw.choice([f"{key}_", *NAMES])] = parent.pop(key)
    elif how == "add" and isinstance(parent, dict):
        parent[draw.choice(NAMES)] = draw.choice(VALUES)
    elif how == "swap":
        _, other, other_key = _random_place(content, draw)
        parent[key], other[other_key] = other[other_key], parent[key]
    elif how == "twice" and isinstance(parent, dict):
        text = json.dumps(content)
        entry = f"{json.dumps(key)}: {json.dumps(parent[key])}"
        file.write_text(text.replace(entry, f"{entry}, {json.dumps(key)}: 1", 1))
        return f"{place}, {how}"
    else:
        parent[key] = draw.choice(VALUES)
    try:
        text = json.dumps(content)
    except ValueError:  # a swap put a part inside itself
        text = "{}"
    file.write_text(text)
    return f"{place}, {how}"


def _random_place(content: Any, draw: random.Random) -> tuple[str, Any, Any]:
    """Return a random place in a JSON tree: its dotted path, the object or list that holds it, its key."""
    names: list[str] = []
    parent, key = content, draw.choice(list(content))
    while True:
        names.append(str(key))
        value = parent[key]
        if not isinstance(value, (dict, list)) or not value or draw.random() < 0.2:
            return ".".join(names), parent, key
        parent = value
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))


def _header(file: Path, draw: random.Random) -> str:
    """Change the header of a safetensors file, and leave its data as it is."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = draw.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    how = draw.choice(
        ["dtype", "shape", "offsets", "delete", "rename", "add", "value", "length", "raw", "deep", "swap"]
    )
    if how == "dtype":
        entry["dtype"] = draw.choice(["F64", "F16", "BF16", "I32", "I64", "U8", "BOOL", "F8_E4M3", "F4", "X", 3, None])
    elif how == "shape":
        entry["shape"] = draw.choice([[], [0], [1], [-1], [2**62, 4], [*entry["shape"], 1], entry["shape"][::-1], "x"])
    elif how == "offsets":
        start, end = entry["data_offsets"]
        entry["data_offsets"] = draw.choice([[end, start], [0, 0], [start, end + 4], [2**63, 2**63], [-1, 4], [start]])
    elif how == "delete":
        del header[name]
    elif how == "rename":
        header[draw.choice([f"{name}_", name.upper(), f"{name}\n/step", *NAMES])] = header.pop(name)
    elif how == "add":
        header[draw.choice(NAMES)] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    elif how == "value":
        header[name] = draw.choice([None, 1, [], {}, "x"])
    elif how == "swap":
        other = draw.choice([key for key in header if key not in (name, "__metadata__")])
        header[name], header[other] = header[other], header[name]
    text = json.dumps(header).encode()
    if how == "raw":
        text = draw.choice([b"", b"{", b"\xff" * 40, text[:-1], text + b"   ", b"[" * 5000])
    elif how == "deep":
        text = b'{"__metadata__": ' + b'{"a": ' * 3000 + b"1" + b"}" * 3001
    size = draw.choice([0, 1, 2**40, 2**63, len(text) + 1]) if how == "length" else len(text)
    file.write_bytes(struct.pack("<Q", size) + text + data)
    return f"{name}, header, {how}"


def _tensors(file: Path, draw: random.Random) -> str:
    """Write a valid safetensors file with one tensor changed, missing or too many."""
    tensors = load_file(file)
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    how = draw.choice(["dtype", "shape", "shape", "missing", "more", "nan", "all gone"])
    if how == "dtype":
        tensors[name] = tensor.to(draw.choice([torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool]))
    elif how == "shape":
        larger, smaller = tuple(n + 1 for n in tensor.shape), tuple(n // 2 for n in tensor.shape)
        shapes = [(), (0,), (1,), (2,), (*tensor.shape, 1), (*tensor.shape, 0), larger, smaller]
        shape = draw.choice([shape for shape in shapes if shape != tuple(tensor.shape)])
        tensors[name] = torch.ones(shape, dtype=tensor.dtype)
    elif how == "missing":
        del tensors[name]
    elif how == "more":
        tensors[draw.choice(["x", "x/exp_avg", f"{name}/step", "head.bias/x"])] = torch.ones(3)
    elif how == "nan":
        tensors[name] = torch.full_like(tensor, draw.choice([math.nan, math.inf]))
    else:
        tensors = {}
    os.unlink(file)
    save_file(tensors, file)
    return f"{name}, tensors, {how}"
