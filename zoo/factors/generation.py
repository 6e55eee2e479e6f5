"""New rows, and old rows as the model sees them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from zoo.base.checks import check_rows, check_whole
from zoo.base.latent_sites import latents
from zoo.base.plates import spread
from zoo.data.dataset import column_names
from zoo.factors.decoding import likelihood
from zoo.infer.run import Fit
from zoo.posterior.draws import whole
from zoo.posterior.engine import Arguments, reading

BUDGET = 2**24  # numbers per array and chunk; bounds the memory


@dataclass(frozen=True, eq=False)
class Reconstruction:
    r"""The rows as the model would draw them again from the factors that the guide gives them.

    Under :math:`\tilde x \sim \int p(\tilde x \mid z)\, q(z \mid x)\, dz`:

    Attributes:
        mean: :math:`E\, \tilde x` (n, d).
        variance: the variance of every entry (n, d): of the factors and of the noise.
        columns: the names of the d columns; empty where no data set has named them.
    """

    mean: Tensor
    variance: Tensor
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Generated:
    r"""Draws from the model.

    Attributes:
        x: the rows (n, d).
        mean: :math:`E[x \mid \text{latents}]` (n, d): the same rows without their noise.
        latents: what every latent site was drawn as, by name.
    """

    x: Tensor
    mean: Tensor
    latents: dict[str, Tensor]


def generate(run: Fit, size: int, seed: int = 0) -> Generated:
    """Rows drawn from the model: latents from the prior, then the rows given them.

    Args:
        run: from :func:`zoo.fit`; any model will do.
        size: the number of rows.
        seed: of the draws; the caller's random stream is left alone.

    Raises:
        ValueError: ``size`` is no whole number of at least 1.

    >>> import guides, zoo
    >>> x = zoo.data.load("iris").x
    >>> model = zoo.PPCA(data_dim=4, latent_dim=2)
    >>> run = zoo.fit(model, guides.Exact(model), x, steps=20, progress=False)
    >>> generate(run, 5, seed=1).x.shape
    torch.Size([5, 4])
    """
    check_whole(size, "size")
    with reading(run, seed):
        found = latents(run.model)
        nodes = poutine.trace(run.model).get_trace(size=size).nodes
    site = nodes["x"]
    return Generated(site["value"], site["fn"].mean, {latent.name: nodes[latent.name]["value"] for latent in found})


def reconstruct(run: Fit, x: Any, *, draws: int = 200, seed: int = 0) -> Reconstruction:
    r"""The mean and the variance of the rows drawn again, over draws of the latents from the guide.

    .. math:: E\, \tilde x = E_q\, \mu(z), \qquad \mathrm{Var}\, \tilde x = E_q\, \sigma^2(z) + \mathrm{Var}_q\, \mu(z)

    Args:
        run: from :func:`zoo.fit`; any model will do.
        x: rows (n, d) or a :class:`zoo.data.Dataset`; a guide with parameters for every row takes those it was fitted
            to. Missing entries (NaN), where the model knows them, are drawn like the others.
        draws: per row, at least 2.
        seed: of the draws; the caller's random stream is left alone.

    Raises:
        ValueError: too few draws, or rows that are not fit for model or guide.
    """
    check_whole(draws, "draws", 2)
    names, x = column_names(x), check_rows(x, run.model)
    means, variances = [], []
    with reading(run, seed):
        for _, arguments, trace in guide_traces(run, x, draws):
            density = given_draws(run, trace, len(arguments[0]))
            mean, variance = total(density.mean, density.variance)
            means.append(mean)
            variances.append(variance)
    return Reconstruction(torch.cat(means), torch.cat(variances), names)


def guide_traces(
    run: Fit, x: Tensor, draws: int, needed: Tensor | None = None
) -> Iterator[tuple[Tensor, Arguments, Any]]:
    """Traces of the guide inside a plate of draws, some rows at a time.

    Args:
        run: a fit.
        x: rows (n, d).
        draws: per row.
        needed: the numbers of the rows wanted; None: all. (A guide that knows its rows only together takes all.)

    Yields:
        the numbers of the rows (b,), the arguments that model and guide take for them, and the trace.
    """
    n = len(x)
    every = torch.arange(n, device=x.device)
    wanted = every if needed is None or whole(run.guide) else needed
    for index in wanted.split(n if whole(run.guide) else max(1, BUDGET // (draws * x.shape[1]))):
        arguments: Arguments = (x,) if len(index) == n else (x[index], index, n)
        yield index, arguments, poutine.trace(spread(run.guide, draws)).get_trace(*arguments)


def given_draws(run: Fit, trace: Any, size: int) -> Any:
    """p(x | latents) of ``size`` rows for the latents in a trace of the guide: batch (draws, size)."""
    values = {latent.name: trace.nodes[latent.name]["value"] for latent in latents(run.model) if latent.name in trace}
    if not values:
        raise ValueError(
            "the guide draws none of the model's latent sites (were they summed out in the fit?): take a guide that "
            "covers them, such as Exact"
        )
    return likelihood(run.model, values, size)


def total(mean: Tensor, variance: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and variance over draws, by the laws of total expectation and variance.

    Args:
        mean: given every draw (s, n, d).
        variance: given every draw (s, n, d).
        weights: of the draws (s, n), with sum 1 over them; None: equal.
    """
    if weights is None:
        spread, centre = torch.var_mean(mean, 0)
        return centre, variance.mean(0) + spread
    weights = weights.unsqueeze(-1)
    centre = (weights * mean).sum(0)
    return centre, (weights * (variance + (mean - centre).square())).sum(0)
