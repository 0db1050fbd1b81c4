"""Reading the config.yaml of a run: what a run writes, and what it never writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vit_dist import Config, UserError
from vit_dist.config.recipe import read_saved_yaml, read_yaml


def test_a_written_config_is_read_as_it_was(tmp_path: Path) -> None:
    """By libyaml, or by the loader with limits if a text has the letters that aliases are made of."""
    path = tmp_path / "config.yaml"
    for name in ("plain", "a&b *c", "2026-01-01", "1.10", "größe"):
        config = Config.load("mnist", {"run.name": name, "optimizer.lr": 1e-5, "data.mean": [0.5], "data.std": [1.0]})
        path.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
        assert Config.from_dict(read_saved_yaml(path)) == Config.from_dict(read_yaml(path)) == config


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x [1]\nb: [*x, *x]", "not YAML: aliases are not read"),
        ("[" * 2000, "not YAML: more than 32 levels"),
        ("- 1", "must hold sections"),
        ("run: [", "not YAML: while parsing"),
    ],
)
def test_what_a_run_never_writes_is_refused_in_one_line(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_saved_yaml(tmp_path / "config.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'config.yaml'}: {reason}")
    assert "\n" not in str(caught.value)
