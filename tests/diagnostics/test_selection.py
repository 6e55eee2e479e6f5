"""Scans over the number of factors or components."""

import math

import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import guides
import zoo
from zoo.diagnostics.model.criteria import information_criteria
from zoo.diagnostics.model.selection import _folds, select_size


def two_components(seed, n=150):
    """Two unit Gaussians in the plane, 4 apart in both columns (n, 2), float64."""
    generator = torch.Generator().manual_seed(seed)
    second = (torch.rand(n, 1, generator=generator) < 0.4).double()
    return torch.randn(n, 2, generator=generator, dtype=torch.float64) + 4.0 * second


def mixture(k, rows):
    return zoo.GMM(2, k)


def ppca(k, rows):
    return zoo.PPCA(rows.shape[1], k).double()


@pytest.mark.parametrize("seed", [0, 1])
def test_two_components_are_found(seed):
    found = select_size(mixture, two_components(seed), range(1, 4), seeds=1, folds=None)
    assert found.best("bic").value == 2


@pytest.mark.slow
def test_two_components_are_found_in_twenty_of_twenty():
    chosen = [
        select_size(mixture, two_components(s), range(1, 5), seeds=3, folds=None).best("bic").value for s in range(20)
    ]
    assert chosen == [2] * 20


@pytest.fixture(scope="module")
def irises():
    return zoo.data.load("iris", dtype=torch.float64).x


@pytest.fixture(scope="module")
def found(irises):
    return select_size(ppca, irises, [1, 2, 3, 4], seeds=1, folds=2, tol=1e-8)


def test_likelihoods_and_criteria(found, irises):
    known = [-470.66946, -404.96278, -379.91463]  # Tipping and Bishop's closed form
    for row, value in zip(found.table, known, strict=False):
        assert row.log_likelihood == pytest.approx(value, abs=2e-5)
        own = information_criteria(row.best, irises)
        assert (row.df, row.aic, row.bic) == (own.df, own.aic, own.bic)
        assert (row.near, row.starts) == (1, 1)


def test_held_out_rows_are_those_of_a_fit_without_them(found, irises):
    row = found[1]
    for index in _folds(150, 2, 0):
        keep = torch.ones(150, dtype=torch.bool)
        keep[index] = False
        model = zoo.PPCA(4, 1).double()
        zoo.em(model, irises[keep], tol=1e-8)
        torch.testing.assert_close(row.log_p[index], model.log_marginal(irises[index]).detach(), rtol=0, atol=1e-6)
    assert row.held_out == pytest.approx(float(row.log_p.mean()), abs=1e-12)
    assert row.held_out_se == pytest.approx(float(row.log_p.std()) / math.sqrt(150), rel=1e-9)


def test_a_failed_value_is_a_row(found):
    failed = found.table[3]
    assert "latent_dim must be below data_dim=4" in failed.error
    assert (failed.best, failed.bic, failed.held_out) == (None, None, None)
    assert "latent_dim must be below" in repr(found)
    assert found.frame()["error"].to_list()[3] == failed.error


def test_best_and_below(found):
    assert found.best().value == found.best("bic").value == 3
    top = found.best("held_out")
    assert top.held_out == max(row.held_out for row in found.table[:3])
    assert found.below(top.value) == (0.0, 0.0)
    gap = top.log_p - found[1].log_p
    assert found.below(1) == pytest.approx((float(gap.mean()), float(gap.std()) / math.sqrt(150)), rel=1e-9)
    assert found.below(1)[1] < found[1].held_out_se  # paired: the rows' own spread has gone
    with pytest.raises(ValueError, match="by must be one of"):
        found.best("likelihood")
    with pytest.raises(KeyError, match="no value 9"):
        found[9]
    with pytest.raises(ValueError, match="value 4 has no held-out"):
        found.below(4)


def test_table_and_text(found):
    frame = found.frame()
    assert frame["value"].to_list() == [1, 2, 3, 4]
    assert frame["below"].to_list()[:3] == [found.below(k)[0] for k in (1, 2, 3)]
    text = repr(found)
    assert "best by bic: 3" in text
    assert "-379.9146" in text
    assert "2 folds" in text


def test_every_row_is_held_out_once():
    parts = list(_folds(11, 3, 5))
    assert sorted(torch.cat(parts).tolist()) == list(range(11))
    assert {len(part) for part in parts} == {3, 4}


def test_a_collapse_in_a_fold_leaves_the_rest():
    """Ten rows at one place, but for two: with the fold that holds both, a component has nothing to spread over."""
    x = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1], [9.3], [0.15], [9.2]], dtype=torch.float64)
    found = select_size(lambda k, rows: zoo.GMM(1, k), x, [1, 4], seeds=1, folds=4)
    assert found[1].held_out is not None
    assert found[4].error is not None


def test_held_out_rows_in_place_of_folds(irises):
    train, test = irises[::2], irises[1::2]
    found = select_size(ppca, train, [1, 2], seeds=1, held_out=test, tol=1e-5)
    exact = found[2].best.log_marginal(test).detach()
    torch.testing.assert_close(found[2].log_p, exact, rtol=0, atol=1e-8)
    assert found.how == "75 rows"


def test_missing_entries(irises):
    x = irises[:40].clone()
    x[::7, 1] = torch.nan
    found = select_size(ppca, x, [1], seeds=1, folds=2, tol=1e-4)
    assert found[1].log_p.isfinite().all()
    assert found[1].log_likelihood > -math.inf


def test_pairs_with_a_guide(irises):
    """A linear VAE is PPCA: held-out log p by importance weighting is near the closed form, and nothing has a BIC."""

    def build(k, rows):
        model = zoo.VAE(4, k, hidden=(), covariance="scalar", noise="constant", floor=1e-6).double()
        return model, guides.Amortized(model, rows, hidden=(), covariance="full")

    train, test = irises[::2], irises[1::2]
    found = select_size(build, train, [1], seeds=1, held_out=test, draws=100)
    assert found.measures == ("held_out",)
    assert found.best() is found.best("held_out")
    closed = select_size(ppca, train, [1], seeds=1, held_out=test, tol=1e-7)
    assert found[1].held_out == pytest.approx(closed[1].held_out, abs=0.01)
    assert (found[1].log_likelihood, found[1].df, found[1].bic) == (None, None, None)
    with pytest.raises(ValueError, match="'bic' is not available here"):
        found.best("bic")


def test_conjugate_pairs_have_both(irises):
    def build(k, rows):
        model = ppca(k, rows)
        return model, guides.Exact(model)

    found = select_size(build, irises, [1], seeds=1, folds=2)
    assert found[1].log_likelihood == pytest.approx(-470.66946, abs=1e-4)
    assert isinstance(found[1].best, zoo.Fit)
    assert found[1].log_p.shape == (150,)


def test_the_report_hears_of_every_row_and_nothing_moves(irises, untouched):
    heard = []
    with untouched():
        select_size(ppca, irises, [2, 5], seeds=1, folds=2, tol=1e-5, report=heard.append)
    assert [row.value for row in heard] == [2, 5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"values": []}, "values is empty"),
        ({"values": [2, 2]}, "values holds 2 twice"),
        ({"values": [0]}, "values must be a whole number"),
        ({"folds": 1}, "folds must be a whole number of at least 2"),
        ({"folds": 100}, "folds=100 leaves fewer than two of 150 rows"),
        ({"seeds": 0}, "^seeds must be a whole number of at least 1"),
        ({"seeds": []}, "^seeds is empty"),
        ({"draws": 5}, "draws must be at least 30"),
        ({"held_out": torch.zeros(3, 2)}, "held_out has 2 columns, x 4"),
        ({"values": [7, 8]}, "no value could be fitted:\n  7: latent_dim must be below"),
    ],
)
def test_refusals(irises, given, message):
    arguments = {"values": [1, 2], "seeds": 1, "folds": None} | given
    with pytest.raises(ValueError, match=message):
        select_size(ppca, irises, **arguments)


@pytest.mark.parametrize("family", [guides.MeanField, lambda model, rows: AutoNormal(model)])
def test_a_guide_of_its_own_rows_is_refused(irises, family):
    def build(k, rows):
        model = ppca(k, rows)
        return model, family(model, rows)

    with pytest.raises(TypeError, match="not for held-out rows"):
        select_size(build, irises, [1], seeds=1)


def test_a_bound_alone_compares_nothing(irises):
    def build(k, rows):
        model = zoo.VAE(4, k, hidden=(4,))
        return model, guides.Amortized(model, rows, hidden=(4,))

    with pytest.raises(ValueError, match="nothing to compare by"):
        select_size(build, irises[:20], [1], seeds=1, folds=None, steps=3)
