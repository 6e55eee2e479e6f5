"""What a guide learns about a model before it serves it, and how it says that it cannot."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from zoo.base.latent_sites import Latent, latents
from zoo.base.protocols import Conjugate


class CannotServe(ValueError):  # noqa: N818 - it reads as what it says
    """A guide was asked to serve a model it has no family for.

    Attributes:
        site: the latent site in question.
    """

    def __init__(self, guide: str, model: Any, site: str, why: str, instead: str) -> None:
        self.site = site
        super().__init__(f"{guide} cannot serve {type(model).__name__}: its latent site '{site}' {why}. {instead}")


@dataclass(frozen=True)
class Sites:
    """The latent sites of a model, sorted by how a guide treats them.

    Attributes:
        local: continuous sites with one value per row.
        shared: continuous sites that all rows share.
        discrete: discrete sites with one value per row.
    """

    local: tuple[Latent, ...]
    shared: tuple[Latent, ...]
    discrete: tuple[Latent, ...]

    @classmethod
    def of(cls, guide: str, model: Any, x: Tensor | None) -> "Sites":
        """Trace the model once.

        Raises:
            CannotServe: the model has no latent site, or a discrete one that all rows share.
            ValueError: a site stands in a plate other than ``rows`` (see :func:`zoo.base.latents`).
        """
        found = latents(model, x)
        if not found:
            raise ValueError(f"{guide} cannot serve {type(model).__name__}: it has no latent site, nothing to infer")
        for latent in found:
            if latent.cardinality is not None and (not latent.local or len(latent.shape)):
                where = "is discrete and shared by all rows" if not latent.local else "is a discrete vector"
                raise CannotServe(guide, model, latent.name, where, "Sum it out of the model instead.")
        discrete = tuple(latent for latent in found if latent.cardinality is not None)
        smooth = [latent for latent in found if latent.cardinality is None]
        return cls(tuple(s for s in smooth if s.local), tuple(s for s in smooth if not s.local), discrete)


def check_count(guide: str, held: int, x: Tensor | None, index: Tensor | None) -> None:
    """Raise where a guide with parameters for every row is shown other rows.

    Raises:
        ValueError: ``x`` has another number of rows than the guide holds, or than ``index`` names.
    """
    if x is None:
        return
    given = x.shape[-2]
    if index is None and given != held:
        raise ValueError(
            f"{guide} holds {held} rows, got {given}: fit a new one for this data, or use Amortized or Exact"
        )
    if index is not None and len(index) != given:
        raise ValueError(f"index names {len(index)} rows, x has {given}")


def only(sites: Sites) -> Latent:
    """The one local site of a model.

    Raises:
        ValueError: the model has several; draws from the guide hold them all.
    """
    local = sites.local + sites.discrete
    if len(local) != 1:
        raise ValueError(f"the model has {len(local)} local latent sites: draw from the guide instead of its posterior")
    return local[0]


def check_closed_form(guide: str, model: Any, sites: Sites, asked: bool | None) -> bool:
    """Whether the inference step has a closed form: one local site of a conjugate model.

    Raises:
        CannotServe: it has none, and one is asked for.
    """
    found = sites.local + sites.discrete + sites.shared
    closed = isinstance(model, Conjugate) and len(found) == 1 and found[0].local
    if asked and not closed:
        why = "has no closed-form posterior of its own"
        raise CannotServe(guide, model, found[0].name, why, f"Use {guide} with closed_form=False, or Amortized.")
    return closed


def closed_posterior(model: Any, x: Tensor) -> Distribution | None:
    """The posterior of a conjugate model at its current parameters, None for other models."""
    return model.posterior(x) if isinstance(model, Conjugate) else None


@torch.no_grad()
def put(parameter: Tensor, value: Tensor, index: Tensor | None) -> None:
    """Write the rows ``index`` (all for None) of a per-row parameter, in place."""
    if index is None:
        parameter.copy_(value)
    else:
        parameter[index] = value.expand(parameter[index].shape)


def pick(parameter: Tensor, index: Tensor | None) -> Tensor:
    """The rows ``index`` of a per-row parameter, all of them for None."""
    return parameter if index is None else parameter[index]
