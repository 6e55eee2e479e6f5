"""The bound with score-function gradients whose baseline is the mean of the other draws, as a Pyro loss."""

import math

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.infer.trace_elbo import _compute_log_r
from torch import Tensor

from zoo.base.checks import check_whole
from zoo.infer.losses.traces import Site

PARTICLES = "num_particles_vectorized"  # Pyro's plate of the draws


class LeaveOneOutELBO(Trace_ELBO):
    r"""The evidence lower bound of K draws, with a baseline for sites that are not reparametrised.

    .. math:: \nabla_\phi L \approx \frac1K \sum_{k=1}^K \Big( \ell_k - \frac1{K-1} \sum_{j \ne k} \ell_j \Big)
              \nabla_\phi \log q_\phi(z_k), \qquad \ell = \log p(x, z) - \log q_\phi(z)

    for every row by itself. The baseline of a draw does not depend on it, so that the gradient is unbiased; it needs
    no memory of earlier steps, which in minibatches were of other rows. Where q is the posterior, all :math:`\ell_k`
    are log p(x), and the score's part vanishes. Reparametrised sites have the gradients of ``Trace_ELBO``;
    :func:`zoo.distributions.unreparametrised.without_path` makes them sites of this kind.

    Args:
        num_particles: K, at least 2.
        max_plate_nesting: as of ``Trace_ELBO``.

    Raises:
        ValueError: K is not a whole number of at least 2.

    References:
        Salimans and Knowles (2014), On using control variates with stochastic approximation for variational Bayes and
        its connection to stochastic linear regression, arXiv 1401.1022; Mnih and Rezende (2016), Variational inference
        for Monte Carlo objectives, ICML; Kool, van Hoof and Welling (2019), Buy 4 REINFORCE samples, get a baseline for
        free!, ICLR workshop.

    Example:
        >>> loss = LeaveOneOutELBO(8)
        >>> # zoo.fit(model, guides.MeanField(model, x, closed_form=False), x, loss=loss)
    """

    def __init__(self, num_particles: int = 10, *, max_plate_nesting: float = math.inf) -> None:
        check_whole(num_particles, "num_particles", 2)
        super().__init__(num_particles, max_plate_nesting, vectorize_particles=True)

    def _differentiable_loss_particle(
        self, model_trace: poutine.Trace, guide_trace: poutine.Trace
    ) -> tuple[float, Tensor]:
        """The loss of all draws together, and a scalar with its gradients."""
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        log_r = None
        for site in guide_trace.nodes.values():
            if site["type"] == "sample" and not is_identically_zero(score := site["score_parts"].score_function):
                log_r = _compute_log_r(model_trace, guide_trace) if log_r is None else log_r
                signal = torch.as_tensor(log_r.sum_to(site["cond_indep_stack"]))
                surrogate = surrogate + (self._others(signal, site) * score).sum()
        return loss, surrogate

    def _others(self, signal: Tensor, site: Site) -> Tensor:
        """The mean of the other draws' signals, of the shape of ``signal`` or one that broadcasts to it."""
        dim = next(frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES)
        if signal.dim() < -dim:  # the same for all draws
            return signal
        k = self.num_particles
        others: Tensor = (signal.sum(dim, keepdim=True) - signal) / (k - 1)
        return others
