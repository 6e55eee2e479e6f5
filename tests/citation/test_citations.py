"""What is cited for names, objects, runs and classes of one's own."""

import json
import subprocess
import sys
from pathlib import Path

import pyro.infer
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import guides
import zoo
import zoo.estimators
import zoo.infer
import zoo.models
from zoo.base.module import Module
from zoo.citation import Entry, citable, citations
from zoo.citation.lookup import known

OWN = """@article{meier2030, author = {Meier, Anna}, title = {My model}, journal = {A Journal}, year = {2030}}"""


class Published(nn.Module):
    citation = OWN

    def forward(self, x=None, index=None, size=None): ...


class Unpublished(nn.Module):
    def forward(self, x=None, index=None, size=None): ...


class BetterPPCA(zoo.PPCA):
    """A model that inherits from one of ours."""


def classes(package, base):
    found = (getattr(package, name) for name in package.__all__)
    return [each for each in found if isinstance(each, type) and issubclass(each, base)]


def keys(*things):
    return [entry.key for entry in citations(*things)]


@pytest.mark.parametrize(
    "cls",
    [
        *classes(zoo.models, Module),
        *classes(guides, Module),
        *classes(zoo.infer, pyro.infer.ELBO),
        *classes(zoo.estimators, object),
    ],
    ids=lambda cls: f"{cls.__module__.split('.')[0]}-{cls.__name__}",
)
def test_every_public_model_guide_loss_and_estimator_has_a_reference(cls):
    found = citations(cls)
    assert found
    assert all(entry.bibtex for entry in found)
    assert found == citations(cls.__name__)


def test_every_data_set_has_a_reference():
    assert citable()["data set"] == zoo.data.names()
    assert all(known(name) for name in zoo.data.names())


def test_names_may_be_written_in_any_way():
    for written in ("FactorAnalysis", "factor-analysis", "factor_analysis", "FACTORANALYSIS"):
        assert keys(written) == ["rubin1982em", "zhao2008ml"]
    assert keys("IWAE-50") == keys("iwae")
    assert keys("burda2016importance") == ["burda2016importance"]


@pytest.mark.parametrize(
    ("wrong", "hint"), [("FactorAnalysi", "did you mean 'FactorAnalysis'"), ("xyzzy", "zoo cite, or zoo.citation")]
)
def test_unknown_names_suggest_the_nearest(wrong, hint):
    with pytest.raises(ValueError, match=f"nothing to cite by the name '{wrong}': {hint}"):
        citations(wrong)


def test_references_come_once_with_all_that_they_are_for():
    found = citations("BayesianPCA", "BayesianFactorAnalysis")
    both = next(entry for entry in found if entry.key == "luttinen2010transformations")
    assert both.of == ("BayesianPCA", "BayesianFactorAnalysis")
    assert len({entry.key for entry in found}) == len(found)


def test_names_need_no_torch():
    code = (
        "import sys; from zoo.citation import citations; citations('VAE', 'mnist'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(zoo.__file__).parents[1])


def test_a_run_stands_for_model_guide_and_loss(iris, tmp_path):
    model = zoo.PPCA(4, 2).double()
    run = zoo.em(model, iris)
    assert keys(run) == keys("PPCA", "Exact", "em")
    run.save(tmp_path / "run")
    assert keys(tmp_path / "run") == keys(run)


def test_parts_of_pyro_are_cited_with_pyro():
    assert keys(pyro.infer.Trace_ELBO()) == ["ranganath2014black", "kingma2014auto", "bingham2019pyro"]
    assert keys(AutoNormal) == ["kucukelbir2017automatic", "bingham2019pyro"]
    assert keys(pyro.infer.autoguide.AutoDelta) == ["bingham2019pyro"]
    assert keys(torch.optim.Adam) == ["kingma2015adam", "paszke2019pytorch"]


def test_likelihoods_have_references_of_their_own():
    plain = keys(zoo.VAE(3, 1, hidden=()))
    assert keys(zoo.VAE(3, 1, hidden=(), likelihood="student_t")) == [*plain, "lange1989robust"]
    mixed = zoo.VAE(3, 1, hidden=(), likelihood=["gaussian", "student_t", "bernoulli"])
    assert keys(mixed) == [*plain, "nazabal2020handling", "lange1989robust"]


def test_data_sets_and_tables_of_ones_own(tmp_path):
    assert keys(zoo.data.load("iris")) == keys("iris")
    file = tmp_path / "iris.csv"  # the name alone does not make it Fisher's
    file.write_text("a,b\n1,2\n3,4\n")
    assert citations(zoo.data.load(file)) == [Entry("iris.csv", "", "iris.csv: your data", ("iris.csv",))]


def test_a_class_of_ones_own_is_cited_as_what_it_is():
    text = "Unpublished: your class, from test_citations.py"
    assert citations(Unpublished()) == citations(Unpublished) == [Entry("Unpublished", "", text, ("Unpublished",))]

    def guide(x=None, index=None, size=None): ...

    assert [entry.text for entry in citations(guide)] == ["guide: your function, from test_citations.py"]


def test_a_class_may_carry_its_reference():
    [entry] = citations(Published())
    assert (entry.key, entry.of) == ("meier2030", ("Published",))
    assert entry.text == "A. Meier (2030). My model. A Journal."


def test_a_class_that_inherits_is_cited_with_what_it_inherits_from():
    class Loss(pyro.infer.Trace_ELBO): ...

    class Variant(Published): ...

    assert keys(BetterPPCA(3, 1)) == ["BetterPPCA", *keys("PPCA")]
    assert keys(Loss()) == ["Loss", *keys("Trace_ELBO")]
    assert keys(Variant) == ["Variant", "meier2030"]


def test_what_is_ours_without_a_reference_is_the_package():
    assert keys(zoo.evaluate) == keys("latent-zoo")
    assert keys(zoo.em) == keys("em")
    assert keys(zoo.estimators.GaussianMixture()) == keys("GMM")


def test_the_reference_of_a_class_stands_for_its_name(iris, tmp_path):
    zoo.Fit(Published(), Published()).save(tmp_path / "run")
    assert keys(tmp_path / "run") == ["Published"]
    assert keys(tmp_path / "run", Published) == ["meier2030"]


@pytest.mark.parametrize("wrong", ["", "Meier (2030)", "@article{meier2030, title = {My model}}"])
def test_a_reference_that_is_no_bibtex(wrong):
    class Own(nn.Module):
        citation = wrong

    with pytest.raises(ValueError, match="^citation of Own"):
        citations(Own)


@pytest.mark.parametrize("thing", [3, ["PPCA"], None, len])
def test_what_has_nothing_to_cite(thing):
    with pytest.raises(TypeError, match="cannot cite .*: pass a name, a model"):
        citations(thing)


@pytest.mark.parametrize(
    ("origin", "where"),
    [
        (None, "your model, from mine.deep"),
        ({"name": "/home/me/own.py:Mine"}, "your model, from own.py"),
        ({"name": "mine.deep:Mine"}, "your model, from mine.deep"),
        ({"name": "Mine"}, "a model of the package mine"),
    ],
)
def test_where_a_saved_class_comes_from(tmp_path, origin, where):
    model = {"class": "mine.deep:Mine", "settings": None} | ({} if origin is None else {"origin": origin})
    record = {"model": model, "guide": {"class": "guides.exact:Exact", "settings": {}}, "training": None}
    (tmp_path / "settings.json").write_text(json.dumps(record))
    assert citations(tmp_path)[0].text == f"Mine: {where}"
    assert keys(tmp_path)[1:] == keys("Exact")


def test_saved_runs_of_ones_own_classes(iris, tmp_path):
    zoo.Fit(Unpublished(), Published()).save(tmp_path / "run")
    texts = [entry.text for entry in citations(tmp_path / "run")]
    assert texts[0] == f"Unpublished: your model, from {Unpublished.__module__}"
    with pytest.raises(FileNotFoundError, match="holds no run"):
        citations(tmp_path)
    (tmp_path / "run" / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        citations(tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match=r"settings\.json is damaged: KeyError\('model'\)"):
        citations(tmp_path / "run")
