"""CLIP's byte-pair encoding (Radford et al., 2021), read from its file of merges."""

from __future__ import annotations

import gzip
import html
import re
import sys
import unicodedata
import zlib
from functools import cache
from itertools import pairwise
from typing import Any

from vit_dist.errors import UserError, one_line

START, END = "<start_of_text>", "<end_of_text>"
# The file holds more merges than CLIP uses: those that leave room for 512 bytes and the two special tokens.
_MERGES = 49_152 - 256 - 2
_WORD_END = "</w>"
_MOST_KEPT = 65_536
_SPECIAL = rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d"
# Words of a text in lower case that is plain ASCII: found ten times as fast as by the pattern for any text.
_PLAIN = re.compile(rf"{_SPECIAL}|[a-z]+|[0-9]|[^\sa-z0-9]+")
_SPACES = {ord(space): " " for space in "\t\n\r"}


class ClipBpe:
    """Encodes texts as CLIP does: cleaned, in lower case, between the tokens of start and end.

    vocabulary_size: 49,408 with CLIP's file.
    """

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        symbols = list(_byte_symbols().values())
        vocabulary = [*symbols, *(symbol + _WORD_END for symbol in symbols), *map("".join, merges), START, END]
        self._number_of = {token: number for number, token in enumerate(vocabulary)}
        self._rank_of = {pair: rank for rank, pair in enumerate(merges)}
        self._known: dict[str, list[int]] = {}
        self.vocabulary_size = len(vocabulary)
        self.start, self.end = self._number_of[START], self._number_of[END]

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text, uncut. Raises UserError if it needs ftfy, which is not installed."""
        found = [self.start]
        cleaned = clean(text)
        for word in (_PLAIN if cleaned.isascii() else _pattern()).findall(cleaned):
            found += self._tokens_of(word)
        return [*found, self.end]

    def _tokens_of(self, word: str) -> list[int]:
        known = self._known.get(word)
        if known is None:
            if len(self._known) == _MOST_KEPT:
                self._known.clear()
            known = self._known[word] = self._encode(word)
        return known

    def _encode(self, word: str) -> list[int]:
        if word in (START, END):
            return [self._number_of[word]]
        symbols = _byte_symbols()
        parts = [symbols[byte] for byte in word.encode("utf-8")]
        parts[-1] += _WORD_END
        none = len(self._rank_of)
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            first = min(pairs, key=lambda pair: self._rank_of.get(pair, none))
            if first not in self._rank_of:
                break
            merged, place = [], 0
            while place < len(parts):
                both = tuple(parts[place : place + 2]) == first
                merged.append("".join(first) if both else parts[place])
                place += 1 + both
            parts = merged
        return [self._number_of[part] for part in parts]


def read_merges(content: bytes, name: str) -> list[tuple[str, str]]:
    """Return the merges in a file, gzipped or not, whose first line is a comment. Raises UserError that names it."""
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        lines = content.decode("utf-8").split("\n")[1 : 1 + _MERGES]
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise UserError(f"text.tokenizer: {name} cannot be read ({one_line(error)}): fetch it anew") from None
    while lines and not lines[-1].strip():
        lines.pop()
    merges = []
    for number, line in enumerate(lines, 2):
        pair = line.split()
        if len(pair) != 2:
            raise UserError(
                f"text.tokenizer: {name}, line {number}: must be two symbols to merge, not {one_line(line, 40)!r}: "
                "give CLIP's bpe_simple_vocab_16e6.txt(.gz), a tokenizer of the package tokenizers (.json), or bytes"
            )
        merges.append((pair[0], pair[1]))
    if not merges:
        raise UserError(f"text.tokenizer: {name} has no merges: fetch it anew")
    return merges


def clean(text: str) -> str:
    """Return a text as CLIP reads it: mended by ftfy, HTML's entities replaced, one space between words, lower case.

    Raises UserError if the text needs ftfy, which is not installed.
    """
    spaced = text.translate(_SPACES)
    if not (spaced.isascii() and spaced.isprintable() and "&" not in spaced):  # else ftfy changes nothing
        spaced = html.unescape(html.unescape(_ftfy().fix_text(text)))
    return " ".join(spaced.split()).lower()


def _ftfy() -> Any:
    try:
        import ftfy
    except ImportError:
        raise UserError(
            "text.tokenizer: CLIP's mends captions that are not plain ASCII by ftfy, which is not installed: "
            "pip install ftfy"
        ) from None
    return ftfy


@cache
def _byte_symbols() -> dict[int, str]:
    """Return byte → the character that stands for it in the file: itself if it can be seen, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


@cache
def _pattern() -> re.Pattern[str]:
    r"""Return what finds words: CLIP's own pattern says \p{L} and \p{N}, which `re` does not know."""
    numbers = "".join(chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "N")
    letters = rf"[^\W_{numbers}]+"  # what is alphanumeric is a letter or a number
    return re.compile(rf"{_SPECIAL}|{letters}|[{numbers}]|(?:[^\s\w]|_)+", re.IGNORECASE)
