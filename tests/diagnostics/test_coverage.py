"""Do 90% intervals of q for W W' + Psi hold the truth in 90% of data sets?

``python tests/diagnostics/test_coverage.py [data sets] [method ...]`` prints the table that the slow test prints.
"""

import sys
from collections.abc import Callable, Mapping

import polars as pl
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import zoo
from guides import FullRank
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.infer import FixedDraws

LEVEL = 0.9
ROWS, DIM = 60, 4
FIXED = 200  # draws for 13 numbers: from 32 draws the intervals come out half as wide again
STEPS = 25  # of the line search, from coordinate ascent: within 0.002 nats of where 70 end
DRAWS = 2000  # of q, behind its quantiles
WEIGHT = torch.tensor([[0.9], [0.8], [0.6], [-0.5]], dtype=torch.float64)
NOISE = torch.tensor([0.3, 0.4, 0.5, 0.6], dtype=torch.float64)
TRUTH = WEIGHT @ WEIGHT.T + torch.diag(NOISE)

Interval = tuple[Tensor, Tensor]  # lower and upper ends (d, d)
Method = Callable[[Tensor], Interval]


def simulate(seed: int) -> Tensor:
    """Rows (n, d) of factor analysis with one factor."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(ROWS, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64)
    return z @ WEIGHT.T + NOISE.sqrt() * noise


def coverage(methods: Mapping[str, Method], datasets: int) -> pl.DataFrame:
    """A row per method: the share of intervals that hold the truth, in all, of variances and of covariances.

    ``se`` is the Monte Carlo standard error of the share in all. The intervals of one data set are dependent, so that
    it comes from the spread of the data sets' own shares. ``width`` is the mean width of the intervals.

    Args:
        methods: by name, a function from rows (n, d) to the ends of the intervals (d, d) of W W' + Psi.
        datasets: their number; the same for all methods.
    """
    below = torch.tril_indices(DIM, DIM)
    diagonal = below[0] == below[1]
    lines = []
    for name, method in methods.items():
        ends = [method(simulate(seed)) for seed in range(datasets)]
        low, high = (torch.stack(side)[:, *below] for side in zip(*ends, strict=True))  # (datasets, entries)
        truth = TRUTH[*below]
        held = ((low <= truth) & (truth <= high)).double()
        lines.append(
            {
                "method": name,
                "data sets": datasets,
                "held": float(held.mean()),
                "se": float(held.mean(1).std() / datasets**0.5),
                "variances": float(held[:, diagonal].mean()),
                "covariances": float(held[:, ~diagonal].mean()),
                "width": float((high - low).mean()),
            }
        )
    return pl.DataFrame(lines)


def implied(values: Mapping[str, Tensor]) -> Tensor:
    """W W' + Psi (draws, d, d) at draws of the shared sites."""
    weight = values["weight"]
    return weight @ weight.mT + torch.diag_embed(1 / values["precision"])


def of_draws(values: Mapping[str, Tensor]) -> Interval:
    """The ends by quantiles of draws of the shared sites."""
    covariance, tail = implied(values), (1 - LEVEL) / 2
    return covariance.quantile(tail, 0), covariance.quantile(1 - tail, 0)


def of_deviations(mean: Tensor, deviation: Tensor) -> Interval:
    """The ends of a Gaussian: for methods that give standard deviations, such as linear response."""
    reach = float(torch.special.ndtri(torch.tensor((1 + LEVEL) / 2)))
    return mean - reach * deviation, mean + reach * deviation


def ascended(x: Tensor) -> zoo.Fit:
    """Coordinate ascent: q(Z) q(W) q(mu) q(alpha) q(tau)."""
    return zoo.cavi(zoo.BayesianFactorAnalysis(DIM, 1).double(), x, restarts=2)


def mean_field(x: Tensor) -> Interval:
    """The quantiles of the factorised q."""
    return of_draws(ascended(x).sample(x, DRAWS))


def linear_response(x: Tensor) -> Interval:
    """The means of the factorised q, with the deviations that its response implies."""
    found = zoo.linear_response(ascended(x), x, implied)
    return of_deviations(found.mean.reshape(DIM, DIM), found.deviation.reshape(DIM, DIM))


def full_rank(x: Tensor) -> Interval:
    """q(theta) Gaussian with a full covariance in unconstrained coordinates, the rows' factors integrated out."""
    model = Integrated(x)
    guide = FullRank(model, x)
    place(guide, ascended(x).sample(x, DRAWS))
    run = zoo.fit(model, guide, x, loss=FixedDraws(FIXED), steps=STEPS, progress=False)
    return of_draws(run.sample(x, DRAWS))


@torch.no_grad()
def place(guide: FullRank, values: Mapping[str, Tensor]) -> None:
    """Start the shared part at the moments of draws of the sites, in unconstrained coordinates."""
    assert guide.shared is not None
    real = []
    for latent in guide.shared.latents:
        value, transform = values[latent.name], latent.transform
        real.append((value if transform is None else transform.inv(value)).flatten(1))
    every = torch.cat(real, 1)  # (draws, k)
    guide.shared.loc = every.mean(0)
    guide.shared.scale_tril = torch.linalg.cholesky(every.mT.cov())


class Integrated(Module):
    """Bayesian factor analysis without its factors: x ~ N(mu, W W' + Psi)."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.prior = zoo.BayesianFactorAnalysis(DIM, 1).double()
        self.prior.initialize(x)

    def forward(self, x=None, index=None, size=None):
        prior, one = self.prior, self.prior.location.new_ones(())
        relevance = pyro.sample("relevance", dist.Gamma(*(v * one for v in prior.relevance)).expand([1]).to_event(1))
        precision = pyro.sample("precision", dist.Gamma(*(v * one for v in prior.precision)).expand([DIM]).to_event(1))
        deviation = relevance.rsqrt().unsqueeze(-2).expand(*relevance.shape[:-1], DIM, 1)
        weight = pyro.sample("weight", dist.Normal(0.0 * one, deviation).to_event(2))
        mean = pyro.sample("mean", dist.Normal(prior.location, prior.spread.sqrt()).to_event(1))
        # The broad priors draw numbers, far from any posterior, that no Cholesky factor survives.
        weight, precision = weight.clamp(-1e3, 1e3), precision.clamp(1e-4, 1e4)
        with rows(x, index, size):
            return pyro.sample("x", dist.LowRankMultivariateNormal(mean, weight, 1 / precision), obs=x)


METHODS: dict[str, Method] = {
    "mean-field (cavi)": mean_field,
    "linear response": linear_response,
    "full rank": full_rank,
}


def shown(found: pl.DataFrame) -> str:
    """The table as text."""
    with pl.Config(tbl_rows=-1, tbl_width_chars=140, float_precision=3):
        return str(found)


@pytest.mark.slow  # two to three minutes
def test_coverage_of_ninety_percent_intervals():
    found = coverage(METHODS, 100)
    print(f"\n{shown(found)}")
    plain, response, full = found.to_dicts()
    missed = {line["method"]: abs(line["held"] - LEVEL) for line in (plain, response, full)}
    # A factorised q is too narrow by construction; both corrections come nearer to 90% by more than the noise.
    assert plain["held"] < LEVEL - 3 * plain["se"]
    for better in (response, full):
        noise = (plain["se"] ** 2 + better["se"] ** 2) ** 0.5
        assert missed[better["method"]] < missed[plain["method"]] - 2 * noise
        assert better["width"] > plain["width"]


def test_a_few_data_sets_tell_mean_field_from_linear_response():
    found = coverage({name: METHODS[name] for name in ("mean-field (cavi)", "linear response")}, 3)
    plain, response = found.to_dicts()
    assert response["width"] > 1.2 * plain["width"]
    assert response["held"] >= plain["held"]


def test_the_table_counts_what_is_held():
    exact = {
        "all": lambda x: (TRUTH - 1, TRUTH + 1),
        "none": lambda x: (TRUTH + 1, TRUTH + 2),
        "sampling": lambda x: of_deviations(
            x.T.cov(), ((x.T.cov() ** 2 + x.T.cov().diagonal().outer(x.T.cov().diagonal())) / ROWS).sqrt()
        ),
    }
    found = {line["method"]: line for line in coverage(exact, 200).to_dicts()}
    assert found["all"]["variances"] == found["all"]["covariances"] == found["all"]["held"] == 1.0
    assert found["none"]["variances"] == found["none"]["covariances"] == found["none"]["held"] == 0.0
    assert found["all"]["se"] == 0.0
    assert found["all"]["width"] == pytest.approx(2.0)
    # The sample covariance of Gaussian rows with its own standard error: 90% but for the skewness of variances.
    assert found["sampling"]["covariances"] == pytest.approx(0.9, abs=0.03)


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = {name: METHODS[name] for name in sys.argv[2:]} or METHODS
    print(shown(coverage(chosen, int(sys.argv[1]) if len(sys.argv) > 1 else 100)))
