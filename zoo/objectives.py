"""Objectives beside the plain bound: KL annealing and free bits, importance weighting. Pyro losses for ``zoo.fit``."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import MultiFrameTensor, get_plate_stacks
from pyro.poutine.util import prune_subsample_sites
from pyro.util import warn_if_nan
from torch import Tensor

from zoo.base import Latent, check_whole, spread

Schedule = Callable[[int], float]
Estimator = Literal["plain", "doubly"]


def warm_up(steps: int) -> Schedule:
    r"""The linear schedule :math:`\beta_t = \min(t / T, 1)` for :class:`AnnealedELBO`, t counted from 0.

    Args:
        steps: the step T at which the weight of the KL is 1.

    Raises:
        ValueError: ``steps`` is no whole number of at least 1.

    References:
        Bowman et al. (2016), Generating sentences from a continuous space, CoNLL; Soenderby et al. (2016), Ladder
        variational autoencoders, NeurIPS.

    >>> [warm_up(4)(step) for step in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    check_whole(steps, "steps")
    return lambda step: min(step / steps, 1.0)


class AnnealedELBO(ELBO):
    r"""The bound with its KL weighted, against posteriors that collapse; reports the plain bound.

    .. math:: -E_q \log p(x \mid z) + \beta_t \sum_j \max(\lambda, \overline{\mathrm{KL}}_j)

    with :math:`\overline{\mathrm{KL}}_j` the mean over the rows at hand of unit j's KL(q || p), and
    :math:`\lambda` the ``free_bits``: a unit below them feels no pull towards its prior. What is returned, by
    :meth:`loss` and by :meth:`loss_and_grads`, is always the plain negative bound (:math:`\beta = 1`, no free bits), on
    the same draws as ``Trace_ELBO``: curves, early stopping and comparisons mean what they always mean, and only the
    gradients follow the objective.

    A unit is a coordinate of a site where q and p are both factorised Gaussians: their KL is taken in closed form.
    Otherwise the site is one unit, its KL is estimated by the draws, and it counts at least :math:`\lambda` times its
    width. Discrete sites take the score-function gradient, as in ``Trace_ELBO``. A site that all rows share is
    weighted like the others.

    The closed form is there for its gradients, which in no case measured were noisier than those of the drawn KL. The
    deviation of the guide's gradient, over that of ``Trace_ELBO``: 0.09 (VAE on iris, at the start), 0.76 (PPCA on
    iris, VAE on digits, both at the start), 0.97 to 0.99 after a fit. Near the end of a fit the path derivative of
    ``IWAE(1, estimator="doubly")`` can be far quieter; midway it can be noisier.

    A ``beta`` that is a schedule makes the loss count its steps: one for every call that gives gradients. It then
    belongs to the first model and guide it is used with and refuses others; a further fit of the same two goes on
    counting, as their parameters go on from where they are. A number keeps no count and may be used anywhere.

    Args:
        beta: the weight of the KL, a number or a function of the step (from 0), such as :func:`warm_up`.
        free_bits: :math:`\lambda` in nats per unit.
        num_particles: draws per row.
        vectorize_particles: take them at once, in a plate to the left of the others.
        max_plate_nesting: how many plates are nested in model and guide.

    Raises:
        ValueError: ``beta`` or ``free_bits`` is negative or no finite number; when used: a schedule gives such a
            number or is used for a second pair of model and guide, the guide leaves out a site, or free bits meet a
            guide that draws the site through auxiliary ones (Pyro's autoguides), whose KL has no home.

    References:
        Bowman et al. (2016), Generating sentences from a continuous space, CoNLL; Higgins et al. (2017), beta-VAE,
        ICLR; Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), Improved variational inference with
        inverse autoregressive flow, NeurIPS (free bits, appendix C.8).

    Example:
        >>> loss = AnnealedELBO(beta=warm_up(1000), free_bits=0.05)
        >>> # zoo.fit(model, guide, x, loss=loss)
    """

    def __init__(
        self,
        beta: float | Schedule = 1.0,
        free_bits: float = 0.0,
        *,
        num_particles: int = 1,
        vectorize_particles: bool = True,
        max_plate_nesting: int = 1,
    ) -> None:
        check_whole(num_particles, "num_particles")
        super().__init__(num_particles, max_plate_nesting, vectorize_particles=vectorize_particles)
        self.beta = beta if callable(beta) else _weight(beta, "beta")
        self.free_bits = _weight(free_bits, "free_bits")
        self.step = 0
        self._pair: tuple[Any, Any] | None = None

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The plain negative bound."""
        with torch.no_grad():
            traces = self._get_traces(model, guide, args, kwargs)
            return _reported(sum(float(_plain(*pair)) for pair in traces) / self.num_particles)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The plain negative bound, with the gradient of the objective."""
        loss, surrogate = self._objective(model, guide, args, kwargs)
        return loss + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The plain negative bound; the gradients of the objective are added to the parameters'."""
        loss, surrogate = self._objective(model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward()
        return _reported(loss.item())

    def _next_beta(self, model: Any, guide: Any) -> float:
        if not callable(self.beta):
            return self.beta
        if self._pair is None:
            self._pair = (model, guide)
        elif self._pair[0] != model or self._pair[1] != guide:
            raise ValueError(
                f"this AnnealedELBO has counted {self.step} steps of another model or guide, and its schedule goes on "
                "from there: make a new one for every fit"
            )
        beta = _weight(self.beta(self.step), f"beta at step {self.step}")
        self.step += 1
        return beta

    def _objective(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        """The plain negative bound without graph, and a scalar with the gradients of the objective."""
        beta = self._next_beta(model, guide)
        pairs = [_matched(pair, self.free_bits) for pair in self._get_traces(model, guide, args, kwargs)]
        weights = {name: self._weights(name, pairs, beta) for name in _latent(pairs[0][0])}
        loss = sum(_plain(*pair).detach() for pair in pairs) / self.num_particles
        surrogate = -sum(_surrogate(*pair, weights, beta) for pair in pairs) / self.num_particles
        return loss, surrogate

    def _weights(self, name: str, pairs: list[Any], beta: float) -> Any:
        """The weight of a site's KL, unit by unit: beta, and 0 for a unit below its free bits."""
        if not self.free_bits:
            return beta
        shares = []
        for model_trace, guide_trace in pairs:
            p, q = model_trace.nodes[name], guide_trace.nodes[name]
            kl = _closed_kl(p, q, 1.0)
            one = scale_and_mask(q["unscaled_log_prob"] - p["unscaled_log_prob"], 1.0, q["mask"])
            shares.append(one.mean() if kl is None else kl.reshape(-1, *q["fn"].event_shape).mean(0))
            closed = kl is not None
        floor = self.free_bits * (1 if closed else _width(p))
        return beta * (torch.stack(shares).mean(0).detach() > floor).to(shares[0])


def _weight(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    return float(value)


def _reported(loss: float) -> float:
    warn_if_nan(loss, "loss")
    return loss


def _latent(model_trace: Any) -> list[str]:
    """The latent sites of a trace without those that draw subsamples."""
    return [name for name, site in model_trace.nodes.items() if site["type"] == "sample" and not site["is_observed"]]


def _plain(model_trace: Any, guide_trace: Any) -> Any:
    """log q - log p(x, z), a scalar."""
    return guide_trace.log_prob_sum() - model_trace.log_prob_sum()


def _matched(pair: tuple[Any, Any], free_bits: float) -> tuple[Any, Any]:
    """A pair of traces in which every latent site of the model is drawn by the guide.

    Raises:
        ValueError: one is not, or it is drawn through auxiliary sites and ``free_bits`` ask for its KL.
    """
    model_trace, guide_trace = pair
    names = _latent(model_trace)
    for name in names:
        _check_drawn(name, guide_trace)
    extra = [name for name in _latent(guide_trace) if name not in names]
    if extra and free_bits:
        raise ValueError(
            f"free_bits needs the KL of every site, and the guide draws them through '{extra[0]}': take a guide of "
            "zoo's, or free_bits=0"
        )
    return pair


def _check_drawn(name: str, guide_trace: Any) -> None:
    if name not in guide_trace.nodes:
        raise ValueError(
            f"the guide has no site '{name}': it would be drawn from the prior without a word. Add it to the guide, or "
            "sum it out of the model"
        )


def _width(site: dict[str, Any]) -> int:
    """The number of real coordinates of one draw of a site; 1 for a discrete one."""
    function = site["fn"]
    if function.support.is_discrete:
        return 1
    return Latent(site["name"], function.event_shape, function.support, True).width


def _normal(function: Any) -> Any:
    while isinstance(function, torch.distributions.Independent):
        function = function.base_dist
    return function if isinstance(function, torch.distributions.Normal) else None


def _closed_kl(p: dict[str, Any], q: dict[str, Any], scale: Any) -> Tensor | None:
    """KL(q || p) of two factorised Gaussians, unit by unit (..., *event); None for other distributions."""
    own, prior = _normal(q["fn"]), _normal(p["fn"])
    if own is None or prior is None:
        return None
    kl = torch.distributions.kl_divergence(own, prior)
    kl = kl.expand(q["fn"].batch_shape + q["fn"].event_shape)

    def aligned(value: Any) -> Any:  # to the left of the units
        units = (1,) * len(q["fn"].event_shape)
        return value.reshape(value.shape + units) if isinstance(value, Tensor) else value

    return scale_and_mask(kl, aligned(scale), aligned(q["mask"]))


def _surrogate(model_trace: Any, guide_trace: Any, weights: dict[str, Any], beta: float) -> Any:
    """A scalar with the gradient of the annealed bound."""
    total: Any = 0.0
    for name, site in model_trace.nodes.items():
        if site["type"] == "sample" and name not in weights:
            total = total + site["log_prob_sum"]
    score: list[Any] = []
    for name, weight in weights.items():
        p, q = model_trace.nodes[name], guide_trace.nodes[name]
        kl = _closed_kl(p, q, q["scale"])
        if kl is not None:
            total = total - (weight * kl).sum()
            continue
        _, score_term, entropy_term = q["score_parts"]
        total = total + weight * (p["log_prob"] - entropy_term).sum()
        if isinstance(score_term, Tensor):
            score.append((q, score_term))
    for name, q in guide_trace.nodes.items():
        if q["type"] == "sample" and name not in weights:  # auxiliary, or a factor
            _, score_term, entropy_term = q["score_parts"]
            share = 1.0 if q["is_observed"] else beta
            total = total - share * torch.as_tensor(entropy_term).sum()
            if isinstance(score_term, Tensor):
                score.append((q, score_term))
    if score:
        signal = _signal(model_trace, guide_trace, weights)
        for q, score_term in score:
            total = total + (signal.sum_to(q["cond_indep_stack"]) * score_term).sum()
    return total


def _signal(model_trace: Any, guide_trace: Any, weights: dict[str, Any]) -> MultiFrameTensor:
    """What a score function is multiplied with: the terms of the annealed bound, each in its plates."""
    signal = MultiFrameTensor()
    stacks = get_plate_stacks(model_trace)
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample":
            continue
        term = site["log_prob"]
        if name in weights:
            q = guide_trace.nodes[name]
            kl = _closed_kl(site, q, q["scale"])
            if kl is None:
                term = weights[name] * (term - q["log_prob"])
            else:
                term = -(weights[name] * kl).reshape(*q["fn"].batch_shape, -1).sum(-1)
        signal.add((stacks[name], term.detach()))
    return signal


class IWAE(ELBO):
    r"""The importance-weighted bound of K draws, row by row, right under minibatches.

    .. math:: \mathrm{IWAE}_K = \frac{n}{b} \sum_{i \in \mathrm{batch}}
              E \log \frac1K \sum_{k=1}^K \frac{p(x_i, z_{ik})}{q(z_{ik} \mid x_i)}, \qquad
              \mathrm{ELBO} = \mathrm{IWAE}_1 \le \mathrm{IWAE}_K \le \log p(x)

    The logarithm stands inside the plate's scale n / b, one per row, unlike in Pyro's ``RenyiELBO``. All draws are
    taken at once, in a plate to the left of the rows.

    ``"plain"`` gradients are those of the bound, whose signal for the guide drowns in their noise as K grows.
    ``"doubly"`` reparametrised ones (for K = 1 "sticking the landing") vanish together with the gap. Deviations of the
    guide's gradient, plain and doubly: PPCA on iris at the start 15 and 4.0 (K = 16), fitted 58 and 0.01; VAE on iris
    68 and 5.8; binarised digits reach an IWAE-200 of -14.41 and -14.18 nats per row in 800 steps. But where a q is
    still far too narrow they explode: a Gaussian VAE on digits, whose noise may shrink to 1/1000, had 240 times the
    deviation and diverged. They cost a second pass through guide and model. So ``"plain"`` is the default.

    Args:
        num_particles: the number of draws K.
        estimator: ``"plain"`` (Burda et al.) or ``"doubly"`` reparametrised (Tucker et al.) gradients.

    Raises:
        ValueError: K is no whole number of at least 1, or ``estimator`` is none of the two; when used: a site is shared
            by all rows or stands in a further plate, has no reparametrised draws, is left out by the guide, or is
            scaled unlike the others.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, ICLR; Tucker, Lawson, Gu and Maddison
        (2019), Doubly reparameterized gradient estimators for Monte Carlo objectives, ICLR; Rainforth et al. (2018),
        Tighter variational bounds are not necessarily better, ICML.

    Example:
        >>> loss = IWAE(16)
        >>> # zoo.fit(model, guide, x, batch_size=128, loss=loss)
    """

    def __init__(self, num_particles: int = 8, *, estimator: Estimator = "plain") -> None:
        check_whole(num_particles, "num_particles")
        if estimator not in get_args(Estimator):
            raise ValueError(f"estimator must be one of {', '.join(get_args(Estimator))}; got {estimator!r}")
        super().__init__(num_particles, max_plate_nesting=1, vectorize_particles=True)
        self.estimator = estimator

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Traces of guide and model, both inside the plate of the draws."""
        drawn = prune_subsample_sites(poutine.trace(self._spread(guide)).get_trace(*args, **kwargs))
        for name, site in drawn.nodes.items():
            if site["type"] == "sample" and not site["is_observed"] and not site["fn"].has_rsample:
                raise ValueError(
                    f"IWAE differentiates through the draws, and the guide's site '{name}' "
                    f"({type(site['fn']).__name__}) has none that can be: take Exact or TraceEnum_ELBO where it is "
                    "discrete, or sum it out of the model"
                )
        return self._scored(model, drawn, args, kwargs), drawn

    def _spread(self, function: Any) -> Any:
        return spread(function, self.num_particles)

    def _scored(self, model: Any, drawn: Any, args: Any, kwargs: Any) -> Any:
        """A trace of the model at the values drawn."""
        scored = poutine.trace(poutine.replay(self._spread(model), trace=drawn)).get_trace(*args, **kwargs)
        scored = prune_subsample_sites(scored)
        for name in _latent(scored):
            _check_drawn(name, drawn)
        return scored

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The negative importance-weighted bound."""
        with torch.no_grad():
            bound, _ = self._bound(model, guide, args, kwargs, surrogate=False)
            return _reported(-bound.item())

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The negative importance-weighted bound, with the gradients of the chosen estimator."""
        bound, surrogate = self._bound(model, guide, args, kwargs)
        return -bound - (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The negative importance-weighted bound; its gradients are added to the parameters'."""
        bound, surrogate = self._bound(model, guide, args, kwargs)
        if surrogate.requires_grad:
            (-surrogate).backward()
        return _reported(-bound.item())

    def _bound(
        self, model: Any, guide: Any, args: Any, kwargs: Any, *, surrogate: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The bound without graph, and a scalar with its gradients."""
        scored, drawn = self._get_trace(model, guide, args, kwargs)
        if surrogate and self.estimator == "doubly":
            return self._doubly(model, guide, args, kwargs, drawn)
        log_w, scale = _log_weights(scored, drawn)
        bound = (scale * _log_mean(log_w)).sum()
        return bound.detach(), bound

    def _doubly(self, model: Any, guide: Any, args: Any, kwargs: Any, drawn: Any) -> tuple[Tensor, Tensor]:
        r"""The bound, and a scalar with doubly reparametrised gradients.

        With w the normalised weights of a row's draws, the model's gradient is :math:`\sum_k w_k \nabla \log p`, and
        the guide's :math:`\sum_k w_k^2\, \partial_z (\log p - \log q)\, \nabla z_k`: q's own parameters are held.
        """
        live = {name: drawn.nodes[name]["value"] for name in _latent(drawn)}
        z = {name: value.detach().requires_grad_() for name, value in live.items()}
        held = drawn.copy()
        for name, value in z.items():
            held.nodes[name] = {**drawn.nodes[name], "value": value}
        again = poutine.trace(poutine.replay(self._spread(guide), trace=held)).get_trace(*args, **kwargs)
        scored = self._scored(model, held, args, kwargs)
        log_w, scale = _log_weights(scored, prune_subsample_sites(again))
        share = torch.softmax(log_w.detach(), 0)  # (K, b)
        slopes = torch.autograd.grad(
            (scale * share.square() * log_w).sum(), list(z.values()), retain_graph=True, allow_unused=True
        )
        path: Any = 0.0
        for value, slope in zip(live.values(), slopes, strict=True):
            if slope is not None:
                path = path + (slope * value).sum()
        fit = _by_row(scored)[0] - _by_row(drawn, observed=True)[0]  # factors of the guide have no draws to go through
        return (scale * _log_mean(log_w)).sum().detach(), (scale * share * fit).sum() + path


def _log_mean(log_w: Tensor) -> Tensor:
    """The log of the mean weight of every row (b,), from log weights (K, b)."""
    return log_w.logsumexp(0) - math.log(len(log_w))


def _log_weights(scored: Any, drawn: Any) -> tuple[Tensor, Any]:
    """log p(x, z) - log q(z) of every draw and row (K, b), and the scale of the rows' plate.

    Raises:
        ValueError: the sites have different scales, or one stands in other plates than the rows'.
    """
    log_p, scales = _by_row(scored)
    log_q, more = _by_row(drawn)
    (first, scale), *rest = (scales | {f"{name} of the guide": value for name, value in more.items()}).items()
    for name, other in rest:
        if not torch.equal(torch.as_tensor(scale), torch.as_tensor(other)):
            raise ValueError(
                f"the sites '{first}' and '{name}' are scaled differently, and there is no importance weight of that: "
                "use IWAE without poutine.scale, or AnnealedELBO for a KL with a weight"
            )
    return log_p - log_q, scale


def _by_row(trace: Any, observed: bool = False) -> tuple[Any, dict[str, Any]]:
    """The log densities of all (or of the observed) sites, summed (K, b), without the plates' scale; and all scales."""
    total: Any = 0.0
    scales: dict[str, Any] = {}
    trace.compute_log_prob()
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or (observed and not site["is_observed"]):
            continue
        value = scale_and_mask(site["unscaled_log_prob"], 1.0, site["mask"])
        plates = [frame.name for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != "draws"]
        if not plates and not value.any():
            continue  # a point mass
        if plates != ["rows"]:
            where = f"stands in plate '{plates[0]}'" if plates else "is shared by all rows"
            raise ValueError(
                f"site '{name}' {where}, and IWAE needs a weight for every row: it takes models and guides whose sites "
                "all stand in the plate 'rows' alone. Use Trace_ELBO"
            )
        total = total + value
        scales[name] = site["scale"]
    return total, scales
