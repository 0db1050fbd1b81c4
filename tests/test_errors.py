"""Errors in one line, and suggestions of near names."""

from __future__ import annotations

from vit_dist.errors import UserError, described, nearest, one_line


def test_errors_are_worded_on_one_line() -> None:
    assert one_line(ValueError("one\n  two")) == "one two"
    assert one_line(ValueError("x" * 300), 200) == "x" * 200
    assert one_line(ValueError()) == "ValueError"


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_is_described_by_its_type_and_text_whatever_it_is() -> None:
    assert described(KeyError("a\nb")) == "KeyError: 'a\\nb'"
    assert described(MemoryError()) == "MemoryError"
    assert described(UserError("data.root: one\ntwo")) == "data.root: one two"
    assert described(UnprintableError()) == "UnprintableError"
    assert described(RuntimeError("x" * 400), 300) == f"RuntimeError: {'x' * 300}"


def test_a_near_name_is_suggested_and_else_all_are_listed() -> None:
    assert nearest("ADAM", ["adamw", "sgd"]) == " (did you mean adamw?)"
    assert nearest("xyz", ["adamw", "sgd"]) == "; known: adamw, sgd"
