"""Bootstrap intervals of loadings, against the infinitesimal jackknife and against EM."""

import copy
import math

import pytest
import torch
from pyro.infer import config_enumerate

import guides
import zoo
from zoo.alignment.bootstrap import NEAR, _by_em, _by_moments, _own, _samples, bootstrap_loadings
from zoo.alignment.canonical import to_canonical

WEIGHT = torch.tensor([[2.0, 0.0], [1.5, 0.3], [1.8, -0.4], [0.2, 1.0], [0.0, 1.2], [-0.3, 0.9]]).double()


def simulated(n, seed=0, k=2):
    """Rows of two factors under noise of variance 0.5 (n, 6)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, k, generator=generator, dtype=torch.float64)
    return z @ WEIGHT[:, :k].T + 0.5**0.5 * torch.randn(n, 6, generator=generator, dtype=torch.float64)


def fitted(cls, x, k=2, **options):
    model = cls(x.shape[1], k, **options).double()
    zoo.em(model, x)
    return model


def test_standard_errors_are_those_of_the_jackknife():
    """The influence of a row on an eigenpair is known, so the bootstrap's variance is, up to 1 / n and the draws."""
    n, draws = 1000, 400
    x = simulated(n)
    found = bootstrap_loadings(fitted(zoo.PPCA, x), x, draws=draws, basis="own", standardised=False)
    centred = x - x.mean(0)
    values, axes = torch.linalg.eigh(centred.T @ centred / n)
    scores = centred @ axes  # (n, d)
    rest = values[:4].mean()
    rest_moves = (scores.square() - values)[:, :4].mean(1)
    for j, place in enumerate((5, 4)):  # the largest eigenvalues come last
        size = (values[place] - rest).sqrt()
        others = [i for i in range(6) if i != place]
        turn = (scores[:, others] * scores[:, [place]] / (values[place] - values[others])) @ axes[:, others].T
        stretch = (scores[:, place].square() - values[place] - rest_moves) / (2 * size)
        influence = stretch.unsqueeze(1) * axes[:, place] + size * turn  # (n, d)
        expected = influence.square().sum(0).sqrt() / n
        error = 5 * (1 / math.sqrt(2 * draws) + 1 / n)
        torch.testing.assert_close(found.deviation[:, j], expected, rtol=error, atol=0)
        assert torch.allclose(found.estimate[:, j].abs(), (size * axes[:, place]).abs(), atol=1e-4)


@pytest.mark.parametrize("cls", [zoo.PPCA, zoo.FactorAnalysis])
def test_the_short_way_is_that_of_em(cls):
    x = simulated(150)
    model = fitted(cls, x)
    short, errors = _samples(model, x, 3, 5)
    generator = torch.Generator().manual_seed(5)
    rows = [x[torch.randint(150, (150,), generator=generator)] for _ in range(3)]
    assert not errors
    for sample, quick, slow in zip(rows, _by_moments(model, short), _by_em(model, rows), strict=True):
        reached = [m.log_marginal(sample).sum().item() for m in (quick, slow)]
        assert abs(reached[0] - reached[1]) < 2 * NEAR
        best = copy.deepcopy(quick)
        assert float(zoo.em(best, sample, tol=1e-12)[-1]) - reached[0] < NEAR


def test_a_heywood_case_ends_at_its_floor():
    x = simulated(60)
    x[:, 5] = x[:, 3] + x[:, 4] - 0.5 * x[:, 0]  # a column that the others determine
    model = fitted(zoo.FactorAnalysis, x, 3, floor=0.02)
    samples, _ = _samples(model, x, 5, 0)
    for sample, found in zip(samples, _by_moments(model, samples), strict=True):
        assert (found.noise >= model.least * (1 - 1e-9)).all()
        assert (found.noise < 1.01 * model.least).any()
        assert torch.allclose(found.least, model.least)
        assert sample.count == 60


def test_bases_are_those_of_the_canonical_transform():
    x = simulated(120)
    model = fitted(zoo.FactorAnalysis, x)
    reference = to_canonical(model, "varimax")
    samples, _ = _samples(model, x, 40, 0)
    aligned = bootstrap_loadings(model, x, draws=40, rotation="varimax", standardised=False)
    torch.testing.assert_close(aligned.estimate, reference.weight.detach(), rtol=0, atol=1e-8)
    for number, found in zip(range(3), _by_moments(model, samples), strict=False):
        turned = zoo.alignment.align(found, reference).apply(found)
        torch.testing.assert_close(aligned.replicates[number], turned.weight.detach(), rtol=0, atol=1e-8)
        own = _own(found, reference, "varimax")
        plain = to_canonical(found, "varimax").weight.detach()
        cross = own.T @ plain / (own.norm(dim=0).unsqueeze(1) * plain.norm(dim=0))
        assert torch.allclose(cross.abs().amax(1), torch.ones(2).double(), atol=1e-8)  # the same columns,
        assert ((own * reference.weight).sum(0) > 0).all()  # with the reference's signs and order


def test_one_factor_has_one_basis():
    x = simulated(80, k=1)
    model = fitted(zoo.PPCA, x, 1)
    fit, own = (bootstrap_loadings(model, x, draws=40, basis=basis) for basis in ("fit", "own"))
    torch.testing.assert_close(fit.replicates, own.replicates, rtol=0, atol=1e-8)


def test_standardised_loadings_are_correlations():
    x = simulated(200)
    model = fitted(zoo.PPCA, x)
    found = bootstrap_loadings(model, x * 1.0, draws=40)
    with torch.no_grad():
        model = to_canonical(model)
        variance = (model.weight @ model.weight.T).diagonal() + model.noise
        torch.testing.assert_close(found.estimate, model.weight / variance.sqrt().unsqueeze(1), rtol=0, atol=1e-8)
    assert found.replicates.abs().max() < 1
    low, high = found.interval
    edge = found.replicates.quantile(0.025, 0)
    torch.testing.assert_close(low, edge)
    assert torch.equal(found.sure, (low > 0) | (high < 0))
    assert f"{int(found.sure.sum())} of 12 exclude 0" in repr(found)
    table = found.frame()
    assert table.columns == ["column", "factor", "loading", "se", "low", "high"]
    assert table["factor"].to_list() == [0, 1] * 6
    assert table["column"].to_list()[:3] == ["x0", "x0", "x1"]
    torch.testing.assert_close(table["low"].to_torch().reshape(6, 2), low)
    sure = float(found.sure.sum())
    assert found.summary() == {"columns": 6, "factors": 2, "replicates": 40, "failed": 0, "sure": sure}


def test_streams_are_left_alone_and_seeds_repeat(untouched):
    x = simulated(60)
    model = fitted(zoo.PPCA, x)
    before = copy.deepcopy(model.state_dict())
    with untouched():
        first, second = (bootstrap_loadings(model, x, draws=40, seed=3) for _ in range(2))
    assert torch.equal(first.replicates, second.replicates)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_missing_entries_go_through_em():
    x = simulated(60, k=1)
    x[::9, 2] = torch.nan
    model = fitted(zoo.PPCA, x, 1)
    found = bootstrap_loadings(model, x, level=0.5, draws=4, standardised=False)
    index = torch.randint(60, (60,), generator=torch.Generator().manual_seed(0))
    again = copy.deepcopy(model)
    zoo.em(again, x[index], tol=1e-10)
    sign = (again.weight * to_canonical(model).weight).sum().sign()
    near = math.sqrt(2 * NEAR) * found.deviation.max().item() * 2  # of one standard error, see NEAR
    torch.testing.assert_close(found.replicates[0], (sign * again.weight).detach(), rtol=0, atol=max(near, 1e-3))


def test_a_fit_in_place_of_its_model(iris):
    model = fitted(zoo.PPCA, iris, 1)
    run = zoo.fit(model, guides.Exact(model), iris, progress=False)
    one, other = bootstrap_loadings(run, iris, draws=40), bootstrap_loadings(run.model, iris, draws=40)
    assert torch.equal(one.replicates, other.replicates)
    assert one.columns == ("x0", "x1", "x2", "x3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 1.0}, "level must be in"),
        ({"draws": 39}, "draws must be at least 40 for intervals of level 95%"),
        ({"basis": "mine"}, "basis must be one of fit, own"),
        ({"rotation": "oblimin"}, "rotation must be one of"),
    ],
)
def test_arguments_are_refused(options, message):
    x = simulated(40)
    with pytest.raises(ValueError, match=message):
        bootstrap_loadings(fitted(zoo.PPCA, x), x, **options)


def test_models_are_refused():
    x = simulated(60)
    with pytest.raises(ValueError, match="has its initial parameters"):
        bootstrap_loadings(zoo.PPCA(6, 2).double(), x)
    early = zoo.PPCA(6, 2).double()
    zoo.em(early, x, steps=3, accelerate=False)
    with pytest.raises(ValueError, match="nats below its maximum on these rows"):
        bootstrap_loadings(early, x)
    for wrap in (lambda model: model, config_enumerate):
        with pytest.raises(TypeError, match="GMM has components, not factors"):
            bootstrap_loadings(wrap(zoo.GMM(6, 2).double()), x)


def test_samples_that_cannot_be_fitted():
    x = simulated(40)
    x[:, 5] = 0.0
    x[0, 5] = 1.0  # without this row, as one sample in three is, the column does not vary
    with pytest.raises(ValueError, match="of 40 samples could not be fitted.*sample"):
        bootstrap_loadings(fitted(zoo.FactorAnalysis, x, 1), x, draws=40)
    x[:4, 5] = torch.arange(1.0, 5.0).double()  # now one in fifty-five
    found = bootstrap_loadings(fitted(zoo.FactorAnalysis, x, 1), x, draws=100)
    assert len(found.replicates) == 100 - found.failed
    assert found.failed < 10


@pytest.mark.slow
def test_intervals_hold_the_truth():
    """In 200 data sets nine in ten, within five standard errors; percentile intervals are a little short."""
    held = []
    for seed in range(200):
        x = simulated(200, seed, 1)
        found = bootstrap_loadings(fitted(zoo.PPCA, x, 1), x, draws=100, level=0.9, standardised=False, seed=seed)
        low, high = found.interval.squeeze(-1) * found.estimate[0, 0].sign()
        low, high = torch.minimum(low, high), torch.maximum(low, high)
        held.append((low <= WEIGHT[:, 0]) & (WEIGHT[:, 0] <= high))
    share = torch.stack(held).double().mean(0)
    assert (share - 0.9).abs().max() < 5 * math.sqrt(0.9 * 0.1 / 200)
