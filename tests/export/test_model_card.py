"""A card says what is known of a model and no more, and what it tells people to run runs."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.exports_for_tests import DIGITS, digits_run, digits_tested, of_no_run
from vit_dist import Config
from vit_dist.export.model_card import model_card
from vit_dist.export.timm_folder import export_timm
from vit_dist.files import read_json
from vit_dist.inference.load import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty updates on the digits."""
    return digits_run(tmp_path_factory.mktemp("runs") / "run")


def block(card: str, language: str) -> str:
    """The first block of code in a language."""
    return card.split(f"```{language}\n")[1].split("```")[0]


def test_its_front_matter_is_the_hubs(run: Path) -> None:
    card = model_card(load_model(str(run)), None, "A name")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "tags": ["image-classification", "timm"],
        "library_name": "timm",
        "pipeline_tag": "image-classification",
    }
    assert body.startswith("\n# A name\n\n`vit_tiny`, 18,154 parameters, for images of 8×8 pixels and 10 classes.\n")
    assert "license" not in card


def test_it_tells_the_figures_of_the_run(run: Path) -> None:
    trained, summary = load_model(str(run)), read_json(run / "summary.json")
    card = model_card(trained, summary, "digits")
    test, best = summary["test"], summary["best"]
    assert trained.update == best["update"] == summary["updates"] == 60
    assert f"| test | {test['top1']:.4g} | {test['top5']:.4g} | {test['loss']:.4g} |" in card
    assert f"| val | {summary['final']['top1']:.4g} |" in card
    assert f"- chosen by loss of val: {best['value']:.4g}\n" in card
    assert "- trained for: 2.226 epochs, 60 updates\n" in card
    assert f"- speed: {summary['samples_per_second']:,.0f} images/s\n" in card
    assert "- on: 1 × cpu, fp32\n" in card
    assert "Trained with vit_dist: the EMA weights of update 60.\n" in card
    assert "- data: digits\n- classes: `0`, `1`, `2`, `3`, `4`, `5`, `6`, `7`, `8`, `9`\n" in card
    assert f"- mean: {list(trained.preprocessing.mean)}\n- std: {list(trained.preprocessing.std)}\n" in card


def test_its_recipe_is_the_runs(run: Path) -> None:
    trained = load_model(str(run))
    values = yaml.safe_load(block(model_card(trained, None, "digits"), "yaml"))
    found = Config.from_dict(values)
    assert found.fields(changes_result=True) == trained.config.fields(changes_result=True)
    assert values["train"] == {"duration": DIGITS["train.duration"], "ema": 0.9}
    # Nothing of the machine, and no field at its default.
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
def test_figures_of_other_weights_are_left_out(changes: dict[str, Any], test: bool, val: bool, run: Path) -> None:
    trained = dataclasses.replace(load_model(str(run)), **changes)
    card = model_card(trained, read_json(run / "summary.json"), "digits")
    assert ("| test |" in card, "chosen by" in card, "| val |" in card) == (test, test, val)
    assert "- trained for: 2.226 epochs, 60 updates\n" in card


def test_the_best_is_not_the_last(run: Path) -> None:
    summary = read_json(run / "summary.json")
    summary["best"]["update"] = 27
    card = model_card(dataclasses.replace(load_model(str(run)), update=27), summary, "digits")
    assert ("| test |" in card, "chosen by" in card, "| val |" in card) == (True, True, False)
    summary["best"], summary["test"]["top5"], summary["test"]["loss"] = None, None, "nan"
    card = model_card(load_model(str(run)), summary, "digits")
    assert f"| test | {summary['test']['top1']:.4g} |  | nan |\n" in card
    assert "chosen by" not in card


def test_what_is_not_known_is_left_out() -> None:
    card = model_card(of_no_run(), None, "plain")
    for word in ("Trained", "Figures", "Recipe", "- data:", ": None", "nan"):
        assert word not in card, word
    assert "- classes: `ant`, `bee`, `cat`, `dog`, `eel`\n" in card
    many = dataclasses.replace(of_no_run(), names=[f"n{i}" for i in range(1000)])
    assert "`n18`, `n19` and 980 more\n" in model_card(many, None, "many")
    assert "timm.create_model" not in model_card(of_no_run(channels=2), None, "two channels")


@pytest.mark.parametrize("channels", [1, 3])
def test_what_it_tells_people_to_run_runs(
    channels: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = load_model(str(run)) if channels == 1 else of_no_run()
    folder = tmp_path / "exported"
    card = model_card(trained, None, "digits")
    export_timm(trained, folder, card=card)
    assert (folder / "README.md").read_text() == card
    pixels = digits_tested()[0, 0].numpy()
    picture = pixels if channels == 1 else np.stack([pixels] * 3, axis=-1)
    Image.fromarray(picture).save(folder / "picture.png")
    capsys.readouterr()
    before = os.getcwd()
    os.chdir(folder)
    try:
        exec(block(card, "python"), {})
    finally:
        os.chdir(before)
    label, probability = capsys.readouterr().out.split()
    assert label in trained.classes
    assert 1 / len(trained.classes) < float(probability) <= 1
