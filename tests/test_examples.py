"""The notebook runs from top to bottom, twice in the same kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))


def printed(cell: Any) -> str:
    """Return the text that a cell printed."""
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook_runs_twice_in_one_kernel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "clear the outputs before committing"
    count = len(notebook.cells)
    again = nbformat.read(path, as_version=4)
    for number, cell in enumerate(again.cells):
        cell["id"] = f"again-{number}"
    notebook.cells += again.cells
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    first, second = notebook.cells[1], notebook.cells[count + 1]
    assert "finished" in printed(first)
    assert "finished before" in printed(second)
    assert "update 50/" in printed(first)
    assert "update 50/" not in printed(second)
    assert printed(notebook.cells[3]).startswith("Best(update=")
    assert printed(notebook.cells[3]) == printed(notebook.cells[count + 3])
    assert (tmp_path / "runs" / "notebook" / "report" / "index.html").is_file()


def test_notebooks_are_found() -> None:
    assert [path.name for path in NOTEBOOKS] == ["digits.ipynb"]
