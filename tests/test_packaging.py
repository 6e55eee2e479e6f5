"""The version, the licences and the entry points that a user meets before anything else."""

import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

import zoo

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("words", [("-m", "zoo"), ("-c", "from zoo.commands.main import app; app()")])
def test_version_is_shown(words):
    done = subprocess.run([sys.executable, *words, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"zoo {zoo.__version__}\n"


def test_installed_version_is_that_of_the_code():
    assert metadata("latent-zoo")["Version"] == zoo.__version__
    assert f"\nversion: {zoo.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_every_shipped_table_states_its_licence():
    for file in PROJECT["license-files"]:
        assert (ROOT / file).is_file(), file
    notices = (ROOT / "zoo" / "data" / "tables" / "README.md").read_text(encoding="utf-8")
    shipped = sorted((ROOT / "zoo" / "data" / "tables").glob("*.csv"))
    assert shipped
    for table in shipped:
        assert f"| `{table.name}` |" in notices, (
            f"{table.name}: state its origin and licence in zoo/data/tables/README.md"
        )
