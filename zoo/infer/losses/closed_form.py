"""The bound of conditionally conjugate models in closed form."""

from dataclasses import fields
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.nn import PyroModule, pyro_method
from torch import Tensor

from zoo.base.callables import PyroCallable, name_of, undecorated
from zoo.base.protocols import ConditionallyConjugate, HoldsFactors, declares
from zoo.base.weights import by_weights


def closed_form(model: PyroCallable, guide: PyroCallable) -> bool:
    """Whether the bound of a pair has a closed form: a conditionally conjugate model, and factors of its families."""
    inner = undecorated(guide)
    factors = isinstance(inner, HoldsFactors) and not declares(guide, "gaussian")
    return isinstance(undecorated(model), ConditionallyConjugate) and factors


class ClosedFormELBO(ELBO):
    r"""The evidence lower bound in closed form, for conditionally conjugate models under factors of their families.

    .. math:: L(\phi) = \frac{n}{b} \sum_{i \in B} E_q\!\left[\log \frac{p(x_i, z_i \mid \theta)}{q(z_i)}\right]
              + E_q\!\left[\log \frac{p(\theta)}{q(\theta)}\right]

    over the b rows of a minibatch B out of n; without noise where a step sees all rows, unbiased otherwise. It takes
    the model's ``bound`` and the guide's ``factors``, so neither is run and nothing is drawn. For
    ``pyro.infer.SVI(model, guide, optim, ClosedFormELBO())`` and for :func:`zoo.fit`.

    Raises:
        ValueError: when used, for a model that is not conditionally conjugate, or a guide of other families.

    References:
        Bishop (2006), Pattern Recognition and Machine Learning, ch. 10; Hoffman, Blei, Wang and Paisley (2013),
        Stochastic variational inference, JMLR 14.
    """

    def row_weights(self, index: Tensor | None) -> Tensor | None:
        """How often the rows ``index``, or all, count (b,): once, None; a subclass may say otherwise."""
        return None

    def differentiable_loss(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound in nats over all rows, as a differentiable scalar."""
        check_closed_form_pair(model, guide)
        return -_bound(self, undecorated(model), undecorated(guide), *args, **kwargs)

    def loss(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The negative bound."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The negative bound; its gradients are added to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, model: PyroCallable, guide: PyroCallable, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("ClosedFormELBO runs neither model nor guide, so that there are no traces")


def check_closed_form_pair(model: PyroCallable, guide: PyroCallable) -> None:
    """Refuse a pair whose bound has no closed form.

    Raises:
        ValueError: names the model or the guide, and the way out.
    """
    if closed_form(model, guide):
        return
    if not isinstance(undecorated(model), ConditionallyConjugate):
        raise ValueError(
            f"ClosedFormELBO cannot serve {name_of(model)}, which is not conditionally conjugate (it declares no "
            "families and no bound, or stands behind a handler that changes its density): use Trace_ELBO"
        )
    raise ValueError(
        f"ClosedFormELBO cannot serve the guide {name_of(guide)}, which does not hold factors of the families of "
        f"{name_of(model)}: use guides.MeanField(model, x, family='conjugate'), or Trace_ELBO"
    )


def _bound(
    loss: ClosedFormELBO,
    model: PyroCallable,
    guide: PyroCallable,
    x: Tensor,
    index: Tensor | None = None,
    size: int | None = None,
) -> Tensor:
    """The bound, with the parameters of model and guide in Pyro's store."""

    def of_guide(module: Any) -> dict[str, Any]:
        return {name: _double(factor) for name, factor in module.factors(index).items()}

    factors = pyro_method(of_guide)(guide) if isinstance(guide, PyroModule) else of_guide(guide)
    scale = 1.0 if index is None or size is None else size / len(index)

    weighing = by_weights(model, loss.row_weights(index))

    def of_model(module: Any) -> Tensor:
        return torch.as_tensor(module.bound(x, factors, scale, **weighing))

    return pyro_method(of_model)(model) if isinstance(model, PyroModule) else of_model(model)


def _double(factor: Any) -> Any:
    """The factor in float64, in which bounds are computed: terms of opposite sign nearly cancel."""
    return type(factor)(**{own.name: getattr(factor, own.name).double() for own in fields(factor)})
