"""How much information the latent variables carry: rate, distortion, mutual information, collapsed units."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import polars
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.kl import kl_divergence

from zoo.base.checks import ArrayLike, check_whole
from zoo.base.independent import without_event_dims
from zoo.base.latent_sites import Latent
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.threads import on_suited_threads
from zoo.posterior.engine import Arguments, Reader, reader, reading
from zoo.posterior.rowwise import conditional, gaussian, log_joint, real_site

Dequantised = Literal["uniform", "discrete", "none"]


@dataclass(frozen=True, eq=False)
class RateDistortion:
    r"""The information in z about x, in nats: the result of :func:`rate_distortion`.

    .. math:: -\mathrm{ELBO} = \mathrm{distortion} + \mathrm{rate}, \qquad
              \mathrm{rate} = I_q(x; z) + \mathrm{KL}(q(z) \| p(z)), \qquad
              q(z) = \tfrac1n \sum_n q(z \mid x_n)

    Attributes:
        rate: the mean of KL(q(z | x) || p(z)) over the rows.
        distortion: the mean of :math:`-E_q \log p(x \mid z)`.
        mutual_information: between the index of a row and its z, under q; at most log n.
        marginal_kl: the KL divergence of the aggregated posterior q(z) from the prior.
        rate_se: the Monte Carlo standard error; 0 where the rate has a closed form. Likewise for the others.
        unit_kl: the mean KL of every unit's marginal q(z_j | x) from its prior (k,), or None where q or the prior has
            no marginal density for a unit. With independent units they add up to the rate.
        variance: :math:`\mathrm{Var}_x\, E_q[z_j \mid x]` of every unit (k,).
        threshold: the variance above which a unit is active.
        draws: draws per row.
        count: the number of rows n.
    """

    rate: float
    distortion: float
    mutual_information: float
    marginal_kl: float
    rate_se: float
    distortion_se: float
    mutual_information_se: float
    marginal_kl_se: float
    unit_kl: Tensor | None
    variance: Tensor
    threshold: float
    draws: int
    count: int

    @property
    def active(self) -> Tensor:
        """Whether a unit is active (k,): the variance of its posterior mean over the rows exceeds the threshold."""
        return self.variance > self.threshold

    @property
    def collapsed(self) -> list[int]:
        """The units that are not active, counted from 0."""
        return (~self.active).nonzero().flatten().tolist()

    @property
    def verdict(self) -> str:
        """Which units have collapsed, in words."""
        k, gone = len(self.variance), self.collapsed
        if not gone:
            return f"all {k} units are active" if k > 1 else "the one unit is active"
        if len(gone) == k:
            who = f"all {k} units have collapsed" if k > 1 else "the one unit has collapsed"
            text = f"{who}: the mean of q(z | x) does not depend on x, z carries {self.mutual_information:.2g} nats"
        else:
            shown = ", ".join(map(str, gone[:10])) + (", ..." if len(gone) > 10 else "")
            have = "has" if len(gone) == 1 else "have"
            text = f"{len(gone)} of {k} units {have} collapsed (number {shown}, from 0)"
        if self.unit_kl is not None and (rest := float(self.unit_kl[gone].sum())) > 0.1:
            text += f"; they still cost {rest:.2g} nats per row: q there is the same for all rows, but not the prior"
        return text

    def summary(self) -> dict[str, float]:
        """Nats per row with their Monte Carlo standard errors, the number of active units and of all units."""
        names = ("rate", "distortion", "mutual_information", "marginal_kl")
        table = {key: float(getattr(self, key)) for name in names for key in (name, f"{name}_se")}
        return table | {"active": float(self.active.sum()), "units": float(len(self.variance))}

    def frame(self) -> polars.DataFrame:
        """A row per unit: its number, the variance of its posterior mean, whether it is active, and its KL if known."""
        k = len(self.variance)
        table: dict[str, list[float]] = {"unit": list(range(k)), "variance": self.variance.tolist()}
        table["active"] = self.active.tolist()
        table["kl"] = [math.nan] * k if self.unit_kl is None else self.unit_kl.tolist()
        return polars.DataFrame(table)

    def __repr__(self) -> str:
        return (
            f"Rate and distortion of {self.count} rows, nats per row: rate {self.rate:.4f} = mutual information "
            f"{self.mutual_information:.4f} (se {self.mutual_information_se:.1g}, at most log n = "
            f"{math.log(self.count):.2f}) + marginal KL {self.marginal_kl:.4f}; distortion {self.distortion:.4f} "
            f"(se {self.distortion_se:.1g}); {self.verdict}"
        )


@on_suited_threads
def rate_distortion(
    run: Trained, x: ArrayLike, *, draws: int = 10, threshold: float = 0.01, seed: int = 0
) -> RateDistortion:
    r"""Rate, distortion, mutual information and active units of a run on the rows ``x``.

    The mutual information is the mean of :math:`\log q(z \mid x_n) - \log q(z)` over draws from every row, with the
    aggregated posterior q(z) over all rows rather than a minibatch: n^2 * draws densities, in chunks. Where q and the
    prior are Gaussian the rate and the KL of every unit have closed forms, otherwise they are estimated from the same
    draws. The marginal KL is the rate minus the mutual information.

    Args:
        run: a trained pair.
        x: rows (n, d), at least 2; for a guide with parameters for every row, those it was fitted to.
        draws: draws per row, at least 2.
        threshold: the variance of a unit's posterior mean above which it is active (Burda et al.: 0.01).
        seed: of the draws; the caller's random stream is left unchanged.

    Raises:
        ValueError: too few rows or draws, a negative ``threshold``, a model without exactly one latent site with a real
            vector per row, or a guide without a density of its own per row.

    References:
        Hoffman and Johnson (2016), ELBO surgery; Burda, Grosse and Salakhutdinov (2016), Importance weighted
        autoencoders (active units); Alemi et al. (2018), Fixing a broken ELBO (rate and distortion).
    """
    run = pair_of(run)
    check_whole(draws, "draws", 2)
    if not threshold >= 0:
        raise ValueError(f"threshold must be a variance of at least 0, got {threshold!r}")
    x = rows_of(run, x, least=2)
    n = len(x)
    with reading(run, seed):
        source = reader(run, x)
        latent = real_site(source, "rate_distortion")
        parts = [
            _of_rows(source, latent, arguments, draws)
            for _, arguments in source.chunks(rows_at_once(draws * x.shape[1]))
        ]
        z = torch.cat([part.z for part in parts], 1)  # (draws, n, k)
        own = torch.cat([part.log_q for part in parts], 1)  # (draws, n)
        carried = own.double() - _aggregated(source, latent, z.flatten(0, 1)).reshape(draws, n)
    means = torch.cat([part.mean for part in parts]).detach().double()  # may be a parameter itself
    distortion = torch.cat([part.distortion for part in parts], 1)
    rates = torch.cat([part.rate for part in parts], 1)
    rate, rate_se = _mean(rates)
    mutual, mutual_se = _mean(carried)
    variance = means.var(0, correction=0)
    if not parts[0].closed:  # without the Monte Carlo variance of the means
        variance = (variance - z.double().var(0).mean(0) / draws).clamp_min(0.0)
    kls = [part.unit_kl for part in parts if part.unit_kl is not None]
    return RateDistortion(
        rate=rate,
        distortion=_mean(distortion)[0],
        mutual_information=mutual,
        marginal_kl=rate - mutual,
        rate_se=rate_se,
        distortion_se=_mean(distortion)[1],
        mutual_information_se=mutual_se,
        marginal_kl_se=_mean(rates - carried)[1],
        unit_kl=torch.cat(kls).double().mean(0).to(x) if kls else None,
        variance=variance.to(x),
        threshold=float(threshold),
        draws=draws,
        count=n,
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """What a chunk of rows gives: draws first, then rows."""

    z: Tensor  # (draws, b, k)
    log_q: Tensor  # (draws, b)
    rate: Tensor  # (1, b) in closed form, else (draws, b)
    distortion: Tensor  # (draws, b)
    mean: Tensor  # (b, k)
    unit_kl: Tensor | None  # (b, k)
    closed: bool  # whether ``mean`` is


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean of (draws, n) and its Monte Carlo standard error: 0 for a single draw, in closed form."""
    draws, n = values.shape
    error = float((values.double().var(0).sum() / draws).sqrt() / n) if draws > 1 else 0.0
    return float(values.double().mean()), error


def _of_rows(source: Reader, latent: Latent, arguments: Arguments, draws: int) -> _Part:
    q = conditional(source, latent, arguments)
    value = q.sample((draws,))
    b = len(arguments[0])
    z = value.reshape(draws, b, -1)
    terms = log_joint(source, latent, z, arguments)
    log_p = terms.pop(latent.name).expand(draws, b)
    log_q = q.log_prob(value)
    distortion = -sum(terms.values(), torch.zeros_like(log_q))
    prior = _prior(source, latent, arguments)
    found, before = gaussian(q), gaussian(prior)
    if found is not None and before is not None:
        rate = kl_divergence(_joint(*found), _joint(*before)).unsqueeze(0)
        unit_kl = kl_divergence(_units(*found), _units(*before))
    else:
        rate, unit_kl = log_q - log_p, None
        own, theirs = _independent(q), _independent(prior)
        if own is not None and theirs is not None:
            unit_kl = (own.log_prob(value) - theirs.log_prob(value)).mean(0).reshape(b, -1)
    mean = z.mean(0) if found is None else found[0]
    return _Part(z, log_q, rate, distortion, mean, unit_kl, found is not None)


def _prior(source: Reader, latent: Latent, arguments: Arguments) -> Distribution:
    """The model's p(z) of some rows."""
    return poutine.trace(source.pair.model).get_trace(*arguments).nodes[latent.name]["fn"]


def _independent(q: Distribution) -> Distribution | None:
    """The distribution of the coordinates, if they are independent, with the event shape as batch shape."""
    base = without_event_dims(q)
    return None if base.event_shape else base


def _joint(loc: Tensor, root: Tensor) -> Distribution:
    """A Gaussian as a distribution of vectors."""
    if root.ndim == loc.ndim:
        root = torch.diag_embed(root)
    return torch.distributions.MultivariateNormal(loc, scale_tril=root)


def _units(loc: Tensor, root: Tensor) -> Distribution:
    """The marginals of a Gaussian."""
    return torch.distributions.Normal(loc, root if root.ndim == loc.ndim else root.square().sum(-1).sqrt())


def _aggregated(source: Reader, latent: Latent, z: Tensor) -> Tensor:
    r""":math:`\log \frac1n \sum_n q(z \mid x_n)` of draws z (s, k), over all rows of x, in float64: (s,)."""
    total = z.new_full((len(z),), -math.inf, dtype=torch.float64)
    for _, arguments in source.chunks(rows_at_once(4 * source.x.shape[1])):
        b = len(arguments[0])
        q = conditional(source, latent, arguments)
        found = gaussian(q)
        cost = b if found is not None and found[1].ndim == 2 else b * z.shape[-1]
        for piece in torch.arange(len(z), device=z.device).split(rows_at_once(cost)):
            if found is None:
                log_q = q.log_prob(z[piece].reshape(-1, 1, *latent.shape).expand(-1, b, *latent.shape)).double()
            else:
                log_q = _gaussian_log_prob(z[piece].double(), found[0].double(), found[1].double())
            total[piece] = torch.logaddexp(total[piece], log_q.logsumexp(1))
    return total - math.log(len(source.x))


def _gaussian_log_prob(z: Tensor, loc: Tensor, root: Tensor) -> Tensor:
    """The log densities of draws (s, k) under every one of b Gaussians: (s, b)."""
    z, loc = z - loc[0], loc - loc[0]
    full = root.ndim > loc.ndim
    least = torch.linalg.matrix_norm(root, -2) if full else root.amin(1)  # the least deviation in any direction
    far = torch.maximum(z.square().sum(1).amax(), loc.square().sum(1).amax())
    precise = float(far / least.amin().square()) < 1e7  # beyond, the expanded square loses more than half of its digits
    if full and not precise:
        return torch.distributions.MultivariateNormal(loc, scale_tril=root).log_prob(z.unsqueeze(1))
    deviations = root.diagonal(dim1=-2, dim2=-1) if full else root
    level = -0.5 * loc.shape[1] * math.log(2 * math.pi) - deviations.log().sum(1)
    if not precise:
        return level - 0.5 * sum(((a - m) / s).square() for a, m, s in _columns(z, loc, root))
    if full:
        precision = torch.cholesky_inverse(root)
        squares, pull = torch.einsum("si,sj->sij", z, z).flatten(1), (precision @ loc.unsqueeze(-1)).squeeze(-1)
        precision = precision.flatten(1)
    else:
        precision = root.square().reciprocal()
        squares, pull = z.square(), loc * precision
    return level - 0.5 * (squares @ precision.T - 2 * z @ pull.T + (loc * pull).sum(1))


def _columns(z: Tensor, loc: Tensor, scale: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Draws (s, 1), means (b,) and scales (b,), unit by unit."""
    return zip(z.T.unsqueeze(-1), loc.T, scale.T, strict=True)


@dataclass(frozen=True, eq=False)
class Bits:
    """A log-likelihood in bits per dimension: the result of :func:`bits_per_dimension`.

    Attributes:
        values: bits per dimension, in the given shape: lower is better.
        text: the meaning of the number, and how the data were dequantised.
    """

    values: Tensor
    text: str

    @property
    def mean(self) -> float:
        """The mean over the rows."""
        return float(self.values.double().mean())

    def summary(self) -> dict[str, float]:
        """The mean, and the number of values."""
        return {"bits_per_dimension": self.mean, "rows": float(self.values.numel())}

    def frame(self) -> polars.DataFrame:
        """A row per value."""
        return polars.DataFrame({"bits_per_dimension": self.values.flatten().tolist()})

    def __repr__(self) -> str:
        return f"{self.mean:.4f} bits per dimension: {self.text}"


def bits_per_dimension(nats: float | Tensor, data_dim: int, *, levels: int = 256, dequantised: Dequantised) -> Bits:
    r"""A log-likelihood per row in bits per dimension, which depends on how discrete data were dequantised.

    - ``"uniform"``: noise was added to the levels, and all divided by their number L, :math:`x = (k + u) / L` with u
      uniform on [0, 1). By Jensen's inequality the expected :math:`\log p(x) - D \log L` is below the log
      probability of the levels, so :math:`-\log p(x) / (D \log 2) + \log_2 L` is an upper bound on their bits.
    - ``"discrete"``: the numbers are log probabilities of the levels themselves: :math:`-\log P(k) / (D \log 2)`.
    - ``"none"``: the density at the levels on a scale of [0, 1], without noise. The formula is that of ``"uniform"``,
      but it is not a bound: a density may have arbitrarily high peaks at the levels. The text states this.

    Args:
        nats: log-likelihood, or a bound on it, in nats per row: a number or a tensor.
        data_dim: the number of columns D.
        levels: the number of levels L of every column.
        dequantised: one of the three.

    Raises:
        ValueError: ``dequantised`` is not one of the three, or ``data_dim`` or ``levels`` is not a whole number.

    References:
        Theis, van den Oord and Bethge (2016), A note on the evaluation of generative models, ICLR, section 3.1.

    >>> bits_per_dimension(0.0, 784, dequantised="uniform")
    8.0000 bits per dimension: 256 levels dequantised by uniform noise on a scale of [0, 1): an upper bound
    """
    check_whole(data_dim, "data_dim")
    check_whole(levels, "levels", 2)
    if dequantised not in get_args(Dequantised):
        raise ValueError(f"dequantised must be one of {', '.join(get_args(Dequantised))}; got {dequantised!r}")
    bits = -torch.as_tensor(nats, dtype=torch.float64) / (data_dim * math.log(2))
    if dequantised == "discrete":
        return Bits(bits, f"log probabilities of {levels} levels, without dequantisation")
    text = {
        "uniform": f"{levels} levels dequantised by uniform noise on a scale of [0, 1): an upper bound",
        "none": f"a density at {levels} levels on a scale of [0, 1], not dequantised: not a bound, and not comparable",
    }
    return Bits(bits + math.log2(levels), text[dequantised])
