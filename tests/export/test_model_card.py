"""The model card: its front matter, results, recipe, and code that runs."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import ExifTags, Image

from tests.export.models import DIGITS, digits_run, digits_test_images, small_model
from vit_dist import Config
from vit_dist.export.model_card import model_card
from vit_dist.export.timm_folder import export_timm
from vit_dist.files import read_json
from vit_dist.inference.classifier import Classifier
from vit_dist.inference.load import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of sixty updates on the digits."""
    return digits_run(tmp_path_factory)


def block(card: str, language: str) -> str:
    """Return the first code block in a language."""
    return card.split(f"```{language}\n")[1].split("```")[0]


def test_front_matter_is_in_the_format_of_the_hub(run: Path) -> None:
    card = model_card(load_model(str(run)), None, "A name")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "tags": ["image-classification", "timm"],
        "library_name": "timm",
        "pipeline_tag": "image-classification",
    }
    assert body.startswith("\n# A name\n\n`vit_tiny`, 18,154 parameters, for images of 8×8 pixels and 10 classes.\n")
    assert "license" not in card


def test_results_are_those_of_the_run(run: Path) -> None:
    trained, summary = load_model(str(run)), read_json(run / "summary.json")
    card = model_card(trained, summary, "digits")
    test, best = summary["test"], summary["best"]
    assert trained.update == best["update"] == summary["updates"] == 60
    low, high = summary["figures"]["top1_interval"]
    chance = f"±{max(high - test['top1'], test['top1'] - low):.1f} (359 images)"
    assert f"| test | {test['top1']:.4g} {chance} | {test['top5']:.4g} | {test['loss']:.4g} |" in card
    assert f"| val | {summary['final']['top1']:.4g} |" in card
    assert f"- chosen by loss on val: {best['value']:.4g}\n" in card
    assert "- training: 2.226 epochs, 60 updates\n" in card
    assert f"- throughput: {summary['samples_per_second']:,.0f} images/s\n" in card
    assert "- hardware: 1 × cpu, fp32\n" in card
    assert "Trained with vit_dist: the EMA weights of update 60.\n" in card
    assert "- data: digits\n- classes: `0`, `1`, `2`, `3`, `4`, `5`, `6`, `7`, `8`, `9`\n" in card
    assert f"- mean: {list(trained.preprocessing.mean)}\n- std: {list(trained.preprocessing.std)}\n" in card
    assert "\n- image files: shorter side to 8 pixels (bicubic), then the centre of 8 × 8; turned upright as " in card


def test_a_run_on_a_folder_without_test_names_the_folder_and_counts_val(run: Path) -> None:
    trained, summary = load_model(str(run)), read_json(run / "summary.json")
    data = dataclasses.replace(trained.config.data, name="folder", root="/somewhere/My photos")
    trained = dataclasses.replace(trained, config=dataclasses.replace(trained.config, data=data))
    summary["best"] |= {"metric": "top1", "value": 64.516}
    summary["figures"] |= {"split": "val", "seen": 31, "top1_interval": [46.9, 78.9]}
    card = model_card(trained, summary, "photos")
    assert "- data: My photos\n" in card
    assert "- chosen by top1 on val: 64.52 ±17.6 (31 images)\n" in card


def test_recipe_reproduces_the_config_of_the_run(run: Path) -> None:
    trained = load_model(str(run))
    values = yaml.safe_load(block(model_card(trained, None, "digits"), "yaml"))
    config = Config.from_dict(values)
    assert config.fields(changes_result=True) == trained.config.fields(changes_result=True)
    assert values["train"] == {"duration": DIGITS["train.duration"], "ema": 0.9}
    # Neither fields of the machine nor fields at their defaults.
    assert "run" not in values
    assert str(run) not in model_card(trained, read_json(run / "summary.json"), "digits")
    assert values["optimizer"] == {"lr": 0.003, "weight_decay": 0.5}


@pytest.mark.parametrize(
    ("changes", "test", "val"),
    [
        ({}, True, True),
        ({"weights": "raw"}, False, False),
        ({"update": 27}, False, False),
    ],
)
def test_metrics_of_other_weights_are_left_out(changes: dict[str, Any], test: bool, val: bool, run: Path) -> None:
    trained = dataclasses.replace(load_model(str(run)), **changes)
    card = model_card(trained, read_json(run / "summary.json"), "digits")
    assert ("| test |" in card, "chosen by" in card, "| val |" in card) == (test, test, val)
    assert "- training: 2.226 epochs, 60 updates\n" in card


def test_metrics_of_best_weights_that_are_not_the_last(run: Path) -> None:
    summary = read_json(run / "summary.json")
    summary["best"]["update"] = 27
    card = model_card(dataclasses.replace(load_model(str(run)), update=27), summary, "digits")
    assert ("| test |" in card, "chosen by" in card, "| val |" in card) == (True, True, False)
    summary["best"], summary["test"]["top5"], summary["test"]["loss"] = None, None, "nan"
    card = model_card(load_model(str(run)), summary, "digits")
    assert f"| test | {summary['test']['top1']:.4g} ±4.7 (359 images) |  | nan |\n" in card
    assert "chosen by" not in card


def test_unknown_values_are_left_out() -> None:
    card = model_card(small_model(), None, "plain")
    for word in ("Trained", "Results", "Recipe", "- data:", ": None", "nan"):
        assert word not in card, word
    assert "- classes: `ant`, `bee`, `cat`, `dog`, `eel`\n" in card
    many = dataclasses.replace(small_model(), names=[f"n{i}" for i in range(1000)])
    assert "`n18`, `n19` and 980 more\n" in model_card(many, None, "many")
    assert "timm.create_model" not in model_card(small_model(channels=2), None, "two channels")


@pytest.mark.parametrize("channels", [1, 3])
def test_usage_example_runs(channels: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = load_model(str(run)) if channels == 1 else small_model()
    folder = tmp_path / "exported"
    card = model_card(trained, None, "digits")
    export_timm(trained, folder, card=card)
    assert (folder / "README.md").read_text() == card
    pixels = digits_test_images()[0, 0].numpy()
    picture = pixels if channels == 1 else np.stack([pixels] * 3, axis=-1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    Image.fromarray(picture).rotate(180).save(folder / "picture.png", exif=exif)
    expected = Classifier(trained, torch.device("cpu")).predict(Image.fromarray(picture)).probabilities.max()
    capsys.readouterr()
    before = os.getcwd()
    os.chdir(folder)
    try:
        exec(block(card, "python"), {})
    finally:
        os.chdir(before)
    label, probability = capsys.readouterr().out.split()
    assert label in trained.classes
    assert float(probability) == pytest.approx(expected, rel=1e-4)
