"""The bound at the best q of a guide's family, as a function of the model's parameters alone."""

from typing import Any

from pyro.infer import ELBO
from torch import Tensor

from zoo.base.callables import PyroCallable
from zoo.base.protocols import Projection


class ProjectedELBO(ELBO):
    r"""The evidence lower bound with the guide's parameters at their optimum given those of the model.

    .. math:: F(\theta) = \max_{q \in Q} L(\theta, q), \qquad
              \nabla F(\theta) = \nabla_\theta L(\theta, q)|_{q = q^*(\theta)}

    The gradient is that of the bound with q held fixed, since that in q vanishes there (the envelope theorem). It is
    for the rows of the projection, and for a step that then sets the guide to q*, such as that of
    :class:`zoo.infer.line_search.ProjectedSVI`. ``loss`` is the bound of the pair as it stands, on any rows.

    Args:
        projection: the best q, by :class:`~zoo.base.protocols.Projecting`.
        pair: the bound of the pair as it stands.

    References:
        Golub and Pereyra (2003), Separable nonlinear least squares: the variable projection method and its
        applications, Inverse Problems 19; Neal and Hinton (1998), A view of the EM algorithm, for F.
    """

    def __init__(self, projection: Projection, pair: ELBO) -> None:
        super().__init__(max_plate_nesting=pair.max_plate_nesting)
        self.projection, self.pair = projection, pair

    def loss(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The negative bound of the pair as it stands."""
        return float(self.pair.loss(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound at the best q over the rows of the projection, as a differentiable scalar."""
        return -self.projection.bound()

    def loss_and_grads(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The negative bound at the best q; its gradients are added to those of the model's parameters."""
        loss = -self.projection.bound()
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, model: PyroCallable, guide: PyroCallable, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("ProjectedELBO runs neither model nor guide, so that there are no traces")
