"""Tokenizers: texts → rows of token numbers of one length."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.data.text.clip_bpe import ClipBpe, read_merges
from vit_dist.errors import UserError, one_line, visible
from vit_dist.files import user_path
from vit_dist.plan.keys import Ints

BYTES = "bytes"
_FIELD = "text.tokenizer"
_KNOWN = "bytes, CLIP's bpe_simple_vocab_16e6.txt or its .gz, or a tokenizer of the package tokenizers (.json)"


@dataclass(frozen=True)
class Tokenizer:
    """Makes token numbers of texts.

    encode: gives those of one text, of any length, the end token last. context_length: of each row. vocabulary_size:
    numbers are below it. digest: of the whole tokenizer but for the length, in hexadecimal. pad: what fills rows.
    """

    encode: Callable[[str], Sequence[int]]
    context_length: int
    vocabulary_size: int
    digest: str
    pad: int = 0

    def __call__(self, texts: Sequence[str]) -> Ints:
        """Return the tokens, int64 [texts, context_length]: cut to that length, the end token kept, or filled up.

        Raises UserError for a text that cannot be encoded here.
        """
        rows = np.full((len(texts), self.context_length), self.pad, np.int64)
        for row, text in zip(rows, texts, strict=True):
            tokens = self.encode(text)
            row[: len(tokens)] = tokens[: self.context_length]
            if len(tokens) > self.context_length:
                row[-1] = tokens[-1]
        return rows

    def lengths(self, texts: Iterable[str]) -> Ints:
        """Return how many tokens each text has before it is cut, int64 [texts]. Raises UserError, likewise."""
        return np.asarray([len(self.encode(text)) for text in texts], np.int64)


def open_tokenizer(name: str, context_length: int) -> Tokenizer:
    """Open a tokenizer: bytes, or a file by its path (`text.tokenizer`). Raises UserError."""
    if name == BYTES:
        return Tokenizer(Utf8Bytes(), context_length, Utf8Bytes.END + 1, BYTES)
    path = user_path(name, _FIELD)
    if not path.is_file():
        there = "is a folder: name the file in it" if path.is_dir() else "is not there"
        raise UserError(f"{_FIELD}: {visible(name)} {there}; known are {_KNOWN}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{_FIELD}: {path} cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(content).hexdigest()
    if path.suffix.lower() == ".json":
        encode = JsonTokenizer(path, content)
        return Tokenizer(encode, context_length, encode.vocabulary_size, digest)
    bpe = ClipBpe(read_merges(content, str(path)))
    return Tokenizer(bpe, context_length, bpe.vocabulary_size, digest)


class Utf8Bytes:
    """Encodes texts as the bytes of UTF-8, between the tokens of start and end; 0 is left for what fills rows."""

    START, END = 257, 258

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text: its bytes plus 1."""
        return [self.START, *(byte + 1 for byte in text.encode("utf-8", "replace")), self.END]


class JsonTokenizer:
    """Encodes texts by a file of the package tokenizers, with the special tokens that the file says.

    vocabulary_size: one more than its largest number.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        """Read it. Raises UserError."""
        try:
            import tokenizers
        except ImportError:
            raise UserError(
                f"{_FIELD}: {path} is read by tokenizers, which is not installed: pip install tokenizers"
            ) from None
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the package raises no error of its own
            raise UserError(
                f"{_FIELD}: {path} is no file of the package tokenizers ({one_line(error, 120)}): known are {_KNOWN}"
            ) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        numbers = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self.vocabulary_size = max(numbers, default=0) + 1
        if self("a")[-1:] in ([], [0]):
            raise UserError(
                f"{_FIELD}: {path} ends texts by token 0, which fills rows, or by none: give one that adds an end token"
            )

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        numbers: list[int] = self._tokenizer.encode(text).ids
        return numbers
