"""A model's code, and arguments that could read a pickle, are never used because a file says so."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.cli.commands import command, write_timm_folder
from tests.runs import DIGITS, QUIET, train_digits_run
from vit_dist import Config, UserError, train
from vit_dist.checkpointing.folder import pointed_to
from vit_dist.config.fields import ModelConfig
from vit_dist.files import read_json
from vit_dist.inference.load import load_model
from vit_dist.models.build import build_model
from vit_dist.models.timm_models import untrusted_arguments

calls: list[str] = []
NAME = f"{__name__}:build"
ADVICE = "if you trust it, add --trust_code (in Python: trust_code=True)"


def build(classes: int, channels: int, image_size: int) -> nn.Module:
    """Build the model of the digits run, and note that this was called."""
    calls.append(f"{classes} classes")
    model = Config.load("digits", DIGITS).model
    return build_model(model, classes=classes, channels=channels, image_size=image_size, seed=0)


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the digits run, and work in its parent."""
    monkeypatch.chdir(tmp_path)
    calls.clear()
    return Path(shutil.copytree(train_digits_run(tmp_path_factory), tmp_path / "run", symlinks=True))


def rename_model(folder: Path, **fields: Any) -> Path:
    """Write other fields of the model into every checkpoint, with right hashes; return the best one's state.json."""
    for path in (folder / "checkpoints").glob("update_*"):
        state, manifest = read_json(path / "state.json"), read_json(path / "manifest.json")
        state["config"]["model"].update(fields)
        content = json.dumps(state).encode()
        (path / "state.json").write_bytes(content)
        manifest["files"]["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (path / "manifest.json").write_text(json.dumps(manifest))
    best = pointed_to(folder / "checkpoints", "best")
    assert best is not None
    return best / "state.json"


@pytest.mark.parametrize("words", [("predict",), ("evaluate",), ("export", "out.onnx"), ("export", "out")])
def test_a_function_that_a_run_names_is_not_called(
    words: tuple[str, ...], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rename_model(run, name=NAME)
    actual = command(capsys, words[0], "run", *words[1:])
    here = f"{NAME} as its model, code that would run here (in {Path(__file__).parents[1] / '__init__.py'})"
    assert actual == (2, "", f"vit-dist: {file.relative_to(run.parent)}: names {here}: {ADVICE}\n")
    assert calls == []
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_a_module_in_the_working_folder_is_named_but_not_imported(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rename_model(run, name="lies_here:build")
    module = run.parent / "lies_here.py"
    module.write_text("open('it_ran', 'w')\n")
    for name in ("run", "run/checkpoints/best", "run/checkpoints/update_00000060/model.safetensors"):
        code, out, error = command(capsys, "predict", name)
        assert (code, out, error.count("\n")) == (2, "", 1)
        assert f"(in {module})" in error
    assert command(capsys, "report", "run").code == 0
    assert not (run.parent / "it_ran").exists()


def test_a_trusted_function_is_called_after_a_line_that_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = command(capsys, "predict", "run", "--format", "csv")
    file = rename_model(run, name=NAME)
    code, out, error = command(capsys, "predict", "run", "--format", "csv", "--trust_code")
    assert (code, out, calls) == (0, before.out, ["10 classes"])
    said = error.splitlines()[0]
    assert said.startswith(f"vit-dist: note: runs {NAME} (in ")
    assert said.endswith(f"), which {file.relative_to(run.parent)} names as its model")
    assert load_model("run", trust_code=True).weights == "ema"
    with pytest.raises(UserError):
        load_model("run")


def test_a_finished_run_is_opened_with_the_function_of_the_users_own_config(run: Path) -> None:
    shutil.rmtree(run)
    own = {**DIGITS, **QUIET, "run.dir": str(run), "train.duration": "5 updates", "train.ema": 0.0}
    own |= {"evaluate.every": "5 updates", "checkpoint.every": "5 updates"}
    fields = {name: value for name, value in own.items() if not name.startswith("model.")}
    config = Config.load("digits", {**fields, "model.name": NAME})
    train(config)
    calls.clear()
    train(config)
    assert calls == ["10 classes"]
    file = rename_model(run, name="os:getcwd")
    with pytest.raises(UserError) as error:
        train(config)
    assert str(error.value).startswith(f"{file}: names os:getcwd as its model, code that would run here")


def test_a_function_that_a_teachers_run_names_is_not_called(run: Path) -> None:
    file = rename_model(run, name=NAME)
    fields = {**DIGITS, **QUIET, "run.dir": str(run.parent / "student"), "train.duration": "5 updates"}
    config = Config.load("digits", {**fields, "loss.teacher": str(run)})
    with pytest.raises(UserError) as error:
        train(config)
    assert str(error.value).startswith(f"{file}: names {NAME} as its model")
    assert calls == []
    train(config, trust_code=True)
    assert calls == ["10 classes"]


HOSTILE: list[dict[str, Any]] = [
    {"checkpoint_path": "x.pth"},
    {"pretrained": True},
    {"pretrained_cfg": {"file": "x.pth"}},
    {"pretrained_cfg_overlay": {"url": "http://localhost/x.pth"}},
    {"features_only": True},
    {"cache_dir": "."},
    {"embed_dim": 10**9},
    {"norm_layer": "/etc/passwd"},
    {"nosuch": 1},
    {"kwargs": {"pretrained": True}},
]


@pytest.mark.parametrize("args", HOSTILE, ids=lambda args: str(next(iter(args))))
def test_arguments_from_a_file_are_of_an_allow_list(
    args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    write_timm_folder(tmp_path / "export")
    content = read_json(tmp_path / "export" / "config.json")
    content["model_args"] |= args
    file = tmp_path / "export" / "config.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        load_model(str(tmp_path / "export"))
    line = f"model.args.{next(iter(args))} is not taken from a file for timm/vit_tiny_patch16_224"
    assert str(error.value) == f"{file}: {line}: {ADVICE}"


@pytest.mark.parametrize("args", HOSTILE[:6], ids=lambda args: str(next(iter(args))))
def test_what_may_read_a_pickle_is_refused_from_everybody(args: dict[str, Any], run: Path) -> None:
    rename_model(run, name="timm/vit_tiny_patch16_224", args=args)
    name = next(iter(args))
    with pytest.raises(UserError) as error:
        load_model("run", trust_code=True)
    assert str(error.value) == (
        f"model.args.{name}: timm's own loading may read a pickle: leave it out, and set model.pretrained"
    )


def test_sizes_switches_and_words_are_taken_from_a_file() -> None:
    args = {
        "depth": 2,
        "embed_dim": 12,
        "init_values": 1e-4,
        "qkv_bias": False,
        "global_pool": "avg",
        "norm_layer": None,
    }
    assert untrusted_arguments(ModelConfig(name="timm/vit_tiny_patch16_224.augreg_in21k", args=args)) == []
    args = {"depths": [1, 2, 1, 1], "dims": [8, 8, 16, 16], "ls_init_value": 1e-6}
    assert untrusted_arguments(ModelConfig(name="timm/convnext_tiny", args=args)) == []


@pytest.mark.parametrize("name", ["timm/hf-hub:owner/model", "timm/local-dir:/tmp", "timm/a/b", "timm/torch.hub:load"])
def test_a_timm_name_is_one_of_its_registry(name: str) -> None:
    with pytest.raises(UserError) as error:
        build_model(ModelConfig(name=name), classes=2, channels=1, image_size=8, seed=0)
    assert str(error.value).startswith(f"model.name: timm has no model {name.removeprefix('timm/')}: ")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("os:getcwd", "os:getcwd was called with classes, channels, image_size and model.args: "),
        ("builtins:dict", "builtins:dict must return a torch.nn.Module, not dict"),
        ("torch.hub:load", "torch.hub:load runs code from the network: install the package and name its own function"),
        ("torch.hub:sys", "torch.hub:sys is no function, but module: name a function"),
        ("math:pi", "math:pi is no function, but float: name a function"),
    ],
)
def test_a_function_that_makes_no_model_is_refused_in_one_line(name: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        build_model(ModelConfig(name=name), classes=2, channels=1, image_size=8, seed=0)
    assert str(error.value).startswith(f"model.name: {line}")
    assert "\n" not in str(error.value)
