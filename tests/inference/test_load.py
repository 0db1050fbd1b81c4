"""Trained models are loaded from runs, checkpoints, exported folders and files of weights, with the right weights."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from tests.checkpointing.states import rehash
from tests.cli.commands import write_timm_folder
from vit_dist import Config, UserError, train
from vit_dist.data.augmentation.ops import normalise
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.files import read_json
from vit_dist.inference.load import default_weights, load_model, load_run_model
from vit_dist.models.build import build_model
from vit_dist.models.forward import eval_mode

SETTINGS: dict[str, Any] = {
    "model.width": 16,
    "model.depth": 2,
    "model.heads": 2,
    "batch.global_size": 48,
    "batch.micro_size": 16,
    "schedule.warmup": "1 updates",
    "train.duration": "6 updates",
    "evaluate.every": "3 updates",
    "checkpoint.every": "3 updates",
    "log.trackers": "none",
    "run.device": "cpu",
    "run.threads": 1,
    "log.report": False,
}
# The settings of each run below, and the weights that are loaded from it by default.
RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "no average": ({}, "raw"),
    "averaged": ({"train.ema": 0.9}, "ema"),
    "averaged, chosen by raw": ({"train.ema": 0.9, "evaluate.metric": "raw_loss"}, "raw"),
    "averaged, none chosen": ({"train.ema": 0.9, "data.val_fraction": 0}, "ema"),
    "averaged, none chosen, by raw": (
        {"train.ema": 0.9, "data.val_fraction": 0, "evaluate.metric": "raw_top1"},
        "raw",
    ),
}


def make_config(folder: Path, changes: dict[str, Any]) -> Config:
    return Config.load("digits", {**SETTINGS, "run.dir": str(folder), **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of the runs: six updates of a tiny ViT on the digits, with checkpoints after 3 and 6."""
    folders = {name: tmp_path_factory.mktemp("runs") / "run" for name in RUNS}
    for name, folder in folders.items():
        train(make_config(folder, RUNS[name][0]))
    return folders


def has_weights_of(model: nn.Module, file: Path) -> bool:
    """Return True if the weights of a model equal those in a safetensors file."""
    weights = load_file(file)
    assert weights.keys() == model.state_dict().keys()
    return all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def weights_file(weights: str) -> str:
    return {"raw": "model.safetensors", "ema": "ema.safetensors"}[weights]


def chosen_checkpoint(folder: Path) -> Path:
    """Return the folder of a run's best checkpoint, or of its last one if none was chosen."""
    best = folder / "checkpoints" / "best"
    return (best if best.exists() else folder / "checkpoints" / "last").resolve()


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_gives_its_default_weights(name: str, runs: dict[str, Path]) -> None:
    folder, weights = runs[name], RUNS[name][1]
    trained = load_run_model(folder, "model")
    assert trained.weights == weights
    assert has_weights_of(trained.model, chosen_checkpoint(folder) / weights_file(weights))
    if "averaged" in name:
        other = {"raw": "ema", "ema": "raw"}[weights]
        assert not has_weights_of(trained.model, chosen_checkpoint(folder) / weights_file(other))
    assert (trained.classes, trained.channels) == ([str(i) for i in range(10)], 1)
    assert all(parameter.device.type == "cpu" for parameter in trained.model.parameters())
    assert (folder / "checkpoints" / "best").is_symlink() is ("none chosen" not in name)


@pytest.mark.parametrize("name", list(RUNS))
def test_the_loaded_model_reproduces_the_test_results(name: str, runs: dict[str, Path]) -> None:
    trained = load_run_model(runs[name], "model")
    data = open_data(make_config(runs[name], {}).data)
    test = data.splits["test"]
    assert isinstance(test.source, MemorySource)
    pixels, labels = test.source.pixels[test.indices], test.source.labels[test.indices]
    preprocessing = trained.preprocessing
    assert (preprocessing.image_size, tuple(preprocessing.mean), tuple(preprocessing.std)) == (8, data.mean, data.std)
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    with eval_mode(trained.model):
        logits = trained.model(normalise(torch.from_numpy(pixels), preprocessing.image_size, mean, std))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
    summary = read_json(runs[name] / "summary.json")
    assert summary["weights"] == trained.weights
    assert summary["test"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert summary["test"]["top1"] == pytest.approx(100 * np.mean(logits.argmax(1).numpy() == labels))


@pytest.mark.parametrize("name", list(RUNS))
@pytest.mark.parametrize("update", [3, 6])
def test_a_checkpoint_gives_its_own_weights(name: str, update: int, runs: dict[str, Path]) -> None:
    path = runs[name] / "checkpoints" / f"update_{update:08d}"
    trained = load_run_model(path, "model")
    assert trained.weights == RUNS[name][1]
    assert has_weights_of(trained.model, path / weights_file(trained.weights))
    last = load_run_model(runs[name] / "checkpoints" / "last", "model")
    assert has_weights_of(last.model, runs[name] / "checkpoints" / "update_00000006" / weights_file(trained.weights))


def name_the_best(folder: Path, update: int) -> None:
    """Make the state of a run's checkpoint 6 say that the best evaluation was at `update`."""
    path = folder / "checkpoints" / "update_00000006"
    state = read_json(path / "state.json")
    state["train_state"]["best"]["update"] = update
    (path / "state.json").write_text(json.dumps(state))
    rehash(path)


def test_the_best_checkpoint_is_preferred_to_the_last(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["averaged"], folder, symlinks=True)
    early, late = (folder / "checkpoints" / f"update_0000000{n}" for n in (3, 6))
    assert has_weights_of(load_run_model(folder, "model").model, late / "ema.safetensors")
    name_the_best(folder, 3)
    trained = load_run_model(folder, "model")
    assert has_weights_of(trained.model, early / "ema.safetensors")
    assert (trained.update, trained.notes) == (3, ())


def test_weights_are_loaded_into_a_model_of_the_caller(runs: dict[str, Path]) -> None:
    path = runs["averaged"]
    settings = make_config(path, {"model.drop_path": 0.0}).model
    model = build_model(settings, classes=10, channels=1, image_size=8, seed=7)
    trained = load_run_model(path, "model", model)
    assert trained.model is model
    assert has_weights_of(model, chosen_checkpoint(path) / "ema.safetensors")

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(64, 10, bias=False)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.lin(images.flatten(1))
            return logits

    file = chosen_checkpoint(path) / "ema.safetensors"
    with pytest.raises(UserError) as caught:
        load_run_model(path, "model", Flat())
    assert str(caught.value) == (
        f"{file}: of another model: lin.weight is missing; blocks.0.attn.proj.bias is not in the model; "
        "blocks.0.attn.proj.weight is not in the model and 29 more"
    )


@pytest.mark.parametrize("field", ["model", "loss.teacher"])
@pytest.mark.parametrize("kind", ["nothing", "a file", "an empty folder", "no checkpoints"])
def test_a_path_without_a_trained_model_is_an_error_that_names_field_and_path(
    field: str, kind: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "there"
    if kind == "a file":
        path.write_text("")
    elif kind == "an empty folder":
        path.mkdir()
    elif kind == "no checkpoints":
        path = tmp_path / "checkpoints"
        path.mkdir()
    with pytest.raises(UserError) as caught:
        load_run_model(path, field)
    assert str(caught.value) == f"{field}: {path} is neither a run's folder with a checkpoint nor a checkpoint"


def test_a_checkpoints_folder_is_loaded_as_its_run(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["averaged"], folder, symlinks=True)
    checkpoints = folder / "checkpoints"
    name_the_best(folder, 3)
    for trained in (
        load_run_model(checkpoints, "loss.teacher"),
        load_model(str(checkpoints)),
        load_model(f"{checkpoints}/"),
    ):
        assert (trained.update, trained.weights) == (3, "ema")
    assert load_model(str(checkpoints), weights="raw").weights == "raw"
    shutil.rmtree(checkpoints / "update_00000006")
    assert load_model(str(checkpoints)).update == 3
    shutil.rmtree(checkpoints / "update_00000003")
    with pytest.raises(UserError) as caught:
        load_model(str(checkpoints))
    assert str(caught.value) == f"{checkpoints} is neither a run's folder with a checkpoint nor a checkpoint"


def test_a_damaged_checkpoint_is_passed_over_and_named(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["averaged"], folder, symlinks=True)
    file = chosen_checkpoint(folder) / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    damage = f"{file}: {file.stat().st_size} bytes, not {file.stat().st_size - 1}"
    trained = load_run_model(folder, "model")
    assert trained.update == 3
    assert trained.notes == (f"{damage}: not used; update_00000003 is, the best of those that are complete",)
    with pytest.raises(UserError) as caught:
        load_run_model(file.parent, "model")
    assert str(caught.value) == (
        f"model: {damage}: this checkpoint cannot be used; complete beside it: update_00000003"
    )


@pytest.mark.parametrize(
    ("ema", "metric", "weights"),
    [
        (0.0, "loss", "raw"),
        (0.9, "loss", "ema"),
        (0.9, "top1", "ema"),
        (0.9, "raw_top5", "raw"),
        (0, "raw_top1", "raw"),
    ],
)
def test_default_weights_depend_on_ema_and_the_metric(ema: float, metric: str, weights: str) -> None:
    assert default_weights(make_config(Path("unused"), {"train.ema": ema, "evaluate.metric": metric})) == weights


def test_preprocessing_is_the_same_after_json() -> None:
    preprocessing = Preprocessing(8, (0.3, 0.4, 0.5), (0.1, 0.2, 0.3), 0.9)
    assert Preprocessing.from_dict(json.loads(json.dumps(dataclasses.asdict(preprocessing)))) == preprocessing
    assert hash(Preprocessing.from_dict(json.loads(json.dumps(dataclasses.asdict(preprocessing))))) == hash(
        preprocessing
    )


# By name


@pytest.mark.parametrize("name", list(RUNS))
@pytest.mark.parametrize("requested", ["", "raw", "ema"])
def test_a_run_is_loaded_with_the_requested_weights(name: str, requested: str, runs: dict[str, Path]) -> None:
    if requested == "ema" and name == "no average":
        with pytest.raises(UserError) as caught:
            load_model(str(runs[name]), weights=requested)
        path = runs[name] / "checkpoints" / chosen_checkpoint(runs[name]).name
        assert str(caught.value) == f"--weights: {path} has no EMA weights: its run had no train.ema"
        return
    trained = load_model(str(runs[name]), weights=requested)
    weights = requested or RUNS[name][1]
    assert trained.weights == weights
    assert has_weights_of(trained.model, chosen_checkpoint(runs[name]) / weights_file(weights))
    assert trained.update == int(chosen_checkpoint(runs[name]).name.removeprefix("update_"))
    assert (trained.classes, trained.names, trained.channels) == ([str(i) for i in range(10)], trained.classes, 1)
    assert (trained.preprocessing.image_size, trained.preprocessing.crop, trained.precision) == (8, 1.0, "fp32")


@pytest.mark.parametrize("update", [3, 6])
@pytest.mark.parametrize(("inside", "weights"), [("", "ema"), ("model.safetensors", "raw"), ("ema.safetensors", "ema")])
def test_a_checkpoint_or_one_of_its_files_is_loaded(
    inside: str, weights: str, update: int, runs: dict[str, Path]
) -> None:
    path = runs["averaged"] / "checkpoints" / f"update_{update:08}"
    trained = load_model(str(path / inside))
    assert (trained.weights, trained.update) == (weights, update)
    assert has_weights_of(trained.model, path / weights_file(weights))


@pytest.mark.parametrize("requested", ["raw", "ema"])
@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "optimizer.safetensors"])
def test_a_file_of_weights_rejects_the_weights_flag(requested: str, file: str, runs: dict[str, Path]) -> None:
    path = runs["averaged"] / "checkpoints" / "last" / file
    with pytest.raises(UserError) as caught:
        load_model(str(path), weights=requested)
    assert str(caught.value) == f"--weights: {path} is one set of weights: leave it out"


def test_the_state_of_the_optimizer_is_not_a_model(runs: dict[str, Path]) -> None:
    path = runs["averaged"] / "checkpoints" / "last" / "optimizer.safetensors"
    assert path.is_file()
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert str(caught.value) == f"{path}: holds no model: its weights are in model.safetensors in the same folder"


def test_a_path_may_begin_with_a_tilde(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(runs["averaged"].parent))
    assert load_model("~/run").weights == "ema"


def test_only_inference_fields_override_those_of_a_run(runs: dict[str, Path]) -> None:
    overrides = {"data.workers": 3, "evaluate.batch_size": 7, "run.threads": 2, "run.seed": 5,
                 "train.precision": "bf16"}  # fmt: skip
    config = load_model(str(runs["averaged"]), overrides=overrides).config
    assert (config.data.workers, config.evaluate.batch_size) == (3, 7)
    assert (config.run.threads, config.run.seed, config.train.precision) == (2, 5, "bf16")
    assert (config.model.width, config.run.device, config.train.ema) == (16, "cpu", 0.9)
    with pytest.raises(UserError) as caught:
        load_model(str(runs["averaged"]), overrides={"model.width": 1, "run.seed": 2, "data.std": [1], "train.ema": 0})
    assert str(caught.value).splitlines() == [
        f"{name}: cannot be set here: the run says it itself; --help names what can"
        for name in ("model.width", "data.std", "train.ema")
    ]


@pytest.mark.parametrize("inside", ["", "model.safetensors"])
def test_an_exported_folder_is_loaded(inside: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    model = write_timm_folder(folder, label_names=["n1", "n2", "n3"], label_descriptions={"n1": "ant", "n3": "cat"})
    trained = load_model(str(folder / inside))
    assert trained.preprocessing == Preprocessing(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), crop=0.8)
    assert (trained.classes, trained.names, trained.channels) == (["n1", "n2", "n3"], ["ant", "n2", "cat"], 3)
    assert (trained.weights, trained.update) == ("raw", None)
    images = torch.rand(2, 3, 32, 32)
    with eval_mode(model), eval_mode(trained.model):
        assert torch.equal(trained.model(images), model(images))


def test_an_exported_folder_without_class_names_and_its_errors(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_timm_folder(folder)
    trained = load_model(str(folder), overrides={"run.threads": 1, "data.workers": 0})
    assert (trained.classes, trained.names, trained.config.run.threads) == (["0", "1", "2"], ["0", "1", "2"], 1)
    with pytest.raises(UserError) as caught:
        load_model(str(folder), overrides={"model.width": 1, "data.image_size": 8})
    assert str(caught.value).splitlines() == [
        f"{name}: cannot be set here: the folder says it itself; --help names what can"
        for name in ("model.width", "data.image_size")
    ]
    for path in (folder, folder / "model.safetensors"):
        with pytest.raises(UserError) as caught:
            load_model(str(path), weights="ema")
        assert str(caught.value) == f"--weights: {path} is one set of weights: leave it out"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"architecture": "x", "pretrained_cfg": {}}', '{"pretrained_cfg": 3}']
)
def test_an_invalid_timm_config_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as caught:
        load_model(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: not one that timm would load: ")
    assert "\n" not in str(caught.value)


def test_a_file_of_weights_is_loaded_into_the_model_of_the_fields(runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    shutil.copy(chosen_checkpoint(runs["averaged"]) / "ema.safetensors", path)
    settings = make_config(tmp_path, {}).model
    fields = {f"model.{name}": getattr(settings, name) for name in
              ("name", "patch_size", "width", "depth", "heads", "mlp_ratio", "pool")}  # fmt: skip
    overrides = {**fields, "data.image_size": 8, "data.mean": [0.25], "data.std": [0.75], "run.threads": 1}
    trained = load_model(str(path), overrides=overrides)
    assert has_weights_of(trained.model, path)
    assert trained.preprocessing == Preprocessing(8, (0.25,), (0.75,), crop=0.875)
    assert load_model(str(path), overrides={**overrides, "data.crop": 1}).preprocessing.crop == 1
    assert (trained.classes, trained.names, trained.channels) == ([str(i) for i in range(10)], trained.classes, 1)
    assert (trained.weights, trained.update) == ("raw", None)
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert str(caught.value).startswith(f"model.name: {path} holds weights alone: say whose they are")


def test_a_file_of_timm_weights_has_timms_preprocessing(tmp_path: Path) -> None:
    write_timm_folder(tmp_path / "out")
    path = (tmp_path / "out" / "model.safetensors").rename(tmp_path / "weights.safetensors")
    overrides = {"model.name": "timm/deit_tiny_patch16_224", "data.image_size": 32,
             "model.args": {"depth": 1, "embed_dim": 12, "num_heads": 2}}  # fmt: skip
    preprocessing = load_model(str(path), overrides=overrides).preprocessing
    assert preprocessing == Preprocessing(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop=0.9)
    own_values = {"data.mean": [0.1, 0.2, 0.3], "data.std": [0.4, 0.5, 0.6], "data.crop": 0.75}
    preprocessing = load_model(str(path), overrides={**overrides, **own_values}).preprocessing
    assert preprocessing == Preprocessing(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), crop=0.75)
    for fit in ("pad", "stretch"):
        resizing = {"data.fit": fit, "data.interpolation": "bilinear"}
        preprocessing = load_model(str(path), overrides={**overrides, **resizing}).preprocessing
        assert (preprocessing.fit, preprocessing.crop, preprocessing.interpolation) == (fit, 1.0, "bilinear")


def test_timms_own_weights_have_the_resizing_of_their_tag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_model(timm.create_model("test_resnet"), str(path))
    cfg = timm.get_pretrained_cfg("test_resnet.r160_in1k")
    assert cfg is not None
    changed = dataclasses.replace(cfg, interpolation="bilinear", crop_mode="squash", crop_pct=0.9)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: changed)
    made = load_model(str(path), overrides={"model.name": "timm/test_resnet"}).preprocessing
    assert (made.interpolation, made.fit, made.crop, made.image_size) == ("bilinear", "stretch", 0.9, 160)


@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "ckpt", "pkl"])
def test_a_pickle_is_rejected(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{ending}"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert str(caught.value).startswith(f"{path}: a pickle is never read: convert it to safetensors: python -c ")
    path.unlink()
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert str(caught.value) == f"{path}: no run's folder, checkpoint, exported folder or safetensors file is there"


def test_an_onnx_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"onnx")
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert str(caught.value) == (
        f"{path}: onnxruntime runs it; here give the run, or the folder, that it was made from"
    )


def test_a_run_knows_its_number_of_training_images(runs: dict[str, Path], tmp_path: Path) -> None:
    for name, samples in (("averaged", 1294), ("averaged, none chosen", 1438)):
        last = runs[name] / "checkpoints" / "last"
        for path in (runs[name], last, last / "model.safetensors"):
            assert load_model(str(path)).samples == samples
        data = open_data(make_config(runs[name], RUNS[name][0]).data)
        assert len(data.splits["train"]) == samples
    write_timm_folder(tmp_path / "out")
    assert load_model(str(tmp_path / "out")).samples is None
