import pyro
import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from guides.projection import gaussian_projection, posterior_projection
from guides.sites import CannotServe, Sites, closed_posterior
from zoo.base.callables import PyroCallable, undecorated
from zoo.base.latent_sites import Latent
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.base.protocols import Conjugate, Projection, linear_form
from zoo.distributions.pathwise import PathwiseCategorical


class Exact(Module):
    r"""The model's own closed-form posterior at its current parameters: the E-step of EM, as a guide.

    .. math:: q(z \mid x) = p_\theta(z \mid x), \qquad \log p(x, z) - \log q(z \mid x) = \log p(x) \text{ for every } z

    Gradients flow through the posterior, so under ``Trace_ELBO`` the bound is the log marginal likelihood itself and
    its gradient is exact, without Monte Carlo noise. The guide has no parameters of its own.

    Args:
        model: a :class:`zoo.base.Conjugate` model with one latent site.

    Raises:
        CannotServe: the model has no closed-form posterior, or more than one latent site.
    """

    tight = True  # log p(x, z) - log q(z | x) = log p(x) for every draw

    def __init__(self, model: PyroCallable) -> None:
        super().__init__()
        sites = Sites.of("Exact", model, None)
        found = sites.local + sites.shared + sites.discrete
        if not isinstance(undecorated(model), Conjugate):
            instead = "Use MeanField or Amortized." if sites.discrete else "Use Amortized, MeanField or FullRank."
            if not sites.local and not sites.discrete:
                instead = "Use MeanField or FullRank."
            raise CannotServe("Exact", model, found[0].name, "has no closed-form posterior", instead)
        if len(found) != 1:
            why = f"is one of {len(found)}, and the posterior covers one"
            raise CannotServe("Exact", model, found[1].name, why, "Use MeanField.")
        self.site: Latent = found[0]
        self.plate = sites.plate
        self.__dict__["model"] = model  # held, not owned: its parameters stay the model's

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> None:
        """Sample the latent site from the exact posterior given the rows ``x``."""
        if x is None:
            raise ValueError("Exact conditions on the rows: pass x")
        posterior = self.posterior(x, index)
        if isinstance(posterior, dist.Categorical):
            posterior = PathwiseCategorical(logits=posterior.logits)
        with rows(x, index, size, name=self.plate):
            pyro.sample(self.site.name, posterior)

    def projection(self, model: PyroCallable, x: Tensor) -> Projection | None:
        """The posterior itself, with log p(x) as the bound; from the moments of complete rows where these suffice."""
        if undecorated(model) is not undecorated(self.model):
            return None
        if linear_form(model) is not None:
            return gaussian_projection(model, x, _nothing, factorised=False)
        return posterior_projection(model, x, _nothing)

    def posterior(self, x: Tensor, index: Tensor | None = None) -> Distribution:
        """The model's posterior given the rows ``x``, a distribution with batch shape (n,)."""
        found = closed_posterior(self.model, x, index)
        assert found is not None  # the constructor has seen to it
        return found


def _nothing() -> None:
    """The guide has no parameters to set."""
