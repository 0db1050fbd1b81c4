"""Recipes and other YAML files that a config is read from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vit_dist.config import limits
from vit_dist.config.text_fields import CONTRASTIVE
from vit_dist.config.values import WrittenFloat, WrittenInt
from vit_dist.errors import UserError, one_line
from vit_dist.files import user_path

if TYPE_CHECKING:
    import yaml

RECIPES = Path(__file__).parent / "recipes"


def recipe_for(overrides: Mapping[str, Any]) -> str:
    """Return the recipe to use if none is named.

    For images with captions (`loss.name`), `contrastive` if the overrides set `data.root`, `digits_captions` if they
    name no data. Else `finetune` if they set `model.pretrained`, else the one named after their `data.name`, else
    `folder` if they set `data.root` or another `data.name`, else `digits`.
    """
    if overrides.get("loss.name") in CONTRASTIVE and ("data.root" in overrides or "data.name" not in overrides):
        return "contrastive" if "data.root" in overrides else "digits_captions"
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
    path = user_path(str(recipe), "--config")
    if not path.is_file():
        raise UserError(f"--config {recipe}: neither a file nor a shipped recipe ({', '.join(shipped)})")
    return path


def parse_yaml(text: str, name: object) -> Any:
    """Parse YAML of limited size. Raises UserError that begins with `name` and says where it breaks."""
    import yaml

    if len(text) > limits.YAML_CHARACTERS:
        raise UserError(f"{name}: longer than a config can be: {limits.YAML_CHARACTERS:,} characters at most")
    try:
        return yaml.load(text, _loader())
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise UserError(f"{name}: not YAML: {one_line(error, 500)}") from None


@cache
def _loader() -> type[yaml.SafeLoader]:
    """Return the loader: safe, with limits, and with numbers that remember how they were written."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses aliases, deep nesting, long numbers, and a key that appears twice (YAML keeps the last)."""

        depth = count = 0

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            if self.check_event(yaml.AliasEvent):
                self._refuse("aliases are not read: write the value again", mark)
            self.depth += 1
            self.count += 1
            if self.depth > limits.YAML_LEVELS:
                self._refuse(f"more than {limits.YAML_LEVELS} levels", mark)
            if self.count > limits.YAML_VALUES:
                self._refuse(f"more than {limits.YAML_VALUES:,} values", mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    self._refuse(f"{key.value} appears twice", key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
            return super().construct_mapping(node, deep)

        def construct_number(self, node: yaml.ScalarNode) -> int | float:
            if len(node.value) > limits.YAML_DIGITS:
                self._refuse(f"a number of more than {limits.YAML_DIGITS} digits", node.start_mark)
            if node.tag.endswith(":int"):
                return WrittenInt.of(self.construct_yaml_int(node), node.value)
            return WrittenFloat.of(self.construct_yaml_float(node), node.value)

        def _refuse(self, reason: str, mark: yaml.Mark) -> NoReturn:
            raise yaml.constructor.ConstructorError(None, None, reason, mark)

    constructors: dict[str, Any] = {"int": Loader.construct_number, "float": Loader.construct_number}
    constructors["timestamp"] = Loader.construct_yaml_str  # a date is the text it is
    for kind, construct in constructors.items():
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", construct)
    return Loader


def read_saved_yaml(path: Path) -> dict[str, Any]:
    """Read the sections of a config.yaml that a run wrote, 20 times as fast as `read_yaml` where libyaml is there.

    What a run does not write, as aliases, is left to `read_yaml`, which says what is wrong. Raises UserError.
    """
    import yaml

    try:
        text = path.read_bytes()[: limits.YAML_CHARACTERS].decode("utf-8")
        if not {"&", "*"}.isdisjoint(text) or len(text) == limits.YAML_CHARACTERS:
            return read_yaml(path)
        values = yaml.load(text, yaml.CSafeLoader)
    except (OSError, AttributeError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return read_yaml(path)
    return values if isinstance(values, dict) else read_yaml(path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the sections of a YAML file. Raises UserError, with the line where it breaks."""
    try:
        with path.open(encoding="utf-8") as file:
            values = parse_yaml(file.read(limits.YAML_CHARACTERS + 1), path) or {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold sections such as `optimizer:` with fields below them")
    return values
