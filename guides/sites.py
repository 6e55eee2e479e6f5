"""The sites of a model as a guide treats them, and the errors for those that it does not support."""

import inspect
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from zoo.algebra import linear_gaussian
from zoo.base.callables import PyroCallable, modules, name_of, undecorated, unwrapped
from zoo.base.checks import ArrayLike, check_held, check_rows
from zoo.base.latent_sites import Latent, layout
from zoo.base.protocols import Conjugate, linear_form
from zoo.base.random import seeded


class CannotServe(ValueError):  # noqa: N818 - it reads as what it says
    """A guide does not support a latent site of the model.

    Attributes:
        site: the name of the site.
        reason: why the guide does not serve it, such as "is discrete and has no covariance".
    """

    def __init__(self, guide: str, model: PyroCallable, site: str, why: str, instead: str) -> None:
        self.site, self.reason = site, why
        super().__init__(f"{guide} cannot serve {name_of(model)}: its latent site '{site}' {why}. {instead}")


@dataclass(frozen=True)
class Sites:
    """The latent sites of a model, by how a guide treats them.

    Attributes:
        local: continuous sites with one value per row.
        shared: continuous sites shared by all rows, possibly in plates of their own.
        discrete: discrete sites with one value per row.
        plate: the name of the plate of the rows.
        nesting: the depth of the model's plates.
    """

    local: tuple[Latent, ...]
    shared: tuple[Latent, ...]
    discrete: tuple[Latent, ...]
    plate: str = "rows"
    nesting: int = 1

    @classmethod
    def of(cls, guide: str, model: PyroCallable, x: Tensor | None, *, transformed: bool = True) -> "Sites":
        """The sites of a model, from one run of it.

        Args:
            guide: the name of the guide.
            model: the model.
            x: rows (n, d), or None.
            transformed: whether the guide draws continuous sites as transformed real vectors.

        Raises:
            CannotServe: a discrete site is a vector or shared by all rows, a local site is in a further plate, or no
                transform from real vectors to the support of a site is known.
            ValueError: the model has no latent site.
        """
        seen = layout(model, x)
        found = seen.latents
        if not found:
            raise ValueError(f"{guide} cannot serve {name_of(model)}: it has no latent site to infer")
        for latent in found:
            _check_family(guide, model, latent)
            if transformed and latent.cardinality is None:
                _check_transform(guide, model, latent)
        discrete = tuple(latent for latent in found if latent.cardinality is not None)
        smooth = [latent for latent in found if latent.cardinality is None]
        local, shared = (tuple(s for s in smooth if s.local is kind) for kind in (True, False))
        return cls(local, shared, discrete, seen.plate, seen.nesting)


def _check_family(guide: str, model: PyroCallable, latent: Latent) -> None:
    """Raise :class:`CannotServe` for a site that no guide of this package supports."""
    elsewhere = "Sum it out of the model instead."
    if latent.cardinality is not None and not latent.local:
        raise CannotServe(guide, model, latent.name, "is discrete and shared by all rows", elsewhere)
    if latent.cardinality is not None and len(latent.shape):
        raise CannotServe(guide, model, latent.name, "is a discrete vector", elsewhere)
    if latent.local and latent.plates:
        own = latent.plates[-1]
        why = f"is in plate '{own.name}' inside the rows, and {guide} draws one vector per row"
        instead = (
            f"Make '{own.name}' an event dimension of size {own.size} of the site (.to_event), or use AutoNormal of "
            "pyro.infer.autoguide, which keeps the plate."
        )
        raise CannotServe(guide, model, latent.name, why, instead)


def _check_transform(guide: str, model: PyroCallable, latent: Latent) -> None:
    """Raise :class:`CannotServe` for a support without a bijection from real vectors."""
    try:
        _ = latent.transform
    except NotImplementedError:
        base = latent.support
        while isinstance(base, constraints.independent):
            base = base.base_constraint
        why = f"has the support {type(base).__name__.strip('_')}, to which no bijection from real vectors is known"
        instead = (
            "Use MeanField(model, x, family='conjugate') if the model is conditionally conjugate, or give the model a "
            "site with another support."
        )
        raise CannotServe(guide, model, latent.name, why, instead) from None


def check_data(x: ArrayLike, model: PyroCallable) -> Tensor:
    """The rows (n, d) with the dtype and device of the model's parameters, unchanged if it has none.

    The parameters of a function are those of the modules it refers to, or those that it makes by ``pyro.param``.

    Raises:
        TypeError, ValueError: as :func:`zoo.base.checks.check_rows`.
    """
    module = unwrapped(model)
    x = check_rows(x, module)
    if isinstance(module, nn.Module):
        return x
    owned = [parameter for own in modules(model) for parameter in own.parameters()]
    if not owned:
        arguments = x[:1], torch.zeros(1, dtype=torch.long, device=x.device), len(x)
        with pyro.get_param_store().scope(), seeded(0), torch.no_grad(), poutine.block():
            nodes = poutine.trace(model, param_only=True).get_trace(*arguments).nodes
        owned = [site["value"] for site in nodes.values() if site["type"] == "param"]
    return x.to(owned[0]) if owned and owned[0].is_floating_point() else x


def check_count(guide: str, held: int, x: Tensor | None, index: Tensor | None) -> None:
    """Refuse rows other than those of a guide with parameters for every row.

    Raises:
        ValueError: ``x`` has another number of rows than the guide, or than ``index``.
    """
    if x is None:
        return
    given = x.shape[-2]
    if index is None:
        check_held(guide, held, given)
    elif len(index) != given:
        raise ValueError(f"index has {len(index)} entries, x has {given} rows")


def only(sites: Sites) -> Latent:
    """The single local site of a model.

    Raises:
        ValueError: the model has several, or none.
    """
    local = sites.local + sites.discrete
    if len(local) != 1:
        raise ValueError(f"the model has {len(local)} local latent sites: draw from the guide instead of its posterior")
    return local[0]


def require_local(guide: str, model: PyroCallable, sites: Sites) -> None:
    """Refuse a model for which an inference network has nothing to infer.

    Raises:
        CannotServe: all latent sites are shared.
    """
    if not sites.local and not sites.discrete:
        why = "is shared by all rows, and no site has a value per row for the network to infer"
        raise CannotServe(guide, model, sites.shared[0].name, why, "Use MeanField or FullRank.")


def for_discrete(model: PyroCallable, first: str = "Amortized") -> str:
    """Which guides serve a model with a discrete site."""
    if isinstance(undecorated(model), Conjugate):
        return f"Use {first}, MeanField or Exact"
    return f"Use {first} or MeanField"


def summed_out(guide: str, model: PyroCallable, latent: Latent) -> str:
    """How to use a guide for continuous sites with the discrete site ``latent``: by summing it out."""
    return (
        f"Or sum it out: build {guide} on pyro.poutine.block({name_of(model)}, hide=['{latent.name}']) and train it "
        "against config_enumerate of the model with TraceEnum_ELBO"
    )


def discrete(latent: Latent, logits: Tensor) -> dist.TorchDistribution:
    """q of a discrete site given the logits of its values (..., cardinality)."""
    if latent.support is constraints.boolean or isinstance(latent.support, type(constraints.boolean)):
        return dist.Bernoulli(logits=logits[..., 1] - logits[..., 0])  # its values are floating-point numbers
    return dist.Categorical(logits=logits)


def check_closed_form(guide: str, model: PyroCallable, sites: Sites, asked: bool | None) -> bool:
    """Whether the inference step has a closed form, for the only site of a conjugate model.

    Raises:
        CannotServe: it has none, and ``asked`` is true.
    """
    found = sites.local + sites.discrete + sites.shared
    closed = isinstance(undecorated(model), Conjugate) and len(found) == 1 and found[0].local
    if asked and not closed:
        why = "has no closed-form posterior of its own"
        other = "Amortized" if sites.local or sites.discrete else "FullRank" if guide == "MeanField" else "MeanField"
        raise CannotServe(guide, model, found[0].name, why, f"Use {guide} with closed_form=False, or {other}.")
    return closed


def closed_posterior(model: PyroCallable, x: Tensor, index: Tensor | None) -> Distribution | None:
    """The posterior of a conjugate or linear-Gaussian model at its current parameters, None for other models.

    A ``posterior`` with an argument ``index`` gets the row numbers of a minibatch, for models with covariates.
    """
    inner = undecorated(model)
    if not isinstance(inner, Conjugate):
        form = linear_form(model)
        return None if form is None else linear_gaussian.posterior(x, *form)
    if index is not None and "index" in inspect.signature(inner.posterior).parameters:
        return inner.posterior(x, index=index)  # type: ignore[call-arg]
    return inner.posterior(x)


def follows(guide: Any, model: PyroCallable, sites: Sites) -> bool:
    """Whether a guide built for this model has one local site without a transform, and no parameter that is frozen.

    Those of a guide with the E-step in closed form (``closed_form``) are not optimised in any case.
    """
    found = sites.local + sites.discrete
    if len(found) != 1 or sites.shared or undecorated(model) is not undecorated(guide.model):
        return False
    free = bool(getattr(guide, "closed_form", False)) or all(p.requires_grad for p in guide.parameters())
    return free and (found[0].cardinality is not None or found[0].transform is None)


@torch.no_grad()
def put(parameter: Tensor, value: Tensor, index: Tensor | None) -> None:
    """Set the rows ``index`` (all for None) of a per-row parameter, in place."""
    if index is None:
        parameter.copy_(value)
    else:
        parameter[index] = value.expand(parameter[index].shape)


def pick(parameter: Tensor, index: Tensor | None) -> Tensor:
    """The rows ``index`` of a per-row parameter, all of them for None."""
    return parameter if index is None else parameter[index]
