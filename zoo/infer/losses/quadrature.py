"""A ``Trace_ELBO`` without Monte Carlo noise, for guides whose expectations a finite rule can take."""

import itertools
import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from zoo.base.independent import without_event_dims
from zoo.base.plates import spread
from zoo.infer.losses.traces import check_drawn, latent_names, one_plate, plates_of, rows_plate


class QuadratureELBO(Trace_ELBO):
    r"""The evidence lower bound with its expectation taken by a rule instead of by draws.

    Gaussian sites of the guide, of K numbers in all, take the K + 1 points :math:`m + L s_j` with equal weights, where
    the :math:`s_j` are the corners of a regular simplex with mean 0 and covariance I: the rule is exact where
    log p(x, z) is quadratic in z, as in every linear-Gaussian model, for any Gaussian guide. Categorical sites take
    all their values, weighted by q. The bound is then a smooth function of the parameters, and L-BFGS
    (:class:`zoo.infer.optim.lbfgs.LBFGS`) can climb it. For other models the rule is an approximation, not a bound;
    :meth:`exact` tells which it is.

    Args:
        rotation: seed of another rule of the same kind, to compare with: the K + 2 corners of a simplex in K + 1
            dimensions, turned at random and seen in K of them. None takes the K + 1 points.

    Sites that all rows share take points of the rule as well: for a Gaussian of theirs it is exact where log p is
    quadratic in them and the rows' sites together.

    Raises:
        NotImplementedError: when used, for a guide with a site that is neither Gaussian nor categorical.
        ValueError: when used, for a site that the guide leaves out, or in a plate other than that of the rows, whose
            members would all take the same points.

    References:
        Julier (2003), The spherical simplex unscented transformation, American Control Conference.
    """

    def __init__(self, rotation: int | None = None) -> None:
        super().__init__(max_plate_nesting=1, vectorize_particles=True)
        self.rotation = rotation

    @staticmethod
    def exact(model: Any, guide: Any, *args: Any, **kwargs: Any) -> bool:
        """Whether the rule gives the bound itself: another one agrees with it to rounding."""
        try:
            with torch.no_grad():
                one, other = (QuadratureELBO(seed).loss(model, guide, *args, **kwargs) for seed in (None, 1))
        except NotImplementedError:
            return False
        precision = torch.finfo(torch.get_default_dtype()).eps if not args else torch.finfo(args[0].dtype).eps
        return math.isfinite(one) and abs(one - other) <= 1e3 * precision * max(abs(one), abs(other), 1.0)

    def _expected(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Tensor:
        """The negative bound, a differentiable scalar."""
        rule = _Rule.of(poutine.trace(guide).get_trace(*args, **kwargs), self.rotation)

        with one_plate("QuadratureELBO"):
            model_trace, guide_trace = get_importance_trace(
                "flat", 2, spread(model, rule.count), spread(rule(guide), rule.count), args, kwargs
            )
        for name in latent_names(model_trace):
            check_drawn(name, guide_trace)
        rows = rows_plate(model_trace)
        _refuse_other_plates(guide_trace, rows)
        weight = rule.weights(guide_trace)  # (p, n) or a scalar
        bound: Any = 0.0
        for sign, trace in ((1.0, model_trace), (-1.0, guide_trace)):
            for site in trace.nodes.values():
                if site["type"] == "sample":
                    local = rows in plates_of(site)
                    log_prob = _mean_log_prob(site) if sign < 0 else site["log_prob"]
                    term = log_prob * (weight if local else 1 / rule.count)
                    bound = bound + sign * term.sum()
        return -bound

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The negative bound."""
        with torch.no_grad():
            return float(self._expected(model, guide, args, kwargs))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound as a differentiable scalar."""
        return self._expected(model, guide, args, kwargs)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The negative bound; its gradients are added to the parameters'."""
        loss = self._expected(model, guide, args, kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()


class _Rule(Messenger):
    """Hands the guide's sites the points of the rule, along the particles' dimension -2."""

    def __init__(self, points: dict[str, Tensor], values: dict[str, Tensor], count: int) -> None:
        super().__init__()
        self.points = points  # standard normal coordinates of every Gaussian site, (p, 1, k)
        self.values = values  # values of every categorical site, (p, 1)
        self.count = count

    @classmethod
    def of(cls, trace: Any, rotation: int | None) -> "_Rule":
        """The rule for the sites in a trace of the guide."""
        widths: dict[str, int] = {}
        supports: dict[str, Tensor] = {}
        example = torch.zeros(())
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
                continue
            function = site["fn"]
            if function.has_enumerate_support and function.support.is_discrete:
                supports[name] = function.enumerate_support(expand=False).reshape(-1)
            else:
                widths[name] = _width(name, function)
                example = site["value"]
        k = sum(widths.values())
        normal = _simplex(k).to(example)  # (k + 1, k)
        if rotation is not None and k:  # a turn alone would change nothing for k = 1
            generator = torch.Generator().manual_seed(rotation)
            turn = torch.linalg.qr(torch.randn(k + 1, k + 1, generator=generator, dtype=torch.float64))[0]
            normal = (_simplex(k + 1) @ turn)[:, :k].to(example)  # (k + 2, k)
        grid = list(itertools.product(range(len(normal)), *(range(len(v)) for v in supports.values())))
        chosen = torch.tensor(grid, device=normal.device)  # (p, 1 + number of categorical sites)
        points = dict(zip(widths, normal[chosen[:, 0]].unsqueeze(1).split(list(widths.values()), -1), strict=True))
        values = {name: support[chosen[:, i + 1]].unsqueeze(1) for i, (name, support) in enumerate(supports.items())}
        return cls(points, values, len(grid))

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["value"] is None and msg["name"] in self.points:
            msg["value"] = _place(msg["fn"], self.points[msg["name"]])
        elif msg["value"] is None and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]

    def weights(self, guide_trace: Any) -> Any:
        """The weight of every particle, for every row where categorical sites make it differ."""
        weight: Any = 1.0 / self.count
        for name, values in self.values.items():
            site = guide_trace.nodes[name]
            levels = len(values.unique())
            weight = weight * levels * site["unscaled_log_prob"].exp()
        return weight


def _refuse_other_plates(guide_trace: Any, rows: str) -> None:
    """Raise where a site of the guide that takes points stands in a plate other than that of the rows.

    Raises:
        ValueError: names the site and its plate.
    """
    for name in latent_names(guide_trace):
        site = guide_trace.nodes[name]
        other = [plate for plate in plates_of(site) if plate != rows]
        if other and not isinstance(_base(site["fn"]), dist.Delta):
            raise ValueError(
                f"the guide's site '{name}' stands in plate '{other[0]}', all of whose members QuadratureELBO would "
                f"give the same points, as if they were rows: use Trace_ELBO, or make '{other[0]}' an event dimension"
            )


def _mean_log_prob(site: dict[str, Any]) -> Tensor:
    """E log q of a guide's site: minus the entropy of a Gaussian, else the densities of the points.

    A Gaussian's density at a point of the rule would be taken from the point less the mean, which loses all its digits
    where a scale is small beside the mean; the entropy has them.
    """
    function = without_event_dims(site["fn"])
    if not isinstance(function, dist.Normal | dist.MultivariateNormal | dist.LowRankMultivariateNormal):
        return site["log_prob"]
    return scale_and_mask(-site["fn"].entropy(), site["scale"], site["mask"])


def _simplex(k: int) -> Tensor:
    """The corners of a regular simplex (k + 1, k), with mean 0 and covariance 1: rows of Helmert's matrix."""
    order = torch.arange(1.0, k + 1, dtype=torch.float64)
    corner = torch.ones(k + 1, k, dtype=torch.float64).triu()
    corner[range(1, k + 1), range(k)] = -order
    return corner / (order * (order + 1)).sqrt() * math.sqrt(k + 1)


def _width(name: str, function: Any) -> int:
    """The number of standard normal coordinates behind a Gaussian (or transformed Gaussian) distribution."""
    base = _base(function)
    if isinstance(base, dist.Delta):
        return 0
    if not isinstance(base, dist.Normal | dist.MultivariateNormal | dist.LowRankMultivariateNormal):
        raise NotImplementedError(
            f"QuadratureELBO has no rule for the guide's site '{name}' ({type(base).__name__}): use Trace_ELBO"
        )
    own = base.event_shape or (function.event_shape if not isinstance(function, dist.TransformedDistribution) else None)
    return torch.Size(own if own is not None else function.base_dist.event_shape).numel()


def _base(function: Any) -> Any:
    while True:
        if isinstance(function, torch.distributions.Independent | dist.TransformedDistribution):
            function = function.base_dist
        else:
            return function


def _place(function: Any, point: Tensor) -> Tensor:
    """The value of the distribution at standard normal coordinates (p, 1, k)."""
    if isinstance(function, dist.TransformedDistribution):
        value = _place(function.base_dist, point)
        for transform in function.transforms:
            value = transform(value)
        return value
    event = function.event_shape
    function = without_event_dims(function)
    if isinstance(function, dist.Delta):
        return function.v
    if isinstance(function, dist.Normal):
        return function.loc + function.scale * point.reshape(*point.shape[:-1], *event)
    return function.mean + (function.scale_tril @ point.unsqueeze(-1)).squeeze(-1)
