"""Which rotation, signs and labels do two fits of one model have, and how do the fits differ once these agree?

Rotations and signs of factors and the numbering of mixture components are not identified: with :math:`z \\sim N(0, I)`
the likelihood of a linear-Gaussian model is the same for W and for W R with any orthogonal R, and that of a mixture is
the same for any numbering of its components. Two fits of one model may agree in every prediction and in no parameter.
Compare them after :func:`to_canonical`, after :func:`align`, or by quantities that do not depend on the coordinates
(:func:`covariance`, :func:`principal_angles`).

A model is recognised by its structure, not by its class. A linear-Gaussian model has ``weight`` (d, k), ``mean`` (d,),
``noise`` (d,) and the matching ``log_marginal``; a Gaussian mixture has ``components`` (their number k), ``weight``
(k,), ``mean`` (k, d), and ``scale`` in the form that ``covariance`` names. Where an argument is a model, a
:class:`zoo.Fit` of one is accepted as well.
"""

from zoo.alignment.aligned_draws import posterior_loadings
from zoo.alignment.bootstrap import bootstrap_loadings
from zoo.alignment.canonical import canonical_transform, to_canonical
from zoo.alignment.loadings import Loadings
from zoo.alignment.matching import align, match_components, posterior_difference, principal_angles, procrustes
from zoo.alignment.rotated import RotatedFactors, rotate
from zoo.alignment.symmetry import Alignment, covariance

__all__ = [
    "Alignment",
    "Loadings",
    "RotatedFactors",
    "align",
    "bootstrap_loadings",
    "canonical_transform",
    "covariance",
    "match_components",
    "posterior_difference",
    "posterior_loadings",
    "principal_angles",
    "procrustes",
    "rotate",
    "to_canonical",
]
