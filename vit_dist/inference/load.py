"""Load a trained model from a run, a checkpoint, an export, a safetensors file or a timm name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from vit_dist.checkpointing.checkpoint import Checkpoint
from vit_dist.checkpointing.manifest import AVERAGE, MANIFEST
from vit_dist.config.catalog import is_timm
from vit_dist.config.config import Config
from vit_dist.config.fields import ModelConfig
from vit_dist.config.schema import inference_fields
from vit_dist.config.values import merged
from vit_dist.data.preprocessing import Preprocessing, resized_as, timm_preprocessing
from vit_dist.data.text.tokenizer import open_tokenizer
from vit_dist.errors import UserError
from vit_dist.files import pickle_problem, read_json, user_path
from vit_dist.inference.choose import choose_checkpoint
from vit_dist.inference.trust import check_trust
from vit_dist.models.build import bf16_residual, build_model
from vit_dist.models.pretrained import classes_and_channels, load_pretrained, timm_weights
from vit_dist.models.timm_models import check_model_name, imagenet_classes
from vit_dist.models.two_tower import build_two_tower
from vit_dist.models.weights import load_weights
from vit_dist.run_folder.finding import run_meant

# Files of a checkpoint → whose weights they hold.
_WEIGHTS = {"model": "raw", "ema": "ema"}


@dataclass(frozen=True)
class TrainedModel:
    """A trained model on the CPU, with what is needed to use it.

    classes: as the data names them; names: for people. weights: raw or ema, of update `update` (None if it is not of
    a run). config: its run's, or an equivalent one. precision: that it was trained in. samples: number of its run's
    training images. notes: lines for the user, as on checkpoints that were passed over. data: the fingerprint of its
    run's splits, if it is of a run that says it. folder: its run's, if it is of one.
    """

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
    notes: tuple[str, ...] = ()
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    folder: Path | None = None


def load_model(
    name: str, *, weights: str = "", overrides: Mapping[str, Any] | None = None, trust_code: bool = False
) -> TrainedModel:
    """Load the model in a run's folder, a checkpoint, an exported folder or a safetensors file, or timm/NAME.

    weights: raw or ema of a run; empty: those that it chose. overrides: dotted fields of the config; for a run, those
    that do not change the model; for a file of weights or a timm name, all of `model` and `data`. trust_code: run a
    function that the run names as its model. Raises UserError.
    """
    fields = dict(overrides or {})
    path = user_path(name, "MODEL")
    if weights and (is_timm(name) or path.is_file() or (path / "config.json").is_file()):
        raise UserError(f"--weights: {name} is one set of weights: leave it out")
    if is_timm(name):
        return _from_weights_file(fields | {"model.name": name}, None)
    if path.suffix == ".safetensors" and path.is_file():
        if (path.parent / MANIFEST).is_file():
            if path.stem not in _WEIGHTS:
                raise UserError(f"{path}: holds no model: its weights are in model.safetensors in the same folder")
            return _from_run(path.parent, "", _WEIGHTS[path.stem], fields, trust_code=trust_code)
        if (path.parent / "config.json").is_file() and "model.name" not in fields:
            return _from_export(path.parent, fields, trust_code)
        if "model.name" not in fields:
            raise UserError(
                f"model.name: {path} holds weights alone: say whose they are, as timm/vit_small_patch16_224"
            )
        return _from_weights_file(fields, path)
    if (path / "config.json").is_file():
        return _from_export(path, fields, trust_code)
    if (problem := pickle_problem(path)) and path.is_file():
        raise UserError(problem)
    if path.suffix == ".onnx" and path.is_file():
        raise UserError(f"{path}: onnxruntime runs it; here give the run, or the folder, that it was made from")
    if not path.is_dir():
        near = run_meant(path) or ("; timm's models are timm/NAME" if "/" not in name else "")
        raise UserError(f"{name}: no run's folder, checkpoint, exported folder or safetensors file is there{near}")
    return _from_run(path, "", weights, fields, trust_code=trust_code)


def load_run_model(
    path: Path, field: str, model: nn.Module | None = None, *, trust_code: bool = False, named: str = ""
) -> TrainedModel:
    """Load the best weights of the run at `path` (the last ones if none were chosen), or those of a checkpoint.

    model: load them into it, in place of the model that the config names. trust_code: run a function that the run
    names as its model; named: the one that may run anyway. Raises UserError, naming `field`, if there are none.
    """
    return _from_run(path, field, "", {}, model, trust_code=trust_code, named=named)


def _from_run(
    path: Path,
    field: str,
    weights: str,
    fields: Mapping[str, Any],
    model: nn.Module | None = None,
    *,
    trust_code: bool,
    named: str = "",
) -> TrainedModel:
    _check_fields(fields, inference_fields(), "the run says it itself")
    source, notes = choose_checkpoint(path, field)
    state = source.state
    weights = weights or _chosen_weights(source)
    config = _with_fields(state.config, fields)
    if weights == "ema" and not state.config.train.ema:
        raise UserError(f"--weights: {source.path} has no EMA weights: its run had no train.ema")
    if model is None:
        check_trust(config.model, source.path / "state.json", trust_code=trust_code, named=named)
        shape: Any = {"channels": state.channels, "image_size": state.preprocessing.image_size, "seed": config.run.seed}
        if config.contrastive:
            model = _two_tower(config, shape, source)
        else:
            model = build_model(config.model, classes=len(state.classes), **shape)
    elif config.model.residual == "bf16":
        bf16_residual(model)
    load_weights(model, _weights_file(source, weights), exact=True)
    return TrainedModel(
        model,
        state.preprocessing,
        state.classes,
        state.channels,
        weights,
        config,
        state.classes,
        update=source.position,
        precision=state.precision,
        samples=state.samples,
        notes=tuple(notes),
        data=state.data,
        folder=source.path.parent.parent,
    )


def _two_tower(config: Config, shape: Mapping[str, Any], source: Checkpoint) -> nn.Module:
    """Build the model of a run on captions. Raises UserError if its tokenizer is not there, or is another."""
    tokenizer = open_tokenizer(config.text.tokenizer, config.text.context_length)
    trained = source.state.data.get("train", {}).get("tokenizer", tokenizer.digest)
    if trained != tokenizer.digest:
        name = config.text.tokenizer
        raise UserError(f"text.tokenizer: {name} is not the one that {source.path} was trained with: give that file")
    size = tokenizer.vocabulary_size
    return build_two_tower(config.model, config.text, config.loss.name, vocabulary_size=size, **shape)


def _from_weights_file(fields: Mapping[str, Any], path: Path | None) -> TrainedModel:
    """Load a named model with the weights of a file, or timm's own; timm or the fields give its preprocessing."""
    config = Config.load("folder", fields)
    check_model_name(config.model.name)
    path = path or (Path(config.model.pretrained).expanduser() if config.model.pretrained else None)
    timms_own = path is None or str(path) == "timm"
    path = timm_weights(config.model.name) if path is None or timms_own else path
    classes, channels = classes_and_channels(config.model.name, path)
    made = timm_preprocessing(config.model, test_size=timms_own)
    side = config.data.image_size or (made.image_size if made else 0)
    mean, std = config.data.mean or (made.mean if made else ()), config.data.std or (made.std if made else ())
    problems = [] if side else ["data.image_size: set the side in pixels that the model was trained at"]
    for name, values in (("data.mean", mean), ("data.std", std)):
        if len(values) != channels:
            count = f"{channels} values" if channels > 1 else "one value"
            problems.append(f"{name}: set what the model was trained with, {count}")
    if problems:
        raise UserError("\n".join(problems))
    model = build_model(config.model, classes=classes, channels=channels, image_size=side, seed=0, trained=False)
    load_weights(model, path)
    preprocessing = Preprocessing(side, tuple(mean), tuple(std), **resized_as(config.data, made))
    identifiers, names = imagenet_classes(config.model.name, classes)
    return TrainedModel(model, preprocessing, identifiers, channels, "raw", config, names)


def _from_export(folder: Path, fields: Mapping[str, Any], trust_code: bool) -> TrainedModel:
    """Load a folder in the format of timm and the Hugging Face hub."""
    _check_fields(fields, (*inference_fields(), "data.name", "data.val_fraction"), "the folder says it itself")
    try:
        content = read_json(folder / "config.json")
        made = content["pretrained_cfg"]
        channels, preprocessing = made["input_size"][0], Preprocessing.from_timm(made)
        args = {name: value for name, value in content.get("model_args", {}).items() if name not in _BUILT_WITH}
        name, classes = f"timm/{content['architecture']}", content["num_classes"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{folder / 'config.json'}: not one that timm would load: {error!r}") from None
    config = Config.load("folder", {**fields, "model.name": name, "model.args": args})
    check_trust(config.model, folder / "config.json", trust_code=trust_code)
    model = build_model(
        config.model, classes=classes, channels=channels, image_size=preprocessing.image_size, seed=0, trained=False
    )
    load_weights(model, folder / "model.safetensors")
    label_names = content.get("label_names")
    labels = (
        [str(label) for label in label_names]
        if isinstance(label_names, list)
        else [str(number) for number in range(classes)]
    )
    descriptions = content.get("label_descriptions") or {}
    return TrainedModel(
        model, preprocessing, labels, channels, "raw", config, [str(descriptions.get(label, label)) for label in labels]
    )


# Arguments of timm's that `build_model` gives itself.
_BUILT_WITH = ("num_classes", "in_chans", "img_size")


def _check_fields(fields: Mapping[str, Any], allowed: Sequence[str], reason: str) -> None:
    """Reject fields that are not allowed here. Raises UserError, one line for each."""
    problems = [name for name in fields if name not in allowed]
    if problems:
        raise UserError("\n".join(f"{name}: cannot be set here: {reason}; --help names what can" for name in problems))


def _with_fields(config: Config, fields: Mapping[str, Any]) -> Config:
    """Return the config with dotted fields replaced. Raises UserError."""
    values: dict[str, Any] = config.to_dict()
    for name, value in fields.items():
        section, _, field = name.partition(".")
        values = merged(values, {section: {field: value}})
    return Config.from_dict(values)


def _chosen_weights(source: Checkpoint) -> str:
    """Return the weights (raw, ema) that the run of a checkpoint chose, else those that count."""
    best = source.state.train_state.best
    return best.weights if best else default_weights(source.state.config)


def _weights_file(source: Checkpoint, weights: str) -> Path:
    return source.path / (AVERAGE if weights == "ema" else "model.safetensors")


def default_weights(config: Config) -> str:
    """Return the weights that count if nothing was chosen: ema if the run keeps them, else raw."""
    return "ema" if config.train.ema and not config.evaluate.metric.startswith("raw_") else "raw"


def start_from(model: nn.Module, config: ModelConfig, classes: list[str]) -> list[str]:
    """Load model.pretrained into a model; return notes on what was not loaded as it is. Raises UserError."""
    if config.pretrained == "timm":
        return load_pretrained(model, timm_weights(config.name), new_head=False)
    path = Path(config.pretrained).expanduser()
    if problem := pickle_problem(path):
        raise UserError(f"model.pretrained: {problem}")
    if not path.is_dir():
        return load_pretrained(model, path, new_head=False)
    source, notes = choose_checkpoint(path, "model.pretrained")
    file = _weights_file(source, _chosen_weights(source))
    return notes + load_pretrained(model, file, new_head=source.state.classes != classes)
