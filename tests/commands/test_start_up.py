"""What a command loads before it does anything, and the names that load on use."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import zoo

HEAVY = ("torch", "pyro", "numpy", "scipy", "sklearn", "pandas", "polars", "xarray", "arviz", "matplotlib")


def loaded(code):
    """The heavy packages in memory after some code, in an interpreter of its own."""
    listed = f"{code}\nimport sys\nprint('loaded:', *(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


def command(*words):
    return (
        "from zoo.commands.main import app\n"
        f"try:\n    app({list(words)!r})\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
    )


@pytest.mark.parametrize(
    "words", [("--help",), ("list",), ("fit", "--help"), ("report", "--help"), ("cite", "VAE")], ids=" ".join
)
def test_help_and_list_load_nothing_heavy(words):
    assert loaded(command(*words)) == []


def test_import_zoo_loads_nothing_and_its_wings_no_more_than_they_need():
    assert loaded("import zoo") == []
    wings = "import guides, zoo.alignment, zoo.diagnostics, zoo.export, zoo.factors, zoo.infer, zoo.models"
    assert not {"sklearn", "pandas", "xarray", "arviz", "matplotlib"} & set(loaded(wings))


def test_public_names_are_the_same_for_the_interpreter_and_for_type_checkers():
    seen = {}
    tree = ast.parse(Path(zoo.__file__).read_text(encoding="utf-8"))
    for block in (node for node in tree.body if isinstance(node, ast.If)):
        for node in block.body:
            assert isinstance(node, ast.ImportFrom)
            seen |= {alias.name: node.module for alias in node.names if node.module != "zoo"}
            for alias in node.names:
                assert getattr(zoo, alias.name) is not None
    assert seen == zoo._ORIGIN
    assert {*seen, "data"} == set(zoo.__all__)
    assert set(zoo.__all__) | set(zoo._WINGS) <= set(dir(zoo))
    folders = {path.parent.name for path in Path(zoo.__file__).parent.glob("*/__init__.py")}
    assert set(zoo._WINGS) == folders - {"commands"}
    with pytest.raises(AttributeError, match="'zoo' has no attribute 'fitt'"):
        _ = zoo.fitt
