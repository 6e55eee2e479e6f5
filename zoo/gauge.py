r"""Rotations, signs and labels mean nothing: one canonical choice of them, and comparisons that do not see them.

With factors :math:`z \sim N(0, I)` the likelihood of a linear-Gaussian model is the same for W and for W R with any
orthogonal R, and that of a mixture for any numbering of its components. Two fits of one model may agree in every
prediction and in no parameter: compare them after :func:`canonical`, after :func:`align`, or by what has no gauge
(:func:`covariance`, :func:`principal_angles`).

A model is known here by its shape, not by its class. Linear-Gaussian is what has ``weight`` (d, k), ``mean`` (d,),
``noise`` (d,) and the log marginal that goes with them; a Gaussian mixture is what has ``components`` (their number
k), ``weight`` (k,), ``mean`` (k, d), and ``scale`` in the form that ``covariance`` names.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # comes with scikit-learn
from torch import Tensor, nn

from zoo import linear_gaussian
from zoo.base import Conjugate, check_rows

Rotation = Literal["principal", "varimax"]


@dataclass(frozen=True, eq=False)
class Gauge:
    """A change of latent coordinates that the likelihood does not see: a rotation of factors, or a renumbering.

    Attributes:
        rotation: orthogonal (k, k); the new factors are ``z @ rotation`` and the new weight ``weight @ rotation``.
            None for a mixture.
        order: permutation (k,); the new component j is the old component ``order[j]``. None for factors.
    """

    rotation: Tensor | None = None
    order: Tensor | None = None

    def factors(self, z: Tensor) -> Tensor:
        """What a guide says of the old latent variable, said of the new one.

        Args:
            z: factors (..., k): draws, posterior means; for a mixture labels (...) of an integer type, or
                responsibilities (..., k).
        """
        if self.rotation is not None:
            return (z.to(self.rotation) @ self.rotation).to(z)
        assert self.order is not None
        order = self.order.to(z.device)
        return z[..., order] if z.is_floating_point() else order.argsort()[z]

    def apply(self, model: Any) -> Any:
        """A copy of ``model`` in the new coordinates; its likelihood is the same.

        Raises:
            TypeError: a model without this kind of gauge.
            ValueError: a model with another number of factors or components.
        """
        factors, mixture = _factors(model), _mixture(model)
        if factors is None and mixture is None:
            raise _unknown(model)
        gauge = self.order if self.rotation is None else self.rotation
        if gauge is None or (factors is None) != (self.rotation is None):
            raise TypeError(
                f"this gauge does not go with {type(model).__name__}: factors turn, components change places"
            )
        number = len(mixture.weight) if mixture is not None else model.weight.shape[1]
        if len(gauge) != number:
            raise ValueError(f"the gauge is one of {len(gauge)} factors or components, the model has {number}")
        changed = copy.deepcopy(model)
        with torch.no_grad():
            if self.rotation is not None:
                changed.weight = (model.weight.to(self.rotation) @ self.rotation).to(model.weight)
            else:
                for name in ("weight", "mean") if model.covariance == "tied" else ("weight", "mean", "scale"):
                    setattr(changed, name, getattr(model, name)[self.order])
        return changed


def gauge_of(model: Any, rotation: Rotation = "principal") -> Gauge:
    """The map to the canonical gauge that :func:`canonical` applies; use it on draws and posterior means.

    Raises:
        TypeError: the model is neither linear-Gaussian nor a Gaussian mixture.
        ValueError: ``rotation`` is neither of the two.
    """
    if rotation not in get_args(Rotation):
        raise ValueError(f"rotation must be one of {', '.join(get_args(Rotation))}; got {rotation!r}")
    if (factors := _factors(model)) is not None:
        return Gauge(rotation=_canonical_rotation(factors, rotation))
    mixture = _mixture(model)
    if mixture is None:
        raise _unknown(model)
    keys = [(-round(w, 6), *mean) for w, mean in zip(mixture.weight.tolist(), mixture.mean.tolist(), strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Gauge(order=torch.tensor(order, device=mixture.weight.device))


def canonical(model: Any, rotation: Rotation = "principal") -> Any:
    r"""A copy of the model in a gauge that depends on its likelihood alone; the likelihood is unchanged.

    Factors, ``"principal"``: the basis in which :math:`W^T \Psi^{-1} W` is diagonal with decreasing entries, so that
    the posterior covariance is diagonal, factors of most signal first. It is unique where the entries differ.

    Factors, ``"varimax"``: the basis that maximises Kaiser's criterion, the variance within the columns of the squared
    loadings after every row was scaled to length 1, found by his plane rotations from the principal basis (where the
    criterion has several maxima, always the same one); factors by decreasing sum of squares.

    Both: every factor's loading of largest size is positive. Sums of squares and sizes are taken in standard
    deviations of the columns under the model, so that the units of the columns do not matter.

    Mixtures: components by decreasing weight; among weights that agree to six digits by their means, first column
    first. ``rotation`` does not matter.

    Args:
        model: a linear-Gaussian model (PPCA, FactorAnalysis) or a Gaussian mixture (GMM).
        rotation: of factors.

    Raises:
        TypeError: the model is neither. The factors of a network have no such gauge: turning them changes what the
            network computes.
        ValueError: ``rotation`` is neither of the two.

    References:
        Kaiser (1958), The varimax criterion for analytic rotation in factor analysis, Psychometrika 23(3); Lawley and
        Maxwell (1971), Factor Analysis as a Statistical Method.

    >>> import torch, zoo
    >>> model = zoo.PPCA(3, 2)
    >>> plain = canonical(model)
    >>> torch.allclose(covariance(plain), covariance(model), atol=1e-5)
    True
    """
    return gauge_of(model, rotation).apply(model)


# --- comparisons free of the gauge ---------------------------------------------------------------


def covariance(model: Any) -> Tensor:
    r"""The covariance (d, d) of a row under the model, in float64.

    :math:`W W^T + \Psi`; for a mixture the spread of the means plus the mean of the spreads.

    Raises:
        TypeError: the model is neither linear-Gaussian nor a Gaussian mixture.
    """
    if (factors := _factors(model)) is not None:
        return factors.weight @ factors.weight.T + torch.diag(factors.noise)
    mixture = _mixture(model)
    if mixture is None:
        raise _unknown(model)
    centred = mixture.mean - mixture.weight @ mixture.mean
    within = torch.einsum("k,kij->ij", mixture.weight, mixture.covariance)
    return (mixture.weight * centred.T) @ centred + within


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """The principal angles between the column spaces of two matrices, in radians, the largest first.

    Sines and cosines both come from singular values and the angle from both, so that small angles keep all their
    digits (from cosines alone, everything below 1e-8 is lost).

    Args:
        a: (d, k).
        b: (d, m), its rows in the same units as those of ``a``.

    Returns:
        as many angles as the smaller of the two ranks, in float64.

    Raises:
        ValueError: matrices of different height, or all zero.

    References:
        Bjoerck and Golub (1973), Numerical methods for computing angles between linear subspaces, Math. Comp. 27.
    """
    first, second = _basis(a, "a"), _basis(b, "b")
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} rows, b {len(second)}: take loadings of the same columns")
    if first.shape[1] < second.shape[1]:
        first, second = second, first
    cross = first.T @ second
    sines = torch.linalg.svdvals(second - first @ cross)
    cosines = torch.linalg.svdvals(cross)
    return torch.atan2(sines[: len(cosines)], cosines.flip(0))


def procrustes(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The orthogonal R (k, k) that minimises the Frobenius norm of ``a R - b``, and ``a R``.

    Raises:
        ValueError: ``a`` and ``b`` are not matrices of one shape.

    References:
        Schoenemann (1966), A generalized solution of the orthogonal Procrustes problem, Psychometrika 31.
    """
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must be matrices of one shape")
    left, _, right = torch.linalg.svd(a.T @ b)
    rotation = left @ right
    return rotation, a @ rotation


def match_components(a: Any, b: Any, x: Any = None) -> Tensor:
    """The numbering of the components of ``a`` that fits those of ``b`` best.

    The sum over pairs is least (Hungarian method) of the Bhattacharyya distance of the two Gaussians, which does not
    depend on the units of the columns; or, given rows ``x``, the rows on which their responsibilities overlap are most.

    Args:
        a: a Gaussian mixture.
        b: another one, with as many components.
        x: rows (n, d), or None.

    Returns:
        order (k,): component ``order[j]`` of ``a`` is component j of ``b``.

    Raises:
        TypeError: a model is no Gaussian mixture.
        ValueError: numbers of components or columns differ.
    """
    first, second = _mixture(a), _mixture(b)
    if first is None or second is None:
        raise TypeError(f"{type(a if first is None else b).__name__} has no components to match: take a mixture")
    _same_shape(first.mean, second.mean, "components")
    if x is not None:
        with torch.no_grad():
            shares = [model.posterior(check_rows(x, model)).probs.double() for model in (a, b)]
        cost = -shares[0].T @ shares[1].to(shares[0].device)
    else:
        cost = torch.stack([_bhattacharyya(first, second, j) for j in range(len(second.weight))], 1)
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    order = torch.empty(len(rows), dtype=torch.long)
    order[torch.as_tensor(columns)] = torch.as_tensor(rows)
    return order.to(first.weight.device)


def align(model: Any, reference: Any) -> Gauge:
    r"""The gauge that brings ``model`` nearest to ``reference``: ``align(model, reference).apply(model)``.

    Factors: :func:`procrustes` of the two weights, every row in units of the reference's noise
    (:math:`\Psi^{-1/2} W`), so that the units of the columns do not matter. Components: :func:`match_components`.

    Raises:
        TypeError: the models are not both linear-Gaussian or both Gaussian mixtures.
        ValueError: their shapes differ.
    """
    own, other = _factors(model), _factors(reference)
    if own is None or other is None:
        if own is not None or other is not None:
            raise TypeError(f"{type(model).__name__} and {type(reference).__name__} have no gauge in common")
        if _mixture(model) is None:
            raise _unknown(model)
        return Gauge(order=match_components(model, reference))
    _same_shape(own.weight, other.weight, "factors")
    unit = other.noise.sqrt().unsqueeze(1)
    return Gauge(rotation=procrustes(own.weight / unit, other.weight.to(own.weight) / unit.to(own.weight))[0])


def posterior_difference(model: Any, reference: Any, x: Any) -> Tensor:
    """How far apart the exact posterior means of two models are on the rows ``x``, after :func:`align`.

    Args:
        model: a linear-Gaussian model or a Gaussian mixture.
        reference: another one of the same shape.
        x: rows (n, d).

    Returns:
        (n, k) in float64: aligned mean less the reference's, in standard deviations of the reference's posterior; for
        mixtures the plain difference of the responsibilities, as a sure label has no standard deviation.

    Raises:
        TypeError: the models are not both linear-Gaussian or both Gaussian mixtures.
        ValueError: their shapes differ, or the rows are not fit for them.
    """
    gauge = align(model, reference)
    with torch.no_grad():
        own, other = (each.posterior(check_rows(x, each)) for each in (model, reference))
        if gauge.rotation is None:
            return gauge.factors(own.probs.double()) - other.probs.double()
        return (gauge.factors(own.mean.double()) - other.mean.double()) / other.stddev.double()


# --- what a model is -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Factors:
    """A linear-Gaussian model in float64: weight (d, k), noise variances (d,)."""

    weight: Tensor
    noise: Tensor


@dataclass(frozen=True, eq=False)
class _Mixture:
    """A Gaussian mixture in float64: weight (k,), mean (k, d), covariance (k, d, d)."""

    weight: Tensor
    mean: Tensor
    covariance: Tensor


def _factors(model: Any) -> _Factors | None:
    """What a linear-Gaussian model consists of; None for any other."""
    if not (isinstance(model, nn.Module) and isinstance(model, Conjugate)):
        return None
    parts = [getattr(model, name, None) for name in ("weight", "mean", "noise")]
    if not all(isinstance(part, Tensor) for part in parts) or [p.ndim for p in parts if p is not None] != [2, 1, 1]:
        return None
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        weight, mean, noise = model.weight.clone(), model.mean, model.noise.clone()
        if not len(weight) == len(mean) == len(noise):
            return None
        # Names alone do not make z ~ N(0, I): the model's own density must be the one that rotations leave alone.
        probes = mean + torch.cat([torch.zeros_like(mean).unsqueeze(0), weight.T])
        known = linear_gaussian.log_marginal(probes, weight, mean, noise)
        if not torch.allclose(model.log_marginal(probes), known, rtol=1e-6, atol=1e-6):
            return None
    return _Factors(weight, noise)


def _mixture(model: Any) -> _Mixture | None:
    """What a Gaussian mixture consists of; None for any other model."""
    k, kind = getattr(model, "components", None), getattr(model, "covariance", None)
    if not (isinstance(model, nn.Module) and isinstance(k, int) and isinstance(kind, str)):
        return None
    names = {name.removesuffix("_unconstrained") for name, _ in model.named_parameters()}
    if names != {"weight", "mean", "scale"}:  # another parameter would have to be renumbered too
        return None
    with torch.no_grad():
        weight, mean, scale = (getattr(model, name).double().clone() for name in ("weight", "mean", "scale"))
    if weight.shape != (k,) or mean.ndim != 2 or len(mean) != k:
        return None
    d = mean.shape[1]
    if kind in ("full", "tied"):
        return _Mixture(weight, mean, (scale @ scale.mT).expand(k, d, d))
    if kind in ("diag", "spherical"):
        return _Mixture(weight, mean, torch.diag_embed(scale.square().reshape(k, -1).expand(k, d)))
    return None


def _unknown(model: Any) -> TypeError:
    return TypeError(
        f"{type(model).__name__} has no gauge that is known here: it is neither linear-Gaussian (weight, mean, noise), "
        "whose factors may be turned, nor a Gaussian mixture, whose components may be renumbered. Compare such models "
        "by their bounds (zoo.evaluate) or their predictions"
    )


def _same_shape(a: Tensor, b: Tensor, what: str) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{what} and columns must agree in number: the shapes are {tuple(a.shape)}, {tuple(b.shape)}")


# --- algebra -------------------------------------------------------------------------------------


def _canonical_rotation(factors: _Factors, rotation: Rotation) -> Tensor:
    """The orthogonal (k, k) matrix that takes the weights to the canonical ones."""
    weight, noise = factors.weight, factors.noise
    # The right singular vectors of Psi^-1/2 W, without squaring it; QR first, as d may be far above k.
    triangle = torch.linalg.qr(weight / noise.sqrt().unsqueeze(1)).R
    turn = torch.linalg.svd(triangle).Vh.T  # (k, k), also where k > d
    unit = (noise + weight.square().sum(1)).sqrt().unsqueeze(1)
    if rotation == "varimax":
        turn = turn @ _varimax(weight / unit @ turn)
        size = (weight / unit @ turn).square().sum(0)
        turn = turn[:, size.argsort(descending=True, stable=True)]
    loadings = weight / unit @ turn
    largest = loadings.abs() >= (1 - 1e-6) * loadings.abs().amax(0)  # of a tie the first, whatever the rounding
    sign = loadings.gather(0, largest.int().argmax(0, keepdim=True)).squeeze(0).sign()
    return turn * torch.where(sign == 0, torch.ones_like(sign), sign)


def _varimax(loadings: Tensor, sweeps: int = 1000) -> Tensor:
    """The rotation (k, k) of loadings (d, k) that maximises Kaiser's criterion, by his plane rotations.

    In a plane the criterion is a constant plus ``amplitude * cos(4 (angle - best)) / 4``: every step takes its maximum,
    where the fixed-point iteration by singular values stays at whatever stationary point it starts from, and the
    principal basis of two equal groups of columns is one (a minimum).
    """
    d, k = loadings.shape
    length = loadings.square().sum(1, keepdim=True).sqrt()
    known = length > 1e-8 * length.max()  # a column without factors has no direction
    z = torch.where(known, loadings / length, torch.zeros_like(loadings))
    both = torch.cat([z, torch.eye(k, dtype=z.dtype, device=z.device)])  # the loadings and the turn, (d + k, k)
    pairs = [(i.to(z.device), j.to(z.device)) for i, j in _rounds(k)]
    for _ in range(sweeps):
        moved = 0.0
        for i, j in pairs:
            x, y = both[:, i], both[:, j]
            u, v = x[:d].square() - y[:d].square(), 2 * x[:d] * y[:d]
            a, b = u.mean(0), v.mean(0)
            sine = 2 * ((u * v).mean(0) - a * b)
            cosine = (u * u - v * v).mean(0) - (a * a - b * b)
            amplitude = torch.hypot(sine, cosine)
            # Where it is zero, the criterion does not depend on the angle and rounding would choose one.
            angle = torch.where(amplitude > 1e-12, torch.atan2(sine, cosine) / 4, torch.zeros_like(sine))
            moved = max(moved, float((amplitude * angle.abs()).max()))
            c, s = angle.cos(), angle.sin()
            both[:, i], both[:, j] = c * x + s * y, c * y - s * x
        if moved < 1e-14:
            break
    left, _, right = torch.linalg.svd(both[d:])
    return left @ right  # orthogonal to the last digit, whatever the number of steps


def _rounds(k: int) -> list[tuple[Tensor, Tensor]]:
    """All pairs out of k in rounds of disjoint ones, as a round-robin tournament has them: these turn at once."""
    players = list(range(k + k % 2))  # the number k, where k is odd, sits out
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        met = [sorted(pair) for pair in zip(players[:half], reversed(players[half:]), strict=True) if max(pair) < k]
        if met:
            first, second = torch.tensor(met).T
            rounds.append((first, second))
        players = [players[0], players[-1], *players[1:-1]]
    return rounds


def _basis(matrix: Tensor, name: str) -> Tensor:
    """An orthonormal basis of the column space, in float64."""
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must be a matrix (d, k), got shape {tuple(matrix.shape)}")
    left, size, _ = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    kept = size > torch.finfo(matrix.dtype).eps * max(matrix.shape) * size[0]
    if not kept.any():
        raise ValueError(f"{name} is zero: its columns span nothing")
    return left[:, kept]


def _bhattacharyya(first: _Mixture, second: _Mixture, j: int) -> Tensor:
    """Bhattacharyya distance of every component of ``first`` (k,) from component j of ``second``."""
    mean, matrix = second.mean[j].to(first.mean), second.covariance[j].to(first.mean)
    offset, middle = first.mean - mean, (first.covariance + matrix) / 2
    apart = (offset * torch.linalg.solve(middle, offset)).sum(-1)
    logdets = [torch.linalg.slogdet(each).logabsdet for each in (middle, first.covariance, matrix)]
    return apart / 8 + (logdets[0] - (logdets[1] + logdets[2]) / 2) / 2
