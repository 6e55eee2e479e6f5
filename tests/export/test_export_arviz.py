"""ArviZ's own functions on the exports of all models: of the installed ArviZ, and of 1.x in another interpreter."""

import json
import os
import subprocess
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import guides
import zoo
from zoo.compat import container
from zoo.export import elpd, to_arviz, write_arviz
from zoo.posterior.psis import psis_khat

MODELS = ("PPCA", "FactorAnalysis", "GMM", "VAE")
old = pytest.mark.skipif(container.major() >= 1, reason="the calls of ArviZ 0.x; the script below has those of 1.x")
pytestmark = [
    # What ArviZ 0.23 does to the matplotlib, pandas and numpy of today:
    pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # R-hat of a label that never moves
]


def build(name, x):
    if name == "VAE":
        model = zoo.VAE(2, 1, hidden=(4,)).double()
        return model, guides.Amortized(model, x, hidden=(4,))
    # three components overlap: labels that never move have no density that ArviZ 1.x could plot
    model = zoo.GMM(2, 3, "tied").double() if name == "GMM" else getattr(zoo, name)(2, 1).double()
    return model, guides.MeanField(model, x)


@pytest.fixture(scope="module")
def rows(faithful) -> tuple[torch.Tensor, torch.Tensor]:
    """Training rows (34, 2) and as many held out."""
    scaled = (faithful - faithful.mean(0)) / faithful.std(0)
    return scaled[::8], scaled[4::8]


@pytest.fixture(scope="module")
def runs(rows):
    found = {}
    for name in MODELS:
        torch.manual_seed(0)
        found[name] = []
        for seed in range(2):
            model, guide = build(name, rows[0])
            found[name].append(zoo.fit(model, guide, rows[0], steps=20, seed=seed, progress=False))
    return found


@pytest.fixture(scope="module")
def exports(runs, rows):
    return {
        name: (to_arviz(each[0], rows[0], draws=60), to_arviz(each, rows[0], draws=60)) for name, each in runs.items()
    }


def shared(scale):
    """A model whose one parameter has a posterior, so that leaving one row out means something."""

    def model(x=None, index=None, size=None):
        centre = pyro.sample("centre", dist.Normal(torch.zeros(2).double(), 3.0).to_event(1))
        with pyro.plate("rows", size or len(x), subsample=index, dim=-1):
            return pyro.sample("x", dist.Normal(centre, scale).to_event(1), obs=x)

    return model


@pytest.fixture(scope="module")
def bayesian(rows):
    found = {}
    for name, scale in (("right", 1.0), ("wide", 3.0)):
        model = shared(scale)
        run = zoo.fit(model, AutoNormal(model), rows[0], steps=100, progress=False)
        found[name] = to_arviz(run, rows[0], draws=1000)
    return found


@pytest.fixture
def az():
    backend = matplotlib.get_backend()
    plt.switch_backend("agg")
    yield container.load()
    plt.close("all")
    plt.switch_backend(backend)


def site(idata):
    """The latent site, and the two rows in which it varies most."""
    name = next(iter(idata["posterior"].data_vars))
    spread = idata["posterior"][name].var(("chain", "draw"))
    spread = spread.max([dim for dim in spread.dims if dim != "row"])
    rows = spread.argsort().values[-2:].tolist()
    assert (spread.values[rows] > 0).all()
    return name, rows


@old
@pytest.mark.parametrize("chains", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_plots_and_summaries(name, chains, exports, az):
    idata = exports[name][chains - 1]
    latent, found = site(idata)
    one, two = {"row": found[:1]}, {"row": found}
    assert len(az.summary(idata, var_names=[latent])) == 34
    assert len(az.summary(idata, group="sample_stats", kind="stats")) == 3 * 34
    assert len(az.summary(idata, group="prior", kind="stats")) == 34
    for axes in (
        az.plot_posterior(idata, var_names=[latent], coords=one),
        az.plot_forest(idata, var_names=[latent], coords=two),
        az.plot_ppc(idata, num_pp_samples=5, random_seed=0),
        az.plot_ppc(idata, group="prior", num_pp_samples=5, random_seed=0),
        az.plot_pair(idata, var_names=[latent], coords=two),
        az.plot_trace(idata, var_names=[latent], coords=one),
        az.plot_dist_comparison(idata, var_names=[latent], coords=one),
    ):
        assert all(ax.has_data() for ax in np.ravel(axes) if ax is not None and ax.get_visible())
        plt.close("all")
    flat = az.extract(idata, group="sample_stats")
    assert flat["log_weight"].dims == ("row", "sample")
    assert idata["sample_stats"]["khat"].dims == (("row",) if chains == 1 else ("chain", "row"))


@pytest.mark.parametrize("name", MODELS)
def test_loo_refuses_point_estimates(name, exports, az):
    for idata in exports[name]:
        with pytest.raises(TypeError, match="log likelihood not found"):
            az.loo(idata)
        assert "held-out" in idata["posterior"].attrs["log_likelihood"]


@old
def test_compare_by_held_out_rows(runs, rows, az):
    held_out = {n: zoo.evaluate(r[0], rows[1]).log_marginal for n, r in runs.items() if n == "VAE"}
    held_out |= {n: r[0].model.log_marginal(rows[1]).detach() for n, r in runs.items() if n != "VAE"}
    table = az.compare({name: elpd(values) for name, values in held_out.items()})
    assert set(table.index) == set(MODELS)
    assert table["elpd_loo"].is_monotonic_decreasing
    for name, values in held_out.items():
        assert abs(table.loc[name, "elpd_loo"] - values.sum().item()) < 1e-8
    best, other = table.index[0], table.index[-1]
    difference = (held_out[best] - held_out[other]).numpy()
    assert abs(table.loc[other, "elpd_diff"] - difference.sum()) < 1e-8
    assert abs(table.loc[other, "dse"] - difference.std() * 34**0.5) < 1e-8
    az.plot_compare(table)


@old
def test_compare_where_leaving_out_means_something(bayesian, az):
    table = az.compare(bayesian)
    assert list(table.index) == ["right", "wide"]
    assert not table["warning"].any()


SCRIPT = """
import importlib.util, json, sys, warnings
from pathlib import Path
import arviz as az, numpy as np
folder, home = Path(sys.argv[1]), sys.argv[2]
assert int(az.__version__.split(".")[0]) >= 1, az.__version__
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)  # R-hat of a label that never moves
spec = importlib.util.spec_from_file_location("container", home)
container = importlib.util.module_from_spec(spec)
spec.loader.exec_module(container)
known = json.loads((folder / "known.json").read_text())
done = []


def drawn(plot):
    return sum(len(node.data_vars) for node in plot.viz.subtree) > 0


for path in sorted(folder.glob("*.nc")):
    data = az.from_netcdf(str(path))
    latent, rows = known["sites"].get(path.stem, ("centre", None))
    one, two = ({}, {}) if rows is None else ({"row": rows[:1]}, {"row": rows})
    options = {"var_names": [latent], "backend": "none"}
    assert len(az.summary(data, var_names=[latent])) == (2 if rows is None else 34)
    assert len(az.summary(data, var_names=[latent], group="prior", kind="stats")) == (2 if rows is None else 34)
    assert drawn(az.plot_dist(data, coords=one, **options))
    assert drawn(az.plot_forest(data, coords=two, **options))
    assert drawn(az.plot_ppc_dist(data, backend="none"))
    assert drawn(az.plot_ppc_dist(data, group="prior_predictive", backend="none"))
    assert drawn(az.plot_pair(data, coords=two, **options))
    assert drawn(az.plot_trace_dist(data, coords=one, **options))
    assert drawn(az.plot_prior_posterior(data, coords=one, **options))
    if rows is not None:
        assert len(az.summary(data, group="sample_stats", kind="stats")) == 3 * 34
        assert az.extract(data, group="sample_stats")["log_weight"].dims == ("row", "sample")
        flat = data["sample_stats"]["log_weight"].isel(chain=0).values.T
        tail = np.isfinite(known["khat"][path.stem])
        if tail.any():
            khat = container.smooth(flat[tail])[1]
            assert np.abs(khat - np.array(known["khat"][path.stem])[tail]).max() < 1e-6
    done.append(path.stem)
table = az.compare({name: az.from_netcdf(str(folder / f"{name}.nc")) for name in ("right", "wide")})
assert list(table.index) == ["right", "wide"]
held_out = {name: container.elpd_data(np.array(values)) for name, values in known["held_out"].items()}
table = az.compare(held_out, round_to="none")
for name, values in known["held_out"].items():
    assert abs(table.loc[name, "elpd"] - sum(values)) < 1e-8
    assert name in repr(table)
assert str(held_out["PPCA"])
for name in ("PPCA-1", "VAE-2"):
    try:
        az.loo(az.from_netcdf(str(folder / f"{name}.nc")))
    except TypeError as error:
        assert "log likelihood not found" in str(error), error
    else:
        raise AssertionError("az.loo took point estimates")
print(az.__version__, *done)
"""


def test_arviz_1_opens_the_files(runs, exports, bayesian, rows, tmp_path):
    """Set LATENT_ZOO_ARVIZ1 to a Python that has ArviZ 1.x and h5netcdf; it needs neither torch nor this package."""
    python = os.environ.get("LATENT_ZOO_ARVIZ1")
    if not python:
        pytest.skip("LATENT_ZOO_ARVIZ1 names no Python with ArviZ 1.x")
    sites, khat = {}, {}
    for name, (one, two) in exports.items():
        for chains, idata in enumerate((one, two), 1):
            stem = f"{name}-{chains}"
            path = tmp_path / f"{stem}.nc"
            if chains == 1:
                idata.to_netcdf(str(path))
            else:
                write_arviz(runs[name], rows[0], path, draws=60)
            sites[stem] = site(idata)
            weights = torch.as_tensor(idata["sample_stats"]["log_weight"].values[0])
            khat[stem] = psis_khat(weights).tolist()
    for name, idata in bayesian.items():
        idata.to_netcdf(str(tmp_path / f"{name}.nc"))
    held_out = {n: runs[n][0].model.log_marginal(rows[1]).tolist() for n in MODELS if n != "VAE"}
    known = {"sites": sites, "khat": khat, "held_out": held_out}
    (tmp_path / "known.json").write_text(json.dumps(known))
    home = Path(container.__file__)
    done = subprocess.run([python, "-c", SCRIPT, str(tmp_path), str(home)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1 + 2 * len(MODELS) + 2
