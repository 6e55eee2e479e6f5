"""Generation of new rows, and reconstruction of given ones."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars
import torch
from torch import Tensor

from zoo.base.checks import ArrayLike, check_whole
from zoo.base.covariates import check_row_buffers
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, known_columns, pair_of, rows_of
from zoo.base.tables import index_column, row_names
from zoo.factors.drawing import closed_moments, likelihoods, moments, shared_draws, stand_in
from zoo.factors.tables import columns_of, frame_of, only_site
from zoo.posterior.engine import Arguments, Reader, reader, reading


@dataclass(frozen=True, eq=False)
class Reconstruction:
    r"""Mean and variance of replicated rows :math:`\tilde x`, given the latents that the guide infers for the rows.

    .. math:: \tilde x \sim \int p(\tilde x \mid z, \theta)\, q(z, \theta \mid x)\, dz\, d\theta

    Attributes:
        means: :math:`E\, \tilde x` of every data site (n, d), by name.
        variances: the variance of every entry (n, d), from latents and noise, by the site's name.
        columns: the names of the d columns; empty if unknown.
        index: the names of the rows, numbers or text; None where they are merely counted.
    """

    means: dict[str, Tensor]
    variances: dict[str, Tensor]
    columns: tuple[str, ...] = ()
    index: np.ndarray | None = None

    @property
    def mean(self) -> Tensor:
        """The means of the one data site (n, d).

        Raises:
            ValueError: the model has several data sites.
        """
        return only_site(self.means, "means")

    @property
    def variance(self) -> Tensor:
        """The variances of the one data site (n, d).

        Raises:
            ValueError: the model has several data sites.
        """
        return only_site(self.variances, "variances")

    def summary(self) -> dict[str, float]:
        """The number of rows, and the root mean variance of the entries of every data site."""
        rows = float(len(next(iter(self.means.values()))))
        return {"rows": rows} | {f"{name}_sd": float(v.double().mean().sqrt()) for name, v in self.variances.items()}

    def frame(self) -> polars.DataFrame:
        """One line per row of the data: mean and standard deviation of every entry."""
        columns: dict[str, Any] = index_column(self.index)
        for name, mean in self.means.items():
            found = columns_of(name, mean, self.columns)
            sds = columns_of(name, self.variances[name].sqrt(), self.columns)
            columns |= found | {f"{title}_sd": values for title, values in sds.items()}
        return frame_of(columns)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(mean.shape)}" for name, mean in self.means.items())
        sds = ", ".join(f"{float(v.double().mean().sqrt()):.4g}" for v in self.variances.values())
        return f"Reconstruction of {shapes}: root mean predictive variance {sds}"


@dataclass(frozen=True, eq=False)
class Generated:
    r"""Draws from the model.

    Attributes:
        data: the rows (n, d), by the data site's name.
        means: :math:`E[x \mid \text{latents}]` (n, d), the same rows without noise, by the data site's name;
            sites whose mean has no closed form are omitted.
        latents: the latent sites of the rows (n, ...), by name.
        shared: the latent sites that all rows share (...), by name.
        columns: the names of the d columns; empty if unknown.
    """

    data: dict[str, Tensor]
    means: dict[str, Tensor]
    latents: dict[str, Tensor]
    shared: dict[str, Tensor] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    @property
    def x(self) -> Tensor:
        """The rows of the one data site (n, d).

        Raises:
            ValueError: the model has several data sites.
        """
        return only_site(self.data, "data")

    @property
    def mean(self) -> Tensor:
        """The means of the one data site (n, d).

        Raises:
            ValueError: the model has several data sites, or the mean has no closed form.
        """
        if not self.means:
            raise ValueError(f"the mean of data site '{next(iter(self.data))}' has no closed form: average draws of it")
        return only_site(self.means, "means")

    def summary(self) -> dict[str, float]:
        """The number of rows, and mean and standard deviation over all entries of every data site."""
        table = {"rows": float(len(next(iter(self.data.values()))))}
        for name, x in self.data.items():
            table |= {f"{name}_mean": float(x.double().mean()), f"{name}_sd": float(x.double().std())}
        return table

    def frame(self) -> polars.DataFrame:
        """One line per row: its data and its local latents."""
        columns: dict[str, list[float]] = {}
        for name, value in self.data.items():
            columns |= columns_of(name, value, self.columns)
        for name, value in self.latents.items():
            columns |= columns_of(name, value)
        return frame_of(columns)

    def __repr__(self) -> str:
        data = ", ".join(f"{name} {tuple(x.shape)}" for name, x in self.data.items())
        latents = ", ".join(f"{name} {tuple(value.shape)}" for name, value in (self.latents | self.shared).items())
        return f"Generated {data} from {latents or 'no latent site'}"


def generate(run: Trained, size: int, *, prior: bool = False, x: ArrayLike | None = None, seed: int = 0) -> Generated:
    r"""Draws new rows from the model: first the latents, then the rows given the latents.

    Local latents are drawn from the prior. Shared sites :math:`\theta` are drawn from the guide, one draw for all rows,
    so that the rows are a data set from the posterior predictive distribution,

    .. math:: \theta \sim q(\theta), \qquad z_n \sim p(z \mid \theta), \qquad x_n \sim p(x \mid z_n, \theta)

    Args:
        run: a trained pair, of any model. Covariates are those in the model, for ``size`` rows; replace them by
            ``run.given(batch=...)``.
        size: the number of rows.
        prior: whether to draw the shared sites from the prior as well.
        x: the rows that the guide was fitted to, where it needs them to draw the shared sites.
        seed: seed of the draws.

    Raises:
        ValueError: ``size`` is not a whole number of at least 1, the model holds covariates for another number of rows,
            its data sites cannot be distinguished from its latent sites, or the guide cannot draw the shared sites
            without rows.

    >>> import guides, zoo
    >>> x = zoo.data.load("iris").x
    >>> model = zoo.PPCA(data_dim=4, latent_dim=2)
    >>> run = zoo.fit(model, guides.Exact(model), x, steps=20, progress=False)
    >>> generate(run, 5, seed=1).x.shape
    torch.Size([5, 4])
    """
    run = pair_of(run)
    check_whole(size, "size")
    with reading(run, seed):
        check_row_buffers(run.model, size)
        source = stand_in(run, x)
        held = {} if prior else shared_draws(source, 1, given=x is not None)
        sites, densities = likelihoods(source, (None, None, size), held, 1)
    data = {name: sites[name][0].reshape(size, -1) for name in source.layout.data}
    found = {name: closed_moments(densities[name], 1, size) for name in data}
    means = {name: pair[0][0] for name, pair in found.items() if pair is not None}
    local, shared = (
        {own.name: sites[own.name][0] for own in kind} for kind in (source.layout.local, source.layout.shared)
    )
    return Generated(data, means, local, shared, known_columns(run, x))


def reconstruct(run: Trained, x: ArrayLike, *, draws: int = 200, seed: int = 0) -> Reconstruction:
    r"""Mean and variance of replicated rows :math:`\tilde x`, over draws of the latents from the guide.

    .. math:: E\, \tilde x = E_q\, \mu(z, \theta), \qquad
              \mathrm{Var}\, \tilde x = E_q\, \sigma^2(z, \theta) + \mathrm{Var}_q\, \mu(z, \theta)

    with :math:`\theta` the shared sites, if there are any.

    Args:
        run: a trained pair, of any model. Covariates are those in the model (see ``run.given``).
        x: rows (n, d) or a :class:`zoo.data.Dataset`; for a guide with parameters per row, the rows it was fitted to.
            Where the model supports missing entries (NaN), these are drawn like the others.
        draws: number of draws per row, at least 2.
        seed: seed of the draws.

    Raises:
        ValueError: too few draws, or rows that model or guide cannot take.
    """
    run = pair_of(run)
    check_whole(draws, "draws", 2)
    names, index, data = known_columns(run, x), row_names(x), rows_of(run, x)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with reading(run, seed):
        source = reader(run, data)
        held: dict[str, Tensor] = {}
        for _, arguments in source.chunks(rows_at_once(draws * data.shape[1])):
            values = guide_draws(source, arguments, draws, held)
            sites, densities = likelihoods(source, arguments, values, draws)
            for name, found in densities.items():
                parts.setdefault(name, []).append(total(*moments(found, sites[name])))
    means = {name: torch.cat([mean for mean, _ in found]) for name, found in parts.items()}
    variances = {name: torch.cat([variance for _, variance in found]) for name, found in parts.items()}
    return Reconstruction(means, variances, names, index)


def guide_draws(source: Reader, arguments: Arguments, draws: int, held: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draws of all latent sites for some rows, including point masses and discrete sites that the guide leaves out.

    Args:
        source: the pair and its rows.
        arguments: arguments of model and guide for the rows.
        draws: the number of draws.
        held: draws of the shared sites, fixed for all rows; filled in here if it is empty.
    """
    drawn = source.draw(arguments, draws, held, points=True).values
    held.update({own.name: drawn[own.name] for own in source.layout.shared if own.name in drawn})
    return source.complete(arguments, drawn, draws)


def total(mean: Tensor, variance: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and variance over draws, by the laws of total expectation and variance.

    Args:
        mean: the mean given each draw (s, n, d).
        variance: the variance given each draw (s, n, d).
        weights: weights of the draws (s, n), which sum to 1 over the draws; None for equal weights.
    """
    if weights is None:
        spread, centre = torch.var_mean(mean, 0)
        return centre, variance.mean(0) + spread
    weights = weights.unsqueeze(-1)
    centre = (weights * mean).sum(0)
    return centre, (weights * (variance + (mean - centre).square())).sum(0)
