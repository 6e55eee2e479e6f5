"""Exports written to a file, some rows at a time."""

import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro.infer.autoguide import AutoNormal

import guides
import zoo
from zoo.compat import container
from zoo.export import to_arviz, write_arviz
from zoo.infer.fitting import Fit
from zoo.posterior import evaluation


@pytest.fixture(autouse=True)
def few_inner_draws(monkeypatch):
    """Which numbers stand in the file is not the question here."""
    monkeypatch.setattr(evaluation, "INNER", 30)


class Both(zoo.base.Module):
    """A shared site and local ones."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = pyro.nn.PyroParam(torch.ones(()).double(), dist.constraints.positive)

    def forward(self, x=None, index=None, size=None):
        centre = pyro.sample("centre", dist.Normal(self.scale.new_zeros(4), 3.0).to_event(1))
        with zoo.base.rows(x, index, size):
            z = pyro.sample("z", dist.Normal(self.scale.new_zeros(1), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(centre + z, self.scale).to_event(1), obs=x)


def plain(x=None, index=None, size=None):
    with pyro.plate("rows", size or len(x), subsample=index, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(4).double(), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def centred(x=None, index=None, size=None):
    centre = pyro.sample("centre", dist.Normal(torch.zeros(4).double(), 3.0).to_event(1))
    with pyro.plate("rows", size or len(x), subsample=index, dim=-1):
        return pyro.sample("x", dist.Normal(centre, 1.0).to_event(1), obs=x)


def fitted(model, guide, x) -> Fit:
    return zoo.fit(model, guide, x, steps=3, progress=False)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return zoo.data.load("iris").x.double()[::6]  # 25 rows


@pytest.fixture(scope="module")
def runs(x) -> dict[str, Fit | list[Fit]]:
    def factors():
        model = zoo.FactorAnalysis(4, 2).double()
        return fitted(model, guides.FullRank(model, x), x)

    mixture, both = zoo.GMM(4, 2).double(), Both()
    return {
        "factors": factors(),
        "seeds": [factors(), factors()],
        "mixture": fitted(mixture, guides.MeanField(mixture, x), x),
        "both": fitted(both, guides.MeanField(both, x), x),
        "function": fitted(plain, AutoNormal(plain), x),
        "shared": fitted(centred, AutoNormal(centred), x),
    }


def tree(path) -> xarray.DataTree:
    with xarray.open_datatree(path, engine="zarr" if path.suffix == ".zarr" else "h5netcdf") as opened:
        return opened.load()


def groups(idata) -> list[str]:
    return [name.strip("/") for name in (idata.groups() if callable(idata.groups) else idata.groups) if name != "/"]


def assert_same(back, idata, values: bool = True) -> None:
    assert sorted(groups(back)) == sorted(groups(idata))
    bounds = {"elbo", "elbo_se", "log_marginal", "log_marginal_se", "khat"}  # numbers too
    drop = set() if values else bounds
    assert set(back.attrs) == set(idata.attrs)
    assert {k: v for k, v in back.attrs.items() if k not in drop} == {
        k: v for k, v in idata.attrs.items() if k not in drop
    }
    for group in groups(idata):
        mine, theirs = idata[group], back[group]
        assert set(mine.data_vars) == set(theirs.data_vars)
        assert set(mine.coords) == set(theirs.coords)
        assert dict(mine.sizes) == dict(theirs.sizes)
        assert {k: v for k, v in mine.attrs.items() if k not in drop} == {
            k: v for k, v in theirs.attrs.items() if k not in drop
        }
        for name in [*mine.data_vars, *mine.coords]:
            assert mine[name].dims == theirs[name].dims
            assert mine[name].dtype.kind == theirs[name].dtype.kind
            assert mine[name].attrs == theirs[name].attrs
            if values:
                np.testing.assert_array_equal(mine[name].values, theirs[name].values)


@pytest.mark.parametrize("name", ["factors", "seeds", "mixture", "both", "function", "shared"])
def test_a_file_is_what_to_arviz_returns(name, runs, x, tmp_path):
    named = {"labels": ["a", "b", "c", "d", "e"] * 5, "rows": [f"row {i}" for i in range(25)], "seed": 4}
    path = write_arviz(runs[name], x, tmp_path / "run.nc", draws=30, compact=False, **named)
    idata = to_arviz(runs[name], x, draws=30, **named)
    assert_same(tree(path), idata)
    if name == "seeds":
        assert_same(container.load().from_netcdf(str(path)), idata)
    assert [each.name for each in tmp_path.iterdir()] == ["run.nc"]


@pytest.mark.parametrize("name", ["factors", "seeds", "both", "function", "shared"])
def test_pieces_fit_together(name, runs, x, tmp_path):
    path = write_arviz(runs[name], x, tmp_path / "run.nc", draws=26, rows_at_once=10, compact=False)
    back = tree(path)
    assert_same(back, to_arviz(runs[name], x, draws=26), values=False)
    for group in ("posterior", "posterior_predictive", "prior", "prior_predictive", "sample_stats"):
        for value in back[group].data_vars.values():
            assert np.isfinite(value.values).all()
    if name in ("both", "shared"):  # sums over the rows of all pieces
        stats = back["sample_stats"]
        assert stats.attrs["elbo"] == back.attrs["elbo"] == pytest.approx(stats["log_weight"].values.mean())
        log_marginal = back["log_likelihood"]["x"].values[0].sum(-1)
        centre = torch.as_tensor(back["posterior"]["centre"].values[0])
        prior = dist.Normal(centre.new_zeros(()), 3.0).log_prob(centre).sum(-1).numpy()
        if name == "shared":
            assert np.abs(stats["lp"].values[0] - log_marginal - prior).max() < 1e-8
        else:
            assert np.isfinite(stats["khat"].values).all()
            assert (stats["log_weight_shared"].values[0] - log_marginal).std() > 0
    else:
        assert np.isfinite(back["constant_data"]["log_marginal"].values).all()
    if name in ("factors", "seeds"):  # every row's draws stand beside its own x and densities
        for chain in range(back["posterior"].sizes["chain"]):
            constant = {k: v.values for k, v in back["constant_data"].data_vars.items()}
            weight, mean, noise = (constant[k][chain] if name == "seeds" else constant[k] for k in PARAMETERS)
            z = back["posterior"]["z"].values[chain]
            residual = back["observed_data"]["x"].values - z @ weight.T - mean
            expected = -0.5 * (residual**2 / noise + np.log(2 * np.pi * noise)).sum(-1)
            expected -= 0.5 * (z**2 + np.log(2 * np.pi)).sum(-1)
            assert np.abs(back["sample_stats"]["lp"].values[chain] - expected).max() < 1e-8
    if name == "shared":  # one draw of the shared site for all rows, whatever piece they are in
        centre = torch.as_tensor(back["posterior"]["centre"].values[0])[:, None]
        expected = dist.Normal(centre, 1.0).to_event(1).log_prob(x)
        assert np.abs(back["log_likelihood"]["x"].values[0] - expected.numpy()).max() < 1e-8
        offset = back["prior_predictive"]["x"].values[0] - back["prior"]["centre"].values[0][:, None]
        assert abs(offset.var() - 1) < 5 * np.sqrt(2 / offset.size)


@pytest.mark.parametrize("name", ["factors", "seeds", "both"])
def test_compact_files_round_draws_and_nothing_else(name, runs, x, tmp_path):
    exact = to_arviz(runs[name], x, draws=30)
    back = tree(write_arviz(runs[name], x, tmp_path / "run.nc", draws=30))
    held = to_arviz(runs[name], x, draws=30, compact=True)
    assert sorted(groups(back)) == sorted(groups(exact)) == sorted(groups(held))
    for group in groups(exact):
        drawn = group in ("posterior", "posterior_predictive", "prior", "prior_predictive")
        for key, value in exact[group].data_vars.items():
            assert back[group][key].dtype == held[group][key].dtype == (np.float32 if drawn else value.dtype)
            expected = value.values.astype(np.float32) if drawn else value.values
            np.testing.assert_array_equal(back[group][key].values, expected)


@pytest.mark.parametrize("name", ["factors", "both"])
@pytest.mark.parametrize("chosen", [["sample_stats", "posterior"], ["prior_predictive"], ["observed_data"]])
def test_groups_are_chosen(name, chosen, runs, x, tmp_path):
    whole = to_arviz(runs[name], x, draws=30)
    some = to_arviz(runs[name], x, draws=30, groups=chosen)
    back = tree(write_arviz(runs[name], x, tmp_path / "run.nc", draws=30, rows_at_once=10, groups=chosen))
    assert sorted(groups(some)) == sorted(groups(back)) == sorted(chosen)
    assert set(back.attrs) <= set(whole.attrs)
    for key in whole["posterior"].data_vars if "posterior" in chosen else ():
        np.testing.assert_array_equal(some["posterior"][key].values, whole["posterior"][key].values)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [(["posteriors"], "did you mean 'posterior'"), ([], "sequence of names"), ("posterior", "sequence of names")],
)
def test_groups_that_do_not_exist_are_refused(wrong, hint, runs, x, tmp_path):
    for export in (
        lambda: to_arviz(runs["factors"], x, groups=wrong),
        lambda: write_arviz(runs["factors"], x, tmp_path / "run.nc", groups=wrong),
    ):
        with pytest.raises(ValueError, match=f"groups .*{hint}"):
            export()
    assert not list(tmp_path.iterdir())


def test_files_are_compressed(runs, x, tmp_path):
    path = write_arviz(runs["factors"], x, tmp_path / "run.nc", draws=30)
    with h5py.File(path) as file:
        for group in ("posterior", "posterior_predictive", "sample_stats"):
            for value in file[group].values():
                assert value.compression == "gzip" or not {"draw", "row"} <= _dimensions(value)


def _dimensions(value):
    return {scale.name.rsplit("/", 1)[-1] for axis in value.dims for scale in axis.values()}


PARAMETERS = ("weight", "mean", "noise")


def test_same_seed_same_file(runs, x, tmp_path, untouched):
    with untouched():
        first = write_arviz(runs["factors"], x, tmp_path / "first.nc", draws=30, rows_at_once=10)
        second = write_arviz(runs["factors"], x, str(tmp_path / "second.nc"), draws=30, rows_at_once=10)
    assert first.read_bytes() == second.read_bytes()
    other = write_arviz(runs["factors"], x, tmp_path / "other.nc", draws=30, rows_at_once=10, seed=1)
    assert (tree(first)["posterior"]["z"] != tree(other)["posterior"]["z"]).all()


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_nothing_is_left_of_an_interrupted_file(suffix, runs, x, tmp_path, monkeypatch):
    if suffix == ".zarr":
        pytest.importorskip("zarr", reason="zarr is not installed")
    run, calls = runs["factors"], []
    whole = type(run.model).log_marginal

    def interrupted(self, rows):
        calls.append(len(list(tmp_path.iterdir())))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, rows)

    monkeypatch.setattr(type(run.model), "log_marginal", interrupted)
    path = tmp_path / f"run{suffix}"
    with pytest.raises(KeyboardInterrupt):
        write_arviz(run, x, path, draws=30, rows_at_once=5)
    assert calls == [0, 1, 1]  # it had begun
    assert not list(tmp_path.iterdir())


def test_zarr(runs, x, tmp_path):
    pytest.importorskip("zarr", reason="zarr is not installed")
    path = write_arviz(runs["mixture"], x, tmp_path / "run.zarr", draws=30, labels=["a"] * 25, compact=False)
    assert_same(tree(path), to_arviz(runs["mixture"], x, draws=30, labels=["a"] * 25))
    pieces = write_arviz(runs["factors"], x, tmp_path / "pieces.zarr", draws=30, rows_at_once=7)
    same = write_arviz(runs["factors"], x, tmp_path / "pieces.nc", draws=30, rows_at_once=7)
    assert_same(tree(pieces), tree(same))


def test_refusals(runs, x, tmp_path, monkeypatch):
    run, taken = runs["factors"], tmp_path / "taken.nc"
    taken.write_text("something")
    with pytest.raises(FileExistsError, match="remove it, or choose another name"):
        write_arviz(run, x, taken)
    assert taken.read_text() == "something"
    taken.unlink()
    with pytest.raises(ValueError, match=r"must end in .nc for netCDF or in .zarr for Zarr"):
        write_arviz(run, x, tmp_path / "run.csv")
    with pytest.raises(FileNotFoundError, match="does not exist: create it first"):
        write_arviz(run, x, tmp_path / "folder" / "run.nc")
    for wrong in ({"draws": 0}, {"rows_at_once": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number"):
            write_arviz(run, x, tmp_path / "run.nc", **wrong)
    with pytest.raises(ValueError, match="labels has shape"):
        write_arviz(run, x, tmp_path / "run.nc", labels=["a"])
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ModuleNotFoundError, match="pip install 'zarr>=3', or use .nc"):
        write_arviz(run, x, tmp_path / "run.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_memory_of_a_large_file(tmp_path):
    """100,000 rows x 20 columns x 200 draws: 1.6 GB of posterior predictive draws alone, in 1.5 GB of memory."""
    script = """
        import resource, sys, torch, zoo, guides
        torch.set_num_threads(1)
        torch.manual_seed(0)
        x = torch.randn(100_000, 5) @ torch.randn(5, 20) + torch.randn(100_000, 20)
        model = zoo.FactorAnalysis(20, 5)
        guide = guides.Amortized(model, x, hidden=())
        run = zoo.fit(model, guide, x, steps=2, batch_size=1000, progress=False)
        zoo.export.write_arviz(run, x, sys.argv[1], draws=200)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    """
    path = tmp_path / "large.nc"
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(done.stdout.split()[-1])
    print(f"peak {peak / 1e9:.2f} GB, file {path.stat().st_size / 1e9:.2f} GB")
    assert peak < 1.5e9
    with xarray.open_datatree(path, engine="h5netcdf") as opened:
        assert opened["posterior_predictive"]["x"].shape == (1, 200, 100_000, 20)
        last = opened["posterior_predictive"]["x"][0, :, -1].values
        assert np.isfinite(last).all()
        assert (last.std(0) > 0).all()
