"""Which rotation, signs and labels do two fits of one model have, and what is left once these agree?"""

from zoo.alignment.bootstrap import Loadings, bootstrap_loadings
from zoo.alignment.canonical import canonical_transform, to_canonical
from zoo.alignment.matching import align, match_components, posterior_difference, principal_angles, procrustes
from zoo.alignment.symmetry import Alignment, covariance

__all__ = [
    "Alignment",
    "Loadings",
    "align",
    "bootstrap_loadings",
    "canonical_transform",
    "covariance",
    "match_components",
    "posterior_difference",
    "principal_angles",
    "procrustes",
    "to_canonical",
]
