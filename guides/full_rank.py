import pyro.distributions as dist
import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import Distribution, constraints, transform_to

from guides.gaussian import sample_joint, shaped, width
from guides.projection import gaussian_projection
from guides.shared import shared_part
from guides.sites import (
    CannotServe,
    Sites,
    check_closed_form,
    check_count,
    check_data,
    closed_posterior,
    follows,
    for_discrete,
    only,
    pick,
    put,
    summed_out,
)
from zoo.base.callables import PyroCallable
from zoo.base.checks import ArrayLike
from zoo.base.module import Module, like
from zoo.base.plates import rows
from zoo.base.protocols import Projection


class FullRank(Module):
    r"""A Gaussian with a full covariance for every row, with separate parameters per row.

    .. math:: q(\theta) \prod_n q(z_n), \quad q(z) = \prod_n N(z_n \mid m_n, L_n L_n^T)

    All continuous sites of a row have one joint covariance. Sites :math:`\theta` shared by all rows have a joint full
    covariance, also across plates such as that of the features; see :class:`guides.shared.SharedPart`.

    Args:
        model: any Pyro model with the signature ``(x=None, index=None, size=None)``.
        x: the data (n, d) to fit; the guide keeps their number, not their values.
        closed_form: compute the E-step of EM in closed form at every call, instead of learning q by gradients; for
            :class:`zoo.base.Conjugate` models only.

    Raises:
        CannotServe: the model has a discrete site, or ``closed_form`` is true and it has none.

    References:
        Opper and Archambeau (2009), The variational Gaussian approximation revisited, Neural Computation 21.
    """

    gaussian = True  # all sites are Gaussian (in unconstrained coordinates) or categorical

    def __init__(self, model: PyroCallable, x: ArrayLike, closed_form: bool = False) -> None:
        super().__init__()
        x = check_data(x, model)
        self.sites = Sites.of("FullRank", model, x)
        self.__dict__["model"] = model  # referred to, not registered
        for latent in self.sites.discrete:
            why = "is discrete and has no covariance"
            instead = f"{for_discrete(model)}. {summed_out('FullRank', model, latent)}."
            raise CannotServe("FullRank", model, latent.name, why, instead)
        self.count = n = len(x)
        k = width(self.sites.local)
        if k:
            self.loc = PyroParam(x.new_zeros(n, k))  # (n, k)
            root = torch.eye(k).to(x).repeat(n, 1, 1)
            self.scale_tril = PyroParam(root, constraints.lower_cholesky)  # (n, k, k)
        check_closed_form("FullRank", model, self.sites, closed_form)
        self.closed_form = closed_form
        if closed_form:
            self.requires_grad_(False)
        self.shared = shared_part(self.sites.shared, x, "full_rank")

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Start at the posterior for the model's current parameters, if the model is conjugate.

        The shared part is initialised at random.
        """
        if self.shared is not None:
            self.shared.reset_parameters()
        self._e_step(like(x, self), None)

    @torch.no_grad()
    def _e_step(self, x: Tensor, index: Tensor | None) -> None:
        posterior = closed_posterior(self.model, x, index)
        if isinstance(posterior, dist.MultivariateNormal) and len(self.sites.local) == 1:
            put(self.loc, posterior.mean, index)
            root = transform_to(constraints.lower_cholesky).inv(posterior.scale_tril)
            put(self.scale_tril_unconstrained, root, index)

    def projection(self, model: PyroCallable, x: Tensor) -> Projection | None:
        """The posterior of a model with one local site and a closed Gaussian posterior."""
        if not follows(self, model, self.sites):
            return None
        return gaussian_projection(model, x, lambda: self._e_step(x, None), factorised=False)

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> None:
        """Sample every latent site for the rows ``index`` (all by default)."""
        check_count("FullRank", self.count, x, index)
        if self.closed_form and x is not None:
            self._e_step(x, index)
        if self.shared is not None:
            self.shared()
        with rows(x, index, self.count, name=self.sites.plate):
            if self.sites.local:
                sample_joint(self.sites.local, pick(self.loc, index), pick(self.scale_tril, index))

    def posterior(self, x: Tensor | None = None, index: Tensor | None = None) -> Distribution:
        """q of the model's single local site, a distribution with batch shape (n,).

        Raises:
            ValueError: the model has several local sites.
        """
        check_count("FullRank", self.count, x, index)
        if self.closed_form and x is not None:
            self._e_step(like(x, self), index)
        base = dist.MultivariateNormal(pick(self.loc, index), scale_tril=pick(self.scale_tril, index))
        return shaped(base, only(self.sites))
