"""Shards that are far away: parts of files by range requests, over HTTP or whatever fsspec opens, kept in a cache."""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from vit_dist.data.shards.cache import PartCache
from vit_dist.errors import UserError, one_line
from vit_dist.version import __version__

PART = 2**21
TIMEOUT_SECONDS = 30.0
_TRIES = 5
FIRST_DELAY_SECONDS = 0.5
_CHANCE = random.SystemRandom()  # not the generator that transforms draw from


class FinalError(OSError):
    """A failure that another try would meet as well."""


class Files(Protocol):
    """Files at an address, read by name."""

    def fetch(self, file: str, begin: int = 0, end: int | None = None) -> bytes:
        """Return bytes of a file, all by default. Raises FinalError, and anything else where trying again may help."""


class HttpFiles:
    """Files below an address of HTTP or HTTPS."""

    def __init__(self, address: str) -> None:
        self.address = address

    def fetch(self, file: str, begin: int = 0, end: int | None = None) -> bytes:
        """Return bytes of a file, all by default. Raises FinalError, OSError, HTTPException."""
        headers = {"User-Agent": f"vit_dist/{__version__}", "Accept-Encoding": "identity"}
        if end is not None:
            headers["Range"] = f"bytes={begin}-{end - 1}"
        request = urllib.request.Request(f"{self.address}/{urllib.parse.quote(file)}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                if end is not None and answer.status != 206:
                    raise FinalError("the server answers no requests for parts of files (HTTP Range)")
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code in (408, 425, 429) or error.code >= 500:
                raise OSError(problem) from None
            raise FinalError(problem) from None
        except urllib.error.URLError as error:
            raise OSError(one_line(error.reason, 200)) from None


class FsspecFiles:
    """Files below an address that fsspec opens: s3://, gs://, and many others."""

    def __init__(self, address: str) -> None:
        """Raises UserError if fsspec, or a package that it needs for this kind of address, is not installed."""
        self.address = address
        self._opened: tuple[int, Any, str] | None = None
        self._open()

    def fetch(self, file: str, begin: int = 0, end: int | None = None) -> bytes:
        """Return bytes of a file, all by default. Raises FinalError, and whatever the file system does."""
        system, root = self._open()
        try:
            content: bytes = system.cat_file(f"{root}/{file}", start=begin if end is not None else None, end=end)
            return content
        except (FileNotFoundError, PermissionError) as error:
            raise FinalError(error.strerror or one_line(error, 200)) from None

    def _open(self) -> tuple[Any, str]:
        """Return the file system and the path in it, as of this process: what is open does not outlive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                import fsspec

                system, root = fsspec.core.url_to_fs(self.address)
            except ImportError as error:
                reason = one_line(error, 200)
                raise UserError(f"data.root: {self.address} needs a package that is not installed: {reason}") from None
            except ValueError as error:
                raise UserError(f"data.root: {self.address}: {one_line(error, 200)}") from None
            self._opened = os.getpid(), system, root.rstrip("/")
        return self._opened[1], self._opened[2]

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "_opened": None}


def files_at(address: str) -> Files:
    """Return the files at an address. Raises UserError if they cannot be read by what is installed."""
    if address.startswith(("http://", "https://")):
        return HttpFiles(address)
    return FsspecFiles(address)


def persistent(fetch: Callable[[], bytes], wrong: Callable[[bytes], str]) -> bytes:
    """Return what `fetch` returns, tried several times with growing pauses. wrong: says what is wrong with bytes.

    Raises OSError with the last reason.
    """
    delay = FIRST_DELAY_SECONDS
    for tries_left in reversed(range(_TRIES)):
        try:
            content = fetch()
            reason = wrong(content)
            if not reason:
                return content
        except (FinalError, UserError):
            raise
        except http.client.IncompleteRead as error:
            reason = f"{len(error.partial):,} bytes came, and no more"
        except Exception as error:  # clients of storage raise anything
            reason = one_line(error, 200)
        if tries_left:
            time.sleep(delay * (0.5 + _CHANCE.random() / 2))  # so that many readers do not come again together
            delay *= 2
    raise OSError(f"{reason}; tried {_TRIES} times")


class RemoteFolder:
    """The files in a folder that is far away. opened: how many parts this process has fetched so far."""

    def __init__(self, address: str, lengths: Mapping[str, int], cache: PartCache, part: int = PART) -> None:
        """lengths: of each file, in bytes. part: bytes that are fetched at a time. Raises UserError."""
        self.address = address
        self.lengths = lengths
        self.cache = cache
        self.part = part
        self.opened = 0
        self._files = files_at(address)

    @property
    def name(self) -> str:
        """The folder, for people."""
        return self.address

    def read(self, file: str, offset: int, size: int) -> bytes:
        """Return bytes of a file; fewer where it ends before. Raises OSError."""
        end = min(offset + size, self.lengths[file])
        pieces = []
        for number in range(offset // self.part, -(-end // self.part)):
            first = number * self.part
            begin, stop = max(offset, first) - first, min(end, first + self.part) - first
            pieces.append(self._piece(file, number, begin, stop - begin))
        return b"".join(pieces)

    def forget(self, file: str, offset: int, size: int) -> bool:
        """Remove the local copy of bytes of a file, which may be damaged; return whether there was one."""
        numbers = range(offset // self.part, -(-(offset + size) // self.part))
        return sum(self.cache.forget(self._named(file, number)) for number in numbers) > 0

    def _piece(self, file: str, number: int, offset: int, size: int) -> bytes:
        name, first = self._named(file, number), number * self.part
        length = min(self.part, self.lengths[file] - first)
        kept = self.cache.read(name, length, offset, size)
        if kept is not None:
            return kept
        content = persistent(
            lambda: self._files.fetch(file, first, first + length),
            lambda content: "" if len(content) == length else f"{len(content):,} bytes came, not {length:,}",
        )
        self.opened += 1
        self.cache.keep(name, content)
        return content[offset : offset + size]

    def _named(self, file: str, number: int) -> str:
        return f"{urllib.parse.quote(file, safe='')}.{self.part}.{number}"


def cache_name(text: bytes) -> str:
    """Return the name of the folder that local copies are in, after the text of their index."""
    return hashlib.sha256(text).hexdigest()[:24]


def fetch_index(files: Files, file: str, address: str) -> bytes:
    """Return the text of an index. Raises UserError that names its address."""

    def wrong(content: bytes) -> str:
        return "" if content.rstrip().endswith(b"}") else "its end is missing"

    return _fetch_whole(files, file, address, wrong)


def fetch_hashed(files: Files, file: str, address: str, digest: str) -> bytes:
    """Return a whole file that has this SHA-256. Raises UserError that names its address."""

    def wrong(content: bytes) -> str:
        return "" if hashlib.sha256(content).hexdigest() == digest else "other bytes came than index.json says"

    return _fetch_whole(files, file, address, wrong)


def _fetch_whole(files: Files, file: str, address: str, wrong: Callable[[bytes], str]) -> bytes:
    try:
        return persistent(lambda: files.fetch(file), wrong)
    except OSError as error:
        reason = error.strerror or one_line(error, 200)
        raise UserError(f"data.root: {address}/{file} cannot be read: {reason}") from None
