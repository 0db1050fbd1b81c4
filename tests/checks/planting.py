"""A folder of images with known faults."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image


def photo(seed: int, size: tuple[int, int] = (150, 110)) -> Image.Image:
    """Return an image with structure at all scales, as photographs have."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((110, 150, 3))
    for scale in (3, 6, 12, 24, 48):
        noise = generator.integers(0, 256, (max(2, scale * 3 // 4), scale, 3), dtype=np.uint8)
        pixels += np.asarray(Image.fromarray(noise).resize((150, 110), Image.Resampling.BICUBIC), float) / scale
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255
    return Image.fromarray(pixels.astype(np.uint8)).resize(size)


def plant_faults(root: Path) -> Path:
    """Write three splits of two classes, and each fault of a check once or twice; return the folder."""
    for number in range(36):
        split = ("train", "train", "val", "test")[number % 4]
        folder = root / split / "ab"[number // 18]
        folder.mkdir(parents=True, exist_ok=True)
        photo(number).save(folder / f"{number:02}.jpg", quality=90)
    train = root / "train"
    whole = (train / "a" / "00.jpg").read_bytes()
    (train / "a" / "00.jpg").write_bytes(whole[: len(whole) // 2])
    (train / "a" / "empty.jpg").write_bytes(b"")
    (train / "b" / "text.png").write_bytes(b"no image")
    (root / "test" / "b" / "text.png").write_bytes(b"no image either")
    Image.fromarray(np.ones((20, 20), np.float32)).save(train / "a" / "float.tiff")
    # In two splits, under two labels, twice in one: the same bytes, or saved anew.
    shutil.copy(root / "val" / "a" / "02.jpg", train / "a" / "leak.jpg")
    shutil.copy(root / "test" / "b" / "19.jpg", root / "val" / "b" / "leak.jpg")
    photo(6).resize((75, 55)).save(train / "a" / "small_leak.jpg", quality=60)
    shutil.copy(train / "a" / "04.jpg", train / "b" / "other_label.jpg")
    photo(5).save(train / "b" / "other_label_anew.webp", quality=60)
    shutil.copy(train / "b" / "20.jpg", train / "b" / "twice.jpg")
    photo(21).save(train / "b" / "twice_anew.png")
    # Odd ones.
    photo(50).resize((24, 18)).save(train / "a" / "tiny.png")
    photo(51).resize((500, 60)).save(train / "b" / "long.png")
    photo(52).resize((4100, 1100)).save(train / "b" / "huge.jpg")
    Image.new("RGB", (60, 50), "red").save(train / "a" / "red.png")
    photo(53).convert("CMYK").save(train / "a" / "cmyk.jpg")
    photo(54).convert("P").save(train / "a" / "palette.png")
    photo(55).convert("L").save(train / "b" / "grey.png")
    clear = photo(56)
    clear.putalpha(100)
    clear.save(train / "b" / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(57).save(train / "b" / "turned.jpg", exif=exif)
    photo(58).save(train / "b" / "moving.gif", save_all=True, append_images=[photo(59)])
    return root


# Kind → images that have the fault, by name.
FAULTS = {
    "unreadable": {"train/a/00.jpg", "train/a/empty.jpg", "train/b/text.png", "test/b/text.png", "train/a/float.tiff"},
    "leak": {"val/a/02.jpg", "test/b/19.jpg"},
    "conflict": {"train/a/04.jpg", "train/b/other_label.jpg"},
    "repeat": {"train/b/twice.jpg"},
    "alike_leak": {"val/a/06.jpg"},
    "alike_conflict": {"train/a/05.jpg", "train/b/other_label_anew.webp"},
    "alike_repeat": {"train/b/twice_anew.png"},
    "tiny": {"train/a/tiny.png"},
    "huge": {"train/b/huge.jpg"},
    "elongated": {"train/b/long.png"},
    "flat": {"train/a/red.png"},
    "mode": {"train/a/cmyk.jpg", "train/a/palette.png", "train/b/moving.gif"},
    "grey": {"train/b/grey.png"},
    "transparent": {"train/b/clear.png"},
    "animated": {"train/b/moving.gif"},
    "turned": {"train/b/turned.jpg"},
}
