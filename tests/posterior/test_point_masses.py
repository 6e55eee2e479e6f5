"""A point estimate, of what all rows share or of every row, has no density: whatever needs one refuses it."""

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation
from user_models import one_mean

import zoo
import zoo.report
from zoo.base import seeded
from zoo.posterior import AIS

POINTS = [AutoDelta, AutoLaplaceApproximation]
OF_ANY_SITE = {
    "evaluate": lambda run, x: zoo.evaluate(run, x),
    "importance_moments": lambda run, x: zoo.importance_moments(run, x),
    "log_evidence_bounds": lambda run, x: zoo.log_evidence_bounds(run, x, draws=(30,)),
}
OF_SHARED_SITES = {
    **OF_ANY_SITE,
    "loo": lambda run, x: zoo.loo(run, x),
    "predictive_density": lambda run, x: zoo.diagnostics.predictive_density(run, x),
    "sbc": lambda run, x: zoo.diagnostics.sbc(run, simulations=20, steps=30),
}
OF_ROWS = {
    **OF_ANY_SITE,
    "annealing": lambda run, x: zoo.log_evidence_bounds(run, x, draws=(30,), ais=AIS(5, chains=2)),
    "gaps": lambda run, x: zoo.posterior.gaps(run, x),
    "rate_distortion": lambda run, x: zoo.posterior.rate_distortion(run, x),
    "posterior_error": lambda run, x: zoo.diagnostics.posterior_error(run, x),
    "impute by importance": lambda run, x: zoo.impute(run, torch.where(x > 6.0, torch.nan, x), weighted=True),
}


def shared_mean(family, _=None):
    """Sixty rows about one mean, and a point estimate of it."""
    with pyro.get_param_store().scope(), seeded(0):
        x = 2 + torch.randn(60, 1, dtype=torch.float64)
        return zoo.fit(one_mean, family(one_mean), x, steps=200, progress=False), x


def factors_of_rows(family, x):
    """Point estimates of the factors of every row."""
    with pyro.get_param_store().scope(), seeded(0):
        model = zoo.PPCA(4, 2).double()
        return zoo.fit(model, family(model), x, steps=50, progress=False), x


@pytest.fixture(scope="module", params=POINTS)
def shared(request):
    return shared_mean(request.param)


@pytest.fixture(scope="module", params=POINTS)
def local(request, some):
    return factors_of_rows(request.param, some)


@pytest.mark.parametrize("name", OF_SHARED_SITES)
def test_a_point_of_a_shared_site_has_no_density(shared, name):
    with pytest.raises(ValueError, match="has a point mass on 'mean', so it has no density"):
        OF_SHARED_SITES[name](*shared)


@pytest.mark.parametrize("name", OF_ROWS)
def test_a_point_of_every_row_has_no_density(local, name):
    with pytest.raises(ValueError, match="has a point mass on 'z', so it has no density|has no density for 'z'"):
        OF_ROWS[name](*local)


@pytest.mark.parametrize("kind", [shared_mean, factors_of_rows])
@pytest.mark.parametrize("family", POINTS)
def test_a_point_is_never_trusted(kind, family, some, tmp_path):
    run, x = kind(family, some)
    found = zoo.diagnose(run, x)
    assert not found.trusted
    assert found.level == "bad"
    assert "a point estimate, not a posterior" in found["posterior"].reason
    page = zoo.report.report(run, x, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Do not trust this posterior" in page
