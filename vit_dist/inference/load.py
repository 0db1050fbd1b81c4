"""A trained model by what a person calls it: a run, a checkpoint, an export, a file of weights, a timm name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vit_dist.checkpointing import checkpoint
from vit_dist.checkpointing.checkpoint import Checkpoint
from vit_dist.checkpointing.folder import pointed_to
from vit_dist.checkpointing.state import Best
from vit_dist.config.catalog import is_timm
from vit_dist.config.config import Config
from vit_dist.config.schema import ModelConfig
from vit_dist.config.sections import inference_fields
from vit_dist.config.values import merged
from vit_dist.data.preprocessing import Preprocessing, timm_preprocessing
from vit_dist.errors import UserError
from vit_dist.files import read_json
from vit_dist.models.build import build_model
from vit_dist.models.pretrained import classes_and_channels, load_pretrained, timm_weights
from vit_dist.models.timm_models import check_model_name, imagenet_classes
from vit_dist.models.weights import load_weights

# Files of a checkpoint → whose weights they hold.
_WEIGHTS = {"model": "raw", "ema": "ema"}


@dataclass(frozen=True)
class TrainedModel:
    """model: on the CPU. preprocessing: what its images become. classes: what data calls them; names: what people do.
    weights: raw or ema, of update `update` (None: not of a run). config: its run's, or one that says as much.
    precision: what it was trained in. samples: training images that its run had."""

    model: nn.Module
    preprocessing: Preprocessing
    classes: list[str]
    channels: int
    weights: str
    config: Config
    names: list[str]
    update: int | None = None
    precision: str = "fp32"
    samples: int | None = None


def load_model(name: str, *, weights: str = "", overrides: Mapping[str, Any] | None = None) -> TrainedModel:
    """The model at a run's folder, a checkpoint's, or that of an export, in a safetensors file, or timm/NAME.

    weights: raw or ema of a run; empty: those that it chose. overrides: dotted fields of the config; a run takes
    those alone that its model does not hang on, a bare file or a timm name all of `model` and `data`.
    Raises UserError.
    """
    given = dict(overrides or {})
    path = Path(name).expanduser()
    if weights and (is_timm(name) or path.is_file() or (path / "config.json").is_file()):
        raise UserError(f"--weights: {name} is one set of weights: leave it out")
    if is_timm(name):
        return _from_weights_file(given | {"model.name": name}, None)
    if path.suffix == ".safetensors" and path.is_file():
        if (path.parent / checkpoint.MANIFEST).is_file():
            if path.stem not in _WEIGHTS:
                raise UserError(f"{path}: holds no model: its weights are in model.safetensors beside it")
            return _from_run(path.parent, "", _WEIGHTS[path.stem], given)
        if (path.parent / "config.json").is_file() and "model.name" not in given:
            return _from_export(path.parent, given)
        if "model.name" not in given:
            raise UserError(
                f"model.name: {path} holds weights alone: say whose they are, as timm/vit_small_patch16_224"
            )
        return _from_weights_file(given, path)
    if (path / "config.json").is_file():
        return _from_export(path, given)
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl") and path.is_file():
        raise UserError(f"{path}: a pickle is never read: convert it to safetensors")
    if path.suffix == ".onnx" and path.is_file():
        raise UserError(f"{path}: onnxruntime runs it; here give the run, or the folder, that it was made from")
    if not path.is_dir():
        near = "; timm's models are timm/NAME" if "/" not in name else ""
        raise UserError(f"{name}: no run's folder, checkpoint, exported folder or safetensors file is there{near}")
    return _from_run(path, "", weights, given)


def load_run_model(path: Path, field: str, model: nn.Module | None = None) -> TrainedModel:
    """The best weights of the run at `path`, its last ones where none were chosen, or a checkpoint's.

    model: where they go, instead of into the model that the config names.
    Raises UserError, naming `field`, where there is none.
    """
    return _from_run(path, field, "", {}, model)


def _from_run(
    path: Path, field: str, weights: str, given: Mapping[str, Any], model: nn.Module | None = None
) -> TrainedModel:
    _refuse(given, inference_fields(), "the run says it itself")
    found, chosen = _chosen(path, field)
    weights = weights or chosen
    config = _with(Config.from_dict(found.state["config"]), given)
    if weights == "ema" and not (found.path / "ema.safetensors").is_file():
        raise UserError(f"--weights: {found.path} has no EMA weights: its run had no train.ema")
    preprocessing = Preprocessing.from_dict(found.state["preprocessing"])
    classes = list(found.state["classes"])
    model = model or build_model(
        config.model,
        classes=len(classes),
        channels=found.state["channels"],
        image_size=preprocessing.image_size,
        seed=config.run.seed,
    )
    load_weights(model, _weights_file(found, weights))
    return TrainedModel(
        model,
        preprocessing,
        classes,
        found.state["channels"],
        weights,
        config,
        classes,
        update=found.position,
        precision=found.state["precision"],
        samples=found.state["plan"]["samples"],
    )


def _from_weights_file(given: Mapping[str, Any], path: Path | None) -> TrainedModel:
    """A named model with the weights of a file, or timm's own; what the file does not say, timm or the fields do."""
    config = Config.load("folder", given)
    check_model_name(config.model.name)
    path = path or (Path(config.model.pretrained).expanduser() if config.model.pretrained else None)
    path = timm_weights(config.model.name) if path is None or str(path) == "timm" else path
    classes, channels = classes_and_channels(config.model.name, path)
    made = timm_preprocessing(config.model)
    side = config.data.image_size or (made.image_size if made else 0)
    mean, std = config.data.mean or (made.mean if made else ()), config.data.std or (made.std if made else ())
    problems = [] if side else ["data.image_size: set the side in pixels that the model was trained at"]
    for field, values in (("data.mean", mean), ("data.std", std)):
        if len(values) != channels:
            count = f"{channels} values" if channels > 1 else "one value"
            problems.append(f"{field}: set what the model was trained with, {count}")
    if problems:
        raise UserError("\n".join(problems))
    model = build_model(config.model, classes=classes, channels=channels, image_size=side, seed=0, trained=False)
    load_weights(model, path)
    preprocessing = Preprocessing(
        side, tuple(mean), tuple(std), crop=config.data.crop or (made.crop if made else 0.875)
    )
    identifiers, names = imagenet_classes(config.model.name, classes)
    return TrainedModel(model, preprocessing, identifiers, channels, "raw", config, names)


def _from_export(folder: Path, given: Mapping[str, Any]) -> TrainedModel:
    """A folder in the form of timm and the Hugging Face hub."""
    _refuse(given, (*inference_fields(), "data.name", "data.val_fraction"), "the folder says it itself")
    try:
        said = read_json(folder / "config.json")
        made = said["pretrained_cfg"]
        channels, side = made["input_size"][0], made["input_size"][-1]
        preprocessing = Preprocessing(side, tuple(made["mean"]), tuple(made["std"]), crop=made["crop_pct"])
        args = {name: value for name, value in said.get("model_args", {}).items() if name not in _BUILT_WITH}
        name, classes = f"timm/{said['architecture']}", said["num_classes"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{folder / 'config.json'}: not one that timm would load: {error!r}") from None
    config = Config.load("folder", {**given, "model.name": name, "model.args": args})
    model = build_model(config.model, classes=classes, channels=channels, image_size=side, seed=0, trained=False)
    load_weights(model, folder / "model.safetensors")
    known = said.get("label_names")
    labels = [str(one) for one in known] if isinstance(known, list) else [str(number) for number in range(classes)]
    told = said.get("label_descriptions") or {}
    return TrainedModel(
        model, preprocessing, labels, channels, "raw", config, [str(told.get(label, label)) for label in labels]
    )


# Arguments of timm's that `build_model` gives itself.
_BUILT_WITH = ("num_classes", "in_chans", "img_size")


def _refuse(given: Mapping[str, Any], allowed: Sequence[str], because: str) -> None:
    problems = [name for name in given if name not in allowed]
    if problems:
        raise UserError("\n".join(f"{name}: cannot be set here: {because}; --help names what can" for name in problems))


def _with(config: Config, given: Mapping[str, Any]) -> Config:
    """The config with dotted fields replaced."""
    values: dict[str, Any] = config.to_dict()
    for name, value in given.items():
        section, _, field = name.partition(".")
        values = merged(values, {section: {field: value}})
    return Config.from_dict(values)


def _chosen(path: Path, field: str) -> tuple[Checkpoint, str]:
    """The checkpoint of a run that was chosen, or the one at `path`; and which of its weights were."""
    if not (path / checkpoint.MANIFEST).is_file():
        folder = path if path.name == "checkpoints" else path / "checkpoints"
        path = pointed_to(folder, "best") or pointed_to(folder, "last") or path
    if not (path / checkpoint.MANIFEST).is_file():
        prefix = f"{field}: " if field else ""
        raise UserError(f"{prefix}{path} is neither a run's folder with a checkpoint nor a checkpoint")
    found = checkpoint.open_checkpoint(path)
    best = found.state["train_state"]["best"]
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
