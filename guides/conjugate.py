"""A mean-field guide whose factors are of the families conjugate to the model, as coordinate ascent has them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from guides.families import (
    CategoricalPart,
    CoupledPart,
    DirichletPart,
    GammaPart,
    GaussianPart,
    WishartPart,
)
from guides.shared import inside
from zoo.base.latent_sites import Latent
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.base.protocols import FactorPart


class ConjugatePart(Module):
    r"""One exponential-family factor for every latent site.

    .. math:: q(\theta)\, q(Z) = \prod_j q(\theta_j) \prod_n q(z_n)

    ``"gaussian"`` factors have a full covariance over the last dimension of the site, ``"normal"`` ones are
    univariate; ``"coupled"`` ones are Gaussian given the site ``precision``.

    Args:
        latents: all latent sites, in the order of the story.
        families: of every site by name.
        x: the data (n, d); one covariance serves all rows where nothing is missing.
        plate: the name of the plate of the rows.

    Raises:
        ValueError: a site without a family, or with an unknown one.
    """

    def __init__(self, latents: Sequence[Latent], families: Mapping[str, str], x: Tensor, plate: str) -> None:
        super().__init__()
        self.latents, self.plate, self.count = tuple(latents), plate, len(x)
        self.families = {latent.name: families.get(latent.name, "") for latent in latents}
        common = not bool(x.isnan().any())
        parts = {own.attribute: _part(own, self.families[own.name], x, common) for own in latents}
        self.parts = nn.ModuleDict(parts)

    def part(self, latent: Latent) -> FactorPart:
        """The part of a site."""
        return self.parts[latent.attribute]  # type: ignore[return-value]

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> None:
        """Sample every latent site, of local ones the rows ``index``."""
        values: dict[str, Tensor] = {}
        plates: dict[str, Any] = {}
        for latent in self.latents:
            if not latent.local:
                with inside(latent, plates):
                    values[latent.name] = pyro.sample(latent.name, self._q(latent, values, None))
        with rows(x, index, self.count, name=self.plate):
            for latent in self.latents:
                if latent.local:
                    pyro.sample(latent.name, self._q(latent, values, index))

    def _q(self, latent: Latent, values: Mapping[str, Tensor], index: Tensor | None) -> dist.TorchDistribution:
        part = self.part(latent)
        if isinstance(part, CoupledPart):
            q = part.given(values["precision"], self.families["precision"] == "wishart")
        else:
            q = part.distribution(index)
        if self.families[latent.name] == "normal":
            q = dist.Normal(q.loc.squeeze(-1), q.scale_tril.squeeze(-1).squeeze(-1))
        return q.to_event(latent.event_dim - q.event_dim)

    def factors(self, index: Tensor | None = None) -> dict[str, Any]:
        """The factors by site, of local ones those of the rows ``index``."""
        return {own.name: self.part(own).factor(index if own.local else None) for own in self.latents}

    def place(self, factors: Mapping[str, Any]) -> None:
        """Take factors by site."""
        for latent in self.latents:
            self.part(latent).place(factors[latent.name])


def _part(latent: Latent, family: str, x: Tensor, common: bool) -> nn.Module:
    """The part of a site of a family."""
    shape = tuple(latent.shape)
    batch = (len(x), *shape) if latent.local else shape
    if family == "gaussian":
        return GaussianPart(batch[:-1], batch[-1], x, common=common and latent.local, local=latent.local)
    if family == "normal":
        return GaussianPart(batch, 1, x, local=latent.local)
    if family == "gamma" and not latent.local:
        return GammaPart(shape, x)
    if family == "dirichlet" and not latent.local:
        return DirichletPart(shape, x)
    if family == "wishart" and not latent.local:
        return WishartPart(shape[:-2], shape[-1], x)
    if family == "coupled" and not latent.local:
        return CoupledPart(shape[0], shape[1], x)
    if family == "categorical" and latent.local and latent.cardinality is not None:
        return CategoricalPart(len(x), latent.cardinality, x)
    where = "of the rows" if latent.local else "shared by all rows"
    raise ValueError(
        f"MeanField has no conjugate family {family!r} for the site '{latent.name}' ({where}): use family='gaussian'"
    )
