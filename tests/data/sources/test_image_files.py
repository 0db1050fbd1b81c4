"""Image files that are none, or too large, or damaged: one line, within seconds and little memory."""

from __future__ import annotations

import importlib.util
import io
import os
import random
import resource
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from tests.data.sources.damaged import KINDS, damaged, whole
from vit_dist.data.augmentation.transforms import EvaluationTransform
from vit_dist.data.sources import decode, image_files
from vit_dist.data.sources.image_files import FileSource, read_header
from vit_dist.data.sources.images import to_pil
from vit_dist.data.sources.names import is_image
from vit_dist.errors import UserError


def decoded(path: Path, max_pixels: int = 100_000_000, mode: str = "RGB") -> Image.Image:
    return FileSource([path], np.zeros(1, np.int64), mode, max_pixels).image(0)


def refusal(path: Path, max_pixels: int = 100_000_000) -> str:
    with pytest.raises(UserError) as error:
        decoded(path, max_pixels)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


def outcome(path: Path, max_pixels: int = 100_000_000) -> Image.Image | str:
    """Return the image, or the one line that refuses it."""
    try:
        return decoded(path, max_pixels)
    except UserError as error:
        return str(error)


def picture(path: Path, size: tuple[int, int] = (6, 5), **settings: object) -> Path:
    Image.new("RGB", size, (10, 20, 30)).save(path, **settings)
    return path


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


# Regular files only


@pytest.mark.skipif(os.name != "posix", reason="has no such files")
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (os.mkfifo, "is a named pipe, not a file: remove it"),
        (bind, "is a socket, not a file: remove it"),
        (os.mkdir, "is a folder, not a file: remove it"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file: remove it"),
        (
            lambda path: path.symlink_to("gone"),
            "cannot be decoded (No such file or directory): mend or remove the file",
        ),
        (
            lambda path: path.symlink_to(path.name),
            "cannot be decoded (Too many levels of symbolic links): mend or remove the file",
        ),
    ],
    ids=["pipe", "socket", "folder", "device", "dead link", "circular link"],
)
def test_what_is_no_file_is_named_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], text: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = Path("a.png")
    make(path)
    assert refusal(path) == text


@pytest.mark.skipif(os.name != "posix", reason="has no pipes")
def test_a_file_that_becomes_a_pipe_while_it_is_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(tmp_path / "a.png")

    def exchanged(name: Path) -> os.stat_result:
        monkeypatch.undo()
        status = os.stat(name)
        path.unlink()
        os.mkfifo(path)
        return status

    monkeypatch.setattr(image_files.os, "stat", exchanged)
    before = len(os.listdir("/dev/fd"))
    assert refusal(path) == "is a named pipe, not a file: remove it"
    assert len(os.listdir("/dev/fd")) == before


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(whole("webp"))
    os.truncate(path, 10**12)
    assert refusal(path) == (
        "has 1,000,000,000,000 bytes, more than an image of data.max_pixels (100,000,000): remove it, or raise the "
        "limit"
    )


def test_only_formats_that_are_decoded_in_this_process_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow decodes EPS by starting Ghostscript."""
    started = tmp_path / "started"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {started}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    assert refusal(path) == "cannot be decoded (not an image in a known format): mend or remove the file"
    assert not started.exists()


# Pixels


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", (60, 50))
    assert decoded(path, 3000).size == (60, 50)
    assert refusal(path, 2999) == (
        "has 60 × 50 pixels, and data.max_pixels is 2,999: make it smaller, or raise the limit"
    )
    # So many that Pillow refuses by itself.
    assert refusal(path, 700) == (
        "cannot be decoded (more pixels than data.max_pixels allows): mend or remove the file"
    )


@pytest.mark.parametrize("format", ["JPEG", "MPO"])
def test_a_huge_jpeg_is_decoded_at_half_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((61, 50), Image.Resampling.BICUBIC)
    path = tmp_path / "a.jpg"
    image.save(path, format, **({"save_all": True, "append_images": [image]} if format == "MPO" else {}))
    full = decoded(path)
    assert full.size == (61, 50)
    assert np.array_equal(np.asarray(full), np.asarray(Image.open(path).convert("RGB")))
    monkeypatch.setattr(decode, "_HALVED_ABOVE", 3049)
    half = decoded(path, 800)
    assert half.size == (31, 25)
    smaller = np.asarray(full.resize((31, 25), Image.Resampling.BOX), np.int64)
    assert np.abs(np.asarray(half, np.int64) - smaller).mean() < 6
    assert refusal(path, 774).startswith("has 31 × 25 pixels, and data.max_pixels is 774: ")
    # A limit of pixels changes none.
    assert decoded(path, 10**9).size == (31, 25)


def test_pillows_own_limit_is_put_back(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    decoded(picture(tmp_path / "a.png"), 12345)
    refusal(tmp_path / "gone.png")
    assert before == Image.MAX_IMAGE_PIXELS


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes) -> bytes:
    rows = zlib.compress(bytes(height * (1 + width)) if height * width < 10**7 else b"")
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


GIF_OF_ALL_PIXELS = (
    b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
)
FRAME_BEYOND = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (png(50_000, 50_000), "more pixels than data.max_pixels allows"),
        (png(2**31 - 1, 2**31 - 1), "more pixels than data.max_pixels allows"),
        (png(4, 4, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))), "Decompressed data too large"),
        (png(4, 4, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**26)))), ""),
        (GIF_OF_ALL_PIXELS, "more pixels than data.max_pixels allows"),
        (FRAME_BEYOND, "more pixels than data.max_pixels allows"),
    ],
    ids=["png", "largest png", "zTXt", "iCCP", "gif", "gif frame"],
)
def test_bombs_do_not_go_off(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    result = outcome(path)
    assert "\n" not in str(result)
    assert text in str(result)
    assert time.monotonic() - start < 5
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KiB


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (3, 40_000), (100_000, 2)])
def test_a_line_is_not_blown_up(tmp_path: Path, size: tuple[int, int]) -> None:
    path = picture(tmp_path / "a.png", size)
    assert path.stat().st_size < 2000
    EvaluationTransform(0.875)(decoded(picture(tmp_path / "small.png", (4, 4))), 0, 224)  # what it imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = EvaluationTransform(0.875)(decoded(path), 0, 224)
    assert pixels.shape == (3, 224, 224)
    assert [set(channel.flatten().tolist()) for channel in pixels] == [{10}, {20}, {30}]
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000


# Orientation


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_says(tmp_path: Path, orientation: int, kind: str) -> None:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :16], pixels[:16, 32:], pixels[16:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"a.{kind}"
    Image.fromarray(pixels).save(path, exif=exif, **({"quality": 100} if kind == "jpg" else {"lossless": True}))
    with Image.open(path) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    assert expected.size == ((32, 48) if orientation > 4 else (48, 32))
    for found in (decoded(path), to_pil(Image.open(path), "images[0]", "RGB")):
        assert np.array_equal(np.asarray(found), np.asarray(expected))


# Damage


def test_broken_metadata_is_left_alone(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 5), (200, 100, 50))
    for number, settings in enumerate(
        (
            {"exif": b"Exif\0\0" + b"\xff" * 40},
            {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\xff\xff\0\0"},
            {"icc_profile": b"not a profile" * 20},
        )
    ):
        path = tmp_path / f"{number}.jpg"
        image.save(path, quality=100, subsampling=0, **settings)
        assert np.abs(np.asarray(decoded(path), np.int64) - (200, 100, 50)).max() <= 2
    info = PngImagePlugin.PngInfo()
    info.add(b"eXIf", b"\0" * 5)
    image.save(tmp_path / "a.png", pnginfo=info)
    assert decoded(tmp_path / "a.png").getpixel((3, 3)) == (200, 100, 50)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_decoded_as_pillow_does(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(whole(kind))
    image = decoded(path)
    assert image.mode == "RGB"
    expected = Image.open(io.BytesIO(whole(kind)))
    if kind == "grey16.png":
        expected = Image.fromarray((np.asarray(expected) // 257).astype(np.uint8))
    assert np.array_equal(np.asarray(image), np.asarray(expected.convert("RGB")))


def try_damaged(folder: Path, kind: str, count: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Decode and resize `count` damaged images: each gives pixels or one line, in bounded time and memory."""
    content, transform, outcomes = whole(kind), EvaluationTransform(0.875), set()
    path = folder / f"a.{kind}"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        path.write_bytes(damaged(content, random.Random(f"{kind} {number}")))
        start = time.monotonic()
        result = outcome(path)
        outcomes.add(type(result))
        if isinstance(result, str):
            assert result.startswith(f"{path}: ")
            assert "\n" not in result
        else:
            assert transform(result, 0, 32).shape == (3, 32, 32)
        assert time.monotonic() - start < 10, number
    assert str in outcomes
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_images_give_pixels_or_one_line(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    try_damaged(tmp_path, kind, 20, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_images_give_pixels_or_one_line(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try_damaged(tmp_path, kind, 60, capfd)


# Transparency


def see_through(mode: str) -> Image.Image:
    """Return an image whose left half is opaque and dark, its right half transparent."""
    if mode in ("LA", "RGBA"):
        image = Image.new(mode, (8, 6), (40, 255) if mode == "LA" else (40, 40, 40, 255))
        image.paste((9, 0) if mode == "LA" else (9, 9, 9, 0), (4, 0, 8, 6))
        return image
    image = Image.new("L" if mode == "L with one colour" else "RGB", (8, 6), "#282828")
    image.paste("#090909", (4, 0, 8, 6))
    return image.quantize(4) if mode == "P" else image


@pytest.mark.parametrize("wanted", ["RGB", "L"])
@pytest.mark.parametrize(
    ("mode", "kind", "transparency"),
    [
        ("RGBA", "png", None),
        ("RGBA", "webp", None),
        ("LA", "png", None),
        ("P", "png", 1),
        ("P", "gif", 1),
        ("RGB with one colour", "png", (9, 9, 9)),
        ("L with one colour", "png", 9),
    ],
)
def test_what_is_transparent_becomes_white(
    tmp_path: Path, mode: str, kind: str, transparency: Any, wanted: str
) -> None:
    image, path = see_through(mode), tmp_path / f"a.{kind}"
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    if mode == "P":
        transparency = image.getpixel((7, 0))
    if transparency is not None:
        options["transparency"] = transparency
    image.save(path, **options)
    for found in (decoded(path, mode=wanted), to_pil(Image.open(path), "images[0]", wanted)):
        pixels = np.asarray(found.convert("L"))
        assert found.mode == wanted
        assert (pixels[:, :4] == 40).all()
        assert (pixels[:, 4:] == 255).all()


def test_what_is_half_transparent_is_mixed_with_white(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (16, 16, 4), dtype=np.uint8)
    pixels[0, :, 3], pixels[1, :, 3] = 255, 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    alpha = pixels[:, :, 3:] / 255
    expected = pixels[:, :, :3] * alpha + 255 * (1 - alpha)
    for found in (decoded(tmp_path / "a.png"), to_pil(pixels, "images[0]", "RGB")):
        assert np.abs(np.asarray(found) - expected).max() <= 1
        assert np.array_equal(np.asarray(found)[0], pixels[0, :, :3])
    # A grey image stays one: a source that looks at it takes it for grey.
    assert to_pil(see_through("LA"), "images[0]").mode == "L"


# HEIC

HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(100)


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is not None, reason="pillow-heif is installed")
def test_a_heic_image_names_the_package_it_needs(tmp_path: Path) -> None:
    for content in (HEIC, HEIC.replace(b"heic", b"mif1", 1)):
        path = tmp_path / "a.heic"
        path.write_bytes(content)
        assert refusal(path) == "is a HEIC image, which needs a package: pip install pillow-heif"
    path.write_bytes(whole("avif"))  # of the same family
    assert decoded(path).size == (48, 40)
    assert not is_image("a.heic")


def test_a_heic_image_is_decoded_where_the_package_is(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    image = Image.new("RGB", (60, 40), (200, 100, 50))
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file)
    path = tmp_path / "a.HEIC"
    path.write_bytes(file.getvalue())
    assert np.abs(np.asarray(decoded(path), np.int64) - (200, 100, 50)).max() <= 4
    assert is_image(path.name)
    header = read_header(path)
    assert header is not None
    assert header[:2] == (60, 40)
    path.write_bytes(HEIC)
    assert refusal(path).startswith("cannot be decoded (")
