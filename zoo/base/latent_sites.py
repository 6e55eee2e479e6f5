"""The latent sites of a model, found by running it once."""

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from zoo.base.module import like
from zoo.base.random import seeded


@dataclass(frozen=True)
class Latent:
    """A latent site of a model.

    Attributes:
        name: the site's name.
        shape: the event shape of one draw (for one row, where the site is local).
        support: the constraint its values obey.
        local: True for a site inside the plate ``rows``, False for one that all rows share.
        cardinality: the number of values of a discrete site, None for a continuous one.
    """

    name: str
    shape: torch.Size
    support: constraints.Constraint
    local: bool
    cardinality: int | None = None

    @property
    def transform(self) -> Transform | None:
        """From real vectors of ``shape`` to the support; None where the support is the real line itself."""
        base = self.support
        while isinstance(base, constraints.independent):
            base = base.base_constraint
        if isinstance(base, type(constraints.real)):  # copies and unpickled constraints are other objects
            return None
        return torch.distributions.biject_to(self.support)

    @property
    def width(self) -> int:
        """The number of real coordinates of one draw (of a simplex of K values: K - 1)."""
        transform = self.transform
        return self.shape.numel() if transform is None else torch.Size(transform.inverse_shape(self.shape)).numel()

    @property
    def attribute(self) -> str:
        """The name, fit to be an attribute of a module."""
        return self.name.replace(".", "_")


def latents(model: Any, x: Tensor | None = None) -> tuple[Latent, ...]:
    """The latent sites of a Pyro model, in the order of its story, found by running it once on one row.

    Args:
        model: any Pyro callable with the signature ``(x=None, index=None, size=None)``.
        x: data; one row is used. None lets the model generate that row.

    Raises:
        ValueError: a latent site stands in a plate other than ``rows``.
    """
    arguments = {"size": 1} if x is None else {"x": like(x[:1], model) if isinstance(model, nn.Module) else x[:1]}
    with pyro.get_param_store().scope(), seeded(0), torch.no_grad(), poutine.block():
        trace = poutine.trace(model).get_trace(**arguments)
    found = []
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or name == "x":
            continue
        if type(site["fn"]).__name__ == "_Subsample":
            continue
        plates = [frame.name for frame in site["cond_indep_stack"]]
        if strange := [plate for plate in plates if plate != "rows"]:
            raise ValueError(
                f"latent site '{name}' stands in plate '{strange[0]}', and the guides here know only the plate "
                "'rows' (zoo.base.rows): make it an event dimension with .to_event, or use one of Pyro's autoguides"
            )
        function = site["fn"]
        discrete = function.support.is_discrete
        if discrete and not function.has_enumerate_support:
            raise ValueError(
                f"latent site '{name}' ({type(function).__name__}) is discrete without finite support: no guide here "
                "can serve it; sum or integrate it out of the model"
            )
        cardinality = len(function.enumerate_support(expand=False)) if discrete else None
        found.append(Latent(name, function.event_shape, function.support, "rows" in plates, cardinality))
    return tuple(found)
