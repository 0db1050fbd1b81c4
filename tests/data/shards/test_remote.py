"""Shards at an address: the same stream as from the disk, few requests, and what fails is tried again, or told."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.commands import command
from tests.data.shards.packing import opened
from tests.data.shards.range_server import RangeServer, serving
from tests.data.shards.reading import assert_same, read_stream
from tests.data.shards.test_source import LANES, fields_of, many
from vit_dist import Config, train
from vit_dist.config.values import parse_bytes
from vit_dist.data.shards import remote
from vit_dist.data.shards.cache import PartCache
from vit_dist.data.shards.remote import RemoteFolder
from vit_dist.data.shards.source import ShardSource, open_index
from vit_dist.data.sources.decode import ImageError
from vit_dist.data.sources.source import read_image
from vit_dist.errors import UserError

__all__ = ["many"]  # the fixture


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep local copies among the test's own files, and try again at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.0)


@pytest.fixture
def server(many: Path) -> Iterator[RangeServer]:
    with serving(many) as started:
        yield started


def source_at(address: str) -> ShardSource:
    source = opened(address).splits["train"].source
    assert isinstance(source, ShardSource)
    return source


def test_the_stream_is_that_of_the_folder(many: Path, server: RangeServer) -> None:
    reference, _ = read_stream(lambda: opened(many), LANES)
    total = sum(shard.bytes for shard in open_index(many).shards)
    read, _ = read_stream(lambda: opened(server.address), LANES, world=2, workers=2)
    assert_same(read, reference)
    # Two epochs by four workers: each part was fetched about once, since they share what they have fetched.
    assert total <= server.fetched() <= 1.5 * total
    server.requests.clear()
    again, _ = read_stream(lambda: opened(server.address), LANES)
    assert_same(again, reference)
    assert {path for path, _, _ in server.requests} == {"index.json"}


def test_each_part_is_fetched_once_in_an_epoch_over_all_processes(many: Path, server: RangeServer) -> None:
    total = sum(shard.bytes for shard in open_index(many).shards)
    read_stream(lambda: opened(server.address), {**LANES, "train.duration": "1 epochs"}, world=4)
    assert server.fetched() == total
    assert len([path for path, _, _ in server.requests if path.endswith(".tar")]) == 42


def test_parts_are_joined_and_lie_on_borders(many: Path, server: RangeServer, tmp_path: Path) -> None:
    file = many / "train-000000.tar"
    content = file.read_bytes()
    folder = RemoteFolder(server.address, {file.name: len(content)}, PartCache(tmp_path / "parts" / "x", 10**6), 700)
    generator = np.random.default_rng(0)
    for _ in range(60):
        offset, size = int(generator.integers(0, len(content))), int(generator.integers(0, 3000))
        assert folder.read(file.name, offset, size) == content[offset : offset + size]
    assert folder.read(file.name, 0, 10**6) == content
    assert folder.opened == len(server.requests) == -(-len(content) // 700)
    assert all(begin % 700 == 0 and end - begin <= 700 for _, begin, end in server.requests)


def test_an_index_that_comes_damaged_is_not_kept(many: Path, tmp_path: Path, server: RangeServer) -> None:
    other = tmp_path / "other"
    shutil.copytree(many, other)
    path = other / "index" / "size.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    server.root = other
    with pytest.raises(UserError, match=r"/index/size.npy cannot be read: other bytes came .*; tried 5 times$"):
        opened(server.address)
    server.root = many
    assert len(opened(server.address).splits["train"]) == 250


@pytest.mark.parametrize("failure", [500, 503, 429, 408, "cut", "broken", "reset"])
def test_what_fails_for_a_while_is_tried_again(failure: int | str, many: Path, server: RangeServer) -> None:
    source, expected = source_at(server.address), opened(many).splits["train"].source
    before = len(server.requests)
    server.failures += [failure] * 4
    assert np.array_equal(np.asarray(read_image(source, 8)), np.asarray(read_image(expected, 8)))
    assert len(server.requests) == before + 5
    server.failures += [failure] * 4
    assert len(source_at(server.address)) == 250  # the index too


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (500, "HTTP 500 Internal Server Error; tried 5 times"),
        ("cut", "10,240 bytes came, not 20,480; tried 5 times"),
        ("broken", "10,240 bytes came, and no more; tried 5 times"),
        ("reset", "Remote end closed connection without response; tried 5 times"),
        (404, "HTTP 404 Not Found"),
        (403, "HTTP 403 Forbidden"),
    ],
)
def test_what_keeps_failing_is_told_in_one_line(failure: int | str, reason: str, server: RangeServer) -> None:
    source = source_at(server.address)
    before = len(server.requests)
    server.always = failure
    with pytest.raises(ImageError) as error:
        read_image(source, 8)
    assert str(error.value) == f"{server.address}/train-000001.tar: image 8 cannot be read ({reason})"
    assert len(server.requests) - before == (5 if "tried" in reason else 1)


def test_a_server_that_hangs_is_given_up(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_at(server.address)
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.05)
    server.failures += ["hang"] * 5
    with pytest.raises(ImageError, match=r"image 8 cannot be read \(timed out; tried 5 times\)$"):
        read_image(source, 8)
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 30.0)
    read_image(source, 8)


def test_a_server_without_ranges_is_told(server: RangeServer) -> None:
    source = source_at(server.address)
    server.ranges = False
    with pytest.raises(ImageError, match="the server answers no requests for parts of files"):
        read_image(source, 8)


def test_a_run_goes_on_over_what_cannot_be_fetched_only_if_it_is_told_to(
    many: Path, tmp_path: Path, server: RangeServer
) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(many, gone)
    (gone / "train-000007.tar").unlink()
    server.root = gone
    fields = {**fields_of(many, tmp_path / "run"), "data.root": server.address, "train.duration": "14 updates"}
    with pytest.raises(UserError, match=r"train-000007.tar: image \d+ cannot be read .HTTP 404 .*on_bad_sample skip"):
        train(Config.load("folder", fields))
    run = train(Config.load("folder", {**fields, "data.on_bad_sample": "skip"}))
    assert sum(line.get("bad_samples", 0) for line in run.history if line["kind"] == "train") >= 1


def test_a_run_at_an_address_is_the_run_on_the_folder(
    many: Path, tmp_path: Path, server: RangeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for name, root in (("near", str(many)), ("far", server.address)):
        fields = fields_of(many, tmp_path / name, **{"data.root": root, "train.duration": "4 updates"})
        runs.append(train(Config.load("folder", fields)).folder)
    files = [run / "checkpoints" / "last" / "model.safetensors" for run in runs]
    assert files[0].read_bytes() == files[1].read_bytes()
    result = command(capsys, "evaluate", runs[1])
    assert result.code == 0, result.err


def test_addresses_without_shards_are_told_in_one_line(server: RangeServer, tmp_path: Path) -> None:
    for address, reason in (
        (f"{server.address}/nowhere", "/nowhere/index.json cannot be read: HTTP 404 Not Found$"),
        ("http://127.0.0.1:1/x", r"/x/index.json cannot be read: .*refused; tried 5 times$"),
        ("nope://x/y", "nope://x/y: Protocol not known: nope$"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            opened(address)
        assert str(error.value).startswith("data.root: ")
        assert "\n" not in str(error.value)
    server.failures += [0, 404]
    with pytest.raises(UserError, match=r"/data/index/offset.npy cannot be read: HTTP 404 Not Found$"):
        opened(server.address)
    assert len(opened(server.address).splits["train"]) == 250  # nothing of the first try is left


def test_a_kind_of_address_that_needs_a_package_says_which() -> None:
    pytest.importorskip("fsspec")
    for address, package in (("s3://bucket/x", "s3fs"), ("gs://bucket/x", "gcsfs")):
        try:
            __import__(package)
        except ImportError:
            with pytest.raises(UserError, match=f"^data.root: {address} needs a package .* {package}"):
                opened(address)


def test_what_fsspec_opens_is_read_alike(many: Path, tmp_path: Path) -> None:
    reference, _ = read_stream(lambda: opened(many), LANES, end=9)
    read, _ = read_stream(lambda: opened(f"file://{many}"), LANES, world=2, workers=1, end=9)
    assert_same(read, reference)
    with pytest.raises(UserError, match=r"nowhere/index.json cannot be read: No such file or directory$"):
        opened(f"file://{tmp_path}/nowhere")


def test_local_copies_that_are_damaged_are_fetched_again(many: Path, server: RangeServer, tmp_path: Path) -> None:
    source, expected = source_at(server.address), opened(many).splits["train"].source
    read_image(source, 8)
    (part,) = (tmp_path / "cache" / "vit_dist" / "shards" / "parts").rglob("*.tar.*")
    content = bytearray(part.read_bytes())
    content[int(source.index.columns["offset"][8]) + 30] ^= 1
    for damaged in (bytes(content), bytes(content[:-3]), b""):
        part.write_bytes(damaged)
        before = len(server.requests)
        assert np.array_equal(np.asarray(read_image(source, 8)), np.asarray(read_image(expected, 8)))
        assert len(server.requests) == before + 1


def test_shards_that_do_not_fit_their_index_are_told(many: Path, tmp_path: Path, server: RangeServer) -> None:
    other = tmp_path / "other"
    shutil.copytree(many, other)
    content = bytearray((other / "train-000001.tar").read_bytes())
    content[int(open_index(many).columns["offset"][8]) + 30] ^= 1
    (other / "train-000001.tar").write_bytes(content)
    server.root = other
    source = source_at(server.address)
    with pytest.raises(ImageError, match="has other bytes than the index says"):
        read_image(source, 8)


def test_local_copies_stay_within_their_limit(tmp_path: Path) -> None:
    root, limit, part = tmp_path / "parts", 100_000, 3_000
    caches = [PartCache(root / name, limit) for name in ("one", "two")]
    for number in range(200):
        for cache in caches:
            cache.keep(f"part.{number}", bytes([number]) * part)
            os.utime(cache.folder / f"part.{number}", ns=(number, number))
        if number > 3:  # the first of all stays in use
            assert caches[0].read("part.1", part, 10, 5) == b"\1" * 5
        total = sum(path.stat().st_size for path in root.rglob("part.*"))
        assert total <= limit + limit // 256 + part
    kept = {int(path.name.split(".")[1]) for path in caches[1].folder.iterdir()}
    assert kept == set(range(200 - len(kept), 200))
    assert len(kept) >= 10
    assert caches[0].read("part.1", part, 0, part) is not None
    assert caches[0].read("part.0", part, 0, part) is None


def test_a_cache_that_cannot_be_written_is_done_without(many: Path, server: RangeServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lengths = {"train-000001.tar": (many / "train-000001.tar").stat().st_size}
    folder = RemoteFolder(server.address, lengths, PartCache(tmp_path / "file" / "x", 10**6))
    for _ in range(2):
        assert folder.read("train-000001.tar", 5, 100) == (many / "train-000001.tar").read_bytes()[5:105]
    assert folder.opened == 2


@pytest.mark.parametrize(
    ("text", "size"), [("32GiB", 2**35), ("1.5 kB", 1500), ("7b", 7), ("64MB", 64_000_000), ("2tib", 2**41)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "5", "-1MB", "1 XB", "MB", "1MBs"])
def test_sizes_without_a_unit_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="not a size in bytes"):
        parse_bytes(text)
    with pytest.raises(UserError, match=r"^data.cache_size: must be a size of 64MiB or more, as 32GiB, not"):
        Config.load("digits", {"data.cache_size": text})


def test_fields_of_a_run_do_not_name_its_cache(many: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = fields_of(many, tmp_path)
    configs = [Config.load("folder", {**fields, "data.cache_size": size}) for size in ("1GB", "2GB")]
    assert configs[0].identity() == configs[1].identity()
