"""Fine-tuning, in whole runs: from a run's folder and from timm's weights, on other data, across a resume."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv
from torch import Tensor

from vit_dist import Config, UserError, train
from vit_dist.checkpointing.folder import pointed_to
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import LabelledSplits, all_of
from vit_dist.inference.load import load_run_model
from vit_dist.models.build import build_model
from vit_dist.training.result import Run

TIMM: dict[str, Any] = {"depth": 2, "embed_dim": 16}
SHORT: dict[str, Any] = {
    "batch.global_size": 12,
    "batch.micro_size": 6,
    "train.duration": "2 updates",
    "data.workers": 0,
    "run.device": "cpu",
    "run.threads": 1,
    "log.report": False,
}
# A learning rate too low to change weights: what a run saves is then what it started from.
STILL = {"optimizer.lr": 1e-9}
MOVED = 1e-7


def digits(folder: Path, **changes: Any) -> Config:
    small = {"model.width": 16, "model.depth": 1, "model.heads": 2, "model.patch_size": 4}
    return Config.load("digits", {**small, **SHORT, "run.dir": str(folder), **changes})


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(digits(tmp_path_factory.mktemp("digits") / "run", **{"train.duration": "20 updates"}))


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the weights of a small timm model of 16 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=16, **TIMM)
    path = tmp_path_factory.mktemp("timm") / "test_vit.safetensors"
    save_file(model.state_dict(), path)
    return path


def from_timm(images: Path, path: Path, folder: Path, **changes: Any) -> Config:
    overrides = {
        "data.root": str(images),
        "model.name": "timm/test_vit",
        "model.args": TIMM,
        "model.pretrained": str(path),
        "run.dir": str(folder),
    }
    return Config.load(None, {**overrides, **SHORT, **changes})


def grey_pictures() -> LabelledSplits:
    """Write greyscale images of 8 pixels in three classes: dark, bright, and the left half bright."""
    generator = np.random.default_rng(0)
    labels = np.arange(48, dtype=np.int64) % 3
    pixels = generator.integers(0, 100, (48, 1, 8, 8), dtype=np.uint8)
    pixels[labels == 1] += 150
    pixels[labels == 2, :, :, :4] += 150
    source = all_of(MemorySource(pixels, labels))
    parts = {"train": source.indices[:36], "val": source.indices[36:]}
    splits = {name: dataclasses.replace(source, indices=indices) for name, indices in parts.items()}
    return LabelledSplits(splits, ("dark", "bright", "half"), 1, 8, (0.3,), (0.3,))


def last_weights(run: Run) -> dict[str, Tensor]:
    path = pointed_to(run.folder / "checkpoints", "last")
    assert path is not None
    return load_file(path / "model.safetensors")


def moved(weights: dict[str, Tensor], start: dict[str, Tensor]) -> set[str]:
    """Return the names of the tensors that differ from those at the start by more than STILL allows."""
    assert weights.keys() == start.keys()
    return {
        name
        for name, tensor in weights.items()
        if tensor.shape != start[name].shape or (tensor - start[name]).abs().max() > MOVED
    }


def resumed_from(run: Run) -> list[int]:
    return [line["update"] for line in run.history if line["kind"] == "start"]


def test_fine_tuning_from_a_run_on_other_classes(
    digits_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = load_run_model(digits_run.folder, "run.dir").model.state_dict()
    pretrained = {"model.pretrained": str(digits_run.folder)}
    still = train(digits(tmp_path / "still", **pretrained, **STILL), source=grey_pictures())
    assert "head: starts anew" in capsys.readouterr().out
    assert moved(last_weights(still), start) == {"head.weight", "head.bias"}
    assert last_weights(still)["head.weight"].shape == (3, 16)
    # At a real learning rate everything learns.
    longer = {"train.duration": "60 updates", "optimizer.lr": 1e-2, "evaluate.every": "30 updates"}
    run = train(digits(tmp_path / "run", **pretrained, **longer), source=grey_pictures())
    assert moved(last_weights(run), start) == start.keys()
    assert run.summary["final"]["top1"] == 100
    assert run.predict(grey_pictures().splits["val"].source.pixels).probabilities.shape == (48, 3)  # type: ignore[union-attr]


def test_fine_tuning_on_the_same_classes_keeps_the_head(
    digits_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = digits_run.folder / "checkpoints" / "update_00000020"
    run = train(digits(tmp_path / "run", **{"model.pretrained": str(path)}, **STILL))
    assert "starts anew" not in capsys.readouterr().out
    assert moved(last_weights(run), load_file(path / "model.safetensors")) == set()
    assert run.summary["final"] == pytest.approx(
        {key: digits_run.summary["final"][key] for key in run.summary["final"]}, rel=1e-4
    )


def test_greyscale_weights_are_refused_for_colour_images(digits_run: Run, image_folder: Path, tmp_path: Path) -> None:
    small = {"model.width": 16, "model.depth": 1, "model.heads": 2, "model.patch_size": 4, "model.mlp_ratio": 2}
    overrides = {**small, **SHORT, "data.image_size": 8, "data.root": str(image_folder), "model.pool": "mean"}
    folder = tmp_path / "run"
    config = Config.load("folder", {**overrides, "model.pretrained": str(digits_run.folder), "run.dir": str(folder)})
    with pytest.raises(UserError) as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(
        " is of another model: patch_embed.proj.weight is [16, 1, 4, 4], the model's [16, 3, 4, 4]"
    )
    assert not folder.exists()


def test_colour_weights_are_converted_for_greyscale_images(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"model.width": 16, "model.depth": 1, "model.heads": 2, "model.patch_size": 4, "model.mlp_ratio": 2}
    overrides = {**small, **SHORT, "model.pool": "mean", "data.image_size": 16, "data.root": str(image_folder)}
    colour = train(Config.load("folder", {**overrides, "run.dir": str(tmp_path / "colour")}))
    start = dict(load_run_model(colour.folder, "run.dir").model.state_dict())
    capsys.readouterr()
    config = digits(tmp_path / "grey", **{"model.pretrained": str(colour.folder)}, **STILL)
    run = train(config)
    printed = capsys.readouterr().out
    for line in (
        "head: starts anew",
        "patch_embed.proj.weight: 3 channels brought to 1",
        "pos_embed: resampled from 16 to 4 tokens",
    ):
        assert line in printed
    weights = last_weights(run)
    assert weights["head.weight"].shape == (10, 16)
    assert weights["pos_embed"].shape == (1, 4, 16)
    start["patch_embed.proj.weight"] = adapt_input_conv(1, start["patch_embed.proj.weight"])
    assert moved(weights, start) == {"head.weight", "head.bias", "pos_embed"}


def test_timms_weights_bring_the_recipe_and_preprocessing(
    image_folder: Path, timm_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = Config.load(None, {"data.root": str(image_folder), "model.name": "timm/test_vit",
                               "model.pretrained": str(timm_file)})  # fmt: skip
    recipe = Config.load("finetune")
    assert (named.optimizer, named.augment, named.schedule) == (recipe.optimizer, recipe.augment, recipe.schedule)
    config = from_timm(image_folder, timm_file, tmp_path / "run", **STILL)
    run = train(config)
    made_for = timm.get_pretrained_cfg("test_vit")
    assert run.preprocessing.image_size == made_for.input_size[-1] == 160
    assert run.preprocessing.mean == tuple(made_for.mean) == (0.5, 0.5, 0.5)
    assert run.preprocessing.std == tuple(made_for.std) == (0.5, 0.5, 0.5)
    assert run.preprocessing.crop == made_for.crop_pct == 0.95
    assert "head: starts anew" in capsys.readouterr().out
    start = load_file(timm_file)
    assert moved(last_weights(run), start) == {"head.weight", "head.bias"}
    model = build_model(config.model, classes=3, channels=3, image_size=160, seed=0)
    assert model.pos_embed.shape == (1, 101, 16)
    assert model.blocks[1].drop_path1.drop_prob == pytest.approx(0.1)  # type: ignore[index,union-attr]


def test_the_configs_preprocessing_overrides_the_models(
    image_folder: Path, timm_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"data.image_size": 32, "data.mean": [0.1, 0.2, 0.3], "data.std": [1, 2, 3]}
    run = train(from_timm(image_folder, timm_file, tmp_path / "run", **own, **STILL))
    assert (run.preprocessing.image_size, run.preprocessing.mean, run.preprocessing.std) == (
        32,
        (0.1, 0.2, 0.3),
        (1.0, 2.0, 3.0),
    )
    assert run.preprocessing.crop == 0.95
    assert "pos_embed: resampled from 101 to 5 tokens" in capsys.readouterr().out


def test_greyscale_images_keep_their_own_mean(timm_file: Path, tmp_path: Path) -> None:
    config = Config.load(
        "finetune",
        {"data.name": "digits", "data.image_size": 16, "model.name": "timm/test_vit", "model.args": TIMM,
         "model.pretrained": str(timm_file), "run.dir": str(tmp_path / "run"), **SHORT, **STILL},
    )  # fmt: skip
    run = train(config)
    data = open_data(config.data)
    assert (run.preprocessing.mean, run.preprocessing.std) == (data.mean, data.std)
    kernel = load_file(timm_file)["patch_embed.proj.weight"]
    torch.testing.assert_close(last_weights(run)["patch_embed.proj.weight"], kernel.sum(1, keepdim=True))


def test_a_resumed_run_does_not_read_pretrained_weights_again(
    image_folder: Path, timm_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.safetensors"
    shutil.copy(timm_file, path)
    small = {"data.image_size": 32, "optimizer.lr": 1e-2, "schedule.warmup": "1 updates", "schedule.name": "constant"}
    unbroken = train(from_timm(image_folder, path, tmp_path / "a", **small, **{"train.duration": "4 updates"}))
    train(from_timm(image_folder, path, tmp_path / "b", **small, **{"train.duration": "2 updates"}))
    path.unlink()
    capsys.readouterr()
    longer = from_timm(image_folder, path, tmp_path / "b", **small, **{"train.duration": "4 updates"})
    resumed = train(longer)
    assert resumed_from(resumed) == [0, 2]
    assert "starts anew" not in capsys.readouterr().out
    weights, expected = last_weights(resumed), last_weights(unbroken)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert moved(weights, load_file(timm_file)) == weights.keys()
    # A finished run needs its own weights alone.
    assert train(longer).summary == resumed.summary
    with pytest.raises(UserError, match=rf"^model.pretrained: {path} does not exist$"):
        train(from_timm(image_folder, path, tmp_path / "c", **small))


def test_a_resumed_run_does_not_need_the_run_it_was_fine_tuned_from(digits_run: Run, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(digits_run.folder, start, symlinks=True)
    pretrained = {"model.pretrained": str(start), "schedule.warmup": "1 updates"}
    train(digits(tmp_path / "run", **pretrained, **{"train.duration": "2 updates"}))
    shutil.rmtree(start)
    run = train(digits(tmp_path / "run", **pretrained, **{"train.duration": "3 updates"}))
    assert resumed_from(run) == [0, 2]


def test_a_resume_with_other_classes_is_refused(image_folder: Path, timm_file: Path, tmp_path: Path) -> None:
    small = {"data.image_size": 32, "schedule.warmup": "1 updates"}
    folder = tmp_path / "run"
    train(from_timm(image_folder, timm_file, folder, **small))
    other = tmp_path / "pictures"
    shutil.copytree(image_folder, other)
    for split in ("train", "valid"):
        (other / split / "bee").rename(other / split / "wasp")
    with pytest.raises(UserError) as caught:
        train(from_timm(other, timm_file, folder, **small, **{"train.duration": "3 updates"}))
    assert str(caught.value).startswith(f"data: not what {folder} was trained on: 27 images added (train/wasp/00.png, ")
    assert "; classes: wasp added, bee removed: bring the old images (or data.leave_out) back" in str(caught.value)
    assert resumed_from(train(from_timm(image_folder, timm_file, folder, **small))) == [0]
