"""What a model may offer beyond its story."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.distributions import Distribution


@runtime_checkable
class Conjugate(Protocol):
    """A model whose posterior and marginal likelihood have closed forms.

    One with the class attribute ``missing = True`` accepts rows with missing entries (NaN) throughout, ``forward``
    included; see :mod:`zoo.algebra.missing`.
    """

    def posterior(self, x: Tensor) -> Distribution:
        """p(z | x), a distribution with batch shape (n,): one per row."""
        ...

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x), shape (n,)."""
        ...

    def em_step(self, x: Any) -> Tensor:
        """One step of EM, in place. Returns the total log-likelihood of the parameters it started from."""
        ...
