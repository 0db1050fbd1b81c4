"""The docs agree with the code: config reference, links, flags, packages and file names."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.runs import train_pictures_run
from tests.test_architecture import PACKAGES
from vit_dist.cli.arguments import parse_arguments
from vit_dist.cli.commands import USAGES
from vit_dist.cli.reference import reference
from vit_dist.config.config import Config

PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md"))]
# Flags of our commands that are no fields, and flags of other programs.
OTHER_FLAGS = {
    *("--config", "--print_config", "--processes", "--png", "--help", "--version"),
    *("--config_file", "--cpu", "--multi_gpu", "--num_processes", "--num_machines", "--machine_rank"),
    *("--main_process_ip", "--nproc_per_node", "--mixed_precision", "--logdir", "--rounds", "--updates", "--data"),
    *("--images", "--memory", "--batch", "--cases"),  # of benchmarks
    *("--saves", "--budget", "--skip", "--local-dir", "--onnx"),
    *("--node_rank", "--master_addr", "--master_port", "--main_process_port", "--standalone", "--max_restarts"),
    *("--rdzv_backend", "--rdzv_endpoint", "--rdzv_id", "--rdzv_conf"),
    *("--nodes", "--ntasks-per-node", "--gpus-per-node", "--time", "--requeue", "--signal", "--section.field"),
}


def test_config_reference_is_up_to_date() -> None:
    written = (REPOSITORY / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == reference(), "python scripts/config_reference.py > docs/config.md"
    for name in Config().fields():
        assert f"| `{name}`" in written


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_have_a_target(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_flags_in_the_docs_exist(page: Path) -> None:
    own = {flag for usage in USAGES.values() for flag in usage.flags}
    fields = {f"--{name}" for name in Config().fields()}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*[\w]", page.read_text(encoding="utf-8")))
    mapped = {
        flag
        for flag in named
        if flag.startswith(("--model.args.", "--data.columns.", "--schedule.args.", "--optimizer."))
    }
    assert sorted(named - own - fields - OTHER_FLAGS - mapped) == []


def commands_on(page: Path) -> list[list[str]]:
    """Return the words of each `vit-dist` command on a page: no `vit-dist`, comments, redirections or ellipses."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    spans = re.findall(r"`(vit-dist [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [line.strip() for line in [*blocks, *spans] if line.strip().startswith("vit-dist ")]
    found = [shlex.split(line.split(" > ")[0], comments=True)[1:] for line in lines]
    return [[word for word in words if word != "…"] for words in found if "--help" not in words and "|" not in words]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_commands_in_the_docs_are_understood(page: Path) -> None:
    for command, *words in commands_on(page):
        if command in ("checkpoint", "shards"):
            command = " ".join([command, *words[:1]])
            words = words[1:]
        assert command in [*USAGES, "config"], command
        if command != "config" and words:  # a command's name alone may stand for it
            parse_arguments(command, words)


def test_readme_links_to_every_page() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in (REPOSITORY / "docs").glob("*.md") if f"docs/{page.name}" not in readme]
    assert missing == []


def test_architecture_page_lists_the_packages_in_their_order() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = page.split("## Packages")[1].split("\n## ")[0].splitlines()
    listed = [
        name.rstrip("/") for row in rows if row.startswith("| `") for name in re.findall(r"`(.+?)`", row.split("|")[1])
    ]
    assert listed == [name for name in PACKAGES if name != "__main__"]


def test_files_named_on_the_architecture_page_exist() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_]+/[a-z_/]*(?:\.py)?)`", page)
    assert len(named) > 50
    missing = [
        name for name in named if not any((root / name).exists() for root in (REPOSITORY, REPOSITORY / "vit_dist"))
    ]
    assert missing == []


def test_config_reference_shows_defaults_and_leaves_empty_ones_blank() -> None:
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


def test_python_examples_run(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the blocks of docs/python.md one after the other, without reports, in a folder with their files."""
    run = train_pictures_run(tmp_path_factory, image_folder)
    shutil.copytree(run, tmp_path / "runs" / "pets-3f40a2", symlinks=True)
    shutil.copytree(image_folder / "train", tmp_path / "photos")
    Image.open(image_folder / "valid" / "cat" / "00.png").save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 11
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        quick = block.replace('{"train.duration"', '{"log.report": False, "run.threads": 1, "train.duration"')
        exec(compile(quick, f"block {number} of python.md", "exec"), names)
    assert names["predictions"].images[0] == "cat.jpg"
    assert len(names["predictions"]) == 21
    assert names["features"].shape == (60, 24)
    assert names["nearest"][0] == 0
    assert names["measured"].seen == 3
    assert [update for update, _ in names["losses"]] == [5, 10, 15, 20]
