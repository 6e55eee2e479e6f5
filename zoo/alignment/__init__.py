"""Which rotation, signs and labels do two fits of one model have, and what is left once these agree?"""

from zoo.alignment.bootstrap import Loadings, bootstrap_loadings
from zoo.alignment.canonical import canonical, gauge_of
from zoo.alignment.matching import align, match_components, posterior_difference, principal_angles, procrustes
from zoo.alignment.symmetry import Gauge, covariance

__all__ = [
    "Gauge",
    "Loadings",
    "align",
    "bootstrap_loadings",
    "canonical",
    "covariance",
    "gauge_of",
    "match_components",
    "posterior_difference",
    "principal_angles",
    "procrustes",
]
