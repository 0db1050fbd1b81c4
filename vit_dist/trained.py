"""A trained model, from the folder of its run or a checkpoint: built as its config says, with its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from vit_dist import checkpoint
from vit_dist.checkpoint import Checkpoint
from vit_dist.config import Config
from vit_dist.data.stream import Form
from vit_dist.models.build import build_model
from vit_dist.state import Best
from vit_dist.values import UserError


@dataclass(frozen=True)
class Trained:
    """model: on the CPU. form: what its images become. classes: their names. weights: raw or ema."""

    model: nn.Module
    form: Form
    classes: list[str]
    channels: int
    weights: str


def open_trained(path: Path, field: str, model: nn.Module | None = None) -> Trained:
    """The best weights of the run at `path`, its last ones where none were chosen, or a checkpoint's.

    model: where they go, instead of into the model that the config names.
    Raises UserError, naming `field`, where there is none.
    """
    if not (path / checkpoint.MANIFEST).is_file():
        folder = path / "checkpoints"
        path = checkpoint.follow(folder, "best") or checkpoint.follow(folder, "last") or path
    if not (path / checkpoint.MANIFEST).is_file():
        raise UserError(f"{field}: {path} is neither a run's folder with a checkpoint nor a checkpoint")
    found = checkpoint.open_checkpoint(path)
    config = Config.from_dict(found.state["config"])
    form = Form.from_dict(found.state["form"])
    model = model or build_model(
        config.model,
        classes=len(found.state["classes"]),
        channels=found.state["channels"],
        image_size=form.image_size,
        seed=config.run.seed,
    )
    best = found.state["train"]["best"]
    weights = Best(**best).weights if best else default_weights(config)
    load_chosen(found, model, weights)
    return Trained(model, form, list(found.state["classes"]), found.state["channels"], weights)


def load_chosen(found: Checkpoint, model: nn.Module, weights: str) -> None:
    """Puts a checkpoint's raw or averaged (ema) weights into a model. Raises UserError where they do not fit."""
    checkpoint.load_weights(model, found.path / ("ema.safetensors" if weights == "ema" else "model.safetensors"))


def default_weights(config: Config) -> str:
    """What counts where nothing was chosen: the averaged weights, if the run keeps them."""
    return "ema" if config.train.ema and not config.evaluate.metric.startswith("raw_") else "raw"
