from collections.abc import Mapping
from typing import Any, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import Distribution, constraints

from guides.conjugate import ConjugatePart
from guides.gaussian import sample_factorised, shaped, width
from guides.projection import gaussian_projection, posterior_projection, row_posterior
from guides.shared import Shared, shared_part
from guides.sites import (
    Sites,
    check_closed_form,
    check_count,
    check_data,
    closed_posterior,
    discrete,
    follows,
    only,
    pick,
    put,
)
from zoo.base.callables import PyroCallable, name_of, undecorated
from zoo.base.checks import ArrayLike
from zoo.base.latent_sites import layout
from zoo.base.module import Module, like
from zoo.base.plates import rows
from zoo.base.protocols import ConditionallyConjugate, Projection
from zoo.base.random import running_generator

Family = Literal["conjugate", "gaussian"]


class MeanField(Module):
    r"""A fully factorised guide with separate parameters per row: classical variational EM.

    .. math:: q(\theta) \prod_n q(z_n)\, q(c_n), \quad
              q(z_n) = \prod_k N(z_{nk} \mid m_{nk}, s_{nk}^2), \quad q(c_n) = \mathrm{Cat}(c_n \mid \pi_n)

    Discrete sites are categorical. Sites :math:`\theta` shared by all rows are factorised too, unless ``shared`` is
    ``"full_rank"``; see :class:`guides.shared.SharedPart`.

    Args:
        model: any Pyro model with the signature ``(x=None, index=None, size=None)``.
        x: the data (n, d) to fit; the guide keeps their number, not their values.
        closed_form: compute the E-step of variational EM in closed form at every call, instead of learning q by
            gradients; for :class:`zoo.base.Conjugate` models only. None: true for a categorical posterior, whose
            gradient vanishes where an assignment is nearly certain, and false otherwise.
        shared: the covariance of the sites shared by all rows: ``"mean_field"`` or ``"full_rank"``.
        family: ``"conjugate"``: every factor is of its conjugate family (Normal, Gamma, Dirichlet, Wishart or
            Categorical), as in coordinate ascent (:func:`zoo.cavi`), for a
            :class:`~zoo.base.protocols.ConditionallyConjugate` model; ``"gaussian"``: Gaussian in unconstrained
            coordinates. None: conjugate where the model allows it, unless ``shared`` or ``closed_form`` is given.

    Raises:
        CannotServe: the model has a discrete site shared by all rows, a local site in a further plate, or
            ``closed_form`` is true and there is none.
        ValueError: ``shared`` or ``family`` is neither of the two, or conjugate families are requested of a model that
            is not conditionally conjugate, or with a full covariance of the shared sites.

    References:
        Bishop (2006), Pattern Recognition and Machine Learning, ch. 10; Neal and Hinton (1998).
    """

    @property
    def gaussian(self) -> bool:
        """Whether all sites are Gaussian (in unconstrained coordinates) or categorical."""
        return self.conjugate is None

    def __init__(
        self,
        model: PyroCallable,
        x: ArrayLike,
        closed_form: bool | None = None,
        *,
        shared: Shared = "mean_field",
        family: Family | None = None,
    ) -> None:
        super().__init__()
        x = check_data(x, model)
        if family is None and (shared != "mean_field" or closed_form is not None):
            family = "gaussian"
        elif family == "conjugate" and shared != "mean_field":
            raise ValueError(
                f"shared={shared!r} has one factor for all shared sites, family='conjugate' one for each: omit either"
            )
        self.conjugate = self._conjugate_part(model, x, family)
        self.sites = Sites.of("MeanField", model, x, transformed=self.conjugate is None)
        self.__dict__["model"] = model  # referred to, not registered
        self.count = n = len(x)
        self.closed_form, self.shared = False, None
        if self.conjugate is not None:
            return
        k = width(self.sites.local)
        if k:
            self.loc = PyroParam(x.new_zeros(n, k))  # (n, k)
            self.scale = PyroParam(x.new_ones(n, k), constraints.positive)  # (n, k)
        for latent in self.sites.discrete:
            setattr(self, f"{latent.attribute}_logits", PyroParam(x.new_zeros(n, latent.cardinality or 0)))
        conjugate = check_closed_form("MeanField", model, self.sites, closed_form)
        self.closed_form = conjugate and bool(self.sites.discrete) if closed_form is None else closed_form
        if self.closed_form:
            self.requires_grad_(False)
        self.shared = shared_part(self.sites.shared, x, shared)

    @staticmethod
    def _conjugate_part(model: PyroCallable, x: Tensor, family: Family | None) -> ConjugatePart | None:
        """The factors of the conjugate families; None for Gaussian ones."""
        if family is not None and family not in get_args(Family):
            raise ValueError(f"family must be one of {', '.join(get_args(Family))}; got {family!r}")
        inner = undecorated(model)
        if family == "gaussian" or (family is None and not isinstance(inner, ConditionallyConjugate)):
            return None
        if not isinstance(inner, ConditionallyConjugate):
            raise ValueError(
                f"{name_of(model)} is not conditionally conjugate (it declares no families): use family='gaussian'"
            )
        found = layout(model, x)
        return ConjugatePart(found.latents, inner.families, x, found.plate)

    @torch.no_grad()
    def place(self, factors: Mapping[str, Any]) -> None:
        """Set the factors of conjugate families by site, such as those that :func:`zoo.cavi` finds."""
        if self.conjugate is None:
            raise ValueError("MeanField holds Gaussian factors: build it with family='conjugate'")
        self.conjugate.place(factors)

    def factors(self, index: Tensor | None = None) -> dict[str, Any]:
        """The factors of conjugate families by site; of local sites those of the rows ``index`` (all by default)."""
        if self.conjugate is None:
            raise ValueError("MeanField holds Gaussian factors: build it with family='conjugate'")
        return self.conjugate.factors(index)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Start at the best q for the model's current parameters, if the model is conjugate.

        The shared part is initialised at random; factors of conjugate families are those after one sweep of coordinate
        ascent.
        """
        inner = undecorated(self.model)
        if self.conjugate is not None and isinstance(inner, ConditionallyConjugate):
            ascent = inner.coordinate_ascent(like(x, self), running_generator())
            ascent.sweep()
            self.place(ascent.factors(like(x, self)))
            return
        if self.shared is not None:
            self.shared.reset_parameters()
        self._e_step(like(x, self), None)

    @torch.no_grad()
    def _e_step(self, x: Tensor, index: Tensor | None) -> None:
        r"""The best q for the model's current parameters.

        For a Gaussian posterior N(m, P^-1) this is :math:`N(m_k, 1 / P_{kk})`, for a categorical one the posterior.
        """
        posterior = closed_posterior(self.model, x, index)
        if isinstance(posterior, dist.Categorical) and len(self.sites.discrete) == 1:
            put(getattr(self, f"{self.sites.discrete[0].attribute}_logits"), posterior.logits, index)
        elif isinstance(posterior, dist.MultivariateNormal) and len(self.sites.local) == 1:
            put(self.loc, posterior.mean, index)
            deviation = posterior.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
            put(self.scale_unconstrained, deviation.log(), index)

    def projection(self, model: PyroCallable, x: Tensor) -> Projection | None:
        """The best q of a conjugate or linear-Gaussian model with one local site; see :meth:`initialize`."""
        if self.conjugate is not None or not follows(self, model, self.sites):
            return None
        if self.sites.local:
            return gaussian_projection(model, x, lambda: self._e_step(x, None), factorised=True)
        if not isinstance(row_posterior(model, x), dist.Categorical):
            return None
        return posterior_projection(model, x, lambda: self._e_step(x, None))

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> None:
        """Sample every latent site for the rows ``index`` (all by default)."""
        check_count("MeanField", self.count, x, index)
        if self.conjugate is not None:
            self.conjugate(x, index, size)
            return
        if self.closed_form and x is not None:
            self._e_step(x, index)
        if self.shared is not None:
            self.shared()
        with rows(x, index, self.count, name=self.sites.plate):
            if self.sites.local:
                loc, scale = pick(self.loc, index), pick(self.scale, index)
                sample_factorised(self.sites.local, loc, scale)
            for latent in self.sites.discrete:
                logits = pick(getattr(self, f"{latent.attribute}_logits"), index)
                pyro.sample(latent.name, discrete(latent, logits))

    def posterior(self, x: Tensor | None = None, index: Tensor | None = None) -> Distribution:
        """q of the model's single local site, a distribution with batch shape (n,).

        Raises:
            ValueError: the model has several local sites.
        """
        check_count("MeanField", self.count, x, index)
        if self.closed_form and x is not None:
            self._e_step(like(x, self), index)
        latent = only(self.sites)
        if self.conjugate is not None:
            return self.conjugate.part(latent).distribution(index)
        if latent.cardinality is not None:
            return discrete(latent, pick(getattr(self, f"{latent.attribute}_logits"), index))
        return shaped(dist.Normal(pick(self.loc, index), pick(self.scale, index)).to_event(1), latent)
