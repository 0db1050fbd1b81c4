"""The fields that a data set decides: the rule, what a person sets, and the notes on what fits badly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from vit_dist.config.catalog import AUTO
from vit_dist.config.config import Config
from vit_dist.config.recipe import RECIPES
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.errors import UserError
from vit_dist.models.build import build_model
from vit_dist.plan.plan import Plan
from vit_dist.training.advice import advice
from vit_dist.training.components import open_splits
from vit_dist.training.defaults import Choice, Facts, choose
from vit_dist.training.resolve import resolve
from vit_dist.training.run import train

FOLDER = {"data.root": "pets"}
FINETUNE = {**FOLDER, "model.pretrained": "timm"}


def facts(images: int, side: int = 300, *, val: int | None = None, **others: bool) -> Facts:
    known = {"measured": True, "decoded": False, "characters": False, "sided": False, **others}
    return Facts(images, images // 9 if val is None else val, side, **known)


def chosen(images: int, side: int = 300, overrides: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    """Return what is chosen of the default config, by field."""
    config, choices = choose(Config.load(None, {**FOLDER, **(overrides or {})}), facts(images, side, **others))
    assert config.run.auto == ()
    values = {choice.field: choice.value for choice in choices}
    assert len(values) == len(choices)
    assert {field: config.fields()[field] for field in values} == values
    return values


def folder(root: Path, counts: dict[str, int], side: int = 20) -> Path:
    """Make a folder of noise: so many images of each class."""
    draw = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("images", "side", "expected"),
    [
        (5, 300, {"batch.global_size": 2, "model.width": 64, "optimizer.weight_decay": 0.3,
                     "train.duration": "3000 updates", "data.image_size": 128}),
        (86, 500, {"batch.global_size": 8, "optimizer.lr": 1.1e-3, "evaluate.every": "7 epochs"}),
        (5_000, 32, {"batch.global_size": 64, "optimizer.lr": 2e-3, "train.duration": "100 epochs",
                     "data.image_size": 32, "model.patch_size": 4, "data.crop": 1.0, "model.width": 96,
                     "evaluate.every": "2 epochs"}),
        (50_000, 500, {"batch.global_size": 256, "data.image_size": 160, "model.name": "vit_tiny"}),
        (2_000_000, 400, {"batch.global_size": 1024, "batch.micro_size": 128, "optimizer.lr": 1e-3,
                          "train.duration": "90 epochs", "model.name": "vit_small", "model.patch_size": 16,
                          "data.image_size": 224, "augment.mixup": 0.2, "augment.crop_min": 0.08,
                          "evaluate.every": "2 epochs"}),
        (300, 8, {"data.image_size": 8, "model.patch_size": 1}),
        (300, 45, {"data.image_size": 40, "model.patch_size": 5}),
        (300, 80, {"data.image_size": 64, "model.patch_size": 8}),
        (300, 10_000, {"data.image_size": 128, "model.patch_size": 16}),
    ],
)  # fmt: skip
def test_the_rule(images: int, side: int, expected: dict[str, Any]) -> None:
    values = chosen(images, side)
    assert {field: values[field] for field in expected} == expected


def test_crop_and_size_of_the_model_are_chosen_for_their_reasons_alone() -> None:
    assert "data.crop" not in chosen(300, 200)  # the config's own stays
    assert "data.crop" not in chosen(300, 16, measured=False)
    assert "model.depth" not in chosen(20_000)
    assert "augment.mixup" not in chosen(20_000)


def test_the_width_follows_from_heads_that_a_person_set() -> None:
    assert chosen(300, 32, {"model.heads": 3})["model.width"] == 63
    assert chosen(3_000, 32, {"model.heads": 5})["model.width"] == 95
    assert chosen(300, 32, {"model.width": 50})["model.heads"] == 2


@pytest.mark.parametrize("side", [1, 3, 5, 8, 17, 28, 33, 47, 64, 100, 211, 5000])
def test_every_choice_fits_the_others(side: int) -> None:
    for images in (4, 6, 9, 31, 86, 500, 2_345, 19_999, 250_000, 1_281_167, 30_000_000):
        config, choices = choose(Config.load(None, FOLDER), facts(images, side))
        plan = Plan.from_config(config, images, 1)
        assert plan.global_size <= max(2, images / 4)
        assert math.log2(plan.global_size).is_integer()
        assert plan.updates >= 3_000
        assert 10 <= plan.total_samples / plan.evaluate_every <= 50
        assert plan.fillers == 0
        assert config.data.image_size % config.model.patch_size == 0
        assert (config.data.image_size // config.model.patch_size) ** 2 <= 200
        assert all(choice.reason for choice in choices)


def test_a_large_val_is_evaluated_less_often() -> None:
    assert chosen(800, val=80)["evaluate.every"] == "3 epochs"  # 40 times in 120 epochs
    assert chosen(800, val=10_000)["evaluate.every"] == "40 epochs"


def test_characters_and_sides_are_not_mirrored() -> None:
    assert chosen(300)["augment.flip"] == 0.5
    assert chosen(300, sided=True)["augment.flip"] == 0
    written = chosen(300, 28, characters=True)
    assert (written["augment.flip"], written["augment.crop_min"], written["augment.shift"]) == (0, 0, 2)
    assert (written["model.patch_size"], chosen(300, 56, characters=True)["model.patch_size"]) == (7, 7)
    assert chosen(300, 28)["model.patch_size"] == 4


@pytest.mark.parametrize(
    ("classes", "characters", "sided"),
    [
        (["0", "7"], True, False),
        (["00", "99"], True, False),
        (["b", "K"], True, False),
        (["a", "B"], False, False),
        (["0", "1"], False, False),
        (["three", "Five"], True, False),
        (["cat", "7"], False, False),
        (["n01440764", "n01443537"], False, False),
        (["100", "2000"], False, False),
        (["turn_left", "straight"], False, True),
        (["Right", "other"], False, True),
        (["leftovers", "copyright"], False, False),
    ],
)
def test_names_of_classes(tmp_path: Path, classes: list[str], characters: bool, sided: bool) -> None:
    root = folder(tmp_path, dict.fromkeys(classes, 4))
    found = Facts.of(open_splits(Config.load(None, {"data.root": str(root), "data.val_fraction": 0.25}), None))
    assert (found.characters, found.sided) == (characters, sided)
    assert (found.images, found.val, found.side, found.measured, found.decoded) == (6, 2, 20, True, False)


def test_what_a_person_sets_stays_and_the_rest_follows_it() -> None:
    assert chosen(5_000, 300, {"model.patch_size": 14})["data.image_size"] == 126
    assert chosen(5_000, 300, {"data.image_size": 224})["model.patch_size"] == 16
    assert chosen(5_000, 300, {"data.image_size": 100})["model.patch_size"] == 10
    batch = chosen(5_000, 300, {"batch.global_size": 7})
    assert (batch["batch.micro_size"], batch["optimizer.lr"]) == (8, 6.6e-4)
    assert "batch.global_size" not in batch
    assert chosen(5_000, 300, {"train.duration": "8 epochs"})["evaluate.every"] == "4.5%"  # of 555 images
    own = chosen(5_000, 300, {"model.name": "vit_small"})
    assert not {"model.name", "model.width", "model.depth", "model.heads"} & own.keys()
    assert chosen(5_000, 300, {"model.width": 90})["model.heads"] == 3
    timm = chosen(5_000, 300, {"model.name": "timm/vit_small_patch16_224"})
    assert not {field for field in timm if field.startswith(("model.", "data."))}


def test_fine_tuning_keeps_the_model_and_its_preprocessing() -> None:
    values = chosen(86, 32, {"model.pretrained": "timm"})
    assert not {field for field in values if field.startswith(("model.", "data."))}
    expected = {"batch.global_size": 8, "batch.micro_size": 8, "optimizer.lr": 1.3e-4, "train.duration": "500 updates"}
    assert {field: values[field] for field in expected} == expected
    assert (values["augment.auto"], values["augment.crop_min"]) == ("rand-m9-mstd0.5-inc1", 0.35)
    large = chosen(1_000_000, 400, {"model.pretrained": "timm"})
    expected = {"batch.global_size": 256, "batch.micro_size": 32, "optimizer.lr": 7.1e-4, "train.duration": "20 epochs"}
    assert {field: large[field] for field in expected} == expected
    assert chosen(86, 28, {"model.pretrained": "timm"}, characters=True)["augment.shift"] == 16
    assert chosen(86, 300, {"model.pretrained": "timm", "model.linear_probe": True})["optimizer.lr"] == 1e-3


def test_config_load_takes_out_what_an_override_sets() -> None:
    assert "train.duration" in Config.load(None, FOLDER).run.auto
    assert "train.duration" not in Config.load(None, {**FOLDER, "train.duration": "3 epochs"}).run.auto
    listed = {**FOLDER, "run.auto": ["optimizer.lr", "train.duration"], "optimizer.lr": 1e-2}
    assert Config.load(None, listed).run.auto == ("train.duration",)
    plain = Config.load(None, {**FOLDER, "run.auto": []})
    assert choose(plain, facts(86)) == (plain, [])
    assert plain.train.duration == "100 epochs"


def test_a_field_without_a_rule_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        Config.load(None, {**FOLDER, "run.auto": ["train.duration", "optimizer.momentum"]})
    assert str(caught.value) == f"run.auto: no rule for optimizer.momentum; known: {', '.join(AUTO)}"


def test_the_recipes_list_fields_that_the_rule_knows_and_every_rule_is_used() -> None:
    listed = {
        path.stem: set(read["run"]["auto"])
        for path in RECIPES.glob("*.yaml")
        if "auto" in (read := yaml.safe_load(path.read_text(encoding="utf-8"))).get("run", {})
    }
    assert listed.keys() == {"folder", "finetune"}
    assert listed["folder"] == set(AUTO)
    assert listed["finetune"] < listed["folder"]
    made = chosen(300, 28, characters=True).keys() | chosen(300_000).keys()
    assert made == listed["folder"]


def test_the_values_are_written_down_and_a_resumed_run_keeps_them(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", {"cat": 9, "dog": 9}, side=12)
    flags = {"data.root": str(root), "run.dir": str(tmp_path / "run"), "train.duration": "3 updates",
             "model.width": 8, "model.depth": 1, "model.heads": 2, "run.threads": 1, "data.workers": 0,
             "log.report": False, "log.trackers": "none", "data.val_fraction": 0.2}  # fmt: skip
    run = train(Config.load(None, flags))
    written = Config.load(run.folder / "config.yaml")
    assert written.run.auto == ()
    assert (written.batch.global_size, written.data.image_size, written.model.patch_size) == (2, 12, 2)
    assert (written.model.width, written.train.duration) == (8, "3 updates")
    assert resolve(Config.load(None, flags)).config.to_dict() == written.to_dict()


def test_the_model_that_is_chosen_can_be_built() -> None:
    config, _ = choose(Config.load(None, FOLDER), facts(86, 45))
    model = build_model(config.model, classes=2, channels=3, image_size=config.data.image_size, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000


def notes(data: LabelledSplits, overrides: dict[str, Any]) -> list[str]:
    return list(advice(Config.load(None, {**FOLDER, **overrides}), data))


def test_notes_on_settings_that_fit_badly(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", {"cat": 20, "dog": 20})
    data = open_splits(Config.load(None, {"data.root": str(root), "data.val_fraction": 0.25}), None)
    scratch = (
        "training from scratch on 30 images: on so few, pretrained weights are far more accurate: "
        "--model.pretrained timm"
    )
    good = {"batch.global_size": 4, "batch.micro_size": 4, "train.duration": "50 epochs", "data.image_size": 32}
    assert notes(data, good) == [scratch]
    assert notes(data, {**good, "model.pretrained": "timm"}) == []
    assert notes(data, {**good, "batch.global_size": 64, "batch.micro_size": 64}) == [
        "batch.global_size: 64 is more than the 30 training images: set 4", scratch]  # fmt: skip
    assert notes(data, {**good, "train.duration": "1 epochs"}) == [
        "train.duration: 1 epochs of 30 images, 4 in an update, are only 8 updates, too few to learn from: "
        'set train.duration "3000 updates"', scratch]  # fmt: skip
    assert notes(data, {**good, "batch.global_size": 16, "train.duration": "2 epochs", "batch.micro_size": 16}) == [
        "train.duration: 2 epochs of 30 images, 16 in an update, are only 4 updates, too few to learn from: "
        'set batch.global_size 4 or train.duration "3000 updates"', scratch]  # fmt: skip
    assert notes(data, {**good, "evaluate.every": "20 epochs"}) == [
        "evaluate.every: 20 epochs leave fewer than 5 evaluations to choose the best weights from: set 5%", scratch,
    ]  # fmt: skip
    assert notes(data, {**good, "batch.micro_size": 64}) == [
        scratch, "batch.micro_size: 60 of its 64 slots are never used: set 4"]  # fmt: skip
    assert notes(data, {**good, "data.image_size": 224}) == [
        scratch,
        "data.image_size: 224 enlarges images of 20 pixels 11 times, which takes time and shows nothing more",
    ]
    # Nothing is enlarged in silence: timm's models bring a side of their own.
    silent = {**good, "data.image_size": 0, "model.name": "timm/vit_tiny_patch16_224"}
    enlarged = "data.image_size: 224 enlarges images of 20 pixels 11 times, "
    assert notes(data, silent) == [scratch, f"{enlarged}which takes time and shows nothing more"]
    assert notes(data, {**silent, "model.pretrained": "timm"}) == [
        f"{enlarged}to what the weights were trained on: a smaller side is faster"]  # fmt: skip
    assert notes(data, {**silent, "data.image_size": 32, "model.pretrained": "timm"}) == []
    assert notes(data, {**good, "model.freeze": ["patch_embed"]}) == [
        "model.freeze: frozen parameters stay random without model.pretrained: set that, or leave freeze out", scratch,
    ]  # fmt: skip
    for fit in ("pad", "stretch"):
        assert notes(data, {**good, "data.fit": fit})[1:] == [
            f"augment.crop_min: training takes random parts of the images, evaluation all of each (data.fit {fit}): "
            "set augment.crop_min 0 to train on all of each too"]  # fmt: skip
        assert notes(data, {**good, "data.fit": fit, "augment.crop_min": 0}) == [scratch]
    assert notes(data, {**good, "data.fit": "crop"}) == [scratch]


def test_nothing_is_chosen_for_captions_that_is_of_classes() -> None:
    contrastive = {**FOLDER, "loss.name": "clip", "run.auto": ["augment.mixup", "loss.label_smoothing", "augment.flip"]}
    config, choices = choose(Config.load(None, contrastive), facts(300_000, 224))
    assert [choice.field for choice in choices] == ["augment.flip"]
    assert (config.augment.mixup, config.loss.label_smoothing) == (0, 0)


def test_a_choice_is_plain() -> None:
    _, choices = choose(Config.load(None, FOLDER), facts(86, 30))
    assert choices[0] == Choice("model.name", "vit_tiny", "from scratch on 86 training images")
