"""The evidence of Bayesian PCA three ways: the bound of coordinate ascent, importance sampling, and NUTS."""

import math
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from bayesian_models import iris
from torch import Tensor

import guides
import zoo
from zoo.base.plates import rows
from zoo.base.random import seeded
from zoo.diagnostics.guide.mixing import chain_diagnostics
from zoo.posterior.psis import psis_khat

DRAWS = 20_000
MIRROR = math.log(2.0)  # the posterior is the same at -W, where neither q nor a draw of it ever goes
WIDER = 1.25  # a Gaussian proposal must be wider than the posterior, whose log alpha has an exponential tail
SHARED = ("relevance", "precision", "weight")


class Case(NamedTuple):
    """Bayesian PCA with one factor of 30 rows of iris: its optimum, and a guide with the corrected covariance."""

    x: Tensor
    ascent: zoo.Fit
    corrected: zoo.Fit


def real(values: dict[str, Tensor]) -> Tensor:
    """The shared sites in unconstrained coordinates (draws, 6)."""
    return torch.cat(
        [values[name].log().reshape(len(values[name]), -1) for name in SHARED[:2]] + [values["weight"].flatten(1)], 1
    )


def quantities(values: dict[str, Tensor]) -> Tensor:
    """What the sign of W does not change, (draws, 12): log alpha, log tau and the entries of W W'."""
    below = torch.tril_indices(4, 4)
    outer = (values["weight"] @ values["weight"].mT)[:, *below]
    return torch.cat([real(values)[:, :2], outer], 1)


@pytest.fixture(scope="module")
def case() -> Case:
    x = iris()[::5]  # ten of each species
    x = x - x.mean(0)
    model = zoo.BayesianPCA(4, 1, mean=False).double()
    ascent = zoo.cavi(model, x, tol=1e-12)
    response = zoo.linear_response(ascent, x, real)
    guide = guides.MeanField(model, x, shared="full_rank", family="gaussian")
    assert [latent.name for latent in guide.shared.latents] == list(SHARED)
    with torch.no_grad():
        guide.shared.loc = response.mean
        guide.shared.scale_tril = WIDER * torch.linalg.cholesky(response.covariance)
    return Case(x, ascent, zoo.Fit(model, guide))


class Weighted(NamedTuple):
    """Draws of theta with log weights log p(theta) p(X | theta) / q(theta) (draws,)."""

    values: dict[str, Tensor]
    logs: Tensor

    def moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean and standard deviation of the quantities, and the Monte Carlo standard errors of both."""
        weight, found = self.logs.softmax(0).unsqueeze(1), quantities(self.values)
        mean = (weight * found).sum(0)
        offset = (found - mean).square()
        variance = (weight * offset).sum(0)
        mean_se = (weight.square() * offset).sum(0).sqrt()
        variance_se = (weight.square() * (offset - variance).square()).sum(0).sqrt()
        return mean, variance.sqrt(), mean_se, variance_se / (2 * variance.sqrt())


@pytest.fixture(scope="module")
def weighted(case) -> Weighted:
    """Importance sampling by hand, with theta from the corrected Gaussian in unconstrained coordinates."""
    part, model = case.corrected.guide.shared, case.corrected.model
    q = dist.MultivariateNormal(part.loc.detach(), scale_tril=part.scale_tril.detach())
    with seeded(7):
        theta = q.sample((DRAWS,))
    values = {"relevance": theta[:, :1].exp(), "precision": theta[:, 1].exp(), "weight": theta[:, 2:].unsqueeze(-1)}
    gamma = dist.Gamma(torch.tensor(1e-3).double(), 1e-3)
    log_prior = gamma.log_prob(values["relevance"]).sum(1) + gamma.log_prob(values["precision"])
    deviation = values["relevance"].rsqrt().unsqueeze(1)
    log_prior = log_prior + dist.Normal(0.0, deviation).log_prob(values["weight"]).sum((1, 2))
    log_given = model.log_marginal_given(case.x, values).sum(1)
    jacobian = theta[:, :2].sum(1)  # of the two logarithms
    return Weighted(values, log_prior + log_given + jacobian - q.log_prob(theta))


def test_bound_is_below_the_evidence(case, weighted):
    logs = weighted.logs
    estimate = float(logs.logsumexp(0)) - math.log(DRAWS) + MIRROR
    error = float((logs - logs.max()).exp().std() / (logs - logs.max()).exp().mean()) / DRAWS**0.5
    plain, corrected = (zoo.evaluate(run, case.x, draws=4000).shared for run in (case.ascent, case.corrected))
    bound = float(case.ascent[-1])
    print(
        f"\nbound {bound:.4f}; log p(X) by the corrected guide {corrected.log_marginal + MIRROR:.4f} +- "
        f"{corrected.log_marginal_se:.4f}, by hand {estimate:.4f} +- {error:.4f}; k-hat of theta: mean-field "
        f"{plain.khat:.2f}, corrected {corrected.khat:.2f}, by hand {float(psis_khat(logs.unsqueeze(1))):.2f}"
    )
    assert corrected.khat < 0.5
    assert plain.khat > corrected.khat
    assert abs(corrected.log_marginal + MIRROR - estimate) < 5 * math.hypot(error, corrected.log_marginal_se)
    assert bound < corrected.log_marginal - 5 * corrected.log_marginal_se  # without log 2: a bound on one mode
    assert abs(plain.total - bound) < 5 * plain.total_se


def test_the_mirrored_mode_has_the_same_mass(case, weighted):
    values = weighted.values
    few = {name: value[:50] for name, value in values.items()}
    turned = {**few, "weight": -few["weight"]}
    model = case.corrected.model
    torch.testing.assert_close(model.log_marginal_given(case.x, few), model.log_marginal_given(case.x, turned))
    assert (values["weight"][:, 2].sign() == values["weight"][0, 2].sign()).all()  # q holds one mode alone


def test_importance_moments_are_those_by_hand(case, weighted):
    _, deviation, mean_se, deviation_se = weighted.moments()
    found = zoo.importance_moments(case.corrected, case.x, draws=1000, inner=30).shared
    place = found.units.index("precision[0]")
    tau = weighted.values["precision"]
    weight = weighted.logs.softmax(0)
    expected = (weight * tau).sum()
    error = (weight.square() * (tau - expected).square()).sum().sqrt()
    assert not found.refused
    assert abs(found.mean[place] - expected) < 5 * (error.square() + found.mean_se[place].square()).sqrt()
    assert (mean_se < 0.05 * deviation).all()
    assert (deviation_se < 0.05 * deviation).all()


def marginal(x=None, index=None, size=None):
    """The model with its factors integrated out: six numbers, which NUTS mixes well."""
    one = torch.ones((), dtype=torch.float64)
    gamma = dist.Gamma(1e-3 * one, 1e-3 * one)
    relevance = pyro.sample("relevance", gamma.expand([1]).to_event(1))
    precision = pyro.sample("precision", gamma)
    weight = pyro.sample("weight", dist.Normal(0 * one, relevance.rsqrt().expand(4, 1)).to_event(2))
    # The broad priors draw numbers, far from any posterior, that no Cholesky factor survives.
    noise = (1 / precision.clamp(1e-6, 1e6)).expand(4)
    with rows(x, index, size):
        pyro.sample("x", dist.LowRankMultivariateNormal(0 * noise, weight.clamp(-1e3, 1e3), noise), obs=x)


@pytest.mark.slow  # about a minute
def test_nuts_agrees_with_the_weighted_moments(case, weighted):
    chains = zoo.nuts(zoo.Fit(marginal, case.ascent.guide), case.x, chains=2, draws=1000, warmup=300)
    flat = {name: value.flatten(0, 1) for name, value in chains.samples.items()}
    state = chain_diagnostics(quantities(flat).unflatten(0, (2, 1000)))
    mean, deviation, mean_se, deviation_se = weighted.moments()
    theirs = quantities(flat)
    off_mean = (theirs.mean(0) - mean) / (state["mean_se"].square() + mean_se.square()).sqrt()
    off_deviation = (theirs.std(0) - deviation) / (state["deviation_se"].square() + deviation_se.square()).sqrt()
    own = quantities(case.ascent.sample(case.x, 4000)).std(0)
    print(
        f"\nR-hat at most {float(state['rhat'].max()):.3f}; in standard errors of the difference: means off by "
        f"{float(off_mean.abs().max()):.2f} at most, deviations by {float(off_deviation.abs().max()):.2f}; "
        f"mean-field's deviations are {float((own / deviation).min()):.2f} to {float((own / deviation).max()):.2f} "
        "of the posterior's"
    )
    assert state["rhat"].max() < 1.02  # of what the sign of W does not change
    assert off_mean.abs().max() < 4  # 24 comparisons
    assert off_deviation.abs().max() < 4
    assert (own / deviation).min() < 0.8  # there is something to see
