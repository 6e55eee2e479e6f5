"""The importance-weighted bound, a Pyro loss."""

import math
from typing import Any, Literal, get_args

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from zoo.base.checks import check_whole
from zoo.base.plates import spread
from zoo.infer.losses.traces import check_drawn, latent_names, one_plate, plates_of, reported, rows_plate

Estimator = Literal["plain", "doubly"]


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
        with one_plate("IWAE"):
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
        with one_plate("IWAE"):
            scored = poutine.trace(poutine.replay(self._spread(model), trace=drawn)).get_trace(*args, **kwargs)
        scored = prune_subsample_sites(scored)
        for name in latent_names(scored):
            check_drawn(name, drawn)
        return scored

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The negative importance-weighted bound."""
        with torch.no_grad():
            bound, _ = self._bound(model, guide, args, kwargs, surrogate=False)
            return reported(-bound.item())

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The negative importance-weighted bound, with the gradients of the chosen estimator."""
        bound, surrogate = self._bound(model, guide, args, kwargs)
        return -bound - (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The negative importance-weighted bound; its gradients are added to the parameters'."""
        bound, surrogate = self._bound(model, guide, args, kwargs)
        if surrogate.requires_grad:
            (-surrogate).backward()
        return reported(-bound.item())

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
        live = {name: drawn.nodes[name]["value"] for name in latent_names(drawn)}
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
        rows = rows_plate(scored)
        factors = _by_row(drawn, rows, observed=True)[0]  # of the guide: they have no draws to go through
        fit = _by_row(scored, rows)[0] - factors
        return (scale * _log_mean(log_w)).sum().detach(), (scale * share * fit).sum() + path


def _log_mean(log_w: Tensor) -> Tensor:
    """The log of the mean weight of every row (b,), from log weights (K, b)."""
    return log_w.logsumexp(0) - math.log(len(log_w))


def _log_weights(scored: Any, drawn: Any) -> tuple[Tensor, Any]:
    """log p(x, z) - log q(z) of every draw and row (K, b), and the scale of the rows' plate.

    Raises:
        ValueError: the sites have different scales, or one stands in other plates than the rows'.
    """
    rows = rows_plate(scored)
    log_p, scales = _by_row(scored, rows)
    log_q, more = _by_row(drawn, rows)
    (first, scale), *rest = (scales | {f"{name} of the guide": value for name, value in more.items()}).items()
    for name, other in rest:
        if not torch.equal(torch.as_tensor(scale), torch.as_tensor(other)):
            raise ValueError(
                f"the sites '{first}' and '{name}' are scaled differently, and there is no importance weight of that: "
                "use IWAE without poutine.scale, or AnnealedELBO for a KL with a weight"
            )
    return log_p - log_q, scale


def _by_row(trace: Any, rows: str, observed: bool = False) -> tuple[Any, dict[str, Any]]:
    """The log densities of all (or of the observed) sites, summed (K, b), without the plates' scale; and all scales."""
    total: Any = 0.0
    scales: dict[str, Any] = {}
    trace.compute_log_prob()
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or (observed and not site["is_observed"]):
            continue
        value = scale_and_mask(site["unscaled_log_prob"], 1.0, site["mask"])
        plates = plates_of(site)
        if not plates and not value.any():
            continue  # a point mass
        if plates != [rows]:
            own = next((plate for plate in plates if plate != rows), None)
            where = "is shared by all rows" if own is None else f"stands in plate '{own}'"
            raise ValueError(
                f"site '{name}' {where}, and IWAE needs a weight for every row: the log of a mean over draws does not "
                f"split into rows unless all sites stand in the plate '{rows}' alone. Use Trace_ELBO; zoo.evaluate "
                "estimates log p(x) by importance weights after the fit"
            )
        total = total + value
        scales[name] = site["scale"]
    return total, scales
