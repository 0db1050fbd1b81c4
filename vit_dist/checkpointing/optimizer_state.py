"""Turn an optimizer's state into named tensors and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

SEPARATOR = "/"
# Numbers of a parameter group that come from the config and the schedule; the others are the optimizer's counters.
_FROM_THE_CONFIG = ("lr", "momentum", "weight_decay", "scale")


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state by `parameter/slot`, on the host."""
    return {
        name: value.detach().cpu().contiguous()
        for name, value in _slots(optimizer, model)
        if isinstance(value, torch.Tensor)
    }


def optimizer_numbers(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return the plain numbers of an optimizer's state and of its groups, in which some of timm's optimizers count."""
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
