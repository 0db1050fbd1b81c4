"""Errors in one line, and suggestions of near names."""

from __future__ import annotations

from vit_dist.errors import nearest, one_line


def test_errors_are_worded_on_one_line() -> None:
    assert one_line(ValueError("one\n  two")) == "one two"
    assert one_line(ValueError("x" * 300), 200) == "x" * 200
    assert one_line(ValueError()) == "ValueError"


def test_a_near_name_is_suggested_and_else_all_are_listed() -> None:
    assert nearest("ADAM", ["adamw", "sgd"]) == " (did you mean adamw?)"
    assert nearest("xyz", ["adamw", "sgd"]) == "; known: adamw, sgd"
