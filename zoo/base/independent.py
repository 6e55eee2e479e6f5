"""The distribution inside ``torch.distributions.Independent``."""

from typing import Any

from torch.distributions import Independent


def without_event_dims(distribution: Any) -> Any:
    """The distribution on which ``to_event`` was called: the same density, with event dimensions as batch dimensions.

    >>> import pyro.distributions as dist
    >>> without_event_dims(dist.Normal(0.0, 1.0).expand([3, 2]).to_event(1).to_event(1))
    Normal(loc: torch.Size([3, 2]), scale: torch.Size([3, 2]))
    """
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution
