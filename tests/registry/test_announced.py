"""Models and guides of installed packages, by a distribution that stands on ``sys.path`` for the test."""

import sys

import pytest
from typer.testing import CliRunner

import zoo
from zoo.commands.console import out
from zoo.commands.main import app
from zoo.registry.announced import announced
from zoo.registry.finding import find_guide, find_model, named
from zoo.registry.making import model_maker

POINTS = """
[latent_zoo.models]
Sparse = zoo_demo_package.models:Sparse
Gone = zoo_demo_package.gone:Gone
Raising = zoo_demo_package.raising:Mine
Nameless = zoo_demo_package.models:Nameless
Formless = zoo_demo_package.models
ppca = zoo_demo_package.models:Sparse

[latent_zoo.guides]
Tails = zoo_demo_package.models:Tails
"""
MODULES = {
    "__init__": "",
    "models": "import guides, zoo\n\nclass Sparse(zoo.PPCA): ...\n\nclass Tails(guides.MeanField): ...\n",
    "raising": "x = {}['a']\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that announces a model and a guide, and what is broken in every way."""
    (tmp_path / "zoo_demo_package").mkdir()
    for name, code in MODULES.items():
        (tmp_path / "zoo_demo_package" / f"{name}.py").write_text(code, encoding="utf-8")
    distribution(tmp_path, "zoo-demo", POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("zoo_demo_package")]:
        del sys.modules[name]


def distribution(folder, name, points):
    place = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n", encoding="utf-8")
    (place / "entry_points.txt").write_text(points, encoding="utf-8")


def listed():
    before, out.width = out.width, 200
    try:
        result = CliRunner().invoke(app, ["list"], env={"COLUMNS": "200"})
    finally:
        out.width = before
    assert result.exit_code == 0, result.output
    return result.output


def test_the_list_shows_where_each_comes_from_and_imports_none(package):
    assert f"models and their guides in Latent Zoo {zoo.__version__}" in listed()
    lines = {line.split()[1]: " ".join(line.split()) for line in listed().splitlines() if "zoo-demo 1.2" in line}
    assert lines.keys() == {"Sparse", "Gone", "Raising", "Nameless", "Formless", "ppca", "Tails"}
    assert lines["Sparse"] == "│ Sparse │ model │ zoo-demo 1.2 │ zoo_demo_package.models:Sparse │ │"
    assert "│ guide │" in lines["Tails"]
    assert "broken: there is no module zoo_demo_package.gone" in lines["Gone"]
    assert "broken: not of the form package.module:Name" in lines["Formless"]
    assert "Latent Zoo has one of this name: write zoo_demo_package.models:Sparse" in lines["ppca"]
    assert not any(name.startswith("zoo_demo_package") for name in sys.modules)


def test_without_any_the_list_says_so(monkeypatch):
    monkeypatch.setattr("zoo.commands.listing.announced", list)
    assert "No installed package announces others (entry points latent_zoo.models and latent_zoo.guides)." in listed()


def test_announced_classes_are_found_by_name(package):
    made = find_model("sparse")
    assert made.__module__ == "zoo_demo_package.models"
    assert named("sparse", "model").origin == "Sparse"
    assert type(model_maker("Sparse", {"latent_dim": 1})(3)) is made
    assert find_guide("tails").__name__ == "Tails"
    assert find_model("ppca") is zoo.PPCA  # a built-in name is not taken over
    with pytest.raises(ValueError, match="unknown model 'tails'"):
        find_model("tails")
    with pytest.raises(ValueError, match="did you mean 'Sparse'"):
        find_model("spars")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Gone", "there is no module zoo_demo_package.gone"),
        ("Raising", r"zoo_demo_package.raising raises KeyError: 'a' .line 1 of .*raising.py"),
        ("Nameless", "zoo_demo_package.models has no 'Nameless': it defines Sparse, Tails"),
        ("Formless", "not of the form package.module:Name"),
    ],
)
def test_broken_ones_are_refused_with_the_reason(name, words, package):
    with pytest.raises(ImportError, match=f"the entry point {name} of zoo-demo 1.2 is broken: {words}"):
        find_model(name)


def test_two_packages_of_one_name(package):
    distribution(package, "zoo-rival", "[latent_zoo.models]\nsparse = zoo_demo_package.models:Sparse\n")
    assert "announced more than once: write zoo_demo_package.models:Sparse" in listed()
    with pytest.raises(ValueError, match=r"several packages announce the model 'Sparse': name one of .*zoo-rival 1.2"):
        find_model("Sparse")


def test_malformed_metadata_break_nothing(package):
    distribution(package, "zoo-odd", "[latent_zoo.models]\nno equals sign\n")
    odd = [each for each in announced() if each.distribution == "zoo-odd 1.2"]
    assert all(each.broken is not None for each in odd)
    assert "Sparse" in listed()
