"""Several runs of one model as the chains of one export."""

import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import guides
import zoo
from zoo.alignment.symmetry import Alignment
from zoo.compat import container
from zoo.export import to_arviz
from zoo.infer.fitting import Fit


def wrapped(model, guide) -> Fit:
    return Fit(model, guide)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return zoo.data.load("iris").x.double()[::3]


@pytest.fixture(scope="module")
def seeds(x):
    """Factor analysis at its optimum, from two starts."""
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = zoo.FactorAnalysis(4, 1).double()
        found.append(zoo.fit(model, guides.Exact(model), x, seed=seed, progress=False))
    return found


def turned(model, change):
    other = change.apply(model)
    return wrapped(other, guides.Exact(other))


@pytest.fixture(scope="module")
def rotated(x):
    """A model, and the same with its two factors turned and one mirrored."""
    model = zoo.PPCA(4, 2).double()
    zoo.em(model, x, steps=20)
    cosine, sine = torch.tensor([0.8, 0.6], dtype=torch.float64)
    rotation = torch.stack([torch.stack([cosine, sine]), torch.stack([sine, -cosine])])
    return wrapped(model, guides.Exact(model)), turned(model, Alignment(rotation=rotation))


def test_the_first_chain_is_the_run_alone(seeds, x):
    alone, together = to_arviz(seeds[0], x, draws=30), to_arviz(seeds, x, draws=30)
    for group in ("posterior", "posterior_predictive", "prior", "prior_predictive", "sample_stats"):
        for name in alone[group].data_vars:
            value = together[group][name]
            assert value.sizes["chain"] == 2
            np.testing.assert_array_equal(value.values[:1], alone[group][name].values)
            assert (value.values[0] != value.values[1]).any()
    log_marginal = together["constant_data"]["log_marginal"]
    assert log_marginal.dims == ("chain", "row")
    np.testing.assert_array_equal(log_marginal.values[0], alone["constant_data"]["log_marginal"].values)
    np.testing.assert_array_equal(together["observed_data"]["x"].values, x.numpy())
    assert together["sample_stats"]["khat"].dims == ("chain", "row")
    assert list(together["posterior"]["chain"].values) == [0, 1]
    settings = json.loads(together.attrs["settings"])
    assert [each["fit"]["seed"] for each in settings] == [0, 1]


def test_seeds_at_one_optimum_agree(seeds, x):
    draws = 400
    idata = to_arviz(seeds, x, draws=draws)
    weight = idata["constant_data"]["weight"]
    assert weight.dims == ("chain", "column", "factor")
    # L-BFGS stops when the bound, flat at its top, rises by less than 1e-9: parameters agree to its root
    np.testing.assert_allclose(weight.values[0], weight.values[1], rtol=0, atol=1e-3)
    z = idata["posterior"]["z"].values[..., 0]
    error = np.abs(z[0].mean(0) - z[1].mean(0)) / (z.std((0, 1)) * np.sqrt(2 / draws))
    assert error.max() < 5
    az = container.load()
    summary = az.summary(idata, var_names=["z"], round_to="none")
    assert summary["r_hat"].max() < 1.05
    assert "R-hat compares the runs" in idata["posterior"].attrs["note"]
    assert "aligned to chain 0" in idata["posterior"].attrs["alignment"]
    assert "aligned to chain 0" in idata["constant_data"].attrs["alignment"]


def test_rotations_are_undone(rotated, x):
    idata = to_arviz(rotated, x, draws=40)
    weight = idata["constant_data"]["weight"].values
    assert np.abs(rotated[1].model.weight.detach().numpy() - weight[0]).max() > 0.1
    np.testing.assert_allclose(weight[0], weight[1], rtol=0, atol=1e-8)
    # draws and parameters of chain 1, both turned, are still those of which the densities were taken
    for group, data in (("posterior", x.numpy()), ("prior", idata["prior_predictive"]["x"].values[1])):
        z = idata[group]["z"].values[1]
        mean = z @ weight[1].T + idata["constant_data"]["mean"].values[1]
        scale = np.sqrt(idata["constant_data"]["noise"].values[1])
        residual = (data - mean) / scale
        if group == "posterior":
            expected = -0.5 * ((residual**2 + np.log(2 * np.pi) + 2 * np.log(scale)).sum(-1))
            expected -= 0.5 * ((z**2 + np.log(2 * np.pi)).sum(-1))
            assert np.abs(idata["sample_stats"]["lp"].values[1] - expected).max() < 1e-8
        else:
            assert abs(residual.var() - 1) < 5 * np.sqrt(2 / residual.size)


def test_components_are_renumbered(x):
    model = zoo.GMM(4, 3).double()
    zoo.em(model, x, steps=20)
    other = turned(model, Alignment(order=torch.tensor([2, 0, 1])))
    draws = 500
    idata = to_arviz([wrapped(model, guides.Exact(model)), other], x, draws=draws)
    for name in ("weight", "mean", "scale"):
        value = idata["constant_data"][name]
        assert value.dims[:2] == ("chain", "component")
        np.testing.assert_allclose(value.values[0], value.values[1], rtol=0, atol=1e-8)
    labels = idata["posterior"]["component"].values
    expected = model.posterior(x).probs.detach().numpy()
    for chain in labels:
        share = np.stack([(chain == k).mean(0) for k in range(3)], -1)
        assert np.abs(share - expected).max() < 5 * 0.5 / np.sqrt(draws)
    assert "numbers of the components" in idata["posterior"].attrs["alignment"]


def test_a_network_is_taken_as_it_is(x):
    runs = []
    for seed in range(2):
        model = zoo.VAE(4, 2, hidden=(4,)).double()
        guide = guides.Amortized(model, x, hidden=(4,))
        runs.append(zoo.fit(model, guide, x, steps=3, seed=seed, progress=False))
    idata = to_arviz(runs, x, draws=30)
    assert idata["posterior"]["z"].sizes["chain"] == 2
    assert idata["posterior"].attrs["alignment"].startswith("none: zoo.alignment does not know the symmetries of VAE")
    first = to_arviz(runs[1:], x, draws=30)  # a list of one is a run
    assert "alignment" not in first["posterior"].attrs


def test_functions_as_models(x):
    def model(x=None, index=None, size=None):
        scale = pyro.param("noise_scale", torch.tensor(1.0).double(), constraint=dist.constraints.positive)
        with pyro.plate("rows", size or len(x), subsample=index, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(4).double(), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    runs = [zoo.fit(model, AutoNormal(model), x, steps=4 + seed, seed=seed, progress=False) for seed in range(2)]
    idata = to_arviz(runs, x, draws=5)
    scale = idata["constant_data"]["noise_scale"]
    assert scale.dims == ("chain",)
    assert scale.values[0] != scale.values[1]


def test_refusals(seeds, x):
    model = seeds[0].model
    with pytest.raises(ValueError, match="runs is empty"):
        to_arviz([], x)
    with pytest.raises(ValueError, match="runs 0 and 1 hold the same model"):
        to_arviz([seeds[0], wrapped(model, guides.MeanField(model, x))], x)
    with pytest.raises(ValueError, match="runs 0 and 2 hold the same model"):
        to_arviz([*seeds, seeds[0]], x)
    other = zoo.FactorAnalysis(4, 1).double()
    with pytest.raises(ValueError, match="run 1 has the guide MeanField, run 0 Exact"):
        to_arviz([seeds[0], wrapped(other, guides.MeanField(other, x))], x)
    other = zoo.PPCA(4, 1).double()
    with pytest.raises(ValueError, match="run 1 has the model PPCA, run 0 FactorAnalysis"):
        to_arviz([seeds[0], wrapped(other, guides.Exact(other))], x)
    other = zoo.FactorAnalysis(4, 2).double()
    with pytest.raises(ValueError, match="run 1 and run 0 differ in the shapes"):
        to_arviz([seeds[0], wrapped(other, guides.Exact(other))], x)
