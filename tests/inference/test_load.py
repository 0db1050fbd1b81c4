"""A trained model, from its run's folder or a checkpoint: the weights that were chosen, in the model they are of."""

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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vit_dist import Config, UserError, train
from vit_dist.checkpointing.folder import point_to
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
# What a run does not say itself.
BESIDE = "data.root, data.workers, evaluate.batch_size, run.device, run.threads, run.seed, train.precision"
# What makes each of the runs below, and the weights that count in it.
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


def config(folder: Path, more: dict[str, Any]) -> Config:
    return Config.load("digits", {**SETTINGS, "run.dir": str(folder), **more})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each run: six updates of a tiny ViT on the digits, and checkpoints after three and six."""
    folders = {name: tmp_path_factory.mktemp("runs") / "run" for name in RUNS}
    for name, folder in folders.items():
        train(config(folder, RUNS[name][0]))
    return folders


def holds(model: nn.Module, file: Path) -> bool:
    """Whether a model's weights are those of a safetensors file."""
    weights = load_file(file)
    assert weights.keys() == model.state_dict().keys()
    return all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def file_of(weights: str) -> str:
    return {"raw": "model.safetensors", "ema": "ema.safetensors"}[weights]


def chosen(folder: Path) -> Path:
    """The checkpoint of the best weights of a run, or of its last."""
    best = folder / "checkpoints" / "best"
    return (best if best.exists() else folder / "checkpoints" / "last").resolve()


@pytest.mark.parametrize("name", list(RUNS))
def test_a_runs_folder_gives_the_weights_that_count(name: str, runs: dict[str, Path]) -> None:
    folder, weights = runs[name], RUNS[name][1]
    found = load_run_model(folder, "model")
    assert found.weights == weights
    assert holds(found.model, chosen(folder) / file_of(weights))
    if "averaged" in name:
        other = {"raw": "ema", "ema": "raw"}[weights]
        assert not holds(found.model, chosen(folder) / file_of(other))
    assert (found.classes, found.channels) == ([str(i) for i in range(10)], 1)
    assert all(parameter.device.type == "cpu" for parameter in found.model.parameters())
    assert (folder / "checkpoints" / "best").is_symlink() is ("none chosen" not in name)


@pytest.mark.parametrize("name", list(RUNS))
def test_it_is_the_model_that_was_tested(name: str, runs: dict[str, Path]) -> None:
    found = load_run_model(runs[name], "model")
    data = open_data(config(runs[name], {}).data)
    test = data.splits["test"]
    assert isinstance(test.source, MemorySource)
    pixels, labels = test.source.pixels[test.indices], test.source.labels[test.indices]
    preprocessing = found.preprocessing
    assert (preprocessing.image_size, tuple(preprocessing.mean), tuple(preprocessing.std)) == (8, data.mean, data.std)
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    with eval_mode(found.model):
        logits = found.model(normalise(torch.from_numpy(pixels), preprocessing.image_size, mean, std))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
    summary = read_json(runs[name] / "summary.json")
    assert summary["weights"] == found.weights
    assert summary["test"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert summary["test"]["top1"] == pytest.approx(100 * np.mean(logits.argmax(1).numpy() == labels))


@pytest.mark.parametrize("name", list(RUNS))
@pytest.mark.parametrize("update", [3, 6])
def test_a_checkpoint_gives_its_own(name: str, update: int, runs: dict[str, Path]) -> None:
    path = runs[name] / "checkpoints" / f"update_{update:08d}"
    found = load_run_model(path, "model")
    assert found.weights == RUNS[name][1]
    assert holds(found.model, path / file_of(found.weights))
    last = load_run_model(runs[name] / "checkpoints" / "last", "model")
    assert holds(last.model, runs[name] / "checkpoints" / "update_00000006" / file_of(found.weights))


def test_the_best_comes_before_the_last_and_the_last_before_none(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["averaged"], folder, symlinks=True)
    checkpoints = folder / "checkpoints"
    early = checkpoints / "update_00000003"
    point_to(checkpoints, "best", early)
    assert holds(load_run_model(folder, "model").model, early / "ema.safetensors")
    # Where links do not exist, a line of text stands for them.
    (checkpoints / "best").unlink()
    (checkpoints / "best").write_text("update_00000003\n", encoding="utf-8")
    assert holds(load_run_model(folder, "model").model, early / "ema.safetensors")
    (checkpoints / "best").unlink()
    late = checkpoints / "update_00000006"
    assert holds(load_run_model(folder, "model").model, late / "ema.safetensors")
    (checkpoints / "last").unlink()
    with pytest.raises(UserError) as caught:
        load_run_model(folder, "model")
    assert str(caught.value) == f"model: {folder} is neither a run's folder with a checkpoint nor a checkpoint"


def test_weights_go_into_the_model_that_is_given(runs: dict[str, Path]) -> None:
    path = runs["averaged"]
    settings = config(path, {"model.drop_path": 0.0}).model
    mine = build_model(settings, classes=10, channels=1, image_size=8, seed=7)
    found = load_run_model(path, "model", mine)
    assert found.model is mine
    assert holds(mine, chosen(path) / "ema.safetensors")

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(64, 10, bias=False)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.lin(images.flatten(1))
            return logits

    file = chosen(path) / "ema.safetensors"
    with pytest.raises(UserError) as caught:
        load_run_model(path, "model", Flat())
    assert str(caught.value) == (
        f"{file}: of another model: lin.weight is missing; blocks.0.attn.proj.bias is not in the model; "
        "blocks.0.attn.proj.weight is not in the model and 29 more"
    )


@pytest.mark.parametrize("field", ["model", "loss.teacher"])
@pytest.mark.parametrize("made", ["nothing", "a file", "an empty folder", "no checkpoints"])
def test_where_nothing_was_trained_the_field_and_the_path_are_named(
    field: str, made: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "there"
    if made == "a file":
        path.write_text("")
    elif made == "an empty folder":
        path.mkdir()
    elif made == "no checkpoints":
        path = tmp_path / "checkpoints"
        path.mkdir()
    with pytest.raises(UserError) as caught:
        load_run_model(path, field)
    assert str(caught.value) == f"{field}: {path} is neither a run's folder with a checkpoint nor a checkpoint"


def test_a_folder_of_checkpoints_is_its_run(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["averaged"], folder, symlinks=True)
    checkpoints = folder / "checkpoints"
    point_to(checkpoints, "best", checkpoints / "update_00000003")
    for found in (
        load_run_model(checkpoints, "loss.teacher"),
        load_model(str(checkpoints)),
        load_model(f"{checkpoints}/"),
    ):
        assert (found.update, found.weights) == (3, "ema")
    assert load_model(str(checkpoints), weights="raw").weights == "raw"
    (checkpoints / "best").unlink()
    assert load_model(str(checkpoints)).update == 6
    (checkpoints / "last").unlink()
    with pytest.raises(UserError) as caught:
        load_model(str(checkpoints))
    assert str(caught.value) == f"{checkpoints} is neither a run's folder with a checkpoint nor a checkpoint"


def test_a_broken_checkpoint_is_not_opened(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["averaged"], folder, symlinks=True)
    file = chosen(folder) / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    size = file.stat().st_size
    with pytest.raises(UserError) as caught:
        load_run_model(folder, "model")
    assert str(caught.value) == f"{file}: {size} bytes, not {size - 1}: this checkpoint cannot be used"


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
def test_what_counts_where_nothing_was_chosen(ema: float, metric: str, weights: str) -> None:
    assert default_weights(config(Path("unused"), {"train.ema": ema, "evaluate.metric": metric})) == weights


def test_preprocessing_that_went_through_json_is_the_same() -> None:
    preprocessing = Preprocessing(8, (0.3, 0.4, 0.5), (0.1, 0.2, 0.3), 0.9)
    assert Preprocessing.from_dict(json.loads(json.dumps(dataclasses.asdict(preprocessing)))) == preprocessing
    assert hash(Preprocessing.from_dict(json.loads(json.dumps(dataclasses.asdict(preprocessing))))) == hash(
        preprocessing
    )


# By name


@pytest.mark.parametrize("name", list(RUNS))
@pytest.mark.parametrize("asked", ["", "raw", "ema"])
def test_a_run_by_name_with_the_weights_asked_for(name: str, asked: str, runs: dict[str, Path]) -> None:
    if asked == "ema" and name == "no average":
        with pytest.raises(UserError) as caught:
            load_model(str(runs[name]), weights=asked)
        path = runs[name] / "checkpoints" / chosen(runs[name]).name
        assert str(caught.value) == f"--weights: {path} has no EMA weights: its run had no train.ema"
        return
    found = load_model(str(runs[name]), weights=asked)
    weights = asked or RUNS[name][1]
    assert found.weights == weights
    assert holds(found.model, chosen(runs[name]) / file_of(weights))
    assert found.update == int(chosen(runs[name]).name.removeprefix("update_"))
    assert (found.classes, found.names, found.channels) == ([str(i) for i in range(10)], found.classes, 1)
    assert (found.preprocessing.image_size, found.preprocessing.crop, found.precision) == (8, 1.0, "fp32")


@pytest.mark.parametrize("update", [3, 6])
@pytest.mark.parametrize(("inside", "weights"), [("", "ema"), ("model.safetensors", "raw"), ("ema.safetensors", "ema")])
def test_a_checkpoint_or_a_file_of_it(inside: str, weights: str, update: int, runs: dict[str, Path]) -> None:
    path = runs["averaged"] / "checkpoints" / f"update_{update:08}"
    found = load_model(str(path / inside))
    assert (found.weights, found.update) == (weights, update)
    assert holds(found.model, path / file_of(weights))


@pytest.mark.parametrize("asked", ["raw", "ema"])
@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "optimizer.safetensors"])
def test_a_file_is_one_set_of_weights(asked: str, file: str, runs: dict[str, Path]) -> None:
    path = runs["averaged"] / "checkpoints" / "last" / file
    with pytest.raises(UserError) as caught:
        load_model(str(path), weights=asked)
    assert str(caught.value) == f"--weights: {path} is one set of weights: leave it out"


def test_the_state_of_the_optimizer_is_no_model(runs: dict[str, Path]) -> None:
    path = runs["averaged"] / "checkpoints" / "last" / "optimizer.safetensors"
    assert path.is_file()
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert str(caught.value) == f"{path}: holds no model: its weights are in model.safetensors beside it"


def test_a_name_from_home(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(runs["averaged"].parent))
    assert load_model("~/run").weights == "ema"


def test_what_may_be_set_beside_a_run(runs: dict[str, Path]) -> None:
    overrides = {"data.workers": 3, "evaluate.batch_size": 7, "run.threads": 2, "run.seed": 5,
                 "train.precision": "bf16"}  # fmt: skip
    found = load_model(str(runs["averaged"]), overrides=overrides).config
    assert (found.data.workers, found.evaluate.batch_size) == (3, 7)
    assert (found.run.threads, found.run.seed, found.train.precision) == (2, 5, "bf16")
    assert (found.model.width, found.run.device, found.train.ema) == (16, "cpu", 0.9)
    with pytest.raises(UserError) as caught:
        load_model(str(runs["averaged"]), overrides={"model.width": 1, "run.seed": 2, "data.std": [1], "train.ema": 0})
    assert str(caught.value).splitlines() == [
        f"{name}: cannot be set here: the run says it itself; --help names what can"
        for name in ("model.width", "data.std", "train.ema")
    ]


def exported(folder: Path, classes: int = 3, **more: Any) -> nn.Module:
    """A timm model's folder as timm saves it for the hub, written by hand."""
    args = {"depth": 1, "embed_dim": 12, "num_heads": 2}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=classes, **args)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.8}
    said = {"architecture": "vit_tiny_patch16_224", "num_classes": classes, "pretrained_cfg": cfg,
            "model_args": {"img_size": 32, "num_classes": classes, "in_chans": 3, **args}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**said, **more}))
    return model


@pytest.mark.parametrize("inside", ["", "model.safetensors"])
def test_an_exported_folder(inside: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    model = exported(folder, label_names=["n1", "n2", "n3"], label_descriptions={"n1": "ant", "n3": "cat"})
    found = load_model(str(folder / inside))
    assert found.preprocessing == Preprocessing(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), crop=0.8)
    assert (found.classes, found.names, found.channels) == (["n1", "n2", "n3"], ["ant", "n2", "cat"], 3)
    assert (found.weights, found.update) == ("raw", None)
    images = torch.rand(2, 3, 32, 32)
    with eval_mode(model), eval_mode(found.model):
        assert torch.equal(found.model(images), model(images))


def test_an_exported_folder_without_names_and_what_it_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    exported(folder)
    found = load_model(str(folder), overrides={"run.threads": 1, "data.workers": 0})
    assert (found.classes, found.names, found.config.run.threads) == (["0", "1", "2"], ["0", "1", "2"], 1)
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
def test_a_config_that_timm_would_not_load(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as caught:
        load_model(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: not one that timm would load: ")
    assert "\n" not in str(caught.value)


def test_weights_alone_in_the_model_that_the_fields_say(runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    shutil.copy(chosen(runs["averaged"]) / "ema.safetensors", path)
    settings = config(tmp_path, {}).model
    fields = {f"model.{name}": getattr(settings, name) for name in
              ("name", "patch_size", "width", "depth", "heads", "mlp_ratio", "pool")}  # fmt: skip
    given = {**fields, "data.image_size": 8, "data.mean": [0.25], "data.std": [0.75], "run.threads": 1}
    found = load_model(str(path), overrides=given)
    assert holds(found.model, path)
    assert found.preprocessing == Preprocessing(8, (0.25,), (0.75,), crop=0.875)
    assert load_model(str(path), overrides={**given, "data.crop": 1}).preprocessing.crop == 1
    assert (found.classes, found.names, found.channels) == ([str(i) for i in range(10)], found.classes, 1)
    assert (found.weights, found.update) == ("raw", None)
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert str(caught.value).startswith(f"model.name: {path} holds weights alone: say whose they are")


def test_weights_alone_of_timms_are_read_as_timm_says(tmp_path: Path) -> None:
    exported(tmp_path / "out")
    path = (tmp_path / "out" / "model.safetensors").rename(tmp_path / "weights.safetensors")
    given = {"model.name": "timm/deit_tiny_patch16_224", "data.image_size": 32,
             "model.args": {"depth": 1, "embed_dim": 12, "num_heads": 2}}  # fmt: skip
    preprocessing = load_model(str(path), overrides=given).preprocessing
    assert preprocessing == Preprocessing(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop=0.9)
    own = {"data.mean": [0.1, 0.2, 0.3], "data.std": [0.4, 0.5, 0.6], "data.crop": 0.75}
    preprocessing = load_model(str(path), overrides={**given, **own}).preprocessing
    assert preprocessing == Preprocessing(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), crop=0.75)


@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "ckpt", "pkl"])
def test_a_pickle_is_told_to_be_one(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{ending}"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert str(caught.value) == f"{path}: a pickle is never read: convert it to safetensors"
    path.unlink()
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert str(caught.value) == f"{path}: no run's folder, checkpoint, exported folder or safetensors file is there"


def test_an_onnx_file_is_no_model_here(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"onnx")
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert str(caught.value) == (
        f"{path}: onnxruntime runs it; here give the run, or the folder, that it was made from"
    )


def test_how_many_images_a_model_was_trained_on(runs: dict[str, Path], tmp_path: Path) -> None:
    for name, samples in (("averaged", 1294), ("averaged, none chosen", 1438)):
        last = runs[name] / "checkpoints" / "last"
        for path in (runs[name], last, last / "model.safetensors"):
            assert load_model(str(path)).samples == samples
        data = open_data(config(runs[name], RUNS[name][0]).data)
        assert len(data.splits["train"]) == samples
    exported(tmp_path / "out")
    assert load_model(str(tmp_path / "out")).samples is None
