"""A bound without noise for any reparametrised guide: the same draws at every evaluation."""

import math
from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from zoo.base.callables import PyroCallable, name_of
from zoo.base.checks import check_whole
from zoo.base.latent_sites import Layout
from zoo.base.protocols import Carrying
from zoo.base.random import seeded

MOVED = (  # distributions whose draws are a smooth map of noise that does not depend on their parameters
    dist.Normal,
    dist.MultivariateNormal,
    dist.LowRankMultivariateNormal,
    dist.Delta,
    dist.Laplace,
    dist.Uniform,
    dist.Cauchy,
    dist.Gumbel,
)
INFLATION = 1.1  # the most by which a guide that couples its numbers may overstate standard deviations


class FixedDraws(Trace_ELBO):
    r"""The evidence lower bound with its expectation over M fixed draws.

    .. math:: \hat L(\phi) = \frac1M \sum_{m=1}^M \log p(x, T_\phi(\epsilon_m)) - \log q_\phi(T_\phi(\epsilon_m)),
              \qquad \epsilon_m \text{ drawn once}

    A smooth function of the parameters, which a line search can climb to its optimum and whose Hessian
    :func:`zoo.linear_response` inverts; the optimum differs from that of the bound by an error that shrinks with M.
    A guide with a full covariance, or a flow, bends itself around the draws. With no more draws than the k numbers
    that it couples it can make :math:`\hat L` as large as it likes; with more, the covariance that it finds for a
    Gaussian posterior is the true one times the inverse sample covariance of the draws, so that its standard deviations
    are too large by about

    .. math:: \sqrt{\frac{M}{M - k - 2}}.

    :func:`check_fixed_draws` refuses such guides unless this is at most 1.1: M of some six times k + 2.
    :func:`zoo.fit` takes a line search by default with this loss.

    Args:
        draws: M, at least 2.
        seed: of the draws.

    Example:
        >>> import guides, zoo
        >>> x = zoo.data.load("iris").x.double()
        >>> model = zoo.BayesianPCA(4, 1).double()
        >>> guide = guides.MeanField(model, x, family="gaussian")
        >>> zoo.plan(model, guide, x, loss=FixedDraws(20)).summary()["optimizer"]
        'LBFGS'

    References:
        Giordano, Ingram and Broderick (2024), Black box variational inference with a deterministic objective, JMLR 25.
    """

    def __init__(self, draws: int = 30, seed: int = 0) -> None:
        super().__init__(num_particles=check_whole(draws, "draws", 2), vectorize_particles=True)
        self.draws, self.seed = draws, seed

    def _ready(self, *arguments: Any) -> None:
        """Count the plates of model and guide, which Pyro does at the first call by a run that would take draws."""
        model, guide, args, kwargs = arguments
        if math.isinf(self.max_plate_nesting):
            with seeded(self.seed):
                self._guess_max_plate_nesting(model, guide, args, kwargs)

    def loss(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The negative bound over the fixed draws."""
        self._ready(model, guide, args, kwargs)
        with seeded(self.seed):
            return float(super().loss(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound over the fixed draws, as a differentiable scalar."""
        self._ready(model, guide, args, kwargs)
        with seeded(self.seed):
            return torch.as_tensor(super().differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The negative bound over the fixed draws; its gradients are added to the parameters'."""
        self._ready(model, guide, args, kwargs)
        with seeded(self.seed):
            return float(super().loss_and_grads(model, guide, *args, **kwargs))


def check_fixed_draws(guide: PyroCallable, found: Layout, draws: int, arguments: tuple[Any, ...]) -> None:
    """Refuse a guide under which a bound over fixed draws is not smooth, or has no maximum.

    Args:
        guide: the guide.
        found: the model's layout.
        draws: M.
        arguments: of the guide: ``(x,)``.

    Raises:
        ValueError: a site is not drawn by a smooth map of noise; or the draws are too few for the numbers, per row or
            in its shared part, that a guide couples (by a full covariance or a flow). Names the site and the least M.
    """
    with torch.no_grad(), poutine.block(), seeded(0):
        nodes = poutine.trace(guide).get_trace(*arguments).nodes
    numbers, coupled = {True: 0, False: 0}, {True: "", False: ""}
    for name, site in nodes.items():
        if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
            continue
        layers = list(_layers(site["fn"]))
        if not isinstance(layers[-1], MOVED):
            raise ValueError(
                f"FixedDraws cannot serve the site '{name}' of {name_of(guide)}: {_why(layers[-1])}. Use "
                "guides.MeanField(model, x, family='gaussian'), or Trace_ELBO"
            )
        if isinstance(layers[-1], dist.Delta):
            continue
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        local = any(frame.name == found.plate for frame in frames)
        rows = next((frame.size for frame in frames if frame.name == found.plate), 1)
        size = site["value"].numel() // rows
        numbers[local] += size
        if size > 1 and any(_couples(layer) for layer in layers):
            coupled[local] = name
    for local, name in coupled.items():
        if name and draws < (least := least_draws(numbers[local])):
            where = "numbers of each row" if local else "numbers that all rows share"
            raise ValueError(
                f"FixedDraws({draws}) cannot serve {name_of(guide)}, which couples the {numbers[local]} latent {where} "
                f"(site '{name}'): it bends itself around so few draws, and {_consequence(numbers[local], draws)}. "
                f"Take FixedDraws({least}) or more, or guides.MeanField"
            )


def inflation(numbers: int, draws: int) -> float:
    r"""By how much standard deviations come out too large, :math:`\sqrt{M / (M - k - 2)}`; infinite for M <= k + 2.

    At the optimum of a Gaussian guide N(m, L L') for a posterior N(., C), L S L' = C with the sample covariance S of
    the draws (dividing by M), so that L L' is C up to :math:`S^{-1}`, the mean of which is M / (M - k - 2) times the
    identity (inverse Wishart with M - 1 degrees of freedom).

    Args:
        numbers: k, that the guide couples.
        draws: M.
    """
    left = draws - numbers - 2
    return math.sqrt(draws / left) if left > 0 else math.inf


def least_draws(numbers: int) -> int:
    """The least M whose :func:`inflation` for k coupled numbers is at most ``INFLATION``."""
    return math.ceil((numbers + 2) / (1 - INFLATION**-2))


def _consequence(numbers: int, draws: int) -> str:
    """What fixed draws that are too few do to a guide that couples its numbers."""
    if draws <= numbers:
        return "the bound has no maximum"
    factor = inflation(numbers, draws)
    size = f"about {factor:.2f} times" if math.isfinite(factor) else "several times"
    return f"its standard deviations would come out {size} too large"


def _layers(function: Any) -> Iterator[Any]:
    """A distribution, the one it wraps, and so on to the innermost."""
    while function is not None:
        yield function
        function = getattr(function, "carried" if isinstance(function, Carrying) else "base_dist", None)


def _why(function: Any) -> str:
    """Why a distribution's draws are not smooth in its parameters."""
    if not function.has_rsample:
        return f"draws of {type(function).__name__} are not reparametrised, so that the bound would be discontinuous"
    return (
        f"draws of {type(function).__name__} are taken by rejection, so that the same noise gives other draws at other "
        "parameters"
    )


def _couples(layer: Any) -> bool:
    """Whether a layer of a distribution can fit a covariance among its numbers."""
    if isinstance(layer, dist.MultivariateNormal | dist.LowRankMultivariateNormal):
        return True
    return any(_learned(transform) for transform in getattr(layer, "transforms", ()))


def _learned(transform: Any) -> bool:
    """Whether a transform, or one inside it, is a network's or has parameters."""
    inner = getattr(transform, "parts", ()) or [getattr(transform, "base_transform", None)]
    held = [value for value in vars(transform).values() if isinstance(value, nn.Module)]
    networks = isinstance(transform, nn.Module) or bool(held) or "nn" in vars(transform)
    return networks or any(part is not None and _learned(part) for part in inner)
