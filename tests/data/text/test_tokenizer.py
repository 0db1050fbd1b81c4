"""Tokenizers: bytes; CLIP's against recorded tokens, and open_clip's own where it is installed; files of tokenizers."""

from __future__ import annotations

import gzip
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from vit_dist.data.text.tokenizer import open_tokenizer
from vit_dist.errors import UserError

# The first 400 merges of CLIP's file.
MERGES = Path(__file__).with_name("clip_merges.txt")
# Text → what open_clip 3.3.0's SimpleTokenizer makes of it with these merges and a context of 16.
PLAIN = {
    "a photo of a cat": [912, 320, 816, 531, 539, 320, 66, 536, 913, 0, 0, 0, 0, 0, 0, 0],
    "": [912, 913, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "A  Diagram,\n\tof THE thing's don't I'LL": [
        *(912, 320, 570, 602, 559, 332, 267, 539, 518, 513, 519, 568, 847, 713, 328, 913)
    ],
    "1234567 ____ __a!!!???": [912, 272, 273, 274, 275, 276, 277, 278, 62, 62, 62, 318, 62, 318, 320, 913],
    "<end_of_text> mid <START_OF_TEXT>": [912, 913, 714, 323, 912, 913, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "supercalifragilisticexpialidocious tail": [
        *(912, 605, 703, 66, 835, 69, 559, 70, 543, 72, 522, 535, 659, 741, 835, 913)
    ],
}
MENDED = {
    "café naïve ½ Ⅻ": [912, 66, 702, 127, 358, 77, 64, 127, 107, 563, 126, 377, 158, 227, 375, 913],
    "日本語 一二三": [912, 162, 245, 98, 162, 250, 105, 164, 103, 508, 160, 116, 222, 160, 118, 913],
    "&amp;lt;b&amp;gt;": [912, 283, 321, 285, 913, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "ﬁn ｆｕｌｌ donâ€™t": [912, 69, 530, 665, 865, 847, 713, 913, 0, 0, 0, 0, 0, 0, 0, 0],
    "a\x1b[31mred\x00c": [912, 64, 515, 67, 322, 913, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
}


def refusal(name: str) -> str:
    with pytest.raises(UserError) as caught:
        open_tokenizer(name, 16)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bytes_are_those_of_utf_8_between_start_and_end() -> None:
    tokenizer = open_tokenizer("bytes", 8)
    assert (tokenizer.vocabulary_size, tokenizer.pad, tokenizer.digest) == (259, 0, "bytes")
    rows = tokenizer(["né", "", "abcdefghij", "\0\ud800"])
    assert rows.dtype == np.int64
    assert rows.tolist() == [
        [257, 111, 196, 170, 258, 0, 0, 0],
        [257, 258, 0, 0, 0, 0, 0, 0],
        [257, 98, 99, 100, 101, 102, 103, 258],  # cut, and it still ends
        [257, 1, 64, 258, 0, 0, 0, 0],
    ]
    assert tokenizer.lengths(["né", "", "abcdefghij"]).tolist() == [5, 2, 12]
    assert tokenizer([]).shape == (0, 8)


@pytest.mark.parametrize("text", PLAIN)
def test_clip_s_encoding_is_open_clip_s(text: str) -> None:
    tokenizer = open_tokenizer(str(MERGES), 16)
    assert tokenizer.vocabulary_size == 2 * 256 + 400 + 2
    assert tokenizer([text]).tolist() == [PLAIN[text]]
    assert tokenizer([text, text]).tolist() == [PLAIN[text]] * 2  # the second time from memory


def test_texts_that_ftfy_mends_are_encoded_as_open_clip_does() -> None:
    pytest.importorskip("ftfy")
    tokenizer = open_tokenizer(str(MERGES), 16)
    assert dict(zip(MENDED, tokenizer(list(MENDED)).tolist(), strict=True)) == MENDED


def test_without_ftfy_plain_texts_are_encoded_and_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    tokenizer = open_tokenizer(str(MERGES), 16)
    assert tokenizer(["a photo of a cat"]).tolist() == [PLAIN["a photo of a cat"]]
    for text in MENDED:
        with pytest.raises(UserError) as caught:
            tokenizer([text])
        assert str(caught.value) == (
            "text.tokenizer: CLIP's mends captions that are not plain ASCII by ftfy, which is not installed: "
            "pip install ftfy"
        )


def test_clip_s_whole_encoding_is_open_clip_s() -> None:
    theirs = pytest.importorskip("open_clip").tokenizer
    ours = open_tokenizer(theirs.default_bpe(), 77)
    assert ours.vocabulary_size == 49_408
    hard = [
        *(*PLAIN, *MENDED),
        "The quick brown fox’s “quoted” — dash… don’t",
        "🎉👩‍👩‍👧 ẞ İstanbul ǅ e\u0301 \u200bzw nbsp\u00a0x",
        "'ſ 'S 'Ve a'll'd'm're !!!! #hash @at 50% $9.99",
        "مرحبا हिन्दी ไทย Ελληνικά кириллица",
        "word " * 100,
        "x" * 500,
    ]
    assert np.array_equal(ours(hard), theirs.SimpleTokenizer()(hard).numpy())


def test_a_file_of_merges_is_read_gzipped_and_plain_and_its_digest_is_of_its_bytes(tmp_path: Path) -> None:
    zipped = tmp_path / "merges.txt.gz"
    zipped.write_bytes(gzip.compress(MERGES.read_bytes(), mtime=0))
    plain, packed = (open_tokenizer(str(path), 16) for path in (MERGES, zipped))
    assert np.array_equal(plain(list(PLAIN)), packed(list(PLAIN)))
    assert len(plain.digest) == 64
    changed = tmp_path / "changed.txt"
    changed.write_text(MERGES.read_text().replace("i n\n", "", 1))
    assert open_tokenizer(str(changed), 16).digest != plain.digest
    assert open_tokenizer(str(MERGES), 8).digest == plain.digest


def test_a_tokenizer_reaches_worker_processes_that_are_spawned() -> None:
    tokenizer = pickle.loads(pickle.dumps(open_tokenizer(str(MERGES), 16)))  # noqa: S301
    assert tokenizer(["a photo of a cat"]).tolist() == [PLAIN["a photo of a cat"]]


def test_files_that_are_no_tokenizers_are_refused_in_one_line(tmp_path: Path) -> None:
    known = (
        "known are bytes, CLIP's bpe_simple_vocab_16e6.txt or its .gz, or a tokenizer of the package tokenizers (.json)"
    )
    assert refusal("byte") == f"text.tokenizer: byte is not there; {known}"
    assert refusal(str(tmp_path)) == f"text.tokenizer: {tmp_path} is a folder: name the file in it; {known}"
    path = tmp_path / "merges.txt"
    path.write_text("#version\ni n\nth e x\n")
    assert refusal(str(path)).startswith(
        f"text.tokenizer: {path}, line 3: must be two symbols to merge, not 'th e x': give CLIP's bpe_simple_vocab"
    )
    path.write_text("#version\n\n")
    assert refusal(str(path)) == f"text.tokenizer: {path} has no merges: fetch it anew"
    path.write_bytes(gzip.compress(MERGES.read_bytes())[:500])
    assert refusal(str(path)).startswith(f"text.tokenizer: {path} cannot be read (Compressed file ended")
    path.write_bytes(b"\xff\xfe\x00")
    assert "fetch it anew" in refusal(str(path))


def test_a_file_of_tokenizers_is_used_with_its_special_tokens(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "[BOS]": 2, "[EOS]": 3, "red": 4, "car": 9}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_truncation(2)  # as the files of many models have it, and padding too
    made.enable_padding(length=12)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    bare = open_tokenizer(str(path), 5)
    assert bare(["a red car", "car " * 9]).tolist() == [[1, 4, 9, 0, 0], [9, 9, 9, 9, 9]]
    special = [("[BOS]", 2), ("[EOS]", 3)]
    made.post_processor = tokenizers.processors.TemplateProcessing("[BOS] $A [EOS]", special_tokens=special)
    made.save(str(path))
    tokenizer = open_tokenizer(str(path), 5)
    assert tokenizer.vocabulary_size == 10
    assert tokenizer(["a red car", "red", "car " * 9]).tolist() == [[2, 1, 4, 9, 3], [2, 4, 3, 0, 0], [2, 9, 9, 9, 3]]
    assert tokenizer.digest != bare.digest
    made.post_processor = tokenizers.processors.TemplateProcessing("$A [PAD]", special_tokens=[("[PAD]", 0)])
    made.save(str(path))
    assert refusal(str(path)) == (
        f"text.tokenizer: {path} ends texts by token 0, which fills rows, or by none: give one that adds an end token"
    )
    path.write_text("{}")
    assert refusal(str(path)).startswith(f"text.tokenizer: {path} is no file of the package tokenizers (")


def test_a_file_of_tokenizers_without_the_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    assert refusal(str(path)) == (
        f"text.tokenizer: {path} is read by tokenizers, which is not installed: pip install tokenizers"
    )
