"""The evidence lower bound with KL annealing and free bits, as a Pyro loss."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import MultiFrameTensor, get_plate_stacks
from pyro.poutine import Trace
from torch import Tensor

from zoo.base.callables import PyroCallable
from zoo.base.checks import check_whole
from zoo.base.independent import without_event_dims
from zoo.base.latent_sites import Latent
from zoo.base.random import seeded
from zoo.infer.losses.traces import Args, Kwargs, Site, check_drawn, latent_names, reported

Schedule = Callable[[int], float]


def linear_warmup(steps: int) -> Schedule:
    r"""The linear schedule :math:`\beta_t = \min(t / T, 1)` for :class:`AnnealedELBO`, with t counted from 0.

    Args:
        steps: the step T at which the weight of the KL is 1.

    Raises:
        ValueError: ``steps`` is not a whole number of at least 1.

    References:
        Bowman et al. (2016), Generating sentences from a continuous space, CoNLL; Soenderby et al. (2016), Ladder
        variational autoencoders, NeurIPS.

    >>> [linear_warmup(4)(step) for step in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    check_whole(steps, "steps")
    return lambda step: min(step / steps, 1.0)


class AnnealedELBO(ELBO):
    r"""The bound with a weight on its KL, against posterior collapse; reports the plain bound.

    .. math:: -E_q \log p(x \mid z) + \beta_t \sum_j \max(\lambda, \overline{\mathrm{KL}}_j)

    with :math:`\overline{\mathrm{KL}}_j` the mean of unit j's KL(q || p) over the rows of the step, and :math:`\lambda`
    the ``free_bits``: a unit below them is not regularised towards its prior. Both :meth:`loss` and
    :meth:`loss_and_grads` return the plain negative bound (:math:`\beta = 1`, no free bits), on the same draws as
    ``Trace_ELBO``, so that loss curves, early stopping and comparisons keep their meaning; only the gradients are those
    of the objective.

    A unit is a coordinate of a site where q and p are both factorised Gaussians; their KL has a closed form. Otherwise
    the whole site is one unit, its KL is estimated from the draws, and its threshold is :math:`\lambda` times its
    width. Discrete sites have score-function gradients, as in ``Trace_ELBO``. A site shared by all rows is weighted
    like the others; in a plate of its own each coordinate of its event is one unit, with the mean over the plate.

    The closed form reduces the variance of the gradients. Standard deviation of the guide's gradient relative to
    ``Trace_ELBO``: 0.09 (VAE on iris, at the start), 0.76 (PPCA on iris, VAE on digits, both at the start), 0.97 to
    0.99 after a fit. Near the end of a fit the path derivative of ``IWAE(1, estimator="doubly")`` can have far less
    noise, midway more.

    If ``beta`` is a schedule, the loss counts its steps, one for every call that computes gradients. It is then bound
    to the first model and guide that it is used with and refuses others; a further fit of the same two continues the
    count, as their parameters continue. With a number it may be used for any pair.

    Args:
        beta: the weight of the KL, a number or a function of the step (from 0), such as :func:`linear_warmup`.
        free_bits: :math:`\lambda` in nats per unit.
        num_particles: draws per row.
        vectorize_particles: evaluate them together, in a plate to the left of all others.
        max_plate_nesting: the depth of the plates of model and guide; infinity finds it when the loss is first used.

    Raises:
        ValueError: ``beta`` or ``free_bits`` is negative or not finite; when used: a schedule gives such a number or is
            used for a second pair of model and guide, the guide leaves out a site, or ``free_bits`` is positive and the
            guide draws the site through auxiliary ones (Pyro's autoguides), so that the site has no KL of its own.

    References:
        Bowman et al. (2016), Generating sentences from a continuous space, CoNLL; Higgins et al. (2017), beta-VAE,
        ICLR; Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), Improved variational inference with
        inverse autoregressive flow, NeurIPS (free bits, appendix C.8).

    Example:
        >>> loss = AnnealedELBO(beta=linear_warmup(1000), free_bits=0.05)
        >>> # zoo.fit(model, guide, x, loss=loss)
    """

    def __init__(
        self,
        beta: float | Schedule = 1.0,
        free_bits: float = 0.0,
        *,
        num_particles: int = 1,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
    ) -> None:
        check_whole(num_particles, "num_particles")
        together = vectorize_particles and num_particles > 1
        super().__init__(num_particles, max_plate_nesting, vectorize_particles=together)
        self.beta = beta if callable(beta) else _weight(beta, "beta")
        self.free_bits = _weight(free_bits, "free_bits")
        self.step = 0
        self._pair: tuple[PyroCallable, PyroCallable] | None = None

    def _guess_max_plate_nesting(self, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs) -> None:
        """Pyro's run of model and guide to find the depth of their plates, without draws from the caller's stream."""
        with seeded(0):
            super()._guess_max_plate_nesting(model, guide, args, kwargs)

    def _get_trace(self, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs) -> tuple[Trace, Trace]:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def loss(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The plain negative bound."""
        with torch.no_grad():
            traces = self._get_traces(model, guide, args, kwargs)
            return reported(sum(float(_plain(*pair)) for pair in traces) / self.num_particles)

    def differentiable_loss(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> Tensor:
        """The plain negative bound, with the gradient of the objective."""
        loss, surrogate = self.objective(self.next_beta(model, guide), model, guide, args, kwargs)
        return loss + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The plain negative bound; the gradients of the objective are added to the parameters'."""
        loss, surrogate = self.objective(self.next_beta(model, guide), model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward()
        return reported(loss.item())

    def next_beta(self, model: PyroCallable, guide: PyroCallable) -> float:
        """The weight of the next step, which is counted."""
        if not callable(self.beta):
            return self.beta
        if self._pair is None:
            self._pair = (model, guide)
        elif self._pair[0] != model or self._pair[1] != guide:
            raise ValueError(
                f"this AnnealedELBO has counted {self.step} steps of another model or guide, from which its schedule "
                "would continue: make a new one for every fit"
            )
        beta = _weight(self.beta(self.step), f"beta at step {self.step}")
        self.step += 1
        return beta

    def get_state(self) -> dict[str, int]:
        """The steps that its schedule has counted."""
        return {"step": self.step}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on counting from there, with the next pair of model and guide."""
        self.step, self._pair = state["step"], None

    def objective(
        self, beta: float | Tensor, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs
    ) -> tuple[Tensor, Tensor]:
        """The plain negative bound, detached, and a scalar with the gradients of the objective at a weight ``beta``."""
        pairs = [_matched(pair, self.free_bits) for pair in self._get_traces(model, guide, args, kwargs)]
        weights = {name: self._weights(name, pairs, beta) for name in latent_names(pairs[0][0])}
        loss = sum(_plain(*pair).detach() for pair in pairs) / self.num_particles
        surrogate = -sum(_surrogate(*pair, weights, beta) for pair in pairs) / self.num_particles
        return loss, surrogate

    def _weights(self, name: str, pairs: list[tuple[Trace, Trace]], beta: float | Tensor) -> Any:
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


def _plain(model_trace: Trace, guide_trace: Trace) -> Any:
    """log q - log p(x, z), a scalar."""
    return guide_trace.log_prob_sum() - model_trace.log_prob_sum()


def _matched(pair: tuple[Trace, Trace], free_bits: float) -> tuple[Trace, Trace]:
    """Check that the guide's trace draws every latent site of the model's.

    Returns:
        the pair of traces.

    Raises:
        ValueError: a site is missing, or is drawn through auxiliary sites while ``free_bits`` needs its KL.
    """
    model_trace, guide_trace = pair
    names = latent_names(model_trace)
    for name in names:
        check_drawn(name, guide_trace)
    extra = [name for name in latent_names(guide_trace) if name not in names]
    if extra and free_bits:
        raise ValueError(
            f"free_bits needs the KL of every site, and the guide draws them through '{extra[0]}': use a guide with a "
            "density of its own for every site, such as MeanField, or free_bits=0"
        )
    return pair


def _width(site: Site) -> int:
    """The number of real coordinates of one draw of a site; 1 for a discrete one."""
    function = site["fn"]
    if function.support.is_discrete:
        return 1
    return Latent(site["name"], function.event_shape, function.support, True).width


def _normal(function: Any) -> Any:
    function = without_event_dims(function)
    return function if isinstance(function, torch.distributions.Normal) else None


def _closed_kl(p: Site, q: Site, scale: Any) -> Tensor | None:
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


def _surrogate(model_trace: Trace, guide_trace: Trace, weights: dict[str, Any], beta: float | Tensor) -> Any:
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


def _signal(model_trace: Trace, guide_trace: Trace, weights: dict[str, Any]) -> MultiFrameTensor:
    """The factor of the score functions: the terms of the annealed bound, each in its plates."""
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
