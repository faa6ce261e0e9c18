"""The notebooks: each runs from top to bottom, and says what its stored outputs say."""

import asyncio
import os
import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook, new_output

import jaxce

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture
def execute(monkeypatch, tmp_path):
    """Run a copy of a notebook with this very Python and this very jaxce; return the copy."""
    # A kernel as everyone has it: none of the user's settings, and files go to a folder of its own.
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "settings"))
    monkeypatch.setenv("PYTHONPATH", str(Path(jaxce.__file__).parent.parent), os.pathsep)
    monkeypatch.delenv("MPLBACKEND", raising=False)

    def run(notebook):
        # Without directories to look in, the specification is that of the running interpreter.
        specifications = KernelSpecManager(kernel_dirs=[])
        with tempfile.TemporaryDirectory() as short:  # the path of a socket may have 100 characters
            kernel = AsyncKernelManager(
                kernel_spec_manager=specifications,
                transport="ipc",  # ports could be taken by the kernel of another test
                connection_file=f"{short}/kernel.json",
            )
            copy = nbformat.from_dict(notebook)
            resources = {"metadata": {"path": str(tmp_path)}}
            client = NotebookClient(
                copy, km=kernel, resources=resources, timeout=120, coalesce_streams=True
            )
            return asyncio.run(client.async_execute(cleanup_kc=True))

    return run


def told(cell):
    """What a cell printed and returned, as text; a picture counts by its being there."""
    texts = []
    for output in cell.get("outputs", ()):
        if output.output_type == "stream":
            # Libraries may have warnings for one machine and not for another.
            texts += [output.text] if output.name == "stdout" else []
        else:
            data = output.get("data", {})
            texts += [data.get("text/plain"), "image/png" in data]
    return texts


def check(stored, run):
    """Assert that a notebook's stored outputs are those of one clean run, and still come out."""
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(map(told, cells))
    for before, after in zip(stored.cells, run(stored).cells, strict=True):
        assert told(after) == told(before), f"in this cell:\n{before.source}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_says_what_is_stored(path, execute):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    check(notebook, execute)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_decimals_of_the_text_are_in_a_cell_beside_it(path):
    cells = nbformat.read(path, as_version=4).cells
    missing = []
    for i, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            beside = [c for c in cells[max(i - 1, 0) : i + 2] if c.cell_type == "code"]
            shown = "\n".join(str(text) for c in beside for text in [c.source, *told(c)])
            missing += [n for n in re.findall(r"\d+\.\d+", cell.source) if n not in shown]
    assert not missing


def notebook_of(source, *, printed, count=1):
    output = new_output("stream", name="stdout", text=printed)
    return new_notebook(cells=[new_code_cell(source, execution_count=count, outputs=[output])])


def test_a_wrong_notebook_fails(execute):
    check(notebook_of("print(1 / 4)", printed="0.25\n"), execute)
    with pytest.raises(AssertionError, match="print"):
        check(notebook_of("print(1 / 4)", printed="0.26\n"), execute)
    with pytest.raises(CellExecutionError, match="AssertionError"):
        check(notebook_of("assert False", printed="0.25\n"), execute)
    with pytest.raises(AssertionError):
        check(notebook_of("print(1 / 4)", printed="0.25\n", count=7), execute)


def test_there_are_notebooks():
    assert NOTEBOOKS
