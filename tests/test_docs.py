"""The docs say what is so: the config reference, links, flags and fields that are named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from vit_dist.cli.reference import reference
from vit_dist.cli.usages import USAGES
from vit_dist.config.config import Config

PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md"))]
# Of the commands alone, and of others' programs.
OTHERS = {
    *("--config", "--print_config", "--processes", "--png", "--help", "--version"),
    *("--config_file", "--cpu", "--multi_gpu", "--num_processes", "--num_machines", "--machine_rank"),
    *("--main_process_ip", "--nproc_per_node", "--mixed_precision", "--logdir", "--rounds", "--updates", "--data"),
    *("--nodes", "--ntasks-per-node", "--gpus-per-node", "--time", "--requeue", "--signal", "--section.field"),
}


def test_the_config_reference_is_that_of_the_dataclasses() -> None:
    written = (REPOSITORY / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == reference(), "python scripts/config_reference.py > docs/config.md"
    for name in Config().fields():
        assert f"| `{name}`" in written


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    gone = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert gone == []


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_flags_exist(page: Path) -> None:
    own = {flag for usage in USAGES.values() for flag in usage.flags}
    fields = {f"--{name}" for name in Config().fields()}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*[\w]", page.read_text(encoding="utf-8")))
    mapped = {flag for flag in named if flag.startswith(("--model.args.", "--schedule.args.", "--optimizer."))}
    assert sorted(named - own - fields - OTHERS - mapped) == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in (REPOSITORY / "docs").glob("*.md") if f"docs/{page.name}" not in readme]
    assert missing == []


def test_the_reference_shows_defaults_and_nothing_where_they_are_empty() -> None:
    rows = {line.split("`")[1]: line.split(" | ") for line in reference().splitlines() if line.startswith("| `")}
    fields = Config().fields()
    assert rows.keys() == fields.keys()
    for name, value in fields.items():
        shown = rows[name][2]
        assert (shown == "") is (value in ("", (), [], None, {})), name
        assert shown in ("", f"`{value}`", f"`{str(value).lower()}`"), name
    assert rows["data.root"][2] == ""
    assert rows["optimizer.lr"][2] == "`0.001`"
    assert "`empty`" not in reference()
