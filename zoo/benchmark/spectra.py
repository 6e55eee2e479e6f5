"""Tables whose covariance has known eigenvalues, and the maximum of PPCA on them in closed form."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zoo.base.moments import Moments
from zoo.data.loading import load

DECAY = 0.75  # of the simulated eigenvalues, from one to the next


@dataclass(frozen=True)
class Table:
    """Rows whose covariance has known eigenvalues.

    Attributes:
        name: in the table of results.
        rows: returns the rows (n, d), in float64.
        latent_dim: the number of factors K.
        above: for every fixed noise variance, the number of eigenvalues that exceed it: it is the geometric mean of
            the two eigenvalues around it, or 1.5 times the largest. All are at least 6 percent apart from the noise.
        batch: rows per step of Adam; None for all.
        source: of the rows.
    """

    name: str
    rows: Callable[[], Tensor]
    latent_dim: int
    above: tuple[int, ...]
    batch: int | None = None
    source: str = ""


def simulated() -> Tensor:
    """1000 rows x 20 columns whose covariance has the eigenvalues 16 * 0.75^j, exactly: a fixed seed, then whitened."""
    generator = torch.Generator().manual_seed(0)
    n, d = 1000, 20
    draws = torch.randn(n, d, generator=generator, dtype=torch.float64)
    white = torch.linalg.qr(draws - draws.mean(0)).Q * n**0.5
    axes = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    values = 16 * DECAY ** torch.arange(d, dtype=torch.float64)
    return (white * values.sqrt()) @ axes.T


def wine() -> Tensor:
    """The wine data: 178 rows x 13 columns, of mean 0 and variance 1."""
    x = load("wine", dtype=torch.float64).x
    return (x - x.mean(0)) / x.std(0, correction=0)


def mnist(count: int) -> Tensor:
    """The first rows of MNIST's training file, values in [0, 1]."""
    return load("mnist", dtype=torch.float64).x[:count]


SIMULATED = Table("simulated", simulated, 10, (0, 1, 2, 4, 6, 8, 9))
WINE = Table("wine", wine, 8, (0, 1, 2, 3, 5, 7), source="scikit-learn's wine data, standardised columns")


def pixels(count: int) -> Table:
    """Those of MNIST, with 20 factors."""
    source = f"MNIST, the first {count} rows of the training file, values in [0, 1]"
    return Table("mnist", partial(mnist, count), 20, (1, 6, 12), 200, source)


def eigenvalues(x: Tensor) -> Tensor:
    """The eigenvalues of the covariance of rows (n, d), divided by n, in descending order (d,)."""
    return torch.linalg.eigvalsh(Moments.of(x).covariance).flip(0)


def noise_below(values: Tensor, above: int) -> float:
    """A noise variance that ``above`` of the eigenvalues exceed, the square of a number in single precision."""
    middle = 1.5 * values[0] if above == 0 else (values[above - 1] * values[above]).sqrt()
    return float(middle.sqrt().float()) ** 2


def optimum(values: Tensor, latent_dim: int, noise: float) -> tuple[float, float, Tensor]:
    r"""PPCA at its maximum: noise variance, log p(x) in nats per row, and the KL of every unit, in closed form.

    With :math:`v_j = \max(\lambda_j, \sigma^2)` for :math:`j \le K` and :math:`\sigma^2` for the others, the
    log-likelihood per row is :math:`-\tfrac12 \sum_j (\log 2\pi + \log v_j + \lambda_j / v_j)`, and the KL of unit j
    from the prior, averaged over the rows, :math:`\tfrac12 \log(v_j / \sigma^2)`.

    Args:
        values: the eigenvalues of the rows' covariance (d,), in descending order.
        latent_dim: K.
        noise: the fixed noise variance; NaN for the mean of the D - K smallest eigenvalues, the learned one.
    """
    noise = float(values[latent_dim:].mean()) if math.isnan(noise) else noise
    variance = torch.full_like(values, noise)
    variance[:latent_dim] = values[:latent_dim].clamp_min(noise)
    top = -0.5 * (math.log(2 * math.pi) + variance.log() + values / variance).sum()
    return noise, float(top), 0.5 * (variance[:latent_dim] / noise).log()
