"""The command that trains a run anew with other flags, and what those do."""

from __future__ import annotations

import json
import shlex
from typing import Any

from vit_dist.config.config import Config
from vit_dist.config.recipe import recipe_for
from vit_dist.report.about import nearest_recipe

# With more changes the command would be longer than anybody reads.
_MOST_CHANGES = 8
# Field → what it does.
_MEANINGS = {
    "model.pretrained": "timm downloads weights trained on ImageNet",
    "augment.mixup": "mixup blends pairs of images and their labels",
    "augment.auto": "3a makes each image grey, inverts its bright parts or blurs it, and varies its colours",
    "train.ema": "EMA judges a running mean of the weights",
    "model.drop_path": "drop path leaves out blocks at random",
    "batch.global_size": "the images of one update",
    "data.val_fraction": "this part of the training images is held out as val",
    "data.workers": "the processes that read images",
}


def train_command(config: Config, flags: str) -> str:
    """Return the command of a run like this one with other flags: of its data, and what differs from its recipe.

    Fields that the recipe leaves to the data are left to it again. The flags alone if the data has no name, or the
    config is far from all recipes.
    """
    words = shlex.split(flags)
    new = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    nearest = nearest_recipe(config)
    unnamed = config.data.source == "folder" and not config.data.root
    if nearest is None or unnamed or len(nearest.changes) > _MOST_CHANGES:
        return flags
    other_recipe = "model.pretrained" in new
    given = {"data.root": config.data.root} if config.data.root else {}
    changed = {name: _word(value) for name, (_, value) in nearest.changes}
    given |= {name: value for name, value in changed.items() if not other_recipe or name.startswith("data.")}
    given |= new
    named = other_recipe or recipe_for(given) == nearest.name
    parts = ["vit-dist", "train", *([] if named else ["--config", nearest.name])]
    return shlex.join([*parts, *(part for name, value in given.items() for part in (f"--{name}", value))])


def meaning(flags: str) -> str:
    """Return what flags do, in half a sentence; empty if their names say it."""
    names = [word.removeprefix("--") for word in shlex.split(flags)[::2]]
    return "; ".join(_MEANINGS[name] for name in names if name in _MEANINGS)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
