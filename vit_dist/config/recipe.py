"""Recipes and other YAML files that a config is read from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_dist.errors import UserError, one_line

RECIPES = Path(__file__).parent / "recipes"


def recipe_for(overrides: Mapping[str, Any]) -> str:
    """Return the recipe to use if none is named.

    `finetune` if the overrides set `model.pretrained`, else the one named after their `data.name`, else `folder` if
    they set `data.root` or another `data.name`, else `digits`.
    """
    if overrides.get("model.pretrained"):
        return "finetune"
    name = str(overrides.get("data.name", ""))
    if (RECIPES / f"{name}.yaml").is_file():
        return name
    return "folder" if {"data.root", "data.name"} & overrides.keys() else "digits"


def find_recipe(recipe: str | Path) -> Path:
    """Return the YAML file of a shipped recipe's name or of a path. Raises UserError."""
    shipped = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    path = Path(recipe).expanduser()
    if not path.is_file():
        raise UserError(f"--config {recipe}: neither a file nor a shipped recipe ({', '.join(shipped)})")
    return path


def parse_yaml(text: str, name: object) -> Any:
    """Parse YAML. Raises UserError that begins with `name` and says where it breaks."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that appears twice, of which YAML silently keeps the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} appears twice", key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: not YAML: {one_line(error)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the sections of a YAML file. Raises UserError, with the line where it breaks."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), path) or {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold sections such as `optimizer:` with fields below them")
    return values
