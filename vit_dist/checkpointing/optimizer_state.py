"""The optimizer's state as named tensors and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

SEPARATOR = "/"


# Of a group's numbers, those that the config and the schedule give; what else there is, the optimizer counts.
_FROM_THE_CONFIG = ("lr", "momentum", "weight_decay", "scale")


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().cpu().contiguous()
        for name, value in _slots(optimizer, model)
        if isinstance(value, torch.Tensor)
    }


def optimizer_numbers(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """What an optimizer keeps as plain numbers, of each parameter and of its groups: some of timm's count so."""
    return {
        "state": {name: value for name, value in _slots(optimizer, model) if _is_number(value)},
        "groups": [
            {
                name: number
                for name, value in group.items()
                if name not in _FROM_THE_CONFIG and _is_number(number := _scalar(value))
            }
            for group in optimizer.param_groups
        ],
    }


def _slots(optimizer: Optimizer, model: nn.Module) -> Iterator[tuple[str, Any]]:
    """("parameter/slot", value) of all that an optimizer keeps of parameters."""
    state = optimizer.state_dict()["state"]
    for i, name in enumerate(parameter_names(optimizer, model)):
        for slot, value in state.get(i, {}).items():
            yield f"{name}{SEPARATOR}{slot}", value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _scalar(value: Any) -> Any:
    """A tensor of one number, as timm's Lambs count in, as that number; all else as it is."""
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value


def parameter_names(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """The parameters' names in the order of the optimizer's numbers."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
