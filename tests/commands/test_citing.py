"""``zoo cite``: BibTeX of the package, of names and of saved runs."""

import re

import pytest
from typer.testing import CliRunner

from zoo.citation.bibtex import parse
from zoo.commands.main import app

runner = CliRunner()


def cited(*words):
    """The keys of the BibTeX that the command prints."""
    answer = runner.invoke(app, ["cite", *map(str, words)])
    assert answer.exit_code == 0, answer.output
    return [entry.key for entry in parse(answer.stdout, "stdout")]


def test_names_are_cited_once_after_the_package():
    found = cited("FactorAnalysis", "MeanField", "iwae", "FactorAnalysis")
    assert found[:4] == ["latentzoo", "bingham2019pyro", "rubin1982em", "zhao2008ml"]
    assert found[-3:] == ["burda2016importance", "tucker2019doubly", "rainforth2018tighter"]


def test_one_line_each():
    lines = runner.invoke(app, ["cite", "PPCA", "--text"]).stdout.splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("M. E. Tipping and C. M. Bishop (1999). Probabilistic principal component analysis.")


def test_without_names_it_lists_what_can_be_cited():
    answer = runner.invoke(app, ["cite"], env={"COLUMNS": "200"})
    assert answer.exit_code == 0
    for name in ("FactorAnalysis", "SemiAmortized", "QuadratureELBO", "frey_faces"):
        assert name in answer.output


def test_a_run_is_cited_with_its_model_guide_loss_and_data(tmp_path):
    for model, guide, data, expected in (
        ("PPCA", ["--guide", "MeanField"], "iris", cited("PPCA", "MeanField", "ProjectedELBO", "LBFGS", "iris")),
        ("BayesianPCA", [], "faithful", cited("BayesianPCA", "cavi", "faithful")),
    ):
        place = tmp_path / model
        words = ["fit", model, data, "-k", "1", *guide, "--steps", "3", "--quiet", "--arviz", "none"]
        assert runner.invoke(app, [*words, "--out", str(place)]).exit_code == 0
        assert set(cited(place)) == set(expected)
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n3,5\n4,4\n")
    words = ["fit", "PPCA", str(tmp_path / "rows.csv"), "-k", "1", "--quiet", "--arviz", "none"]
    assert runner.invoke(app, [*words, "--out", str(tmp_path / "own")]).exit_code == 0
    assert "\n\n% rows.csv: your data\n" in runner.invoke(app, ["cite", str(tmp_path / "own")]).stdout


OWN = """
import zoo

class Mine(zoo.PPCA):
    citation = "@article{meier2030, author = {Meier, Anna}, title = {Mine}, journal = {A Journal}, year = {2030}}"

def build(data_dim, latent_dim):
    return zoo.PPCA(data_dim, latent_dim)
"""


def test_classes_of_ones_own_and_their_runs(tmp_path):
    file, place = tmp_path / "own.py", tmp_path / "run"
    file.write_text(OWN)
    assert cited(f"{file}:Mine")[2:] == ["meier2030", *cited("PPCA")[2:]]
    assert "% build: your function, from own.py" in runner.invoke(app, ["cite", f"{file}:build"]).stdout
    words = [
        "fit",
        f"{file}:Mine",
        "iris",
        "-k",
        "1",
        "--steps",
        "3",
        "--quiet",
        "--arviz",
        "none",
        "--out",
        str(place),
    ]
    assert runner.invoke(app, words).exit_code == 0
    assert "% Mine: your model, from own.py" in runner.invoke(app, ["cite", str(place)]).stdout
    both = runner.invoke(app, ["cite", str(place), f"{file}:Mine"]).stdout
    assert "% Mine\n@article{meier2030," in both
    assert "your model" not in both


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("factoranalisis", "nothing to cite by the name 'factoranalisis': did you mean 'FactorAnalysis'?"),
        ("nowhere.py:Mine", "nowhere.py does not exist"),
        ("runs/nowhere", "runs/nowhere holds no run: name a folder that zoo fit --out or Fit.save wrote"),
    ],
)
def test_what_cannot_be_cited(word, message):
    answer = runner.invoke(app, ["cite", word])
    assert answer.exit_code == 2
    assert message in re.sub(r"\s+", " ", answer.output)
