"""``Trace_ELBO`` without Monte Carlo noise, for guides whose expectations a finite rule evaluates."""

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

from zoo.base.callables import PyroCallable
from zoo.base.independent import without_event_dims
from zoo.base.plates import spread
from zoo.infer.losses.traces import Args, Kwargs, Site, check_drawn, latent_names, one_plate, plates_of, rows_plate


class QuadratureELBO(Trace_ELBO):
    r"""The evidence lower bound with its expectation evaluated by a quadrature rule instead of Monte Carlo draws.

    The Gaussian sites of the guide, with K coordinates in all, are evaluated at the K + 1 points :math:`m + L s_j` with
    equal weights, where the :math:`s_j` are the vertices of a regular simplex with mean 0 and covariance I: the rule is
    exact where log p(x, z) is quadratic in z, as in every linear-Gaussian model, for any Gaussian guide. Categorical
    sites are summed over all their values, weighted by q. The bound is then a smooth function of the parameters, which
    L-BFGS (:class:`zoo.infer.optim.lbfgs.LBFGS`) can maximise. For other models the rule is an approximation and not a
    bound; :meth:`exact` tests which of the two holds.

    Sites shared by all rows are evaluated at points of the rule as well: for Gaussian ones it is exact where log p is
    quadratic in them and the local sites together.

    Args:
        rotation: seed of a second rule of the same kind for comparison: the K + 2 vertices of a simplex in K + 1
            dimensions, rotated at random and projected onto K of them. None uses the K + 1 points.

    Raises:
        NotImplementedError: when used, for a guide with a site that is neither Gaussian nor categorical.
        ValueError: when used, for a site that the guide leaves out, or a site in a plate other than that of the rows,
            all of whose members would be evaluated at the same points.

    References:
        Julier (2003), The spherical simplex unscented transformation, American Control Conference.
    """

    def __init__(self, rotation: int | None = None) -> None:
        super().__init__(max_plate_nesting=1, vectorize_particles=True)
        self.rotation = rotation
        self._rule: _Rule | None = None  # the last one used

    @staticmethod
    def exact(model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> bool:
        """Whether the rule gives the bound itself: a second rule agrees with it to rounding error."""
        try:
            with torch.no_grad():
                one, other = (QuadratureELBO(seed).loss(model, guide, *args, **kwargs) for seed in (None, 1))
        except NotImplementedError:
            return False
        precision = torch.finfo(torch.get_default_dtype()).eps if not args else torch.finfo(args[0].dtype).eps
        return math.isfinite(one) and abs(one - other) <= 1e3 * precision * max(abs(one), abs(other), 1.0)

    def prepare(self, guide_trace: poutine.Trace) -> None:
        """Choose the rule from a trace of the guide, which saves the first evaluation a trace of its own.

        Later evaluations keep the rule as long as the guide has the same sites.
        """
        self._rule = _Rule.of(guide_trace, self.rotation)

    def _traces(
        self, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs
    ) -> tuple["_Rule", poutine.Trace, poutine.Trace]:
        """The rule, and traces of model and guide at its points."""
        if self._rule is not None:
            try:
                return self._rule, *self._rule.evaluate(model, guide, args, kwargs)
            except _OtherSites:
                pass
        self.prepare(poutine.trace(guide).get_trace(*args, **kwargs))
        assert self._rule is not None
        return self._rule, *self._rule.evaluate(model, guide, args, kwargs)

    def _expected(self, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs) -> Tensor:
        """The negative bound, a differentiable scalar."""
        rule, model_trace, guide_trace = self._traces(model, guide, args, kwargs)
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

    def loss(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The negative bound."""
        with torch.no_grad():
            return float(self._expected(model, guide, args, kwargs))

    def differentiable_loss(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound as a differentiable scalar."""
        return self._expected(model, guide, args, kwargs)

    def loss_and_grads(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The negative bound; its gradients are added to the parameters'."""
        loss = self._expected(model, guide, args, kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()


class _OtherSites(Exception):  # noqa: N818 - never leaves this module
    """The guide has other sites than those for which a rule was chosen."""


_Kind = tuple[int, bool, torch.dtype, torch.device]  # of a site: width or number of values, which of the two, its type


class _Rule(Messenger):
    """Sets the guide's sites to the points of the rule, along the particles' dimension -2."""

    def __init__(self, kinds: dict[str, _Kind], points: dict[str, Tensor], chosen: dict[str, Tensor]) -> None:
        super().__init__()
        self.kinds = kinds  # of every site that the guide draws
        self.points = points  # standard normal coordinates of every Gaussian site (p, 1, k)
        self.chosen = chosen  # for every categorical site the positions of its values (p,)
        self.count = len(next(iter((points | chosen).values()))) if kinds else 1

    @classmethod
    def of(cls, guide_trace: poutine.Trace, rotation: int | None) -> "_Rule":
        """The rule for the sites in a trace of the guide."""
        kinds = {name: _kind(name, guide_trace.nodes[name]["fn"]) for name in latent_names(guide_trace)}
        widths = {name: size for name, (size, discrete, *_) in kinds.items() if not discrete}
        levels = {name: size for name, (size, discrete, *_) in kinds.items() if discrete}
        k = sum(widths.values())
        normal = _simplex(k)  # (k + 1, k)
        if rotation is not None and k:  # a rotation alone would change nothing for k = 1
            generator = torch.Generator().manual_seed(rotation)
            turn = torch.linalg.qr(torch.randn(k + 1, k + 1, generator=generator, dtype=torch.float64))[0]
            normal = (_simplex(k + 1) @ turn)[:, :k]  # (k + 2, k)
        grid = torch.tensor(list(itertools.product(range(len(normal)), *(range(size) for size in levels.values()))))
        parts = normal[grid[:, 0]].unsqueeze(1).split(list(widths.values()), -1)  # (p, 1, width) each
        points = {name: part.to(*reversed(kinds[name][2:])) for name, part in zip(widths, parts, strict=True)}
        columns = zip(levels, grid[:, 1:].T, strict=True)
        return cls(kinds, points, {name: column.to(kinds[name][3]) for name, column in columns})

    def evaluate(
        self, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Traces of model and guide at the points.

        Raises:
            _OtherSites: the guide has other sites than those of the rule.
        """
        with one_plate("QuadratureELBO"):
            model_trace, guide_trace = get_importance_trace(
                "flat", 2, spread(model, self.count), spread(self(guide), self.count), args, kwargs
            )
        if self.kinds.keys() != set(latent_names(guide_trace)):
            raise _OtherSites
        return model_trace, guide_trace

    def _pyro_sample(self, msg: Site) -> None:
        name, function = msg["name"], msg["fn"]
        if msg["value"] is not None or site_is_subsample(msg):
            return
        if self.kinds.get(name) != _kind(name, function):
            raise _OtherSites
        if name in self.points:
            msg["value"] = _place(function, self.points[name])
        else:
            msg["value"] = function.enumerate_support(expand=False).reshape(-1)[self.chosen[name]].unsqueeze(1)

    def weights(self, guide_trace: poutine.Trace) -> Any:
        """The weights of the particles: (p, n) where categorical sites make them differ by row, else a scalar."""
        weight: Any = 1.0 / self.count
        for name in self.chosen:
            weight = weight * self.kinds[name][0] * guide_trace.nodes[name]["unscaled_log_prob"].exp()
        return weight


def _kind(name: str, function: Any) -> _Kind:
    """Width or number of values of a site's distribution, dtype and device."""
    if function.has_enumerate_support and function.support.is_discrete:
        support = function.enumerate_support(expand=False)
        return support.numel(), True, support.dtype, support.device
    base = _base(function)
    example = base.v if isinstance(base, dist.Delta) else getattr(base, "loc", torch.zeros(()))
    return _width(name, function), False, example.dtype, example.device


def _refuse_other_plates(guide_trace: poutine.Trace, rows: str) -> None:
    """Refuse a site of the guide that is set to points of the rule in a plate other than that of the rows.

    Raises:
        ValueError: names the site and its plate.
    """
    for name in latent_names(guide_trace):
        site = guide_trace.nodes[name]
        other = [plate for plate in plates_of(site) if plate != rows]
        if other and not isinstance(_base(site["fn"]), dist.Delta):
            raise ValueError(
                f"the guide's site '{name}' is in plate '{other[0]}', all of whose members QuadratureELBO would "
                f"evaluate at the same points: use Trace_ELBO, or make '{other[0]}' an event dimension"
            )


def _mean_log_prob(site: Site) -> Tensor:
    """E log q of a guide's site: minus the entropy of a Gaussian, else the log densities at the points.

    The log density of a Gaussian at a point of the rule depends on the point minus the mean, which loses all its digits
    where the scale is small relative to the mean; the entropy does not.
    """
    function = without_event_dims(site["fn"])
    if not isinstance(function, dist.Normal | dist.MultivariateNormal | dist.LowRankMultivariateNormal):
        return site["log_prob"]
    return scale_and_mask(-site["fn"].entropy(), site["scale"], site["mask"])


def _simplex(k: int) -> Tensor:
    """The vertices of a regular simplex (k + 1, k) with mean 0 and covariance I: rows of Helmert's matrix."""
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
    while isinstance(function, torch.distributions.Independent | dist.TransformedDistribution):
        function = function.base_dist
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
