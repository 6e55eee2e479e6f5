"""Gaussian mixtures: the covariances of the components from the parameter ``scale``."""

import torch
from torch import Tensor

KINDS = ("full", "tied", "diag", "spherical")


def covariances(scale: Tensor, kind: str, components: int, width: int) -> Tensor:
    """The covariance of every component (k, d, d).

    Args:
        scale: for ``"full"`` and ``"tied"`` Cholesky factors (k, d, d) or (d, d), for ``"diag"`` and ``"spherical"``
            standard deviations (k, d) or (k,).
        kind: one of ``KINDS``.
        components: the number of components k.
        width: the number of columns d.
    """
    if kind in ("full", "tied"):
        return (scale @ scale.mT).expand(components, width, width)
    return torch.diag_embed(scale.square().reshape(components, -1).expand(components, width))
