"""Folders of images, what is refused of them, and the split that is held out."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from vit_dist.data.sources.decode import eight_bits
from vit_dist.data.sources.folder import find_class_folders, image_files, read_folder
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import LabelledSplits, Subset, all_of, keyed_split, with_val
from vit_dist.errors import UserError


def picture(path: Path, colour: tuple[int, int, int] = (10, 20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), colour).save(path)
    return path


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as error:
        read_folder(root)
    return str(error.value)


def files(subset: Subset) -> FileSource:
    assert isinstance(subset.source, FileSource)
    return subset.source


def test_split_folders_of_class_folders(image_folder: Path) -> None:
    data = read_folder(image_folder)
    assert data.classes == ("ant", "bee", "cat")
    assert {name: len(subset) for name, subset in data.splits.items()} == {"train": 60, "val": 21}
    for split, folder, count in (("train", "train", 20), ("val", "valid", 7)):
        source = files(data.splits[split])
        assert list(source.paths) == [
            image_folder / folder / name / f"{i:02}.png" for name in data.classes for i in range(count)
        ]
        assert source.labels.tolist() == [0] * count + [1] * count + [2] * count
        assert source.labels.dtype == np.int64
        assert data.splits[split].indices.tolist() == list(range(3 * count))
    assert (data.channels, data.image_size) == (3, 224)
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_images_of_a_folder_are_those_of_its_files(image_folder: Path) -> None:
    source = files(read_folder(image_folder).splits["train"])
    for index in (0, 21, 59):
        image = source.image(index)
        assert (image.mode, image.size) == ("RGB", (24, 20 + index % 20 % 3))
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(source.paths[index])))
        # Class k is the one whose channel k is brightened.
        assert np.asarray(image).mean((0, 1)).argmax() == source.labels[index]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("L", 77, (77, 77, 77)), ("1", 1, (255, 255, 255)), ("RGBA", (1, 2, 3, 255), (1, 2, 3)), ("P", 0, (0, 0, 0))],
)
def test_every_kind_of_image_is_converted_to_rgb(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...], expected: tuple[int, ...]
) -> None:
    path = tmp_path / "x.png"
    Image.new(mode, (4, 3), colour).save(path)
    image = FileSource([path], np.zeros(1, np.int64)).image(0)
    assert (image.mode, image.size, image.getpixel((3, 2))) == ("RGB", (4, 3), expected)


def test_class_folders_are_read_without_split_folders(tmp_path: Path) -> None:
    expected = [
        picture(tmp_path / "bird" / "a.jpg"),
        picture(tmp_path / "bird" / "deeper" / "b.PNG"),
        picture(tmp_path / "dog" / "c.bmp"),
    ]
    picture(tmp_path / ".hidden" / "d.png")
    (tmp_path / "bird" / "notes.txt").write_text("not a picture")
    data = read_folder(tmp_path)
    assert data.classes == ("bird", "dog")
    assert list(data.splits) == ["train"]
    assert list(files(data.splits["train"]).paths) == expected
    assert files(data.splits["train"]).labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Valid"])
@pytest.mark.parametrize("train", ["train", "training", "Train"])
def test_split_folders_have_several_accepted_names(tmp_path: Path, train: str, name: str) -> None:
    for split in (train, name, "test", "notes"):
        picture(tmp_path / split / "dog" / "a.png")
    data = read_folder(tmp_path)
    assert {split: files(subset).paths[0] for split, subset in data.splits.items()} == {
        "train": tmp_path / train / "dog" / "a.png",
        "val": tmp_path / name / "dog" / "a.png",
        "test": tmp_path / "test" / "dog" / "a.png",
    }


def test_labels_keep_their_numbers_in_a_split_that_lacks_a_class(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cat"):
        picture(tmp_path / "train" / name / "a.png")
    picture(tmp_path / "test" / "cat" / "a.png")
    assert files(read_folder(tmp_path).splits["test"]).labels.tolist() == [2]


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for split in ("train", "valid", "val"):
        picture(tmp_path / split / "dog" / "a.png")
    assert refusal(tmp_path) == (
        f"data.root: {tmp_path / 'val'} and {tmp_path / 'valid'} are both the val split: keep one"
    )


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    looked = "(looked for .avif, .bmp, .gif, .jfif, .jp2, .jpe, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp)"
    assert refusal(tmp_path) == f"data.root: no images in {tmp_path} {looked}: nothing is there"
    (tmp_path / "train" / "dog").mkdir(parents=True)
    (tmp_path / "train" / "dog" / "a.HEIC").touch()
    assert refusal(tmp_path) == (
        f"data.root: no images in {tmp_path} {looked}: images of kinds that are not read, convert them to .jpg or "
        ".png, or pip install pillow-heif (.heic): 1 (train/dog/a.HEIC); folders without images: 1 (train)"
    )


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone") == f"data.root: no folder {tmp_path / 'gone'}"
    path = picture(tmp_path / "a.png")
    assert refusal(path) == (
        f"data.root: {path} is a file: give a folder with a folder of images for each class, or a table of paths and "
        "labels (.csv, .tsv, .jsonl, .parquet)"
    )
    table = tmp_path / "labels.csv"
    table.touch()
    assert f"a folder of its own; if {table} has their labels, set data.root to it\n" in refusal(tmp_path)


def test_a_class_missing_from_train_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "dog" / "a.png")
    picture(tmp_path / "val" / "dog" / "a.png")
    picture(tmp_path / "val" / "wolf" / "a.png")
    assert refusal(tmp_path) == (
        f"data.root: class wolf is in {tmp_path / 'val'} and not in {tmp_path / 'train'}: add images of it there, or "
        f"move {tmp_path / 'val' / 'wolf'} away"
    )


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "gone"])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "dog" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    source = files(read_folder(tmp_path).splits["train"])
    assert source.image(0).size == (40, 40)
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes({"text": b"hello", "empty": b"", "cut": path.read_bytes()[:2000]}[kind])
    with pytest.raises(UserError) as error:
        source.image(0)
    message = str(error.value)
    assert message.startswith(f"{path}: cannot be decoded (")
    assert message.endswith("): mend or remove the file")
    assert "\n" not in message


# What is held out


def numbers(length: int, **others: Subset) -> LabelledSplits:
    source = MemorySource(np.zeros((length, 1, 2, 2), np.uint8), np.arange(length))
    return LabelledSplits({"train": all_of(source), **others}, ("a",), 1, 2, (0.0,), (1.0,))


@pytest.mark.parametrize(("length", "fraction", "held_out"), [(100, 0.1, 10), (77, 0.3, 23), (3, 0.5, 2), (2, 0.5, 1)])
def test_the_hold_out_has_the_configured_size_and_is_reproducible(length: int, fraction: float, held_out: int) -> None:
    data = with_val(numbers(length), fraction)
    train, val = data.splits["train"].indices, data.splits["val"].indices
    assert (len(val), len(train)) == (held_out, length - held_out)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(length))
    again = with_val(numbers(length), fraction)
    assert np.array_equal(again.splits["val"].indices, val)


def test_held_out_samples_are_spread_by_key() -> None:
    val = with_val(numbers(2000), 0.1).splits["val"].indices
    # Uniform over the classes that files come sorted by: about 50 of each quarter.
    assert np.bincount(val // 500, minlength=4).min() > 30
    assert val[:5].tolist() == [203, 933, 243, 1113, 28]


def test_a_larger_hold_out_contains_a_smaller_one() -> None:
    small, large = (set(with_val(numbers(200), part).splits["val"].indices.tolist()) for part in (0.1, 0.2))
    assert (len(small), len(large)) == (20, 40)
    assert small < large


def test_with_val_changes_nothing_with_a_val_split_or_a_fraction_of_zero(image_folder: Path) -> None:
    own = read_folder(image_folder)
    assert with_val(own, 0.1) is own
    data = numbers(10)
    assert with_val(data, 0) is data
    assert list(data.splits) == ["train"]


def test_with_val_does_not_change_test() -> None:
    test = all_of(MemorySource(np.zeros((4, 1, 2, 2), np.uint8), np.arange(4)))
    data = with_val(numbers(10, test=test), 0.2)
    assert data.splits["test"] is test
    assert {name: len(subset) for name, subset in data.splits.items()} == {"train": 8, "test": 4, "val": 2}


@pytest.mark.parametrize(("length", "fraction"), [(1, 0.5), (1, 0.1), (4, 0.1), (4, 1.0)])
def test_an_empty_split_is_refused(length: int, fraction: float) -> None:
    with pytest.raises(UserError) as error:
        with_val(numbers(length), fraction)
    assert str(error.value) == (
        f"data.val_fraction: {fraction} of {length} images leaves a split empty: set another, or 0"
    )


def test_a_split_of_a_split_keeps_its_samples() -> None:
    source = numbers(30).splits["train"].source
    subset = all_of(source).take(np.arange(20, 30))
    held_out, rest = keyed_split(subset, 4)
    assert held_out.source is rest.source is source
    assert len(held_out) == 4
    assert sorted([*held_out.indices.tolist(), *rest.indices.tolist()]) == list(range(20, 30))


def test_hidden_files_and_folders_named_like_images_are_left_out(tmp_path: Path) -> None:
    for name in ("dog/a.png", "dog/._a.png", "dog/.ipynb_checkpoints/a-checkpoint.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "dog" / "folder.png").mkdir()
    source = read_folder(tmp_path).splits["train"].source
    assert isinstance(source, FileSource)
    assert list(source.paths) == [tmp_path / "dog" / "a.png"]


# The class folders that a model is asked about


def read_classes(folder: Path, classes: list[str], channels: int) -> Subset:
    return find_class_folders(folder, classes).read(classes, channels)


def test_class_folders_are_numbered_like_the_models_classes(tmp_path: Path) -> None:
    classes = ["cat", "ant", "bee"]  # in no order of their names
    expected = [
        picture(tmp_path / "cat" / "a.png"),
        picture(tmp_path / "cat" / "deeper" / "b.jpg"),
        picture(tmp_path / "bee" / "c.png"),
    ]
    picture(tmp_path / ".ant" / "d.png")
    picture(tmp_path / "loose.png")
    (tmp_path / "bee" / "notes.txt").write_text("not a picture")
    subset = read_classes(tmp_path, classes, 3)
    assert list(files(subset).paths) == expected
    assert files(subset).labels.tolist() == [0, 0, 2]
    assert subset.indices.tolist() == [0, 1, 2]
    assert files(subset).mode == "RGB"


@pytest.mark.parametrize(("channels", "mode", "pixel"), [(1, "L", 18), (3, "RGB", (10, 20, 30))])
def test_class_folders_are_read_in_the_models_channels(
    tmp_path: Path, channels: int, mode: str, pixel: int | tuple[int, ...]
) -> None:
    picture(tmp_path / "ant" / "a.png", (10, 20, 30))
    source = files(read_classes(tmp_path, ["ant"], channels))
    assert source.mode == mode
    image = source.image(0)
    assert (image.mode, image.getpixel((0, 0))) == (mode, pixel)


def test_unknown_class_folders_are_refused(tmp_path: Path) -> None:
    def refused(folder: Path, classes: list[str]) -> str:
        with pytest.raises(UserError) as error:
            read_classes(folder, classes, 3)
        return str(error.value)

    assert refused(tmp_path / "gone", ["a"]) == f"--folder: no folder {tmp_path / 'gone'}"
    for name in ("ant", "wasp", "yak"):
        picture(tmp_path / name / "a.png")
    assert refused(tmp_path, ["ant", "wasp"]) == (
        f"--folder: {tmp_path} has yak, which is no class of the model (ant, wasp)"
    )
    assert refused(tmp_path, ["ant", "b", "c", "d", "e", "f"]) == (
        f"--folder: {tmp_path} has wasp and 1 more, which are no classes of the model (ant, b, c, d, e …)"
    )
    (tmp_path / "empty" / "ant").mkdir(parents=True)
    assert refused(tmp_path / "empty", ["ant"]).startswith(
        f"--folder: no images in {tmp_path / 'empty'} (looked for .avif, .bmp, "
    )


@pytest.mark.parametrize(
    ("splits", "hint"), [(["Train", "val"], "val"), (["test", "train"], "test"), (["VALID"], "VALID")]
)
def test_a_folder_of_splits_is_refused_as_a_folder_of_classes(tmp_path: Path, splits: list[str], hint: str) -> None:
    for split in splits:
        picture(tmp_path / split / "ant" / "a.png")
    with pytest.raises(UserError) as error:
        read_classes(tmp_path, ["ant"], 3)
    assert str(error.value) == f"--folder: {tmp_path} has splits in it: give {tmp_path / hint}"


def test_unlabelled_images_are_answered_with_predict(tmp_path: Path) -> None:
    folder = tmp_path / "new ones"
    for name in ("a.png", "b.png"):
        picture(folder / name)
    start = (
        f"{folder} holds 2 images and no class folders: put those of each class into a folder of its own (ant, bee, "
    )
    for field, command in (("--folder", f"vit-dist predict RUN '{folder}'"), ("source", f"model.predict('{folder}')")):
        with pytest.raises(UserError) as error:
            find_class_folders(folder, ["ant", "bee", "cat", "dog"], field)
        assert str(error.value) == f"{field}: {start}cat …); to classify unlabelled ones: {command}"


def test_the_folder_of_one_class_is_answered_with_its_parent(tmp_path: Path) -> None:
    picture(tmp_path / "Ant" / "a.png")
    for name in ("Ant", "Ant/"):
        with pytest.raises(UserError) as error:
            read_classes(tmp_path / name, ["ant", "bee"], 3)
        assert str(error.value) == (
            f"--folder: {tmp_path / 'Ant'} is the folder of one class, Ant: give its parent, {tmp_path}"
        )
    assert files(read_classes(tmp_path, ["ant", "bee"], 3)).labels.tolist() == [0]


def test_class_folders_may_differ_from_the_models_classes_in_case_and_unicode_form(tmp_path: Path) -> None:
    for name in ("CAT", unicodedata.normalize("NFD", "thé"), "__MACOSX"):
        picture(tmp_path / name / "a.png")
    (tmp_path / "unknown").mkdir()
    assert files(read_classes(tmp_path, ["thé", "cat"], 3)).labels.tolist() == [0, 1]


def test_class_folders_of_two_levels_are_those_of_a_model_with_such_classes(tmp_path: Path) -> None:
    for name in ("animal/cat", "animal/dog", "plant"):
        picture(tmp_path / name / "a.png")
    found = find_class_folders(tmp_path, ["animal/dog", "animal/cat", "plant"])
    assert found.names == ["animal/cat", "animal/dog", "plant"]
    assert files(read_classes(tmp_path, ["animal/dog", "animal/cat", "plant"], 3)).labels.tolist() == [0, 1, 2]
    assert files(read_classes(tmp_path, ["animal", "plant"], 3)).labels.tolist() == [0, 0, 1]


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    """CIFAR-100 has a class called train."""
    picture(tmp_path / "train" / "a.png")
    assert files(read_classes(tmp_path, ["car", "train"], 3)).labels.tolist() == [1]


def test_class_folder_names_are_sorted_and_visible(tmp_path: Path) -> None:
    for name in ("wasp", "ant", ".hidden", "10", "2"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").touch()
    assert find_class_folders(tmp_path, []).names == ["10", "2", "ant", "wasp"]
    for path in (tmp_path / "gone", tmp_path / "notes.txt"):
        with pytest.raises(UserError) as error:
            find_class_folders(path, [])
        assert str(error.value) == f"--folder: no folder {path}"


def test_image_files_finds_all_images_below_a_folder(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPEG", "deep/c.webp", "deep/er/d.tiff", ".e.png", ".deep/f.png", "g.txt", "png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    images = [tmp_path / name for name in ("a.JPEG", "b.png", "deep/c.webp", "deep/er/d.tiff")]
    assert image_files(tmp_path) == images
    assert image_files(tmp_path / "deep") == images[2:]
    assert image_files(tmp_path / ".deep") == [tmp_path / ".deep" / "f.png"]  # hidden above, not below


@pytest.mark.parametrize(("saved", "colour", "grey"), [("RGB", (200, 100, 50), 124), ("L", 77, 77), ("1", 1, 255)])
def test_every_kind_of_image_is_converted_to_greyscale_on_request(
    tmp_path: Path, saved: str, colour: int | tuple[int, ...], grey: int
) -> None:
    path = tmp_path / "x.png"
    Image.new(saved, (4, 3), colour).save(path)
    image = FileSource([path], np.zeros(1, np.int64), mode="L").image(0)
    assert (image.mode, image.size, image.getpixel((3, 2))) == ("L", (4, 3), grey)


# More than 8 bits, and other endings


EIGHT = np.random.default_rng(0).integers(0, 256, (9, 11), dtype=np.uint8)
EIGHT[0, :2] = 0, 255


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("name", "kind"), [("x.png", "<u2"), ("x.tif", "<u2"), ("x.tiff", ">u2"), ("x.jp2", "<u2")])
def test_16_bit_images_are_scaled_to_8_bits(tmp_path: Path, name: str, kind: str, mode: str) -> None:
    path = tmp_path / name
    Image.fromarray((EIGHT.astype(np.uint16) * 257).astype(kind)).save(path)
    with Image.open(path) as saved:
        assert saved.mode.startswith("I")
    image = FileSource([path], np.zeros(1, np.int64), mode=mode).image(0)
    assert image.mode == mode
    expected = EIGHT if mode == "L" else np.stack([EIGHT] * 3, -1)
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_16_bit_values_are_rounded_to_the_nearest_8_bit_value(tmp_path: Path) -> None:
    values = np.asarray([[0, 128, 129, 257, 385, 386, 32_767, 65_406, 65_407, 65_535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    image = FileSource([tmp_path / "x.png"], np.zeros(1, np.int64), mode="L").image(0)
    assert np.asarray(image).tolist() == [[0, 0, 1, 1, 1, 2, 127, 254, 255, 255]]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bit_images_are_refused_by_name(tmp_path: Path, kind: type[np.generic]) -> None:
    path = picture(tmp_path / "dog" / "a.tif")
    Image.fromarray(EIGHT.astype(kind)).save(path)
    with pytest.raises(UserError) as error:
        files(read_folder(tmp_path).splits["train"]).image(0)
    assert str(error.value) == (f"{path}: has values of 32 bits, whose range nobody knows: save it with 8 or 16 bits")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_8_bit_images_are_unchanged(mode: str) -> None:
    image = Image.new(mode, (4, 3))
    assert eight_bits(image, "x.png") is image


@pytest.mark.parametrize("ending", ["avif", "jfif", "jpe", "jp2", "AVIF", "JFIF"])
def test_further_endings_are_found_and_read(tmp_path: Path, ending: str) -> None:
    kind = {"avif": "AVIF", "jp2": "JPEG2000"}.get(ending.lower(), "JPEG")
    needs = {"AVIF": "avif", "JPEG2000": "jpg_2000"}.get(kind, "jpg")
    if not features.check(needs):
        pytest.skip(f"this Pillow has no {kind}")
    path = tmp_path / "dog" / f"a.{ending}"
    path.parent.mkdir()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(path, kind)
    source = files(read_folder(tmp_path).splits["train"])
    assert list(source.paths) == [path]
    image = source.image(0)
    assert (image.mode, image.size) == ("RGB", (16, 16))
    np.testing.assert_allclose(np.asarray(image)[8, 8], (200, 100, 50), atol=6)


def test_a_pgm_of_16_bits_is_scaled(tmp_path: Path) -> None:
    """Pillow opens it as mode I, which for other files means 32 bits."""
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 16 16 65535\n" + (eight.astype(">u2") * 257).tobytes())
    source = FileSource([path], np.zeros(1, np.int64), mode="L")
    np.testing.assert_array_equal(np.asarray(source.image(0)), eight)


def test_dead_links_and_pipes_are_images_that_cannot_be_read(tmp_path: Path) -> None:
    """Left out of the listing, an unmounted disk behind links would pass for a small data set."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name / "0.png")
    (tmp_path / "a" / "1.png").symlink_to("gone.png")
    os.mkfifo(tmp_path / "b" / "1.png")
    (tmp_path / "b" / "folder.png").mkdir()
    train = read_folder(tmp_path).splits["train"]
    assert len(train) == 4
    with pytest.raises(UserError, match=r"a/1\.png: "):
        train.source.image(1)
    with pytest.raises(UserError, match=r"b/1\.png: is a named pipe, not a file: remove it$"):
        train.source.image(3)
