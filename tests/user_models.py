"""Models as users write them, one for every kind of latent site; in float64 throughout."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroParam
from torch import nn
from torch.distributions import constraints

from zoo.base import Module, rows

DATA_DIM = 4


def one_mean(x=None, index=None, size=None):
    """Normal-normal: one mean that all rows share, its evidence known. A plain function."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 10.0))
    with rows(x, index, size):
        return pyro.sample("x", dist.Normal(mean.unsqueeze(-1), 1.0).to_event(1), obs=x)


class BayesianFactors(Module):
    """Factor analysis with priors: weights in a plate of the features, a noise precision, factors per row."""

    def __init__(self, data_dim=DATA_DIM, latent_dim=1):
        super().__init__()
        self.data_dim, self.latent_dim = data_dim, latent_dim
        self.register_buffer("zero", torch.zeros((), dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        standard = dist.Normal(self.zero.expand(self.latent_dim), 1.0).to_event(1)
        with pyro.plate("features", self.data_dim):
            weight = pyro.sample("weight", standard)  # (d, k)
        precision = pyro.sample("precision", dist.Gamma(self.zero + 2.0, 1.0))
        with rows(x, index, size):
            z = pyro.sample("z", standard)  # (n, k)
            noise = dist.Normal(z @ weight.mT, precision.rsqrt().unsqueeze(-1)).to_event(1)
            return pyro.sample("x", noise, obs=x)


class MixtureOfFactorAnalysers(Module):
    """Two factor analysers, mixed: factors and a component per row, parameters to be learned."""

    def __init__(self, data_dim=DATA_DIM, latent_dim=1):
        super().__init__()
        self.data_dim, self.latent_dim = data_dim, latent_dim
        self.weight = PyroParam(torch.randn(2, data_dim, latent_dim, dtype=torch.float64))
        self.mean = PyroParam(torch.randn(2, data_dim, dtype=torch.float64))
        self.scale = PyroParam(torch.ones(data_dim, dtype=torch.float64), constraints.positive)
        self.proportions = PyroParam(torch.full((2,), 0.5, dtype=torch.float64), constraints.simplex)

    def forward(self, x=None, index=None, size=None):
        weight, mean, scale, proportions = self.weight, self.mean, self.scale, self.proportions
        with rows(x, index, size):
            component = pyro.sample("component", dist.Categorical(proportions))
            z = pyro.sample("z", dist.Normal(mean.new_zeros(self.latent_dim), 1.0).to_event(1))
            centre = (weight[component] @ z.unsqueeze(-1)).squeeze(-1) + mean[component]
            return pyro.sample("x", dist.Normal(centre, scale).to_event(1), obs=x)


class BatchDecoder(Module):
    """A decoder that knows every row's batch, held by the model: x = f(z) + slope * batch + noise."""

    def __init__(self, batch, data_dim=DATA_DIM, latent_dim=1):
        super().__init__()
        self.data_dim, self.latent_dim = data_dim, latent_dim
        self.decoder = nn.Sequential(nn.Linear(latent_dim, 8), nn.Tanh(), nn.Linear(8, data_dim)).double()
        self.slope = PyroParam(torch.zeros(1, data_dim, dtype=torch.float64))
        self.scale = PyroParam(torch.ones(data_dim, dtype=torch.float64), constraints.positive)
        self.register_buffer("batch", batch)  # (n, 1)

    def forward(self, x=None, index=None, size=None):
        decoder, slope, scale = self.decoder, self.slope, self.scale
        batch = self.batch if index is None else self.batch[index]
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(slope.new_zeros(self.latent_dim), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(decoder(z) + batch @ slope, scale).to_event(1), obs=x)


class SparseFactors(Module):
    """Linear factors under a Laplace prior: one real site per row, nothing in closed form, the data site named y."""

    def __init__(self, data_dim=DATA_DIM, latent_dim=2):
        super().__init__()
        self.data_dim, self.latent_dim = data_dim, latent_dim
        self.weight = PyroParam(torch.randn(data_dim, latent_dim, dtype=torch.float64))
        self.mean = PyroParam(torch.zeros(data_dim, dtype=torch.float64))
        self.scale = PyroParam(torch.ones((), dtype=torch.float64), constraints.positive)

    def forward(self, x=None, index=None, size=None):
        weight, mean, scale = self.weight, self.mean, self.scale
        with rows(x, index, size):
            z = pyro.sample("z", dist.Laplace(mean.new_zeros(self.latent_dim), 1.0).to_event(1))
            return pyro.sample("y", dist.Normal(z @ weight.mT + mean, scale).to_event(1), obs=x)


class Everything(Module):
    """Sites of several shapes and supports, shared and of every row."""

    def __init__(self, data_dim=DATA_DIM):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(data_dim, dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        zero = self.mean.new_zeros(())
        rate = pyro.sample("rate", dist.Gamma(zero + 2.0, zero + 2.0))
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(zero.expand(2, 3), 1.0).to_event(2))
            share = pyro.sample("share", dist.Dirichlet(self.mean.new_ones(3)))
            mean = self.mean + (z @ share.unsqueeze(-1)).sum((-2, -1)).unsqueeze(-1)
            return pyro.sample("x", dist.Normal(mean, rate.unsqueeze(-1)).to_event(1), obs=x)


class Levels(Module):
    """A level that all rows share, and one of every row: Gaussian throughout."""

    def forward(self, x=None, index=None, size=None):
        zero = torch.zeros((), dtype=torch.float64)
        level = pyro.sample("level", dist.Normal(zero, 2.0))
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(level, 0.7))
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1), 0.5).to_event(1), obs=x)


class LevelsGiven(Levels):
    """The same with the rows' closed form given the level."""

    def log_marginal_given(self, x, values):
        variance = torch.tensor(0.7**2 + 0.5**2, dtype=x.dtype)
        return dist.Normal(values["level"].unsqueeze(-1), variance.sqrt()).log_prob(x[:, 0])


def levels_evidence(x):
    """log p(X) of ``Levels``: one Gaussian over all rows."""
    covariance = 4.0 + (0.7**2 + 0.5**2) * torch.eye(len(x), dtype=x.dtype)
    return float(dist.MultivariateNormal(x.new_zeros(len(x)), covariance).log_prob(x[:, 0]))


class Awkward(Module):
    """Weights as a matrix, used in a way that does not broadcast over draws."""

    def forward(self, x=None, index=None, size=None):
        zero = torch.zeros((), dtype=torch.float64)
        weight = pyro.sample("weight", dist.Normal(zero.expand(DATA_DIM, 2), 1.0).to_event(2))
        assert weight.ndim == 2
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(zero.expand(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ weight.T, 0.3).to_event(1), obs=x)
