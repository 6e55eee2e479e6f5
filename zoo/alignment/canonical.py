r"""Rotations, signs and labels are not identified: one canonical choice of them.

With factors :math:`z \sim N(0, I)` the likelihood of a linear-Gaussian model is the same for W and for W R with any
orthogonal R, and that of a mixture for any numbering of its components. Two fits of one model may agree in every
prediction and in no parameter: compare them after :func:`to_canonical`, after :func:`align`, or by quantities that do
not depend on the rotation (:func:`covariance`, :func:`principal_angles`).

A model is recognised by its structure, not by its class. Linear-Gaussian is one with ``weight`` (d, k), ``mean`` (d,),
``noise`` (d,) and the log marginal that goes with them; a Gaussian mixture is one with ``components`` (their number
k), ``weight`` (k,), ``mean`` (k, d), and ``scale`` in the form that ``covariance`` names.
"""

from typing import get_args

import torch
from torch import Tensor

from zoo.alignment.symmetry import Alignment, Factors, Fitted, factors_of, mixture_of, unknown
from zoo.alignment.varimax import Rotation, varimax_rotation
from zoo.base.callables import PyroCallable
from zoo.infer.run import Fit


def canonical_transform(model: PyroCallable | Fit, rotation: Rotation = "principal") -> Alignment:
    """The transform that :func:`to_canonical` applies; use it on draws and posterior means.

    Args:
        model: a linear-Gaussian model or a Gaussian mixture, or a :class:`zoo.Fit` of one.
        rotation: of factors, see :func:`to_canonical`.

    Raises:
        TypeError: the model is neither linear-Gaussian nor a Gaussian mixture.
        ValueError: ``rotation`` is neither of the two.
    """
    if rotation not in get_args(Rotation):
        raise ValueError(f"rotation must be one of {', '.join(get_args(Rotation))}; got {rotation!r}")
    if (factors := factors_of(model)) is not None:
        return Alignment(rotation=canonical_rotation(factors, rotation))
    mixture = mixture_of(model)
    if mixture is None:
        raise unknown(model)
    keys = [(-round(w, 6), *mean) for w, mean in zip(mixture.weight.tolist(), mixture.mean.tolist(), strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Alignment(order=torch.tensor(order, device=mixture.weight.device))


def to_canonical(fitted: Fitted, rotation: Rotation = "principal") -> Fitted:
    r"""A copy of a model, or of a run, in coordinates that depend on its likelihood alone; the likelihood is unchanged.

    Factors, ``"principal"``: the basis in which :math:`W^T \Psi^{-1} W` is diagonal with decreasing entries, so that
    the posterior covariance is diagonal, factors of most signal first. It is unique where the entries differ.

    Factors, ``"varimax"``: the basis that maximises Kaiser's criterion, the variance within the columns of the squared
    loadings after every row was scaled to length 1, found by plane rotations from the principal basis (where the
    criterion has several maxima, always the same one); factors by decreasing sum of squares.

    Both: every factor's loading of largest size is positive. Sums of squares and sizes are taken in standard
    deviations of the columns under the model, so that the units of the columns do not matter.

    Mixtures: components by decreasing weight; among weights that agree to six digits by their means, first column
    first. ``rotation`` does not matter.

    Of a run the guide is transformed together with the model, so that loadings, latent maps, exports and reports all
    show the same factors, and its bound is unchanged: :meth:`zoo.alignment.Alignment.apply` says how.

    Args:
        fitted: a linear-Gaussian model (PPCA, FactorAnalysis) or a Gaussian mixture (GMM), or a :class:`zoo.Fit` of
            one.
        rotation: of factors.

    Raises:
        TypeError: the model is neither. The factors of a network have no such symmetry: rotating them changes what the
            network computes.
        ValueError: ``rotation`` is neither of the two.

    References:
        Kaiser (1958), The varimax criterion for analytic rotation in factor analysis, Psychometrika 23(3); Lawley and
        Maxwell (1971), Factor Analysis as a Statistical Method.

    >>> import torch, zoo
    >>> from zoo.alignment import covariance
    >>> model = zoo.PPCA(3, 2)
    >>> plain = to_canonical(model)
    >>> torch.allclose(covariance(plain), covariance(model), atol=1e-5)
    True
    """
    return canonical_transform(fitted, rotation).apply(fitted)


# --- algebra -------------------------------------------------------------------------------------


def canonical_rotation(factors: Factors, rotation: Rotation) -> Tensor:
    """The orthogonal (k, k) matrix that takes the weights to the canonical ones."""
    weight, noise = factors.weight, factors.noise
    # The right singular vectors of Psi^-1/2 W, without squaring it; QR first, as d may be far above k.
    triangle = torch.linalg.qr(weight / noise.sqrt().unsqueeze(1)).R
    turn = torch.linalg.svd(triangle).Vh.T  # (k, k), also where k > d
    unit = (noise + weight.square().sum(1)).sqrt().unsqueeze(1)
    if rotation == "varimax":
        turn = turn @ varimax_rotation(weight / unit @ turn)
        size = (weight / unit @ turn).square().sum(0)
        turn = turn[:, size.argsort(descending=True, stable=True)]
    loadings = weight / unit @ turn
    largest = loadings.abs() >= (1 - 1e-6) * loadings.abs().amax(0)  # of a tie the first, whatever the rounding
    sign = loadings.gather(0, largest.int().argmax(0, keepdim=True)).squeeze(0).sign()
    return turn * torch.where(sign == 0, torch.ones_like(sign), sign)
