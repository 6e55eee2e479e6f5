"""Every notebook runs from top to bottom."""

import ast
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

import guides
import zoo

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FAST = {"04_gallery"}  # which calls the most of the library


def unknown(tree: ast.Module) -> list[str]:
    """Names such as ``zoo.plots.scree`` that the library does not have.

    >>> unknown(ast.parse("zoo.plots.scree(zoo.plots.skree, guides.Exact)"))
    ['zoo.plots.skree']
    """
    found = []
    for node in ast.walk(tree):
        path, part = [], node
        while isinstance(part, ast.Attribute):
            path, part = [part.attr, *path], part.value
        if isinstance(part, ast.Name) and part.id in {"zoo", "guides"}:
            value = {"zoo": zoo, "guides": guides}[part.id]
            for name in path:
                if isinstance(value, ModuleType) and not hasattr(value, name):
                    found.append(".".join([part.id, *path]))
                value = getattr(value, name, None)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_names_are_those_of_the_library(path):
    """Also where it is too long to run every time."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    tree = ast.parse("\n".join(map(TransformerManager().transform_cell, cells)))
    assert unknown(tree) == []
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), path.name, "exec"), {})


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[] if p.stem in FAST else [pytest.mark.slow]) for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own machinery
def test_runs(path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
