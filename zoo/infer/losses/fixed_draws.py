"""A bound without noise for any reparametrised guide: the same draws at every evaluation."""

from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from zoo.base.checks import check_whole
from zoo.base.random import seeded


class FixedDraws(Trace_ELBO):
    r"""The evidence lower bound with its expectation over M fixed draws.

    .. math:: \hat L(\phi) = \frac1M \sum_{m=1}^M \log p(x, T_\phi(\epsilon_m)) - \log q_\phi(T_\phi(\epsilon_m)),
              \qquad \epsilon_m \text{ drawn once}

    A smooth function of the parameters, which a line search can climb to its optimum and whose Hessian
    :func:`zoo.linear_response` inverts; the optimum differs from that of the bound by an error that shrinks with M.
    A guide with a full covariance, or a flow, can make :math:`\hat L` as large as it likes when M is not above the
    number of latent numbers: it bends itself around the draws.

    Args:
        draws: M, at least 2.
        seed: of the draws.

    References:
        Giordano, Ingram and Broderick (2024), Black box variational inference with a deterministic objective, JMLR 25.
    """

    def __init__(self, draws: int = 30, seed: int = 0) -> None:
        super().__init__(num_particles=check_whole(draws, "draws", 2), vectorize_particles=True, max_plate_nesting=1)
        self.draws, self.seed = draws, seed

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The negative bound over the fixed draws."""
        with seeded(self.seed):
            return float(super().loss(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound over the fixed draws, as a differentiable scalar."""
        with seeded(self.seed):
            return torch.as_tensor(super().differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The negative bound over the fixed draws; its gradients are added to the parameters'."""
        with seeded(self.seed):
            return float(super().loss_and_grads(model, guide, *args, **kwargs))
