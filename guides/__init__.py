"""Variational guides, each a Pyro guide that looks at its model once and serves any it has a family for."""

from guides.amortized import Amortized
from guides.exact import Exact
from guides.flow import Flow
from guides.full_rank import FullRank
from guides.mean_field import MeanField
from guides.potential import Potential
from guides.semi_amortized import SemiAmortized
from guides.sites import CannotServe

__all__ = ["Amortized", "CannotServe", "Exact", "Flow", "FullRank", "MeanField", "Potential", "SemiAmortized"]
