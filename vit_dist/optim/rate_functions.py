"""The user's functions of the learning rate, checked at every call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vit_dist.config.values import import_function
from vit_dist.errors import UserError, one_line

_FIELDS = ("lr_lambda", "scale_fn")


def uses_functions(arguments: Mapping[str, Any]) -> bool:
    """Return whether a schedule's arguments name functions of the user's."""
    nested = arguments.get("schedulers", ())
    return any(name in arguments for name in _FIELDS) or any(map(uses_functions, nested))


def rate_function(path: str, field: str) -> Callable[[Any], Any]:
    """Return the function at an import path, checked at every call. Raises UserError, naming `field`.

    A call that fails, or gives no finite number (for `lr_lambda`, counted in updates after the warmup: of 0 or more),
    raises UserError that names the function, its argument and its value.
    """
    function = import_function(path, field)
    least = 0.0 if field.endswith("lr_lambda") else -math.inf
    wanted = "a finite number" if least else "a finite number of 0 or more"

    def checked(argument: Any) -> Any:
        where = f"{path} for update {argument} after the warmup" if not least else f"{path} for {argument}"
        try:
            value = function(argument)
            number = float(value)
        except (Exception, SystemExit) as error:  # of any kind: it is the user's function
            raise UserError(f"{field}: {where} fails: {type(error).__name__}: {one_line(error, 200)}") from error
        if not math.isfinite(number) or number < least:
            raise UserError(f"{field}: {where} gives {number:.4g}: it must give {wanted}")
        return value

    return checked
