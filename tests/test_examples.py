"""The notebook runs from top to bottom, and again in the same kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))


def texts(cell: Any) -> str:
    return "".join(one.get("text", "") for one in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_twice_in_one_kernel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    once = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in once.cells), "outputs do not belong into the repository"
    count = len(once.cells)
    again = nbformat.read(path, as_version=4)
    for number, cell in enumerate(again.cells):
        cell["id"] = f"again-{number}"
    once.cells += again.cells
    NotebookClient(once, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    first, second = once.cells[1], once.cells[count + 1]
    assert "finished" in texts(first)
    assert "this run has finished" in texts(second)
    assert "update 50/" in texts(first)
    assert "update 50/" not in texts(second)
    assert texts(once.cells[3]).startswith("Best(update=")
    assert texts(once.cells[3]) == texts(once.cells[count + 3])
    assert (tmp_path / "runs" / "notebook" / "report" / "index.html").is_file()


def test_there_is_one() -> None:
    assert [path.name for path in NOTEBOOKS] == ["digits.ipynb"]
