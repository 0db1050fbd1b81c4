"""Read safetensors files, and load weights by name; errors list what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vit_dist.errors import ModelError, UserError, one_line, visible

# torch's types → safetensors' names of them.
_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
           "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}  # fmt: skip
# Of a safetensors file, in bytes; a tensor takes about 100.
_LONGEST_HEADER = 2**24
# Types of weights of which one can be read as another.
_FLOATS = {"F64", "F32", "F16", "BF16"}


class TensorSpec(NamedTuple):
    """The type of a tensor, by safetensors' name, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        """Return it as errors show it."""
        return f"{self.dtype} {list(self.shape)}"


def spec_of(tensor: Tensor) -> TensorSpec:
    """Return a tensor's type and shape."""
    name = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(_DTYPES.get(name, name), tuple(tensor.shape))


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's own tensors by name, on its device; tied ones once, under their first name."""
    return {name: tensor.detach() for name, tensor in _untied(model).items()}


def load_weights(model: nn.Module, path: Path, *, exact: bool = False) -> None:
    """Load a safetensors file by name, once all of it is known to fit.

    exact: the types must be the model's own, as in its checkpoints. Raises UserError that lists what does not fit,
    ModelError for weights that are not finite.
    """
    model.load_state_dict(matching_tensors(model, path, exact=exact), strict=False)


def matching_tensors(model: nn.Module, path: Path, *, exact: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a file that has exactly a model's. Raises UserError, ModelError, as `load_weights`."""
    check_tensors(model, path, exact=exact)
    tensors = read_tensors(path)
    check_finite(tensors, path)
    return tensors


def check_tensors(model: nn.Module, path: Path, *, exact: bool = False) -> None:
    """Check that a file has exactly a model's tensors; no data is read. Raises UserError, as `load_weights`."""
    found, wanted = read_specs(path), {name: spec_of(tensor) for name, tensor in _untied(model).items()}
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} is not in the model" for name in sorted(found.keys() - wanted.keys())]
    shared = sorted(wanted.keys() & found.keys())
    problems += [
        f"{name} is {list(found[name].shape)}, the model's {list(wanted[name].shape)}"
        for name in shared
        if found[name].shape != wanted[name].shape
    ]
    problems += [
        f"{name} is of type {found[name].dtype}, the model's {wanted[name].dtype}"
        for name in shared
        if not _same_type(found[name].dtype, wanted[name].dtype, exact=exact)
    ]
    if problems:
        raise UserError(f"{path}: of another model: {first_three(problems)}")


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that all values are finite. Raises ModelError: a model of NaN answers nothing."""
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if names:
        raise ModelError(
            f"{path}: holds values that are NaN or infinite ({first_three(sorted(names))}): "
            "its training diverged, use an earlier checkpoint"
        )


def first_three(problems: list[str]) -> str:
    """Return the first three of a list, each on one line and cut to 300 characters, and how many more there are."""
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"{'; '.join(visible(problem[:300]) for problem in problems[:3])}{more}"


def read_specs(path: Path) -> dict[str, TensorSpec]:
    """Return the types and shapes of a safetensors file's tensors by name. Raises UserError."""
    _check_header(path, "")
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in list(file.keys())}
            return {name: TensorSpec(each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a safetensors file: {one_line(error, 200)}") from None


def read_tensors(path: Path, field: str = "") -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name. Raises UserError that begins with `field`, if one names it."""
    prefix = f"{field}: " if field else ""
    _check_header(path, prefix)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{prefix}{path} is not a safetensors file: {one_line(error, 200)}") from None


def _check_header(path: Path, prefix: str) -> None:
    """Check that a file is there, and that its header is not so long that it would fill the memory. Raises UserError.

    prefix: what the error begins with.
    """
    if not path.is_file():
        raise UserError(f"{prefix}{path} does not exist")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise UserError(f"{prefix}{path} cannot be read: {error.strerror}") from None
    if length > _LONGEST_HEADER:
        raise UserError(f"{prefix}{path} is not a safetensors file: its header would have {length:,} bytes")


def _untied(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's tensors by name, where they are; tied ones once, under their first name."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def _same_type(stored: str, wanted: str, *, exact: bool) -> bool:
    return stored == wanted or (not exact and {stored, wanted} <= _FLOATS)
