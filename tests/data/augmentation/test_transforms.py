"""What happens to one decoded image in a worker, under its key and nothing else."""

from __future__ import annotations

import hashlib
import io
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_train
from torchvision.transforms import v2

from tests.processes import run_world
from vit_dist.config.fields import AugmentConfig
from vit_dist.data.augmentation import transforms
from vit_dist.data.augmentation.transforms import (
    EvaluationTransform,
    TrainingTransform,
    Transform,
    seeded,
    training_transform,
)
from vit_dist.data.reader import Reader
from vit_dist.data.sources.crop import random_box, resized_part
from vit_dist.data.sources.decode import EncodedImage, decode
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import all_of
from vit_dist.data.workers import Workers
from vit_dist.errors import UserError
from vit_dist.plan.keys import Purpose, keys
from vit_dist.plan.plan import Slots


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


MEAN = (0.485, 0.456, 0.406)
KNOWN = (
    "rand-m9-mstd0.5-inc1, augmix-m3-w3, original, v0, 3a, trivial, autoaugment-imagenet, autoaugment-cifar10, "
    "autoaugment-svhn"
)


def cropping(crop_min: float, side: int) -> TrainingTransform:
    return TrainingTransform(AugmentConfig(crop_min=crop_min), MEAN, side, EvaluationTransform(0.875))


def training(augment: AugmentConfig, side: int) -> Transform:
    transform = training_transform(augment, MEAN, side, EvaluationTransform(0.875))
    assert transform is not None
    return transform


def disturb(seed: int) -> None:
    """Seed the global generators, as other code might have left them."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_the_same_key_gives_the_same_pixels_whatever_was_drawn_before() -> None:
    transform = cropping(0.2, 16)
    actual = []
    for state in range(5):
        disturb(state)
        actual.append(transform(noise(), 2**63 + 12345, 16))
    # A second transform of the same form, as in another worker.
    actual.append(cropping(0.2, 16)(noise(), 2**63 + 12345, 16))
    assert actual[0].dtype == torch.uint8
    assert actual[0].shape == (3, 16, 16)
    assert all(torch.equal(pixels, actual[0]) for pixels in actual)


def test_different_keys_give_different_pixels() -> None:
    transform = cropping(0.2, 16)
    sample_keys = keys(0, Purpose.SAMPLE, 0, np.arange(50)).tolist()
    assert len({transform(noise(), sample_key, 16).numpy().tobytes() for sample_key in sample_keys}) == 50


def test_generators_of_every_library_are_seeded() -> None:
    def draws(sample_key: int) -> tuple[float, float, float]:
        with seeded(sample_key):
            return random.random(), float(np.random.random()), torch.rand(1, dtype=torch.float64).item()

    disturb(1)
    first = draws(2**64 - 1)
    disturb(2)
    assert draws(2**64 - 1) == first
    for other in (2**64 - 3, 2**63 - 3):
        assert all(a != b for a, b in zip(draws(other), first, strict=True))
    # Python's reads all 64 bits.
    assert draws(2**63 - 1)[0] != first[0]
    assert draws(0)[1] == np.random.RandomState(0).random()


def drawn(image: Image.Image) -> Image.Image:
    """Return an image of values from every generator, in the first row."""
    row = [random.random(), np.random.random(), float(torch.rand(1))]
    image.paste(tuple(int(256 * value) for value in row), (0, 0, image.width, 1))
    return image


@pytest.mark.parametrize("crop_min", [0.08, 1.0])
def test_an_encoded_image_gives_the_crop_and_draws_of_a_decoded_one(crop_min: float) -> None:
    smooth = noise(12, 9).resize((300, 200), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    smooth.save(file, "JPEG")
    encoded = EncodedImage(file.getvalue(), "a")
    config = AugmentConfig(crop_min=crop_min, transform="tests.data.augmentation.test_transforms:drawn")
    transform = TrainingTransform(config, MEAN, 64, None)
    for key in keys(0, Purpose.SAMPLE, np.zeros(50, np.int64), np.arange(50)).tolist():
        expected = transform(decode(encoded), key, 64)
        disturb(key % 1000)
        pixels = transform.decode(encoded, transform.open(encoded, key, 64), key, 64)
        assert torch.equal(pixels[:, 0], expected[:, 0])
        assert (pixels.float() - expected.float()).abs().mean() <= 1


@pytest.mark.parametrize(("size", "box", "resized"), [((64, 48), (7, 2), (42, 32)), ((48, 64), (2, 7), (32, 42))])
def test_evaluation_crops_the_centre_after_resizing_the_short_side(
    size: tuple[int, int], box: tuple[int, int], resized: tuple[int, int]
) -> None:
    image = noise(*size)
    # 28 / 0.875 = 32 on the short side.
    all_of = np.asarray(image.resize(resized, Image.Resampling.BICUBIC))
    expected = all_of[box[1] : box[1] + 28, box[0] : box[0] + 28].transpose(2, 0, 1)
    actual = EvaluationTransform(0.875)(image, 0, 28)
    assert (actual.dtype, actual.shape) == (torch.uint8, (3, 28, 28))
    assert np.array_equal(actual.numpy(), expected)


def test_evaluation_makes_no_random_draws() -> None:
    transform = EvaluationTransform(0.875)
    disturb(0)
    before = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    first = transform(noise(), 1, 20)
    after = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    assert before[0] == after[0]
    np.testing.assert_equal(after[1], before[1])
    assert torch.equal(before[2], after[2])
    disturb(1)
    assert torch.equal(transform(noise(), 2, 20), first)


def test_training_without_a_random_crop_equals_evaluation() -> None:
    augment = AugmentConfig(crop_min=0.0, flip=0.5, shift=3)
    transform = training(augment, 20)
    for sample_key in (0, 1, 2**64 - 1):
        assert torch.equal(transform(noise(), sample_key, 20), EvaluationTransform(0.875)(noise(), 0, 20))
    cropped = training(AugmentConfig(crop_min=0.2), 20)
    assert not torch.equal(cropped(noise(), 1, 20), EvaluationTransform(0.875)(noise(), 0, 20))


def test_flip_and_shift_are_not_done_in_workers() -> None:
    plain = training(AugmentConfig(crop_min=0.3), 20)(noise(), 7, 20)
    assert torch.equal(training(AugmentConfig(crop_min=0.3, flip=1.0, shift=4), 20)(noise(), 7, 20), plain)


@pytest.mark.parametrize("crop_min", [0.2, 0.6])
def test_crops_have_the_configured_areas_and_aspect_ratios(crop_min: float) -> None:
    # Red counts columns and green rows, so that a crop tells where it was.
    side = 64
    ramp = np.arange(side, dtype=np.uint8) * 4
    image = Image.fromarray(np.stack([*np.meshgrid(ramp, ramp), np.zeros((side, side), np.uint8)], axis=2))
    transform = cropping(crop_min, side)
    crops = []
    for sample_key in keys(0, Purpose.SAMPLE, 0, np.arange(400)).tolist():
        red, green, _ = transform(image, sample_key, side).numpy().astype(float) / 4
        spans = [(actual.max() - actual.min() + 1) / side for actual in (red, green)]
        crops.append([*spans, (red.max() + red.min() + 1) / 2 / side, (green.max() + green.min() + 1) / 2 / side])
    width, height, middle_x, middle_y = np.array(crops).T
    area, shape = width * height, width / height
    # A pixel more or less of 64 is 3 % of the smallest area here.
    assert crop_min - 0.04 < area.min() < crop_min + 0.06
    assert area.max() <= 1
    assert area.max() > 0.9
    assert shape.min() > 3 / 4 - 0.08
    assert shape.max() < 4 / 3 + 0.08
    assert abs(np.log(shape).mean()) < 0.03
    # Large areas of a far shape do not fit and are drawn again, hence a mean somewhat below the middle.
    assert (1 + crop_min) / 2 - 0.08 < area.mean() < (1 + crop_min) / 2 + 0.02
    assert abs(middle_x.mean() - 0.5) < 0.03
    assert abs(middle_y.mean() - 0.5) < 0.03
    assert middle_x.std() > 0.02


AUTOS = ["rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original", "v0", "3a", "trivial", "autoaugment-cifar10"]


def speckled(image: Image.Image) -> Image.Image:
    """Draw from the generators of all three libraries; imported by its path below."""
    pixels = np.asarray(image).copy()
    for _ in range(20):
        place = random.randrange(pixels.shape[0]), np.random.randint(pixels.shape[1])
        pixels[place] = torch.randint(0, 256, (1,)).item()
    return Image.fromarray(pixels)


def broken(image: Image.Image) -> Image.Image:
    """Draw from all three, and fail."""
    speckled(image)
    raise OSError("no more of this")


RECIPES: dict[str, dict[str, Any]] = {
    **{name: {"auto": name} for name in AUTOS},
    "color_jitter": {"color_jitter": 0.4},
    "transform": {"transform": "tests.data.augmentation.test_transforms:speckled"},
    "all": {
        "crop_min": 0.3,
        "auto": AUTOS[0],
        "color_jitter": 0.4,
        "transform": "tests.data.augmentation.test_transforms:speckled",
    },
}
KEYS = keys(0, Purpose.SAMPLE, 0, np.arange(12)).tolist()


def grey(side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side), dtype=np.uint8))


def made(recipe: str, image: Image.Image, sample_keys: list[int]) -> torch.Tensor:
    """Apply a new transform for decoded pixels, which keep their size if nothing crops them."""
    mean = (0.3,) if image.mode == "L" else MEAN
    transform = training_transform(AugmentConfig(**RECIPES[recipe]), mean, 16, None)
    assert transform is not None
    return torch.stack([transform(image, sample_key, 16) for sample_key in sample_keys])


def digests() -> dict[str, list[str]]:
    """Return the SHA-256 of each recipe's pixels, in colour and in grey."""
    return {
        recipe: [hashlib.sha256(made(recipe, image, KEYS).numpy().tobytes()).hexdigest() for image in (noise(), grey())]
        for recipe in RECIPES
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_depends_only_on_the_key(recipe: str) -> None:
    for image, channels in ((noise(), 3), (grey(), 1)):
        disturb(1)
        first = made(recipe, image, KEYS)
        size = (16, 16) if recipe == "all" else (image.height, image.width)
        assert (first.dtype, first.shape) == (torch.uint8, (12, channels, *size))
        disturb(2)
        assert torch.equal(made(recipe, image, KEYS[::-1]).flip(0), first)
        # Some policies have few outcomes, and with some probability none.
        assert len({pixels.numpy().tobytes() for pixels in first}) > 3


def test_each_recipe_is_the_same_in_another_process(tmp_path: Path) -> None:
    disturb(3)
    [elsewhere] = run_world(1, digests, tmp_path)
    assert elsewhere == digests()
    assert len({pixels for both in elsewhere.values() for pixels in both}) == 2 * len(RECIPES)


def resized_and_cropped(image: Image.Image, shorter: int, side: int) -> torch.Tensor:
    """Resize the whole image, then crop, as the transform does where that is not huge."""
    resized = v2.functional.resize(image, [shorter], v2.InterpolationMode.BICUBIC)
    pixels: torch.Tensor = v2.functional.pil_to_tensor(v2.functional.center_crop(resized, [side, side]))
    return pixels


@pytest.mark.parametrize("crop", [0.875, 1.0, 0.5])
def test_images_are_resized_whole(crop: float) -> None:
    generator = np.random.default_rng(0)
    for width, height in ((7, 5), (40, 30), (31, 496), (640, 40), (333, 500), (1, 16), (100, 100), (2, 500), (3000, 9)):
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for side in (8, 33, 64):
            expected = resized_and_cropped(image, math.floor(side / crop), side)
            assert torch.equal(EvaluationTransform(crop)(image, 0, side), expected)


@pytest.mark.parametrize("crop", [0.875, 1.0, 0.5, 1.15])
def test_images_that_would_be_huge_become_what_they_would_if_resized_whole(
    crop: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "_HUGE", 0)
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    for size in ((20, 400), (3000, 100), (5, 91), (2, 500), (1001, 40)):
        image = smooth.resize(size, Image.Resampling.BICUBIC)
        for side in (8, 33, 64):
            expected = resized_and_cropped(image, math.floor(side / crop), side)
            actual = EvaluationTransform(crop)(image, 0, side)
            assert actual.shape == expected.shape
            difference = (actual.float() - expected.float()).abs()
            assert difference.max() <= 2
            assert difference.mean() < 0.1


def test_each_recipe_is_the_same_in_workers() -> None:
    source = MemorySource(np.random.default_rng(0).integers(0, 256, (12, 3, 9, 9), dtype=np.uint8), np.arange(12))
    for recipe in ("rand-m9-mstd0.5-inc1", "augmix-m3-w3", "all"):
        transform = training_transform(AugmentConfig(**RECIPES[recipe]), MEAN, 9, None)
        reader = Reader(all_of(source), transform, 0, 9, channels=3)
        places = np.arange(12).reshape(4, 3)
        slots = [Slots(places_read, np.zeros(3, np.int64), np.ones(3, np.float32)) for places_read in places]
        actual = [
            torch.cat([read.pixels.clone() for read in Workers(reader, n, timeout=60).read(slots)]) for n in (0, 2)
        ]
        assert torch.equal(*actual)


@pytest.mark.parametrize("recipe", [*RECIPES, "broken"])
def test_generators_of_the_main_process_are_restored(recipe: str) -> None:
    def states() -> tuple[Any, Any, torch.Tensor]:
        return random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()

    disturb(5)
    # Of every generator a normal draw, which leaves something in store.
    random.gauss(), np.random.standard_normal(), torch.randn(1)
    before = states()
    if recipe == "broken":
        config = AugmentConfig(
            crop_min=0.3, color_jitter=0.4, transform="tests.data.augmentation.test_transforms:broken"
        )
        with pytest.raises(OSError, match=r"^no more of this$"):
            training(config, 16)(noise(), 1, 16)
    else:
        made(recipe, noise(), KEYS[:4])
    after = states()
    assert after[0] == before[0]
    np.testing.assert_equal(after[1], before[1])
    assert torch.equal(after[2], before[2])


@pytest.mark.parametrize("name", AUTOS[:5])
@pytest.mark.parametrize("side", [16, 30])
def test_timm_augmentations_equal_timms_pipeline(name: str, side: int) -> None:
    # Of (crop and flip, augmentation, tensor), the one in the middle.
    _, theirs, _ = transforms_imagenet_train(
        side, auto_augment=name, interpolation="bicubic", mean=MEAN, separate=True, color_jitter=None
    )
    image = noise()
    transform = TrainingTransform(AugmentConfig(auto=name), MEAN, side, None)
    for sample_key in KEYS:
        actual = transform(image, sample_key, side)
        random.seed(sample_key)
        np.random.seed(sample_key % 2**32)
        torch.manual_seed(sample_key // 2)
        expected = np.asarray(theirs(image)).transpose(2, 0, 1)
        assert np.array_equal(actual.numpy(), expected)


@pytest.mark.parametrize(
    ("recipe", "theirs"),
    [
        ("trivial", v2.TrivialAugmentWide()),
        ("autoaugment-cifar10", v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)),
        ("color_jitter", v2.ColorJitter(0.4, 0.4, 0.4)),
    ],
)
def test_torchvision_names_give_its_transforms(recipe: str, theirs: Any) -> None:
    for sample_key, actual in zip(KEYS, made(recipe, noise(), KEYS), strict=True):
        torch.manual_seed(sample_key // 2)
        assert np.array_equal(actual.numpy(), np.asarray(theirs(noise())).transpose(2, 0, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_pixels_are_those_of_torchvision(channels: int) -> None:
    whole = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (channels, 9, 14), dtype=np.uint8))
    for pixels in (whole, whole[:, 1:7, 2:], whole.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        image, theirs = transforms.to_image(pixels), v2.functional.to_pil_image(pixels)
        assert (image.mode, image.size, image.tobytes()) == (theirs.mode, theirs.size, theirs.tobytes())
        assert torch.equal(transforms.to_pixels(image), pixels)
    for mode in ("1", "L", "LA", "P", "RGBA", "I", "F"):
        image = v2.functional.to_pil_image(whole).convert("L").convert(mode)
        ours, theirs = transforms.to_pixels(image), v2.functional.pil_to_tensor(image)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_transforms_run_in_the_order_crop_auto_jitter_user() -> None:
    sample_key = KEYS[0]
    _, automatic, _ = transforms_imagenet_train(
        16, auto_augment=AUTOS[0], interpolation="bicubic", mean=MEAN, separate=True, color_jitter=None
    )
    with seeded(sample_key):
        part = resized_part(noise(), random_box(0.3, *noise().size), 16)
        expected = speckled(v2.ColorJitter(0.4, 0.4, 0.4)(automatic(v2.functional.to_pil_image(part))))
    transform = training_transform(AugmentConfig(**RECIPES["all"]), MEAN, 16, None)
    assert transform is not None
    assert np.array_equal(transform(noise(), sample_key, 16).numpy(), np.asarray(expected).transpose(2, 0, 1))
    # Files that nothing crops are cut as evaluation cuts them, and then augmented.
    jittered = training(AugmentConfig(color_jitter=0.4), 20)(noise(), sample_key, 20)
    with seeded(sample_key):
        plain = v2.functional.to_pil_image(EvaluationTransform(0.875)(noise(), 0, 20))
        assert np.array_equal(jittered.numpy(), np.asarray(v2.ColorJitter(0.4, 0.4, 0.4)(plain)).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("augment", "text"),
    [
        (
            {"auto": "nosuch"},
            "augment.auto: no augmentation nosuch; known: rand-m9-mstd0.5-inc1, augmix-m3-w3, original, v0, 3a, "
            "trivial, autoaugment-imagenet, autoaugment-cifar10, autoaugment-svhn (the first five as timm writes them)",
        ),
        (
            {"auto": "rand-m9-q3"},
            f"augment.auto: timm does not understand rand-m9-q3: write it as {KNOWN}",
        ),
        ({"auto": "v0x"}, f"augment.auto: timm does not understand v0x: write it as {KNOWN}"),
        (
            {"transform": "tests.data.augmentation.test_transforms:nosuch"},
            "augment.transform: tests.data.augmentation.test_transforms:nosuch cannot be imported: module "
            "'tests.data.augmentation.test_transforms' has no attribute 'nosuch'; write it as package.module:function",
        ),
    ],
)
def test_invalid_augmentations_give_a_one_line_error(augment: dict[str, str], text: str) -> None:
    with pytest.raises(UserError) as caught:
        training_transform(AugmentConfig(**augment), MEAN, 16, None)  # type: ignore[arg-type]
    assert str(caught.value) == text


def test_decoded_pixels_need_no_transform_without_worker_augmentation() -> None:
    device_only = AugmentConfig(flip=0.5, shift=2, rotate=9, erasing=0.5, mixup=0.8, repeats=2)
    assert training_transform(device_only, MEAN, 16, None) is None
    plain = EvaluationTransform(0.875)
    assert training_transform(device_only, MEAN, 16, plain) is plain


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.zeros(3, 4, 4)


def halved(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2))


@pytest.mark.parametrize(("name", "actual"), [("as_tensor", "Tensor"), ("halved", "10 × 10")])
def test_a_transform_that_returns_something_else_is_refused(name: str, actual: str) -> None:
    transform = training(AugmentConfig(transform=f"tests.data.augmentation.test_transforms:{name}"), 20)
    with pytest.raises(UserError) as caught:
        transform(noise(), 1, 20)
    assert str(caught.value) == (f"augment.transform: must return a PIL image of the size of its input, not {actual}")
