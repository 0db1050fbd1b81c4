"""A trained model, from the folder of its run or a checkpoint: built as its config says, with its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from vit_dist import checkpoint
from vit_dist.checkpoint import Checkpoint
from vit_dist.config import Config, ModelConfig
from vit_dist.data.stream import Form
from vit_dist.models.build import build_model
from vit_dist.models.pretrained import load_pretrained, timm_weights
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
    found, weights = _chosen(path, field)
    config = Config.from_dict(found.state["config"])
    form = Form.from_dict(found.state["form"])
    model = model or build_model(
        config.model,
        classes=len(found.state["classes"]),
        channels=found.state["channels"],
        image_size=form.image_size,
        seed=config.run.seed,
    )
    checkpoint.load_weights(model, _weights_file(found, weights))
    return Trained(model, form, list(found.state["classes"]), found.state["channels"], weights)


def _chosen(path: Path, field: str) -> tuple[Checkpoint, str]:
    """The checkpoint of a run that was chosen, or the one at `path`; and which of its weights were."""
    if not (path / checkpoint.MANIFEST).is_file():
        folder = path / "checkpoints"
        path = checkpoint.follow(folder, "best") or checkpoint.follow(folder, "last") or path
    if not (path / checkpoint.MANIFEST).is_file():
        raise UserError(f"{field}: {path} is neither a run's folder with a checkpoint nor a checkpoint")
    found = checkpoint.open_checkpoint(path)
    best = found.state["train"]["best"]
    return found, Best(**best).weights if best else default_weights(Config.from_dict(found.state["config"]))


def _weights_file(found: Checkpoint, weights: str) -> Path:
    return found.path / ("ema.safetensors" if weights == "ema" else "model.safetensors")


def default_weights(config: Config) -> str:
    """What counts where nothing was chosen: the averaged weights, if the run keeps them."""
    return "ema" if config.train.ema and not config.evaluate.metric.startswith("raw_") else "raw"


def start_from(model: nn.Module, config: ModelConfig, classes: list[str]) -> list[str]:
    """Loads model.pretrained into a model, and tells what was not taken as it stands. Raises UserError."""
    if config.pretrained == "timm":
        return load_pretrained(model, timm_weights(config.name), new_head=False)
    path = Path(config.pretrained).expanduser()
    if not path.is_dir():
        return load_pretrained(model, path, new_head=False)
    found, weights = _chosen(path, "model.pretrained")
    return load_pretrained(model, _weights_file(found, weights), new_head=found.state["classes"] != classes)
