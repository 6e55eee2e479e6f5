"""Variational guides for any Pyro model whose latent sites their family supports.

A guide runs its model once to find the latent sites, and refuses a site that it does not support with
:class:`CannotServe`, which names the site, the reason and an alternative. Continuous sites with constrained support are
modelled on the real line and mapped to their support by ``biject_to``; sites shared by all rows have a Gaussian of
their own (:class:`guides.shared.SharedPart`).
"""

from guides.amortized import Amortized
from guides.exact import Exact
from guides.flow import Flow
from guides.full_rank import FullRank
from guides.mean_field import MeanField
from guides.potential import Potential
from guides.semi_amortized import SemiAmortized
from guides.sites import CannotServe

__all__ = [
    "Amortized",
    "CannotServe",
    "Exact",
    "Flow",
    "FullRank",
    "MeanField",
    "Potential",
    "SemiAmortized",
]
