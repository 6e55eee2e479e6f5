"""The wake-sleep algorithm, as a Pyro loss."""

from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from zoo.base.callables import PyroCallable, name_of, unwrapped
from zoo.base.checks import check_whole
from zoo.base.protocols import HoldsRows
from zoo.infer.losses.traces import Args, Kwargs, check_drawn, latent_names, plates_of, reported, rows_plate


class WakeSleep(ELBO):
    r"""The two phases of wake-sleep, both in every step; its value is the negative evidence lower bound.

    .. math:: \text{wake:} \quad \nabla_\theta\, E_{q_\phi(z \mid x)} \log p_\theta(x, z), \qquad
              \text{sleep:} \quad \nabla_\phi\, E_{p_\theta(\tilde x, \tilde z)} \log q_\phi(\tilde z \mid \tilde x)

    The wake phase moves the model as the bound would, on latents that the guide draws for the rows. The sleep phase
    moves the guide, on rows that the model dreams together with their latents: it minimises
    :math:`E_{p(\tilde x)} \mathrm{KL}(p(z \mid \tilde x) \| q(z \mid \tilde x))` instead of
    :math:`\mathrm{KL}(q \| p)` at the data, and is not the gradient of the same function. Where the guide's family
    contains the posterior, maximum likelihood with the exact posterior is a fixed point; where it does not, the guide
    is too wide rather than too narrow, and the model moves away from that maximum. No draw is differentiated, so that
    latents may be discrete.

    The value is the estimate of the bound from the draws of the wake phase, on the scale of ``Trace_ELBO``, so that
    loss curves and early stopping keep their meaning. A step on b of n rows dreams b rows, and both phases are scaled
    by n / b.

    Args:
        num_particles: draws, and dreams, per row.

    Raises:
        ValueError: ``num_particles`` is not a whole number of at least 1; when used: a latent site is shared by all
            rows, the guide leaves a site out, draws others, shares parameters with the model or has some for every row,
            or the model has more than one data site.

    References:
        Hinton, Dayan, Frey and Neal (1995), The "wake-sleep" algorithm for unsupervised neural networks, Science 268.

    Example:
        >>> loss = WakeSleep()
        >>> # zoo.fit(model, guides.Amortized(model, x), x, batch_size=100, loss=loss)
    """

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(check_whole(num_particles, "num_particles"))
        self._known: tuple[PyroCallable, PyroCallable] | None = None  # the pair that was checked last

    def _get_trace(self, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs) -> tuple[Trace, Trace]:
        """Traces of the wake phase: of the model at draws of the guide, and of the guide, without its gradients."""
        with torch.no_grad():
            drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        scored = poutine.trace(poutine.replay(model, trace=prune_subsample_sites(drawn))).get_trace(*args, **kwargs)
        return scored, drawn

    def loss(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The negative bound."""
        with torch.no_grad():
            total = sum(float(_negative(*pair)) for pair in self._get_traces(model, guide, args, kwargs))
        return reported(total / self.num_particles)

    def differentiable_loss(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound, with the gradients of the two phases."""
        loss, surrogate = self._phases(model, guide, args, kwargs)
        return loss + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The negative bound; the gradients of the two phases are added to the parameters'."""
        loss, surrogate = self._phases(model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward()
        return reported(loss.item())

    def _phases(self, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs) -> tuple[Tensor, Tensor]:
        """The negative bound, detached, and a scalar with the gradients of both phases."""
        loss: Any = 0.0
        surrogate: Any = 0.0
        for scored, drawn in self._get_traces(model, guide, args, kwargs):
            data = _data_site(guide, scored, drawn)
            recognised = torch.as_tensor(_sleep(model, guide, data, args, kwargs).log_prob_sum())
            if self._known is None or self._known[0] is not model or self._known[1] is not guide:
                _check_separate(guide, scored, recognised)
                self._known = (model, guide)
            loss = loss + _negative(scored, drawn).detach()
            surrogate = surrogate - scored.log_prob_sum() - recognised
        return torch.as_tensor(loss) / self.num_particles, torch.as_tensor(surrogate) / self.num_particles


def _negative(scored: Trace, drawn: Trace) -> Tensor:
    """log q - log p(x, z), a scalar."""
    return torch.as_tensor(drawn.log_prob_sum() - scored.log_prob_sum())


def _sleep(model: PyroCallable, guide: PyroCallable, data: str, args: Args, kwargs: Kwargs) -> Trace:
    """A trace of the guide at latents that the model drew, given the rows that it drew with them."""
    x, *rest = args
    with torch.no_grad():
        dream = prune_subsample_sites(poutine.trace(model).get_trace(None, *(rest or (None, len(x))), **kwargs))
    held = poutine.replay(guide, trace=dream)
    return poutine.trace(held).get_trace(dream.nodes[data]["value"].to(x), *rest, **kwargs)


def _data_site(guide: PyroCallable, scored: Trace, drawn: Trace) -> str:
    """The name of the data site.

    Raises:
        ValueError: the pair cannot be trained by wake-sleep.
    """
    held, latents = unwrapped(guide), latent_names(scored)
    if isinstance(held, HoldsRows):
        raise ValueError(
            f"{name_of(guide)} has parameters for the rows of x, and the sleep phase shows it others, which the model "
            "dreams: use a guide for new rows, such as Amortized"
        )
    for name in latents:
        check_drawn(name, drawn)
        if rows_plate(scored) not in plates_of(scored.nodes[name]):
            raise ValueError(
                f"site '{name}' is shared by all rows, and the sleep phase would move q to its prior: use Trace_ELBO"
            )
    if extra := [name for name in latent_names(drawn) if name not in latents]:
        raise ValueError(
            f"the guide draws its sites through '{extra[0]}', which the model does not dream: use a guide with a "
            "density of its own for every site, such as Amortized"
        )
    data = [
        n for n, s in scored.nodes.items() if s["type"] == "sample" and s["is_observed"] and not site_is_subsample(s)
    ]
    if len(data) != 1:
        raise ValueError(f"the sleep phase dreams one data site, and the model has {len(data)}: {', '.join(data)}")
    return data[0]


def _check_separate(guide: PyroCallable, scored: Trace, recognised: Tensor) -> None:
    """Refuse a guide whose density depends on parameters of the model, which the sleep phase would move too.

    Raises:
        ValueError: names the parameter.
    """
    own = {n: s["value"].unconstrained() for n, s in scored.nodes.items() if s["type"] == "param"}
    own = {name: leaf for name, leaf in own.items() if leaf.requires_grad}
    if not own or not recognised.requires_grad:
        return
    found = torch.autograd.grad(recognised, list(own.values()), retain_graph=True, allow_unused=True)
    for name, slope in zip(own, found, strict=True):
        if slope is not None:
            raise ValueError(
                f"{name_of(guide)} depends on the model's parameter '{name}', which the sleep phase would move too: "
                "use Trace_ELBO, or a guide with its own parameters only, such as Amortized"
            )
