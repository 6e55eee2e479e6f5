"""Helpers for evaluations by row: importance weights, the single continuous site, the guide's Gaussian."""

import pyro.distributions as dist
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from zoo.base.callables import name_of
from zoo.base.independent import without_event_dims
from zoo.base.latent_sites import Latent
from zoo.posterior.engine import Arguments, Reader, asking


def row_weights(source: Reader, arguments: Arguments, draws: int, task: str = "evaluate") -> Tensor:
    r""":math:`\log p(x_n, z) - \log q(z \mid x_n)` of some rows for draws of z from the guide, (draws, b).

    Raises:
        ValueError: a site is shared by all rows, or the guide draws all rows jointly.
    """
    return row_draws(source, arguments, draws, task)[1]


def row_draws(source: Reader, arguments: Arguments, draws: int, task: str) -> tuple[dict[str, Tensor], Tensor]:
    """Draws of the latent sites of some rows by name (draws, b, ...), and their log weights (draws, b).

    Raises:
        ValueError: as :func:`row_weights`.
    """
    refuse_shared(source, task)
    drawn = source.draw(arguments, draws)
    refuse_joint(source, drawn.joint, task)
    weights = source.score(arguments, drawn.values, draws).by_row - drawn.log_q.by_row
    return drawn.values, weights.expand(draws, len(arguments[0]))


def refuse_shared(source: Reader, task: str) -> None:
    """Refuse a model with a site shared by all rows.

    Raises:
        ValueError: names the site.
    """
    for latent in source.layout.shared:
        raise ValueError(
            f"latent site '{latent.name}' is shared by all rows, so log p(x) is not a sum over rows, which {task} "
            "needs; zoo.evaluate gives the bound and log p(x) of all rows together"
        )


def refuse_joint(source: Reader, joint: str | None, task: str) -> None:
    """Refuse a guide that draws all rows jointly.

    Raises:
        ValueError: names the guide and its site.
    """
    if joint is not None:
        raise ValueError(
            f"the guide {name_of(source.pair.guide)} draws all rows jointly, in '{joint}', so its density is not a "
            f"product over rows, which {task} needs; zoo.evaluate gives the bound of all rows together. Guides with a "
            "density per row are MeanField, FullRank, Amortized and, of Pyro's autoguides, AutoNormal"
        )


def log_joint(source: Reader, latent: Latent, z: Tensor, arguments: Arguments) -> dict[str, Tensor]:
    r"""The terms of :math:`\log p(x, z)` by site, each (draws, b), at values (draws, b, k) of the one latent site."""
    return source.score(arguments, {latent.name: z.reshape(*z.shape[:-1], *latent.shape)}).rows


def real_site(source: Reader, task: str) -> Latent:
    """The model's one latent site, continuous, local and on the real line.

    Args:
        source: the pair and its rows.
        task: the function that needs it, for the message.

    Raises:
        ValueError: the model has several latent sites, or one that is shared by all rows, discrete or constrained.
    """
    refuse_shared(source, task)
    found = source.layout.latents
    if len(found) != 1:
        names = ", ".join(f"'{latent.name}'" for latent in found)
        raise ValueError(
            f"{task} needs a model with one latent site, and this one has {len(found)} ({names}); zoo.evaluate and "
            "zoo.log_evidence_bounds without AIS take several"
        )
    latent = found[0]
    kind = (
        "discrete"
        if latent.cardinality is not None
        else f"constrained to {latent.support}"
        if latent.transform is not None
        else ""
    )
    if kind:
        raise ValueError(f"{task} needs a latent site with a real vector per row, and '{latent.name}' is {kind}")
    return latent


def conditional(source: Reader, latent: Latent, arguments: Arguments) -> Distribution:
    """The guide's q(z | x) of the one latent site, as it is sampled: batch shape (b,).

    Raises:
        ValueError: the guide draws the site jointly with others, or has a point mass on it.
    """
    with asking(source.pair.guide, arguments):
        nodes = poutine.trace(source.pair.guide).get_trace(*arguments).nodes
    site = nodes.get(latent.name)
    if site is not None and isinstance(site["fn"], dist.Delta):
        site = nodes.get(f"{latent.name}_unconstrained", site)  # AutoNormal's
    if site is None or isinstance(site["fn"], dist.Delta):
        raise ValueError(
            f"the guide {name_of(source.pair.guide)} has no density for '{latent.name}' of a single row: use one of "
            "the package guides, or AutoNormal"
        )
    batch = site["fn"].batch_shape
    with asking(source.pair.guide, arguments):
        if batch and batch[-1] not in (1, len(arguments[0])):
            raise ValueError(f"it draws '{latent.name}' for {batch[-1]} rows")
    return site["fn"]


def gaussian(q: Distribution) -> tuple[Tensor, Tensor] | None:
    """Mean (b, k) and scales (b, k) of a factorised Gaussian, or mean and Cholesky factor (b, k, k) of a joint one.

    None for any other distribution.
    """
    base = without_event_dims(q)
    if isinstance(base, dist.Normal):
        batch = base.loc.shape[: len(q.batch_shape)]
        return base.loc.reshape(*batch, -1), base.scale.expand_as(base.loc).reshape(*batch, -1)
    if isinstance(base, dist.MultivariateNormal | dist.LowRankMultivariateNormal) and len(q.event_shape) == 1:
        root = base.scale_tril
        return base.loc.expand(*q.batch_shape, -1), root.expand(*q.batch_shape, -1, -1)
    return None


def stretch(root: Tensor, u: Tensor) -> Tensor:
    """``root`` times whitened coordinates (..., b, k); ``root`` holds scales (b, k) or Cholesky factors (b, k, k)."""
    return root * u if root.ndim == 2 else (root @ u.unsqueeze(-1)).squeeze(-1)


def log_mean(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The log of the mean of weights (draws, n) given as logs, with its standard error by the delta method: (n,)."""
    top = weights.amax(0)
    ratio = (weights - top).exp()
    return top + ratio.mean(0).log(), ratio.std(0) / ratio.mean(0) / len(weights) ** 0.5


def log_volume(root: Tensor) -> Tensor:
    """The log determinant of scales (b, k) or Cholesky factors (b, k, k): (b,)."""
    return (root if root.ndim == 2 else root.diagonal(dim1=-2, dim2=-1)).log().sum(-1)
