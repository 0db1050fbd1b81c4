"""Read safetensors files, and load weights by name; errors list what does not fit."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vit_dist.errors import UserError


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's tensors by name, on the host; tied ones once, under their first name."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file by name. Raises UserError that lists what does not fit."""
    model.load_state_dict(matching_tensors(model, path), strict=False)


def matching_tensors(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that has exactly a model's. Raises UserError that lists what does not fit."""
    tensors, wanted = read_tensors(path), state_tensors(model)
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - tensors.keys())]
    problems += [f"{name} is not in the model" for name in sorted(tensors.keys() - wanted.keys())]
    problems += [
        f"{name} is {list(tensors[name].shape)}, the model's {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & tensors.keys())
        if wanted[name].shape != tensors[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path}: of another model: {'; '.join(problems[:3])}{more}")
    return tensors


def read_tensors(path: Path, field: str = "") -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name. Raises UserError that begins with `field`, if one names it."""
    prefix = f"{field}: " if field else ""
    if not path.is_file():
        raise UserError(f"{prefix}{path} does not exist")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{prefix}{path} is not a safetensors file: {error}") from None
