"""Turn an optimizer's state into named tensors and numbers, and check such a state before it is loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit_dist.checkpointing.state import OptimizerNumbers
from vit_dist.errors import UserError
from vit_dist.models.weights import TensorSpec, first_three, spec_of

SEPARATOR = "/"
# Numbers of a parameter group that come from the config and the schedule; the others are the optimizer's counters.
_FROM_THE_CONFIG = ("lr", "momentum", "weight_decay", "scale")
# What a parameter group must not take from a file.
_NOT_NUMBERS = ("params", "name")


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state by `parameter/slot`, on their device."""
    return {name: value.detach() for name, value in _slots(optimizer, model) if isinstance(value, torch.Tensor)}


def optimizer_numbers(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return the plain numbers of an optimizer's state and of its groups, in which some of timm's optimizers count."""
    kept = {name: value for name, value in _slots(optimizer, model) if _is_number(value) or isinstance(value, Tensor)}
    return {
        "state": {name: value for name, value in kept.items() if _is_number(value)},
        "groups": [
            {
                name: number
                for name, value in group.items()
                if name not in _FROM_THE_CONFIG and _is_number(number := _scalar(value))
            }
            for group in optimizer.param_groups
        ],
        "parameters": len({name.rpartition(SEPARATOR)[0] for name in kept}),
    }


def check_optimizer_state(
    optimizer: Optimizer,
    model: nn.Module,
    tensors: Mapping[str, TensorSpec],
    numbers: OptimizerNumbers,
    file: Path,
    *,
    applied: int,
) -> None:
    """Check that a saved state is what this optimizer keeps of this model: names, shapes, types, numbers.

    applied: the number of its steps. Of a parameter that never had a gradient nothing is kept. Raises UserError, in one
    line. A wrong shape that got through would be out of bounds in a fused kernel, which ends the process.
    """
    names = parameter_names(optimizer, model)
    found: dict[str, dict[str, TensorSpec | type]] = {}
    for name, kind in [*tensors.items(), *((name, type(value)) for name, value in numbers.state.items())]:
        parameter, _, slot = name.rpartition(SEPARATOR)
        found.setdefault(parameter, {})[slot] = kind
    problems: list[str] = [f"{name} is not in the optimizer" for name in sorted(found.keys() - set(names))]
    if not problems and (found or applied):
        wanted = _expected_slots(optimizer, names)
        if not found and any(wanted.values()):
            problems.append(f"holds nothing after {applied} updates")
        problems += [text for name in names if name in found for text in _differences(name, found[name], wanted[name])]
    if not problems and numbers.parameters not in (None, len(found)):
        problems.append(
            f"holds the state of {len(found)} parameters, of the {numbers.parameters} that state.json counts"
        )
    problems += _group_problems(optimizer, numbers.groups)
    if problems:
        raise UserError(f"{file}: {first_three(problems)}")


def _differences(
    parameter: str, stored: Mapping[str, TensorSpec | type], wanted: Mapping[str, TensorSpec | type]
) -> Iterator[str]:
    """Yield what differs between the slots of a parameter and those that the optimizer keeps."""
    for slot in sorted(stored.keys() | wanted.keys()):
        name = f"{parameter}{SEPARATOR}{slot}"
        if slot not in wanted:
            yield f"{name} is not in the optimizer"
        elif slot not in stored:
            yield f"{name} is missing"
        elif stored[slot] != wanted[slot]:
            yield f"{name} is {_named(stored[slot])}, the optimizer's {_named(wanted[slot])}"


def _named(kind: TensorSpec | type) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _group_problems(optimizer: Optimizer, groups: list[dict[str, int | float]]) -> Iterator[str]:
    """Yield what is wrong with the counters of the parameter groups; no groups at all are those of an old format."""
    if groups and len(groups) != len(optimizer.param_groups):
        yield f"state.json has counters of {len(groups)} groups, the optimizer {len(optimizer.param_groups)}"
        return
    for number, (counters, group) in enumerate(zip(groups, optimizer.param_groups, strict=False)):
        for name in counters:
            if name in (*_FROM_THE_CONFIG, *_NOT_NUMBERS) or (name in group and not _is_number(_scalar(group[name]))):
                yield f"state.json has optimizer.groups.{number}.{name}, which is no counter"


def _expected_slots(optimizer: Optimizer, names: list[str]) -> dict[str, dict[str, TensorSpec | type]]:
    """Return what the optimizer keeps of each parameter, by slot: the type and shape of a tensor, or int or float.

    Found by a step of a copy of the optimizer over one parameter of each shape.
    """
    stand_ins: dict[tuple[Any, ...], nn.Parameter] = {}
    keys = []
    for group in optimizer.param_groups:
        kind = tuple(sorted(name for name in group if name != "params"))  # muon's groups are not those of its AdamW
        for parameter in group["params"]:
            key = (kind, parameter.shape, parameter.dtype)
            stand_ins.setdefault(key, nn.Parameter(torch.ones_like(parameter, device="cpu")))
            keys.append(key)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    memo: dict[int, Any] = {id(p): stand_ins[key] for p, key in zip(parameters, keys, strict=True)}
    trial: Optimizer = object.__new__(type(optimizer))
    trial.__dict__.update(copy.deepcopy(optimizer.__dict__, memo))
    taken: set[nn.Parameter] = set()
    for group in trial.param_groups:
        group["params"] = [p for p in dict.fromkeys(group["params"]) if p not in taken]
        taken.update(group["params"])
    for parameter in stand_ins.values():
        parameter.grad = torch.ones_like(parameter)
    trial.step()
    state = trial.state_dict()["state"]
    order = [id(parameter) for group in trial.param_groups for parameter in group["params"]]
    kept = {key: _kinds(state.get(order.index(id(stand_in)), {})) for key, stand_in in stand_ins.items()}
    return {name: kept[key] for name, key in zip(names, keys, strict=True)}


def _kinds(slots: Mapping[str, Any]) -> dict[str, TensorSpec | type]:
    """Return the kinds of the slots that a checkpoint holds."""
    return {
        slot: spec_of(value) if isinstance(value, Tensor) else type(value)
        for slot, value in slots.items()
        if isinstance(value, Tensor) or _is_number(value)
    }


def _slots(optimizer: Optimizer, model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield ("parameter/slot", value) of all the state that an optimizer keeps."""
    state = optimizer.state_dict()["state"]
    for i, name in enumerate(parameter_names(optimizer, model)):
        for slot, value in state.get(i, {}).items():
            yield f"{name}{SEPARATOR}{slot}", value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _scalar(value: Any) -> Any:
    """Return a tensor of one number, in which timm's Lambs count, as that number; anything else as it is."""
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value


def parameter_names(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """Return the parameters' names in the order in which the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
