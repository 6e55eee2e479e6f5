"""Densities of a run row by row, in chunks: what every evaluation shares, and its refusals."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.distributions import Distribution

from zoo.base.latent_sites import Latent, latents
from zoo.base.plates import spread
from zoo.base.random import seeded
from zoo.infer.fitting import Fit

Arguments = tuple[Any, ...]


@contextmanager
def reading(run: Fit, seed: int) -> Iterator[None]:
    """A block that reads a run: its parameter store, a random stream of one's own, no gradients, no validation."""
    with run.scope(), seeded(seed), torch.no_grad(), pyro.validation_enabled(False):
        yield


def whole(guide: Any) -> bool:
    """Whether a guide knows its rows only all together (Pyro's autoguides without ``create_plates``)."""
    return isinstance(guide, AutoGuide) and guide.create_plates is None


def chunks(run: Fit, x: Tensor, count: int) -> Iterator[tuple[Tensor, Arguments]]:
    """Row numbers (b,) of at most ``count`` rows at a time, with the arguments that model and guide take for them."""
    n = len(x)
    for index in torch.arange(n, device=x.device).split(n if whole(run.guide) else max(1, count)):
        yield index, (x,) if len(index) == n else (x[index], index, n)


def densities(run: Fit, arguments: Arguments, draws: int) -> tuple[dict[str, Tensor], Tensor]:
    r"""Log densities of draws of z from the guide, for some rows, unscaled by the size of the data.

    Returns:
        log p of every site of the model by name, and :math:`\log q(z \mid x)`; each (draws, b).

    Raises:
        ValueError: the guide leaves out a site or puts a point mass on it, or a site is shared by all rows.
    """
    return sampled(run, arguments, draws)[1:]


def sampled(run: Fit, arguments: Arguments, draws: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    r"""Draws of z from the guide, for some rows, with their log densities as :func:`densities` gives them.

    Returns:
        the values of every latent site by name (draws, b, ...), log p of every site of the model by name, and
        :math:`\log q(z \mid x)`; each (draws, b).

    Raises:
        ValueError: as :func:`densities`.
    """
    guide_trace = poutine.trace(spread(run.guide, draws)).get_trace(*arguments)
    model_trace = poutine.trace(poutine.replay(spread(run.model, draws), trace=guide_trace)).get_trace(*arguments)
    names = [name for name in model_trace.stochastic_nodes if name != "rows"]
    omitted = [name for name in names if name not in guide_trace.nodes]
    if omitted:
        raise ValueError(
            f"the guide has no site '{omitted[0]}' (was it summed out in the fit?): evaluate needs a guide "
            "that covers it, such as Exact; for a conjugate model the bound is then model.log_marginal(x)"
        )
    nodes = guide_trace.nodes
    if not any(site["infer"].get("is_auxiliary") for site in nodes.values() if site["type"] == "sample"):
        for name in names:
            if isinstance(nodes[name]["fn"], dist.Delta):
                raise ValueError(
                    f"the guide puts a point mass on '{name}': it has no density there, and no bound. "
                    "Evaluate a guide with a spread, such as MeanField or AutoNormal"
                )
    x = arguments[0]
    blank = x.new_zeros(draws, len(x))
    guide_total = sum(_by_row(guide_trace).values(), blank)
    model_total = {name: blank + value for name, value in _by_row(model_trace).items()}
    return {name: nodes[name]["value"] for name in names}, model_total, guide_total


def _by_row(trace: Any) -> dict[str, Tensor]:
    """The unscaled log densities of a trace by site; each broadcasts to (draws, b).

    Raises:
        ValueError: a site stands outside the plate of the rows.
    """
    trace.compute_log_prob()
    found = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
            continue
        if not any(frame.name == "rows" for frame in site["cond_indep_stack"]):
            if not site["unscaled_log_prob"].any():
                continue
            raise ValueError(
                f"latent site '{name}' is shared by all rows, so the bound does not split into rows: "
                "evaluate works where all sites of model and guide stand in the plate 'rows' (of Pyro's "
                "autoguides, AutoNormal)"
            )
        found[name] = site["unscaled_log_prob"]
    return found


def log_joint(run: Fit, latent: Latent, z: Tensor, arguments: Arguments) -> dict[str, Tensor]:
    r"""The terms of :math:`\log p(x, z)` by site, each (draws, b), at values (draws, b, k) of the one latent site."""
    return log_terms(run, {latent.name: z.reshape(*z.shape[:-1], *latent.shape)}, arguments)


def log_terms(run: Fit, values: dict[str, Tensor], arguments: Arguments) -> dict[str, Tensor]:
    r"""The terms of :math:`\log p(x, z)` by site, each broadcasting to (draws, b), at values (draws, b, ...) of all
    latent sites by name.
    """
    draws = len(next(iter(values.values())))
    model = poutine.condition(run.model, values)
    return _by_row(poutine.trace(spread(model, draws)).get_trace(*arguments))


def real_site(run: Fit, x: Tensor, task: str) -> Latent:
    """The model's one latent site, continuous, local and on the real line.

    Args:
        run: a fit.
        x: rows (n, d).
        task: what needs it, for the message.

    Raises:
        ValueError: the model has several latent sites, or one that is shared by all rows, discrete or constrained.
    """
    with run.scope():
        found = latents(run.model, x)
    if len(found) != 1:
        names = ", ".join(f"'{latent.name}'" for latent in found)
        raise ValueError(f"{task} needs a model with one latent site, this one has {len(found)} ({names})")
    latent = found[0]
    kind = (
        "shared by all rows"
        if not latent.local
        else "discrete"
        if latent.cardinality is not None
        else f"constrained to {latent.support}"
        if latent.transform is not None
        else ""
    )
    if kind:
        raise ValueError(f"{task} needs a latent site with a real vector per row, and '{latent.name}' is {kind}")
    return latent


def conditional(run: Fit, latent: Latent, arguments: Arguments) -> Distribution:
    """The guide's q(z | x) of the one latent site, as it is sampled: batch shape (b,).

    Raises:
        ValueError: the guide draws the site together with something else, or puts a point mass on it.
    """
    nodes = poutine.trace(run.guide).get_trace(*arguments).nodes
    site = nodes.get(latent.name)
    if site is not None and isinstance(site["fn"], dist.Delta):
        site = nodes.get(f"{latent.name}_unconstrained", site)  # AutoNormal's
    if site is None or isinstance(site["fn"], dist.Delta):
        raise ValueError(
            f"the guide {type(run.guide).__name__} has no density of its own for '{latent.name}' of a row: take one of "
            "zoo's guides or AutoNormal"
        )
    return site["fn"]


def gaussian(q: Distribution) -> tuple[Tensor, Tensor] | None:
    """Mean (b, k) and scales (b, k) of a factorised Gaussian, or mean and Cholesky factor (b, k, k) of a joint one.

    None for any other distribution.
    """
    base: Any = q
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
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
