"""Every public function that reads a pair: dropout off, batch normalisation frozen, and all modules as they were."""

import dataclasses
import inspect
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

import guides
import zoo
import zoo.plots
import zoo.report

WINGS = (zoo.posterior, zoo.factors, zoo.plots, zoo.export, zoo.diagnostics, zoo.alignment, zoo.report)
N, D, K = 40, 6, 2


class Rows(nn.Module):
    """A network with batch normalisation over all leading dimensions, and dropout."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.reshape(-1, x.shape[-1])).unflatten(0, x.shape[:-1])


@pytest.fixture(scope="module")
def x():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(N, K, generator=generator).double()
    weight = torch.randn(K, D, generator=generator).double()
    return z @ weight + 0.3 * torch.randn(N, D, generator=generator).double()


def shifted(*functions) -> None:
    """Statistics of batch normalisation that are not those of any batch, and one part in evaluation mode."""
    for function in functions:
        for part in function.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.running_mean.copy_(torch.linspace(-1, 1, 16))
                part.running_var.copy_(torch.linspace(0.5, 2, 16))
        function.train()
    network = next(part for part in functions[-1].modules() if isinstance(part, nn.Dropout))
    network.eval()


@pytest.fixture(scope="module")
def deep(x):
    """A VAE whose encoder and decoder have dropout and batch normalisation."""
    with zoo.base.seeded(0):
        model = zoo.VAE(D, K, decoder=Rows(K, 2 * D)).double()
        guide = guides.Amortized(model, x, network=Rows(D, 2 * K)).double()
        shifted(model, guide)
    training = zoo.infer.Training(torch.linspace(9, 3, 50).double(), True, rows=N)
    return zoo.Fit(model, guide, training)


@pytest.fixture(scope="module")
def conjugate(x):
    """A conjugate model, for what needs one, with such an encoder."""
    with zoo.base.seeded(0):
        model = zoo.PPCA(D, K).double()
        zoo.em(model, x)
        guide = guides.Amortized(model, x, network=Rows(D, 2 * K)).double()
        shifted(guide)
    return zoo.Fit(model, guide)


class SharedNoise(zoo.base.Module):
    """A decoder with dropout and batch normalisation under a noise precision that all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Rows(K, D).double()

    def forward(self, x=None, index=None, size=None):
        one = self.decoder.net[0].weight.new_ones(())
        precision = pyro.sample("precision", dist.Gamma(2.0 * one, one))
        with zoo.base.rows(x, index, size):
            z = pyro.sample("z", dist.Normal(one.new_zeros(K), one).to_event(1))  # (n, k)
            noise = dist.Normal(self.decoder(z), precision.rsqrt().unsqueeze(-1)).to_event(1)
            return pyro.sample("x", noise, obs=x)


@pytest.fixture(scope="module")
def shared(x):
    """A model with a shared site, for what needs one, with such an encoder and decoder."""
    with zoo.base.seeded(0):
        model = SharedNoise()
        guide = guides.Amortized(model, x, network=Rows(D, 2 * K)).double()
        shifted(model, guide)
    return zoo.Fit(model, guide)


@pytest.fixture(scope="module")
def bayesian(x):
    """Priors on everything, in closed form given the shared sites, with such an encoder."""
    with zoo.base.seeded(0):
        model = zoo.BayesianPCA(D, K).double()
        guide = guides.Amortized(model, x, network=Rows(D, 2 * K)).double()
        shifted(guide)
    return zoo.Fit(model, guide)


def gone(x: Tensor) -> Tensor:
    return torch.where(x > 1.0, torch.nan, x)


READING = {
    "posterior.evaluate": lambda run, x: zoo.evaluate(run, x, draws=30),
    "posterior.log_evidence_bounds": lambda run, x: zoo.log_evidence_bounds(
        run, x, draws=(30,), ais=zoo.posterior.AIS(10, chains=2)
    ),
    "posterior.gaps": lambda run, x: zoo.posterior.gaps(run, x, steps=3, draws=30),
    "posterior.rate_distortion": lambda run, x: zoo.posterior.rate_distortion(run, x),
    "factors.encode": lambda run, x: zoo.factors.encode(run, x),
    "factors.posterior_scores": lambda run, x: zoo.factors.posterior_scores(run, x),
    "factors.decode": lambda run, x: zoo.factors.decode(run, torch.ones(3, K)).mean,
    "factors.generate": lambda run, x: zoo.generate(run, 5),
    "factors.reconstruct": lambda run, x: zoo.reconstruct(run, x, draws=10),
    "factors.impute": lambda run, x: zoo.impute(run, gone(x), draws=10, weighted=True),
    "factors.traverse": lambda run, x: zoo.traverse(run, 0, x=x, rows=[0, 3]),
    "factors.interpolate": lambda run, x: zoo.factors.interpolate(run, 0, 1, x=x),
    "factors.intervene": lambda run, x: zoo.factors.intervene(run, x, {0: 1.0}),
    "factors.probe": lambda run, x: zoo.factors.probe(run, x, torch.arange(N) % 2, sizes=(4,), repeats=2),
    "plots.latent": lambda run, x: zoo.plots.latent(run, x),
    "plots.loss": lambda run, x: zoo.plots.loss(run),
    "plots.manifold": lambda run, x: zoo.plots.manifold(run, column=0, steps=3),
    "export.to_arviz": lambda run, x: zoo.to_arviz(run, x, draws=10),
    "diagnostics.conditional_density": lambda run, x: zoo.diagnostics.conditional_density(
        run, gone(x), x, draws=30, steps=3
    ),
    "diagnostics.diagnose": lambda run, x: zoo.diagnose(run, x, draws=30, simulations=20),
    "diagnostics.importance_moments": lambda run, x: zoo.importance_moments(run, x, draws=30),
    "diagnostics.nuts": lambda run, x: zoo.nuts(run, x[:3], chains=2, draws=20, warmup=20),
    "diagnostics.predictive_check": lambda run, x: zoo.predictive_check(run, x, draws=20),
    "diagnostics.sbc": lambda run, x: zoo.diagnostics.sbc(run, simulations=20),
}
CONJUGATE = {  # what needs a conjugate model, or may take a model alone
    "diagnostics.information_criteria": lambda run, x: zoo.diagnostics.information_criteria(run.model, x),
    "diagnostics.posterior_error": lambda run, x: zoo.diagnostics.posterior_error(run, x),
    "diagnostics.fit_measures": lambda run, x: zoo.diagnostics.fit_measures(run, x),
    "factors.scores": lambda run, x: zoo.factors.scores(run, x, rotation="oblimin"),
    "plots.scree": lambda run, x: zoo.plots.scree(run, x),
    "alignment.canonical_transform": lambda run, x: zoo.alignment.canonical_transform(run),
    "alignment.to_canonical": lambda run, x: zoo.evaluate(zoo.to_canonical(run), x, draws=30),
    "alignment.rotate": lambda run, x: zoo.alignment.rotate(run, "oblimin"),
    "alignment.align": lambda run, x: zoo.alignment.align(run, run),
    "alignment.covariance": lambda run, x: zoo.alignment.covariance(run),
    "alignment.posterior_difference": lambda run, x: zoo.alignment.posterior_difference(run, run, x),
    "alignment.bootstrap_loadings": lambda run, x: zoo.alignment.bootstrap_loadings(run, x, draws=40),
    "report.report": lambda run, x: reported(run, x),
}
SHARED = {  # what needs a model with a shared site
    "diagnostics.loo": lambda run, x: zoo.loo(run, x, draws=40),
}
BAYESIAN = {  # what needs one whose rows' sites integrate out given the shared ones
    "alignment.posterior_loadings": lambda run, x: zoo.alignment.posterior_loadings(run, x, draws=40),
    "diagnostics.predictive_density": lambda run, x: zoo.diagnostics.predictive_density(run, x, draws=40),
}
NOT_READING = {
    "factors.classify": "takes mixtures, which hold no networks",
    "alignment.match_components": "takes mixtures, which hold no networks",
    "alignment.principal_angles": "takes tensors",
    "alignment.procrustes": "takes tensors",
    "diagnostics.factor_retention": "takes rows",
    "diagnostics.select_size": "fits",
    "diagnostics.effective_size": "for models with relevances or components, which have no networks here",
    "diagnostics.linear_response": "for guides without networks, whose bound has no noise",
    "export.elpd": "takes numbers",
    "export.write_arviz": "writes what to_arviz gives; tests/export compares the two",
    "plots.responsibilities": "takes mixtures, which hold no networks",
    "plots.ellipses": "takes mixtures, which hold no networks",
    "plots.save": "takes axes",
    "posterior.bits_per_dimension": "takes numbers",
    "posterior.psis_khat": "takes numbers",
    "posterior.psis_weights": "takes numbers",
}
OF_RESULTS = {
    "bounds",
    "coverage",
    "gap",
    "imputation",
    "interpolation",
    "intervention",
    "khat",
    "loadings",
    "marginals",
    "predictive",
}
OF_RESULTS |= {"probe", "ranks", "reconstruction", "relevance", "row_gaps", "samples", "selection", "traversal"}


def test_every_public_function_has_an_entry():
    """A new function says here how it is called, or why it reads no pair."""
    known = {*READING, *CONJUGATE, *SHARED, *BAYESIAN, *NOT_READING, *(f"plots.{name}" for name in OF_RESULTS)}
    found = {
        f"{wing.__name__.removeprefix('zoo.')}.{name}"
        for wing in WINGS
        for name in wing.__all__
        if inspect.isfunction(getattr(wing, name))
    }
    assert found - known == set(), "functions without an entry"
    assert known - found == set(), "entries without a function"


def written(write, run, name: str = "page.html") -> bool:
    """Whether a function wrote its file or folder."""
    with tempfile.TemporaryDirectory() as folder:
        return write(run, Path(folder) / name).exists()


def reported(run, x) -> bool:
    """Whether the report was written, with few draws in its checks."""
    diagnosis = zoo.diagnose(run, x, draws=30, simulations=20)
    predictive = zoo.predictive_check(run, x, draws=20)
    return written(lambda run, path: zoo.report.report(run, x, path, diagnosis=diagnosis, predictive=predictive), run)


def state(run) -> list:
    """Parameters, buffers and modes of everything that a pair is made of."""
    parts = [part for function in (run.model, run.guide) for part in function.modules()]
    tensors = [
        tensor.detach().clone()
        for function in (run.model, run.guide)
        for tensor in (*function.parameters(), *function.buffers())
    ]
    return [[part.training for part in parts], flat(tensors)]


def flat(value) -> object:
    """A result as something that compares with ==, to the bit."""
    if isinstance(value, Tensor | np.ndarray):
        array = np.asarray(value.detach() if isinstance(value, Tensor) else value)
        return array.shape, array.tobytes() if array.dtype != object else array.tolist()
    if isinstance(value, Axes):
        page = io.BytesIO()
        value.figure.savefig(page, format="raw", dpi=50)
        return page.getvalue()
    if isinstance(value, polars.DataFrame):
        return value.to_dict(as_series=False)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [flat(getattr(value, own.name)) for own in dataclasses.fields(value)]
    if hasattr(value, "groups"):  # ArviZ's, of either generation
        groups = value.groups() if callable(value.groups) else value.groups
        return {
            group: {name: flat(one.values) for name, one in value[group].data_vars.items()} for group in sorted(groups)
        }
    if isinstance(value, Mapping):
        return {key: flat(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [flat(one) for one in value]
    return repr(value)


def leaves_no_trace(call, run, x, untouched) -> None:
    before = state(run)
    with untouched():
        first = flat(call(run, x))
        assert state(run) == before
        assert flat(call(run, x)) == first
    assert state(run) == before


@pytest.mark.parametrize("name", READING)
def test_reads_in_evaluation_mode_and_leaves_modules_as_they_were(name, deep, x, untouched):
    leaves_no_trace(READING[name], deep, x, untouched)


@pytest.mark.parametrize("name", CONJUGATE)
def test_what_needs_a_conjugate_model(name, conjugate, x, untouched):
    leaves_no_trace(CONJUGATE[name], conjugate, x, untouched)


@pytest.mark.parametrize("name", SHARED)
def test_what_needs_a_shared_site(name, shared, x, untouched):
    leaves_no_trace(SHARED[name], shared, x, untouched)


@pytest.mark.parametrize("name", BAYESIAN)
def test_what_needs_closed_forms_given_the_shared_sites(name, bayesian, x, untouched):
    leaves_no_trace(BAYESIAN[name], bayesian, x, untouched)


@pytest.mark.parametrize("name", ["deep", "shared"])
def test_methods_of_a_run_read_too(name, x, untouched, request):
    run = request.getfixturevalue(name)
    leaves_no_trace(lambda run, x: run.sample(x, 10), run, x, untouched)
    leaves_no_trace(lambda run, x: written(type(run).save, run, name="run"), run, x, untouched)
    leaves_no_trace(lambda run, x: str(zoo.plan(run.model, run.guide, x)), run, x, untouched)


def test_what_is_read_is_what_evaluation_mode_gives(deep, x):
    """One row by itself, some rows and all rows: the same numbers, and those after ``eval()`` by hand."""
    found = zoo.factors.encode(deep, x)
    torch.testing.assert_close(zoo.factors.encode(deep, x[:1]), found[:1], rtol=0, atol=1e-12)
    torch.testing.assert_close(zoo.factors.encode(deep, x[:7]), found[:7], rtol=0, atol=1e-12)
    part, all_of_them = zoo.evaluate(deep, x[:20], draws=2000), zoo.evaluate(deep, x, draws=2000)
    error = (part.elbo_se.square() + all_of_them.elbo_se[:20].square()).sqrt()
    assert ((part.elbo - all_of_them.elbo[:20]).abs() < 5 * error).all()
    modes = {part: part.training for function in (deep.model, deep.guide) for part in function.modules()}
    try:
        deep.model.eval(), deep.guide.eval()
        assert torch.equal(zoo.factors.encode(deep, x), found)
        with torch.no_grad():
            assert torch.equal(deep.guide.posterior(x).mean, found)
    finally:
        for part, training in modes.items():
            part.training = training
