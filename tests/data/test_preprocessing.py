"""Tests of the preprocessing: evaluation makes of an image what timm's own transform makes of it, to the pixel."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import ExifTags, Image, ImageOps
from timm.data import ImageDataset, create_transform, resolve_data_config

from vit_dist.config.config import Config
from vit_dist.config.fields import DataConfig, ModelConfig
from vit_dist.data.preprocessing import Preprocessing, resized_as, resolve_preprocessing, timm_preprocessing
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import LabelledSplits, all_of
from vit_dist.errors import UserError

# timm's model → (side, crop, interpolation, fit): every crop mode, both interpolations, many crops.
MODELS: dict[str, tuple[int, float, str, str]] = {
    "resnet18.tv_in1k": (224, 0.875, "bilinear", "crop"),
    "vit_small_patch16_224.augreg_in21k_ft_in1k": (224, 0.9, "bicubic", "crop"),
    "resnet50.a1_in1k": (224, 0.95, "bicubic", "crop"),
    "deit3_small_patch16_224.fb_in22k_ft_in1k": (224, 1.0, "bicubic", "crop"),
    "tf_efficientnet_b3.aa_in1k": (300, 0.904, "bicubic", "crop"),
    "tf_efficientnet_b1.ap_in1k": (240, 0.882, "bicubic", "crop"),
    "inception_v3.tv_in1k": (299, 0.875, "bicubic", "crop"),
    "resnetv2_50x1_bit.goog_in21k_ft_in1k": (448, 1.0, "bilinear", "crop"),
    "beit_base_patch16_384.in22k_ft_in22k_in1k": (384, 1.0, "bicubic", "crop"),
    "dm_nfnet_f0.dm_in1k": (192, 0.9, "bicubic", "stretch"),
    "maxvit_tiny_tf_384.in1k": (384, 1.0, "bicubic", "stretch"),
    "vit_small_patch16_lingbot.robbyant": (512, 1.0, "bilinear", "stretch"),
    "deepseek_vit_412m.deepseek_v4_flash_vision_exp": (392, 1.0, "bicubic", "pad"),
    "volo_d5_448.sail_in1k": (448, 1.15, "bicubic", "crop"),
}
RNG = np.random.default_rng(0)


def blocks(width: int, height: int, channels: int = 3) -> np.ndarray[Any, Any]:
    """Return an image of blocks, in which a shift of a pixel shows, uint8 [height, width(, channels)]."""
    coarse = RNG.integers(0, 256, (max(2, height // 9), max(2, width // 9), channels), dtype=np.uint8)
    image = Image.fromarray(coarse[:, :, 0] if channels == 1 else coarse)
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[ExifTags.Base.Orientation] = orientation
    return made


def write_images(folder: Path) -> list[Path]:
    """Write one image file of each kind and shape."""
    folder.mkdir()
    photo = Image.fromarray(blocks(300, 200))
    sixteen = Image.fromarray(blocks(120, 90, 1).astype(np.uint16) * 257)
    opaque = Image.fromarray(np.dstack([blocks(150, 101), np.full((101, 150), 255, np.uint8)]))
    images: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "landscape.jpg": (photo, {}),
        "portrait.png": (Image.fromarray(blocks(113, 257)), {}),
        "square.png": (Image.fromarray(blocks(224, 224)), {}),
        "odd.png": (Image.fromarray(blocks(331, 329)), {}),
        "long.png": (Image.fromarray(blocks(640, 41)), {}),
        "small.png": (Image.fromarray(blocks(20, 13)), {}),
        "pixel.png": (Image.fromarray(blocks(1, 1)), {}),
        "grey.jpg": (Image.fromarray(blocks(90, 120, 1)), {}),
        "palette.png": (photo.quantize(64), {}),
        "still.gif": (photo.resize((70, 100)).quantize(32), {}),
        "opaque.png": (opaque, {}),
        "turned.jpg": (photo, {"exif": exif(6)}),
        "mirrored.jpg": (photo, {"exif": exif(5)}),
        "16_bit.png": (sixteen, {}),
        "cmyk.jpg": (photo.convert("CMYK"), {}),
    }
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return [folder / name for name in images]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_images(tmp_path_factory.mktemp("preprocessing") / "images")


def timms_own(path: Path, mode: str) -> Image.Image:
    """Return the image that timm's data set reads, turned as EXIF says, which timm leaves to the person."""
    if path.name == "16_bit.png":  # Pillow clips these
        return Image.fromarray((np.asarray(Image.open(path)) // 257).astype(np.uint8)).convert(mode)
    return ImageOps.exif_transpose(Image.open(path)).convert(mode)


def evaluated(made: Preprocessing, path: Path) -> torch.Tensor:
    source = FileSource([path], np.zeros(1, np.int64), "L" if len(made.mean) == 1 else "RGB")
    return made.transform()(source.image(0), 0, made.image_size)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_of_a_timm_model_is_timms_own_to_the_pixel(name: str, files: list[Path]) -> None:
    if not timm.is_model(name.partition(".")[0]):
        pytest.skip(f"this version of timm has no {name}")
    made = timm_preprocessing(ModelConfig(name=f"timm/{name}"))
    assert made is not None
    assert (made.image_size, made.crop, made.interpolation, made.fit) == MODELS[name]
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    settings = resolve_data_config({}, pretrained_cfg=cfg.to_dict())
    pixels, inputs = create_transform(**settings, normalize=False), create_transform(**settings)
    for path in files:
        theirs = timms_own(path, "RGB")
        ours = evaluated(made, path)
        assert torch.equal(ours, pixels(theirs)), path.name
    difference = made.normalise(ours[None])[0] - inputs(theirs)
    assert difference.abs().max() < 1e-5


def test_every_timm_model_is_measured_as_timms_validation_measures_it() -> None:
    differ = 0
    for name in timm.list_models(pretrained=True):
        config, cfg = ModelConfig(name=f"timm/{name}"), vars(timm.get_pretrained_cfg(name))
        if cfg["input_size"][-1] != cfg["input_size"][-2]:
            with pytest.raises(
                UserError, match=r"its images are \d+ × \d+ pixels, and only squares are supported: cho"
            ):
                timm_preprocessing(config)
            continue
        trained, measured = timm_preprocessing(config), timm_preprocessing(config, test_size=True)
        assert trained is not None
        assert measured is not None
        for ours, test_size in ((trained, False), (measured, True)):
            theirs = resolve_data_config(pretrained_cfg=cfg, use_test_size=test_size)
            assert {**ours.to_timm(), "input_size": tuple(ours.to_timm()["input_size"])} == {**theirs}, name
        differ += trained != measured
    assert differ > 300


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("side", "crop"), [(8, 0.875), (31, 0.8), (31, 1.0), (32, 1.3)])
def test_a_preprocessing_of_our_own_is_the_same_in_timm(fit: str, side: int, crop: float, files: list[Path]) -> None:
    for channels, interpolation in ((3, "bicubic"), (1, "bilinear"), (3, "lanczos")):
        made = Preprocessing(side, (0.4, 0.5, 0.6)[:channels], (0.2,) * channels, crop, interpolation, fit)
        assert Preprocessing.from_timm(made.to_timm()) == made
        settings = resolve_data_config({}, pretrained_cfg=made.to_timm())
        pixels = create_transform(**settings, normalize=False)
        for path in files:
            theirs = timms_own(path, "L" if channels == 1 else "RGB")
            assert torch.equal(evaluated(made, path), pixels(theirs)), (path.name, channels)


def test_an_image_without_orientation_is_what_timms_data_set_reads(files: list[Path]) -> None:
    made = Preprocessing(32, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=made.to_timm()), normalize=False)
    theirs = ImageDataset(str(files[0].parents[1]), transform=transform)
    read = {Path(theirs.filename(index, basename=True)).name: theirs[index][0] for index in range(len(theirs))}
    for path in files:
        if path.name in read and not path.name.startswith(("turned", "mirrored", "16_bit")):
            assert torch.equal(evaluated(made, path), read[path.name]), path.name
    assert len(read) >= 8


def test_the_border_has_the_colour_of_the_mean() -> None:
    made = Preprocessing(16, (0.2, 0.4, 0.6), (0.2,) * 3, 1.0, fit="pad")
    pixels = made.transform()(Image.new("RGB", (32, 16), "white"), 0, 16)
    assert (pixels[:, 4:12] == 255).all()
    for part in (pixels[:, :4], pixels[:, 12:]):
        assert (part == torch.tensor([51, 102, 153])[:, None, None]).all()
    # After normalisation it is nearly 0.
    assert made.normalise(pixels[None])[0, :, 0].abs().max() < 0.01


def test_nothing_of_an_object_is_lost_where_edges_are_kept() -> None:
    image = Image.new("RGB", (100, 40), "black")
    image.paste("white", (0, 0, 10, 40))
    image.paste("white", (90, 0, 100, 40))
    ends = {}
    for fit in ("crop", "pad", "stretch"):
        resizing = resized_as(DataConfig(fit=fit), None)  # type: ignore[arg-type]
        row = Preprocessing(20, (0.0,) * 3, (1.0,) * 3, **resizing).transform()(image, 0, 20)[0, 10]
        ends[fit] = int(row[0]), int(row[10]), int(row[-1])
    assert ends["crop"] == (0, 0, 0)
    assert ends["pad"] == ends["stretch"] == (255, 0, 255)


def test_what_the_config_says_wins_over_the_model_and_the_model_over_the_defaults() -> None:
    models = Preprocessing(224, (0.5,), (0.5,), 0.9, "bilinear", "stretch")
    plain = ("auto", 0.0, "auto")
    cases: dict[tuple[str, float, str], tuple[tuple[float, str, str], tuple[float, str, str]]] = {
        plain: ((0.9, "bilinear", "stretch"), (0.875, "bicubic", "crop")),
        ("crop", 0.0, "auto"): ((0.9, "bilinear", "crop"), (0.875, "bicubic", "crop")),
        ("pad", 0.0, "auto"): ((1.0, "bilinear", "pad"), (1.0, "bicubic", "pad")),
        ("stretch", 0.0, "auto"): ((1.0, "bilinear", "stretch"), (1.0, "bicubic", "stretch")),
        ("pad", 0.8, "bicubic"): ((0.8, "bicubic", "pad"), (0.8, "bicubic", "pad")),
        ("auto", 0.8, "bicubic"): ((0.8, "bicubic", "stretch"), (0.8, "bicubic", "crop")),
    }
    for (fit, crop, interpolation), expected in cases.items():
        config = DataConfig(fit=fit, crop=crop, interpolation=interpolation)  # type: ignore[arg-type]
        actual = tuple(tuple(resized_as(config, model).values()) for model in (models, None))
        assert actual == expected, (fit, crop, interpolation)


def test_images_in_memory_fill_their_frame() -> None:
    def resolved(height: int, width: int, **data: Any) -> Preprocessing:
        pixels = np.zeros((4, 1, height, width), np.uint8)
        splits = {"train": all_of(MemorySource(pixels, np.arange(4) % 2))}
        opened = LabelledSplits(splits, ("a", "b"), 1, height, (0.5,), (0.5,))
        config = Config.load("digits", {f"data.{name}": value for name, value in data.items()})
        return resolve_preprocessing(config, opened)

    plain = Preprocessing(8, (0.5,), (0.5,), 1.0)
    assert resolved(8, 8) == plain
    assert resolved(8, 8, image_size=16) == dataclasses.replace(plain, image_size=16, interpolation="bilinear")
    assert resolved(8, 12) == dataclasses.replace(plain, interpolation="bilinear", fit="stretch")
    assert resolved(8, 8, fit="pad") == dataclasses.replace(plain, fit="pad")  # of files that are predicted later
    with pytest.raises(UserError, match=r"^data.fit: pad is for image files: images in memory of 12 × 8 pixels are "):
        resolved(8, 12, fit="pad")


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"crop_pct": -1}, "crop_pct must be above 0 and 2 at most, not -1"),
    ({"interpolation": "random"}, "interpolation must be one of bicubic, bilinear, "),
]


@pytest.mark.parametrize(("changes", "problem"), BROKEN)
def test_a_description_that_timm_could_not_use_is_refused(changes: dict[str, Any], problem: str) -> None:
    values = {**Preprocessing(8, (0.5,), (0.5,)).to_timm(), **changes}
    with pytest.raises(ValueError, match=f"^{problem}"):
        Preprocessing.from_timm(values)
    # What is left out is what timm takes then.
    bare = {"input_size": [1, 8, 8], "mean": [0.5], "std": [0.5]}
    assert Preprocessing.from_timm(bare) == Preprocessing(8, (0.5,), (0.5,), 0.875, "bicubic", "crop")


def test_it_is_said_in_words() -> None:
    made = Preprocessing(224, (0.5,), (0.5,))
    texts = {
        made: "shorter side to 256 pixels (bicubic), then the centre of 224 × 224",
        dataclasses.replace(made, crop=1.0, fit="pad"): "longer side to 224 pixels (bicubic), on a border of the "
        "mean's colour",
        dataclasses.replace(made, crop=0.9, fit="stretch", interpolation="bilinear"): "both sides to 248 pixels "
        "(bilinear), then the centre of 224 × 224",
    }
    for preprocessing, text in texts.items():
        assert preprocessing.resizing() == text
