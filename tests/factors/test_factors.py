import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import guides
import zoo
import zoo.algebra.missing
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.data import Dataset
from zoo.factors import decode, encode
from zoo.factors.imputation import conditional_moments
from zoo.infer.run import Fit


class Correlated(Module):
    """Linear factors whose noise is correlated across the columns, without any closed form or ``decode``."""

    missing = True

    def __init__(self, weight: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.data_dim = len(weight)
        for name, value in (("weight", weight), ("root", torch.linalg.cholesky(covariance))):
            self.register_buffer(name, value)

    def forward(self, x=None, index=None, size=None):
        zeros = self.weight.new_zeros(self.weight.shape[1])
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            noise = dist.MultivariateNormal(z @ self.weight.T, scale_tril=self.root)
            return pyro.sample("x", zoo.distributions.observed.seen(noise, x), obs=x)


class Matrix(Module):
    """Factors in a matrix of 2 x 2 per row, x = their sums by line and column."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("grid", dist.Normal(self.one.new_zeros(2, 2), 1.0).to_event(2))
            mean = torch.cat([z.sum(-1), z.sum(-2)], -1)
            return pyro.sample("x", dist.Normal(mean, self.one).to_event(1), obs=x)


class Widened(Module):
    """The exact posterior, its deviations ``factor`` times too large."""

    def __init__(self, model, factor) -> None:
        super().__init__()
        self.__dict__.update(model=model, factor=factor)

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            q = self.model.posterior(x)
            pyro.sample("z", dist.MultivariateNormal(q.mean, scale_tril=self.factor * q.scale_tril))


def untrained(model, guide) -> Fit:
    """A run as it would be after no step."""
    return Fit(model, guide)


def linear(cls=zoo.FactorAnalysis, d=5, k=3):
    generator = torch.Generator().manual_seed(0)
    model = cls(d, k).double()
    with torch.no_grad():
        model.weight = torch.randn(d, k, generator=generator).double()
        model.mean = torch.randn(d, generator=generator).double()
        model.scale = 0.5 + torch.rand(model.scale.shape, generator=generator).double()
    return model


def holes(x, share=0.4, seed=0):
    """``x`` with that share of its entries missing, and a row without any and one with all."""
    gone = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    gone[0], gone[1] = False, True
    return torch.where(gone, torch.nan, x)


@pytest.fixture(scope="module")
def run():
    model = linear()
    return untrained(model, guides.Exact(model))


@pytest.fixture(scope="module")
def x(run):
    return zoo.generate(run, 40, seed=5).x


@pytest.fixture(scope="module")
def mixture(faithful):
    model = zoo.GMM(2, 2).double()
    zoo.em(model, faithful)
    return untrained(model, guides.Exact(model))


def line(run, z):
    return (z @ run.model.weight.T + run.model.mean).detach()


def test_encode_is_the_posterior_mean(run, x):
    torch.testing.assert_close(encode(run, x), run.model.posterior(x).mean.detach(), rtol=0, atol=1e-8)


def test_encode_does_not_hand_out_the_guide_itself(x):
    model = linear(zoo.PPCA, k=1)
    guide = guides.MeanField(model, x)
    before = guide.posterior(x).mean.detach().clone()
    found = encode(untrained(model, guide), x)
    assert not found.requires_grad
    found += 1.0
    assert torch.equal(guide.posterior(x).mean, before)


def test_encode_takes_draws_where_a_guide_has_no_mean(x):
    model = linear(zoo.PPCA)
    guide = AutoNormal(model)
    with pyro.get_param_store().scope(), zoo.base.seeded(0):
        guide(x)
        run = untrained(model, guide)
        object.__setattr__(run, "store", dict(pyro.get_param_store().get_state()))
    q = guide.median(x)["z"].detach()
    draws = 4000
    found = encode(run, x, draws=draws)
    assert ((found - q).abs() < 5 * 0.1 / draws**0.5).all()  # AutoNormal starts at a deviation of 0.1


def test_decode_reads_the_site_where_the_model_has_no_method():
    with zoo.base.seeded(0):
        with_method = zoo.VAE(6, 2, hidden=(8,)).double()
    without = zoo.VAE(6, 2, hidden=(8,)).double()
    without.load_state_dict(with_method.state_dict())

    class Plain(Module):
        def __init__(self):
            super().__init__()
            self.inner = without

        def forward(self, x=None, index=None, size=None):
            return self.inner(x, index, size)

    z = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = (decode(untrained(model, None), z) for model in (with_method, Plain()))
    assert a.batch_shape == b.batch_shape == (3, 4)
    torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(a.variance, b.variance, rtol=0, atol=1e-8)


def test_factors_of_any_shape_count_as_a_vector():
    model = Matrix()
    found = zoo.traverse(untrained(model, None), 1, values=[2.0, -1.0])
    expected = torch.tensor([[2.0, 0.0, 0.0, 2.0], [-1.0, 0.0, 0.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(found.mean[0], expected, rtol=0, atol=1e-8)
    generated = zoo.generate(untrained(model, None), 3)
    assert generated.latents["grid"].shape == (3, 2, 2)


def test_traverse_moves_one_factor(run, x):
    found = zoo.traverse(run, 1, span=(-2, 2), steps=5)
    assert found.values.tolist() == [-2, -1, 0, 1, 2]
    expected = run.model.mean + found.values.unsqueeze(1) * run.model.weight[:, 1]
    torch.testing.assert_close(found.mean[0], expected.detach(), rtol=0, atol=1e-8)
    assert (found.rows, found.columns) == (None, ())


def test_traverse_from_rows_holds_their_other_factors(run, x):
    table = Dataset(x, None, (), ("a", "b", "c", "d", "e"), "toy", "simulated", "CC0")
    found = zoo.traverse(run, 2, values=[0.5, 4.0], x=table, rows=[7, 3])
    held = run.model.posterior(x).mean.detach()[[7, 3]]
    assert found.z.shape == (2, 2, 3)
    for s, value in enumerate([0.5, 4.0]):
        z = held.clone()
        z[:, 2] = value
        torch.testing.assert_close(found.mean[:, s], line(run, z), rtol=0, atol=1e-8)
    assert (found.rows, found.columns) == ((7, 3), ("a", "b", "c", "d", "e"))


def test_rows_serve_guides_that_hold_them_all(x):
    model = linear(zoo.PPCA)
    guide = guides.MeanField(model, x)
    found = zoo.traverse(untrained(model, guide), 0, values=[0.0], x=x, rows=[4])
    expected = guide.posterior(x).mean.detach()[[4]]
    torch.testing.assert_close(found.z[:, 0, 1:], expected[:, 1:], rtol=0, atol=1e-8)


def test_interpolate_between_rows(run, x):
    found = zoo.factors.interpolate(run, 3, 9, steps=5, x=x)
    held = run.model.posterior(x).mean.detach()
    expected = torch.stack([held[3] + t * (held[9] - held[3]) for t in (0, 0.25, 0.5, 0.75, 1)])
    torch.testing.assert_close(found.z, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.mean, line(run, expected), rtol=0, atol=1e-8)


def test_great_circle_turns_evenly_and_keeps_the_length(run):
    a, b = torch.tensor([2.0, 0.0, 0.0]).double(), torch.tensor([0.0, 0.0, 6.0]).double()
    z = zoo.factors.interpolate(run, a, b, steps=4, kind="spherical").z
    angle = torch.atan2(z[:, 2], z[:, 0])
    torch.testing.assert_close(angle, torch.arange(4).double() * math.pi / 6, rtol=0, atol=1e-8)
    lengths = torch.tensor([2, 10 / 3, 14 / 3, 6], dtype=torch.float64)
    torch.testing.assert_close(z.norm(dim=1), lengths, rtol=0, atol=1e-8)
    same = zoo.factors.interpolate(run, a, 3 * a, steps=3, kind="spherical").z
    torch.testing.assert_close(same, torch.stack([a, 2 * a, 3 * a]), rtol=0, atol=1e-8)


def test_a_nearly_straight_circle_is_the_line(run):
    a = torch.tensor([1.0, 0.0, 0.0]).double()
    b = torch.tensor([1.0, 1e-7, 0.0]).double()
    curved, straight = (zoo.factors.interpolate(run, a, b, kind=kind).z for kind in ("spherical", "linear"))
    torch.testing.assert_close(curved, straight, rtol=0, atol=1e-13)


def test_edit_sets_what_it_is_told(run, x):
    each = torch.arange(40).double()
    found = zoo.factors.intervene(run, x, {0: 1.5, 2: each})
    held = run.model.posterior(x).mean.detach()
    expected = torch.stack([torch.full((40,), 1.5).double(), held[:, 1], each], 1)
    torch.testing.assert_close(found.z, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.mean, line(run, expected), rtol=0, atol=1e-8)
    torch.testing.assert_close(found.before, line(run, held), rtol=0, atol=1e-8)
    torch.testing.assert_close(found.factors[2], each)
    assert repr(found).startswith("Intervention on factor 0, factor 2 of 40 rows")
    assert zoo.factors.intervene(run, x, {0: [1.0, 2.0]}, rows=[5, 6]).z[:, 0].tolist() == [1.0, 2.0]


def test_reconstruct_has_the_moments_of_a_redrawn_row(run, x):
    draws = 4000
    found = zoo.reconstruct(run, x, draws=draws, seed=1)
    q, weight, noise = run.model.posterior(x), run.model.weight, run.model.noise
    spread = (weight @ q.covariance_matrix @ weight.T).diagonal(dim1=-2, dim2=-1).detach()
    assert ((found.mean - line(run, q.mean)).abs() < 5 * (spread / draws).sqrt()).all()
    assert ((found.variance - spread - noise.detach()).abs() < 5 * spread * (2 / draws) ** 0.5).all()


def test_generate_draws_from_the_model(run, untouched):
    size = 20_000
    with untouched():
        found = zoo.generate(run, size, seed=3)
    weight = run.model.weight.detach()
    torch.testing.assert_close(found.mean, line(run, found.latents["z"]), rtol=0, atol=1e-8)
    covariance = weight @ weight.T + torch.diag(run.model.noise.detach())
    variance = covariance.diagonal()
    offset = found.x - run.model.mean.detach()
    assert (offset.mean(0).abs() < 5 * (variance / size).sqrt()).all()
    # the variance of a product of two Gaussians
    error = ((torch.outer(variance, variance) + covariance.square()) / size).sqrt()
    assert ((offset.T @ offset / size - covariance).abs() < 5 * error).all()
    assert torch.equal(zoo.generate(run, 7, seed=3).x, zoo.generate(run, 7, seed=3).x)
    assert not torch.equal(zoo.generate(run, 7, seed=3).x, zoo.generate(run, 7, seed=4).x)


def test_mixtures_generate_and_reconstruct(mixture, faithful):
    generated = zoo.generate(mixture, 5)
    torch.testing.assert_close(generated.mean, mixture.model.mean.detach()[generated.latents["component"]])
    share = mixture.model.posterior(faithful).probs.detach()
    draws = 1000
    found = zoo.reconstruct(mixture, faithful, draws=draws)
    means = mixture.model.mean.detach()
    expected = share @ means
    error = (share @ means.square() - expected.square()).clamp_min(0).sqrt() / draws**0.5
    assert ((found.mean - expected).abs() <= 5 * error + 1e-8).all()


@pytest.mark.parametrize("cls", [zoo.PPCA, zoo.FactorAnalysis])
def test_imputation_agrees_with_the_closed_form(cls, untouched):
    model = linear(cls)
    run = untrained(model, guides.Exact(model))
    x = holes(zoo.generate(run, 40).x)
    draws = 4000
    with untouched():
        found = zoo.impute(run, x, draws=draws, seed=2)
    exact = model.impute(x)
    missing = x.isnan()
    assert torch.equal(found.mean[~missing], x[~missing])
    assert (found.variance[~missing] == 0).all()
    spread = torch.where(missing, exact.variance - model.noise.detach(), 0.0)  # of the mean given z
    assert ((found.mean - exact.mean).abs() <= 5 * (spread / draws).sqrt()).all()
    assert ((found.variance - exact.variance).abs() <= 5 * spread * (2 / draws) ** 0.5 + 1e-12).all()


def test_imputation_by_a_mixture_agrees_with_the_closed_form(mixture, faithful):
    x = faithful.clone()[:60]
    x[::2, 0], x[1::3, 1] = torch.nan, torch.nan
    model, missing, draws = mixture.model, x.isnan(), 4000
    found, exact = zoo.impute(mixture, x, draws=draws), model.impute(x)
    each = dist.MultivariateNormal(model.mean.detach().unsqueeze(1), scale_tril=model.scale.detach().unsqueeze(1))
    mean, variance = conditional_moments(each.expand((2, 60)), x)  # given the component (2, n, d)
    share = model.posterior(x).probs.detach().T.unsqueeze(-1)  # (2, n, 1)
    centre = (share * mean).sum(0)
    torch.testing.assert_close(centre[missing], exact.mean[missing], rtol=0, atol=1e-8)
    second = variance + (mean - exact.mean).square()  # whose mean is the variance
    for got, expected, part in ((found.mean, exact.mean, mean), (found.variance, exact.variance, second)):
        level = (share * part).sum(0)
        error = ((share * (part - level).square()).sum(0) / draws).sqrt()
        assert ((got - expected).abs() <= 5 * error + 1e-8 * expected.abs())[missing].all()
        torch.testing.assert_close(got[~missing], expected[~missing], rtol=0, atol=1e-8)


def test_weights_turn_a_wrong_guide_into_the_posterior():
    model = linear(zoo.PPCA, d=4, k=2)
    x = holes(zoo.generate(untrained(model, None), 12).x)
    run, exact = untrained(model, Widened(model, 1.5)), model.impute(x)
    seeds = range(25)
    for value in ("mean", "variance"):
        truth = getattr(exact, value)
        trials = [
            torch.stack([getattr(zoo.impute(run, x, draws=2000, seed=s, weighted=w), value) for s in seeds])
            for w in (True, False)
        ]
        right, wrong = ((t.mean(0) - truth).abs() / (t.std(0) / len(seeds) ** 0.5 + 1e-12) for t in trials)
        assert (right < 5).all()
        if value == "variance":
            assert (wrong[x.isnan()] > 5).all()


def test_columns_correlated_given_z_tell_of_each_other():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 2, generator=generator).double()
    root = torch.randn(4, 4, generator=generator).double()
    noise = root @ root.T + 0.1 * torch.eye(4).double()
    model = Correlated(weight, noise)
    x = holes(zoo.generate(untrained(model, None), 8).x)

    class Prior(Module):
        def forward(self, x=None, index=None, size=None):
            with rows(x, index, size):
                pyro.sample("z", dist.Normal(weight.new_zeros(2), 1.0).to_event(1))

    run = untrained(model, Prior())
    trials = [zoo.impute(run, x, draws=4000, seed=s, weighted=True) for s in range(25)]
    total = weight @ weight.T + noise
    for n, row in enumerate(x):
        m, o = row.isnan(), ~row.isnan()
        if not m.any():
            continue
        gain = total[m][:, o] @ torch.linalg.inv(total[o][:, o])
        truth = {"mean": gain @ row[o], "variance": (total[m][:, m] - gain @ total[o][:, m]).diagonal()}
        for value, expected in truth.items():
            found = torch.stack([getattr(trial, value)[n, m] for trial in trials])
            assert ((found.mean(0) - expected).abs() < 5 * found.std(0) / 5).all()


@pytest.mark.parametrize("kind", ["full", "low_rank"])
def test_conditional_moments_against_inverses(kind):
    generator = torch.Generator().manual_seed(2)
    mean = torch.randn(3, 6, 5, generator=generator).double()
    factor = torch.randn(3, 6, 5, 2, generator=generator).double()
    diagonal = 0.2 + torch.rand(3, 6, 5, generator=generator).double()
    covariance = factor @ factor.mT + torch.diag_embed(diagonal)
    density = (
        dist.LowRankMultivariateNormal(mean, factor, diagonal)
        if kind == "low_rank"
        else dist.MultivariateNormal(mean, covariance)
    )
    x = holes(torch.randn(6, 5, generator=generator).double())
    found = conditional_moments(density, x)
    for s in range(3):
        for n, row in enumerate(x):
            m, o = row.isnan(), ~row.isnan()
            whole = covariance[s, n]
            gain = whole[m][:, o] @ torch.linalg.inv(whole[o][:, o])
            expected = mean[s, n, m] + gain @ (row[o] - mean[s, n, o])
            torch.testing.assert_close(found[0][s, n, m], expected, rtol=0, atol=1e-8)
            expected = (whole[m][:, m] - gain @ whole[o][:, m]).diagonal()
            torch.testing.assert_close(found[1][s, n, m], expected, rtol=0, atol=1e-8)


def test_impute_refuses_what_it_has_no_rule_for():
    with pytest.raises(TypeError, match="impute supports independent columns and Gaussians given z, got Dirichlet"):
        conditional_moments(dist.Dirichlet(torch.ones(2, 3, 4)), torch.ones(3, 4))


def test_impute_without_holes_is_the_data(run, x):
    found = zoo.impute(run, x)
    assert torch.equal(found.mean, x)
    assert not found.variance.any()


def test_impute_does_not_depend_on_the_rows_around(run, x, monkeypatch):
    monkeypatch.setattr("zoo.base.memory.NUMBERS", 1)  # row by row
    gaps = holes(x)[:6]
    found = zoo.impute(run, gaps, draws=3000)
    exact = run.model.impute(gaps)
    error = (exact.variance / 3000).sqrt()
    assert ((found.mean - exact.mean).abs() <= 5 * error).all()


@pytest.fixture(scope="module")
def labelled():
    """Two classes apart in the first factor, among many columns of noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 2
    factor = (4.0 * labels - 2.0 + torch.randn(300, generator=generator)).double()
    weight = torch.randn(40, generator=generator).double()
    x = torch.outer(factor, weight) + 6 * torch.randn(300, 40, generator=generator).double()
    model = zoo.PPCA(40, 1).double()
    zoo.em(model, x)
    return untrained(model, guides.Exact(model)), x, labels


def test_probe_finds_the_labels_in_the_factors_sooner(labelled, untouched):
    run, x, labels = labelled
    with untouched():
        found = zoo.factors.probe(run, x, labels, sizes=(4, 40), repeats=40, seed=1)
    table = found.frame()
    assert table["labelled"].to_list() == [4, 40]
    assert table["difference"][0] > 5 * table["difference_se"][0]
    # two normals at +-2 around their mean, one deviation: z can tell 1 - Phi(-2) = 0.977 of them, less what noise hides
    assert table["z"][1] > 0.9
    assert (found.held_out, found.most_common) == (150, 0.5)
    again = zoo.factors.probe(run, x, labels, sizes=(4, 40), repeats=40, seed=1)
    assert torch.equal(found.z, again.z)
    assert torch.equal(found.x, again.x)
    assert "150 held-out rows" in repr(found)


def test_probe_learns_nothing_where_there_is_nothing(labelled):
    """Labels that say nothing are not guessed, neither from rows nor from factors: no labelled row is held out."""
    run, x, _ = labelled
    labels = torch.randint(2, (300,), generator=torch.Generator().manual_seed(3))
    found = zoo.factors.probe(run, x, labels, sizes=(150,), repeats=20)
    for accuracy in (found.z, found.x):
        assert abs(accuracy.mean() - 0.5) < 5 * 0.5 / 300**0.5  # 300 rows in all, each right by chance


def test_probe_has_every_class_among_the_labelled(labelled):
    run, x, _ = labelled
    rare = np.array(["common"] * 298 + ["rare", "rarer"])
    found = zoo.factors.probe(run, x, rare, sizes=(3,), repeats=3)
    assert found.z.shape == (3, 1)


def test_probe_of_rows_with_holes(labelled):
    run, x, labels = labelled
    found = zoo.factors.probe(run, holes(x, 0.2), labels, sizes=(50,), repeats=3)
    assert found.z.mean() > 0.8


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "poisson"])
def test_a_vae_serves_them_all(likelihood):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, (30, 6), generator=generator).double()
    model = zoo.VAE(6, 2, hidden=(8,), likelihood=likelihood).double()
    guide = guides.Amortized(model, holes(x), hidden=(8,))
    run = zoo.fit(model, guide, holes(x), steps=3, progress=False)
    found = zoo.impute(run, holes(x), draws=50, weighted=True)
    assert found.mean.isfinite().all()
    assert (found.variance[holes(x).isnan()] > 0).all()
    assert zoo.reconstruct(run, x, draws=3).mean.shape == (30, 6)
    assert zoo.traverse(run, 1, x=x, rows=[0, 1]).mean.shape == (2, 7, 6)
    assert zoo.factors.interpolate(run, 0, 1, x=x, kind="spherical").mean.shape == (9, 6)
    assert zoo.factors.intervene(run, x, {1: 0.0}).mean.shape == (30, 6)
    assert zoo.generate(run, 4).x.shape == (4, 6)


@pytest.mark.parametrize(
    "call",
    [
        lambda run, x: zoo.traverse(run, 0),
        lambda run, x: zoo.factors.interpolate(run, 0, 1, x=x),
        lambda run, x: zoo.factors.intervene(run, x, {0: 1.0}),
        lambda run, x: encode(run, x),
        lambda run, x: decode(run, torch.zeros(3, 1)),
        lambda run, x: zoo.factors.probe(run, x, torch.arange(len(x)) % 2),
    ],
)
def test_a_mixture_has_no_factors(call, mixture, faithful, untouched):
    with untouched(), pytest.raises(ValueError, match=r"GMM has none \('component' is discrete\): zoo.generate"):
        call(mixture, faithful)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, x: zoo.traverse(r, 3), "factor: 3 is out of range, as the model has 3 factors, counted from 0"),
        (lambda r, x: zoo.traverse(r, -1), "factor must be a whole number of at least 0, got -1"),
        (lambda r, x: zoo.traverse(r, 0, steps=1), "steps must be a whole number of at least 2"),
        (lambda r, x: zoo.traverse(r, 0, span=(1, 1)), "span must be two different finite numbers, got (1, 1)"),
        (lambda r, x: zoo.traverse(r, 0, values=[0.0, math.inf]), "values must be a list of finite numbers"),
        (lambda r, x: zoo.traverse(r, 0, rows=[0]), "rows selects rows of x: pass x as well"),
        (lambda r, x: zoo.traverse(r, 0, x=x, rows=[40]), "rows: 40 is out of range, as x has 40 rows"),
        (lambda r, x: zoo.traverse(r, 0, x=x, rows=[]), "rows is empty"),
        (lambda r, x: zoo.traverse(r, 0, x=x[:, :4]), "x has 4 columns"),
        (
            lambda r, x: zoo.factors.interpolate(r, 0, 1),
            "a=0 is the number of a row: pass the rows as x, or factors (3,) as a",
        ),
        (lambda r, x: zoo.factors.interpolate(r, 0, 99, x=x), "b=99 is out of range, as x has 40 rows"),
        (
            lambda r, x: zoo.factors.interpolate(r, torch.ones(2), 0, x=x),
            "a must be the number of a row of x, or 3 finite",
        ),
        (lambda r, x: zoo.factors.interpolate(r, 0, 1, x=x, kind="cubic"), "kind must be 'linear' or 'spherical'"),
        (
            lambda r, x: zoo.factors.interpolate(r, torch.ones(3), torch.zeros(3), kind="spherical"),
            "b is at 0 and has no direction",
        ),
        (
            lambda r, x: zoo.factors.interpolate(r, torch.ones(3), -2 * torch.ones(3), kind="spherical"),
            "a and b are opposite",
        ),
        (lambda r, x: zoo.factors.intervene(r, x, {}), "factors is empty"),
        (lambda r, x: zoo.factors.intervene(r, x, {5: 0.0}), "factors: 5 is out of range, as the model has 3"),
        (
            lambda r, x: zoo.factors.intervene(r, x, {0: [1.0, 2.0]}),
            "factors[0] must be a finite number or one for each of the 40",
        ),
        (lambda r, x: zoo.reconstruct(r, x, draws=1), "draws must be a whole number of at least 2"),
        (lambda r, x: zoo.generate(r, 0), "size must be a whole number of at least 1"),
        (lambda r, x: zoo.impute(r, x, draws=1), "draws must be a whole number of at least 2"),
        (lambda r, x: decode(r, torch.zeros(2)), "z has shape (2,): pass one row of factors per row of x, (n, 3)"),
        (lambda r, x: zoo.factors.probe(r, x), "labels is None, and x has none"),
        (lambda r, x: zoo.factors.probe(r, x, [0, 1]), "labels has shape (2,), but x has 40 rows"),
        (lambda r, x: zoo.factors.probe(r, x, [0] * 40), "labels has only one class (0)"),
        (
            lambda r, x: zoo.factors.probe(r, x, [0, 1] * 20, sizes=(5, 21)),
            "sizes includes 21, but only 20 rows remain besides the 20 held out",
        ),
        (
            lambda r, x: zoo.factors.probe(r, x, list(range(8)) * 5, sizes=(7,)),
            "sizes includes 7, but there are 8 classes",
        ),
        (lambda r, x: zoo.factors.probe(r, x, [0, 1] * 20, sizes=()), "sizes is empty"),
        (lambda r, x: zoo.factors.probe(r, x, [0, 1] * 20, held_out=1), "held_out must be a share"),
        (lambda r, x: zoo.factors.probe(r, x, [0, 1] * 20, repeats=1), "repeats must be a whole number of at least 2"),
    ],
)
def test_refusals_name_the_argument(call, message, run, x, untouched):
    with untouched(), pytest.raises(ValueError, match=re.escape(message)):
        call(run, x)
