"""Where configs are read from: shipped recipes by name, and files. The only reader of YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_dist.errors import UserError, one_line

RECIPES = Path(__file__).parent / "recipes"


def recipe_for(overrides: Mapping[str, Any]) -> str:
    """Where none is named: `finetune` where the overrides set `model.pretrained`; the one named like their `data.name`;
    `folder` where they set `data.root` or another `data.name`; else `digits`."""
    if overrides.get("model.pretrained"):
        return "finetune"
    named = str(overrides.get("data.name", ""))
    if (RECIPES / f"{named}.yaml").is_file():
        return named
    return "folder" if {"data.root", "data.name"} & overrides.keys() else "digits"


def find_recipe(recipe: str | Path) -> Path:
    """The YAML file of a shipped recipe's name or of a path. Raises UserError."""
    shipped = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    path = Path(recipe).expanduser()
    if not path.is_file():
        raise UserError(f"--config {recipe}: neither a file nor a shipped recipe ({', '.join(shipped)})")
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a YAML file. Raises UserError, with the line where it breaks."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold sections such as `optimizer:` with fields below them")
    return values
