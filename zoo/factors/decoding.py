"""From rows to factors and back: posterior means, and p(x | z) of any model."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from zoo.base.checks import check_rows, check_whole
from zoo.base.latent_sites import Latent, latents
from zoo.base.module import like
from zoo.base.random import seeded
from zoo.infer.run import Fit


def factor_site(run: Fit, task: str) -> Latent:
    """The model's one latent site with a real vector per row: its factors.

    Args:
        run: a fit.
        task: what needs it, for the message.

    Raises:
        ValueError: the model has no such site, or others beside it (which only a model with a method ``decode`` may).
    """
    with run.scope():
        found = latents(run.model)
    name = type(run.model).__name__
    local = [latent for latent in found if latent.local and latent.cardinality is None]
    need = f"{task} needs factors, one latent site with a real vector per row, and {name}"
    if not local:
        kind = ", ".join(
            f"'{latent.name}' is {'shared by all rows' if latent.cardinality is None else 'discrete'}"
            for latent in found
        )
        raise ValueError(
            f"{need} has none ({kind or 'it has no latent site'}): zoo.generate, zoo.reconstruct and zoo.impute "
            "serve such models"
        )
    if len(local) > 1 or (len(found) > 1 and not hasattr(run.model, "decode")):
        names = ", ".join(f"'{latent.name}'" for latent in found)
        raise ValueError(
            f"{need} has the sites {names}: give it a method decode(z) that returns p(x | z) for the factors alone"
        )
    if local[0].transform is not None:
        raise ValueError(
            f"{need} constrains '{local[0].name}' to {local[0].support}, where 0 and straight lines mean little: draw "
            "from run.sample(x), and move the draws yourself"
        )
    return local[0]


@torch.no_grad()
def decode(run: Fit, z: Any) -> Any:
    """p(x | z) for factors: a distribution with batch (..., n), event (d,).

    By the model's own method ``decode`` where it has one; otherwise the model is run with its site held at ``z``, and
    the distribution of its site ``x`` read off.

    Args:
        run: from :func:`zoo.fit`.
        z: factors (..., n, k).

    Raises:
        ValueError: the model has no factors (see :func:`factor_site`), or ``z`` another width.

    >>> import torch, guides, zoo
    >>> x = zoo.data.load("iris").x
    >>> model = zoo.PPCA(data_dim=4, latent_dim=2)
    >>> run = zoo.fit(model, guides.Exact(model), x, steps=20, progress=False)
    >>> decode(run, torch.zeros(5, 2)).mean.shape
    torch.Size([5, 4])
    """
    latent = factor_site(run, "decode")
    z = like(z, run.model)
    k = latent.shape.numel()
    if z.ndim < 2 or z.shape[-1] != k:
        raise ValueError(f"z has shape {tuple(z.shape)}: pass one row of factors per row of x, (n, {k})")
    shaped = z.reshape(*z.shape[:-1], *latent.shape)
    with run.scope():
        if hasattr(run.model, "decode"):
            return run.model.decode(shaped)
        return likelihood(run.model, {latent.name: shaped}, z.shape[-2])


def likelihood(model: Any, values: Mapping[str, Tensor], size: int) -> Any:
    """p(x | all latent sites) of ``size`` rows, with the sites held at ``values``; event (d,).

    Values may have further dimensions on the left. The caller's random stream is left alone.

    Raises:
        ValueError: the model has no site ``x``.
    """
    with seeded(0), poutine.block():
        trace = poutine.trace(poutine.condition(model, data=dict(values))).get_trace(size=size)
    if "x" not in trace.nodes:
        raise ValueError(f"{type(model).__name__} has no site 'x': name the rows so in the model")
    return trace.nodes["x"]["fn"]


@torch.no_grad()
def encode(run: Fit, x: Any, *, draws: int = 200, seed: int = 0) -> Tensor:
    """The posterior means of the factors under the guide, (n, k).

    Args:
        run: from :func:`zoo.fit`.
        x: rows (n, d) or a :class:`zoo.data.Dataset`; a guide with parameters for every row takes those it was fitted
            to.
        draws: to average, where the guide has no closed form of its mean.
        seed: of these draws.

    Raises:
        ValueError: the model has no factors, or rows that are not fit for model or guide.
    """
    latent = factor_site(run, "encode")
    x = check_rows(x, run.model)
    check_whole(draws, "draws")
    with run.scope():
        mean = _closed_mean(run, x)
    if mean is None or mean.shape != (len(x), *latent.shape):
        mean = run.sample(x, draws, seed=seed)[latent.name].mean(0)
    return mean.detach().reshape(len(x), -1).clone()  # a guide may hand out its own parameter


def closed_posterior(run: Fit, x: Tensor) -> Any:
    """The guide's distribution given the rows, or None where it has none in closed form. Call it in ``run.scope()``."""
    if not hasattr(run.guide, "posterior"):
        return None
    try:
        return run.guide.posterior(x)
    except (ValueError, NotImplementedError):
        return None


def _closed_mean(run: Fit, x: Tensor) -> Tensor | None:
    q = closed_posterior(run, x)
    try:
        return None if q is None else q.mean
    except NotImplementedError:
        return None
