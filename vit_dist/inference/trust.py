"""Code and arguments of a model that a file names: used only if the user trusts the file, or named them too."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from vit_dist.config.catalog import is_timm
from vit_dist.config.fields import ModelConfig
from vit_dist.errors import UserError, visible
from vit_dist.models.timm_models import untrusted_arguments


def check_trust(config: ModelConfig, file: Path, *, trust_code: bool, named: str = "") -> None:
    """Refuse a model whose `file` names a function, or arguments of timm's that are no sizes or switches.

    trust_code: whether the user trusts the file; one line on standard error then says what is run. named: the function
    that the user's own config names, which may run. Raises UserError, which says what would run.
    """
    advice = "if you trust it, add --trust_code (in Python: trust_code=True)"
    if ":" in config.name and not is_timm(config.name):
        origin = _origin(config.name)
        if trust_code and os.environ.get("RANK", "0") == "0":
            note = f"runs {config.name} ({origin}), which {file} names as its model"
            print(f"vit-dist: note: {visible(note)}", file=sys.stderr)
        elif not trust_code and config.name != named:
            raise UserError(f"{file}: names {config.name} as its model, code that would run here ({origin}): {advice}")
    elif is_timm(config.name) and not trust_code:
        problems = untrusted_arguments(config)
        if problems:
            raise UserError(f"{file}: model.args.{problems[0]} is not taken from a file for {config.name}: {advice}")


def _origin(path: str) -> str:
    """Return where the package of `package.module:function` is, found without importing it."""
    package = path.partition(":")[0].partition(".")[0]
    try:
        spec = PathFinder.find_spec(package, [*sys.path, os.getcwd()])
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return "built into Python" if package in sys.builtin_module_names else "not found"
    return f"in {spec.origin or package}"
