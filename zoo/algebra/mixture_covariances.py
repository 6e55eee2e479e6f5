r"""Covariances of Gaussian mixtures: their six forms, their M-step, and a floor under it.

Without a floor the likelihood of a mixture is unbounded: a component that shrinks onto rows that are equal in some
direction has a density that grows without limit. Under :math:`\Sigma_j \succeq D`, for a diagonal matrix D of small
fractions of the columns' variances, it has a maximum, and the M-step a closed form: the eigenvalues of
:math:`D^{-1/2} S_j D^{-1/2}`, for the component's scatter matrix :math:`S_j`, are raised to 1 where they are lower. EM
stays monotone.

References:
    Hathaway (1985), A constrained formulation of maximum-likelihood estimation for normal mixture distributions, Annals
    of Statistics 13; Ingrassia and Rocci (2007), Constrained monotone EM algorithms for finite mixture of multivariate
    Gaussians, Computational Statistics and Data Analysis 51.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

Covariance = Literal["full", "tied", "diag", "spherical", "tied_diag", "tied_spherical"]
KINDS: tuple[str, ...] = get_args(Covariance)
MCLUST: dict[str, Covariance] = {
    "VVV": "full",
    "EEE": "tied",
    "VVI": "diag",
    "VII": "spherical",
    "EEI": "tied_diag",
    "EII": "tied_spherical",
}
SLACK = 1e-8  # relative: rounding of eigenvalues a million times smaller than the largest
SINGULAR = 1e-10  # of the columns' variances: a covariance with less in some direction has no inverse to speak of


def kind_of(name: str) -> Covariance:
    """The covariance model of a name: one of ``KINDS``, or its code in R's mclust.

    Raises:
        ValueError: it is neither.

    >>> kind_of("EEI")
    'tied_diag'
    """
    found = MCLUST.get(name, name) if isinstance(name, str) else name
    if found not in KINDS:
        listed = ", ".join(f"{kind} ({code})" for code, kind in MCLUST.items())
        raise ValueError(f"covariance must be one of {listed}; got {name!r}")
    return found  # type: ignore[return-value]


def is_matrix(kind: str) -> bool:
    """Whether covariances have entries off the diagonal."""
    return kind in ("full", "tied")


def is_tied(kind: str) -> bool:
    """Whether all components share one covariance."""
    return kind.startswith("tied")


def scale_shape(kind: str, components: int, width: int) -> tuple[int, ...]:
    """The shape of the parameter: Cholesky factors, or standard deviations, of k components and d columns."""
    own = {"full": (width, width), "diag": (width,), "spherical": ()}
    shape = own[{"tied": "full"}.get(kind, kind.removeprefix("tied_"))]
    return shape if is_tied(kind) else (components, *shape)


def deviations(scale: Tensor, kind: str, components: int, width: int) -> Tensor:
    """The standard deviation of every component and column (k, d), where covariances are diagonal."""
    return scale.reshape(1 if is_tied(kind) else components, -1).expand(components, width)


def covariances(scale: Tensor, kind: str, components: int, width: int) -> Tensor:
    """The covariance of every component (k, d, d).

    Args:
        scale: for ``"full"`` and ``"tied"`` Cholesky factors (k, d, d) or (d, d); otherwise standard deviations: (k, d)
            for ``"diag"``, (k,) for ``"spherical"``, (d,) for ``"tied_diag"``, () for ``"tied_spherical"``.
        kind: one of ``KINDS``.
        components: the number of components k.
        width: the number of columns d.
    """
    if is_matrix(kind):
        return (scale @ scale.mT).expand(components, width, width)
    return torch.diag_embed(deviations(scale, kind, components, width).square())


def scatter(counts: Tensor, second: Tensor, shift: Tensor, kind: str) -> Tensor:
    """The covariances that maximise the expected likelihood: (c, d, d), (c, d) or (c, 1), with c = 1 where tied.

    Args:
        counts: the sums of the responsibilities (k,).
        second: the second moments around some centres: matrices, or their diagonals; see
            :class:`zoo.algebra.mixture.Sums`.
        shift: from these centres to the components' means (k, d).
        kind: one of ``KINDS``.
    """
    heavy = counts.unsqueeze(-1) * shift  # (k, d)
    if kind == "tied":
        return (second.sum(0, keepdim=True) - heavy.T @ shift) / counts.sum()
    if kind == "full":
        return (second - heavy.unsqueeze(-1) * shift.unsqueeze(-2)) / counts[:, None, None]
    if is_tied(kind):
        found = (second.sum(0) - (heavy * shift).sum(0)).unsqueeze(0) / counts.sum()
    else:
        found = (second - heavy * shift) / counts.unsqueeze(-1)
    return found.mean(1, keepdim=True) if kind.endswith("spherical") else found


def in_form(covariance: Tensor, kind: str) -> Tensor:
    """One covariance matrix (d, d) in the form of :func:`scatter`: (1, d, d), (1, d) or (1, 1)."""
    if is_matrix(kind):
        return covariance.unsqueeze(0)
    found = covariance.diagonal().unsqueeze(0)
    return found.mean(1, keepdim=True) if kind.endswith("spherical") else found


def scatter_of(scale: Tensor, kind: str) -> Tensor:
    """The covariances of a parameter ``scale``, see :func:`covariances`, in the form of :func:`scatter`, in float64."""
    scale = scale.double()
    if is_matrix(kind):
        return (scale @ scale.mT).reshape(-1, *scale.shape[-2:])
    return scale.square().reshape(*{"spherical": (-1, 1), "diag": scale.shape}.get(kind, (1, -1)))


def column_variances(covariance: Tensor, mean: Tensor, share: Tensor, kind: str) -> Tensor:
    """The variances of the columns under a mixture (d,), or their mean (1,) for spherical covariances.

    Args:
        covariance: as of :func:`scatter`.
        mean: of the components (k, d).
        share: the proportions (k,).
        kind: one of ``KINDS``.
    """
    own = covariance.diagonal(dim1=-2, dim2=-1) if covariance.ndim == 3 else covariance
    found = share @ (mean - share @ mean).square() + (own[0] if len(own) == 1 else share @ own)
    return found.mean(0, keepdim=True) if kind.endswith("spherical") else found


def bounded(covariance: Tensor, least: Tensor) -> tuple[Tensor, list[int]]:
    """The maximum above the floor: Cholesky factors, or standard deviations, and the components that meet the floor.

    Args:
        covariance: as of :func:`scatter`.
        least: the smallest variances (d,), or (1,) for spherical covariances; 0 for none.
    """
    count = len(covariance)
    if covariance.ndim == 2:
        low = (covariance < least).any(-1).tolist()
        return torch.maximum(covariance, least).sqrt(), [j for j in range(count) if low[j]]
    root, failed = torch.linalg.cholesky_ex(torch.cat([covariance, covariance - least.diag()]))
    flags = failed.tolist()
    met = [j for j in range(count) if flags[count + j]]
    root = root[:count]
    if met and bool((least > 0).all()):
        unit = least.sqrt()
        values, vectors = torch.linalg.eigh(covariance[met] / torch.outer(unit, unit))
        raised = unit.unsqueeze(-1) * vectors * values.clamp_min(1.0).sqrt().unsqueeze(-2)  # a square root
        root[met] = torch.linalg.cholesky(raised @ raised.mT)
    return root, met


def vanished(covariance: Tensor, least: Tensor) -> tuple[list[int], int]:
    """The columns along which a covariance meets the floor, and the number of directions in which it does.

    Args:
        covariance: a matrix (d, d), or variances (d,) or (1,).
        least: the smallest variances, (d,) or (1,).
    """
    near = 1.0 + 1e-5
    if covariance.ndim == 1:
        low = covariance <= near * least
        return low.nonzero().flatten().tolist(), int(low.sum())
    unit = least.sqrt()
    values, vectors = torch.linalg.eigh(covariance / torch.outer(unit, unit))
    within = vectors[:, values <= near].square().sum(1)  # the share of every column in these directions
    return (within > 0.05 * within.max()).nonzero().flatten().tolist(), int((values <= near).sum())
