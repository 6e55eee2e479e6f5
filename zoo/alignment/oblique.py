r"""Oblique rotations of loadings: oblimin, geomin and promax.

Factors :math:`z \sim N(0, I_K)` are replaced by :math:`f = T^T z` of unit variances and correlations
:math:`\Phi = T^T T`, with T (k, k) of columns of length 1, and loadings A (d, k) by the pattern :math:`A T^{-T}`.
"""

from collections.abc import Callable

import numpy as np
import torch

from zoo.alignment.orthomax import orthomax_rotation

STEPS = 5_000  # of the gradient projection, at most
STILL = 1e-8  # norm of the projected gradient at which it ends, for loadings of about 1
CONVERGED = 1e-5  # the largest one at which it has converged
HALVINGS = 12  # of a step, at most
NEAR = 1e-6  # of the criterion: starts that end closer than this have found the same minimum

Criterion = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # (s, d, k) -> values (s,), gradients (s, d, k)


def oblimin(gamma: float) -> Criterion:
    r"""The direct oblimin criterion; with gamma 0 it is quartimin.

    .. math:: \tfrac14 \sum_{j \ne m} \Big(\sum_i l_{ij}^2 l_{im}^2
              - \frac{\gamma}{d} \sum_i l_{ij}^2 \sum_i l_{im}^2\Big)

    References:
        Jennrich and Sampson (1966), Rotation for simple loadings, Psychometrika 31.
    """

    def criterion(pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        square = pattern**2
        others = square.sum(-1, keepdims=True) - square  # (s, d, k)
        others = others - gamma * others.mean(-2, keepdims=True)
        return 0.25 * (square * others).sum((-2, -1)), pattern * others

    return criterion


def geomin(delta: float) -> Criterion:
    r"""The geomin criterion :math:`\sum_i \big(\prod_j (l_{ij}^2 + \delta)\big)^{1/K}`.

    References:
        Yates (1987), Multivariate exploratory data analysis; Browne (2001), An overview of analytic rotation in
        exploratory factor analysis, Multivariate Behavioral Research 36.
    """

    def criterion(pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raised = pattern**2 + delta
        product = np.exp(np.log(raised).mean(-1, keepdims=True))  # (s, d, 1)
        return product.sum((-2, -1)), 2 / pattern.shape[-1] * pattern / raised * product

    return criterion


def gradient_projection(loadings: np.ndarray, criterion: Criterion, starts: np.ndarray) -> tuple[np.ndarray, int, bool]:
    """The oblique rotation that minimises a criterion, by gradient projection from several starts at once.

    Args:
        loadings: (d, k).
        criterion: of patterns (s, d, k).
        starts: matrices T (s, k, k) with columns of length 1.

    Returns:
        the best T (k, k), the number of starts that reached its minimum, and whether its search had converged.

    References:
        Jennrich (2002), A simple general method for oblique rotation, Psychometrika 67; Bernaards and Jennrich (2005),
        Gradient projection algorithms and software for arbitrary rotation criteria in factor analysis, Educational and
        Psychological Measurement 65.
    """
    turn, step = starts.copy(), np.ones(len(starts))
    value, gradient = _at(loadings, criterion, turn)
    moving = np.arange(len(starts))
    for _ in range(STEPS):
        slope = _projected(turn, gradient)
        size = (slope**2).sum((-2, -1))  # (s,)
        moving = moving[size[moving] > STILL**2]
        step[moving] *= 2
        trying, moved = moving, []
        for _ in range(HALVINGS):
            if not len(trying):
                break
            trial = turn[trying] - step[trying, None, None] * slope[trying]
            trial /= np.sqrt((trial**2).sum(-2, keepdims=True))
            found, new = _at(loadings, criterion, trial)
            lower = value[trying] - found > 0.5 * size[trying] * step[trying]
            taken = trying[lower]
            turn[taken], value[taken], gradient[taken] = trial[lower], found[lower], new[lower]
            moved.append(taken)
            trying = trying[~lower]
            step[trying] /= 2
        moving = np.concatenate(moved) if moved else moving  # one that no step improves is at its minimum, or rounds
        if not len(moving):
            break
    best = int(value.argmin())
    near = int((value <= value[best] + NEAR * max(1.0, abs(value[best]))).sum())
    left = np.sqrt((_projected(turn, gradient)[best] ** 2).sum())
    return turn[best], near, bool(left <= CONVERGED)


def promax(loadings: np.ndarray, power: float, *, kaiser: bool) -> np.ndarray:
    r"""The promax rotation T (k, k): least squares of the varimax loadings V to the target :math:`V |V|^{m - 1}`.

    Args:
        loadings: (d, k).
        power: m, above 1.
        kaiser: whether varimax normalises the columns' loadings to length 1.

    References:
        Hendrickson and White (1964), Promax: a quick method for rotation to oblique simple structure, British Journal
        of Statistical Psychology 17; R's ``promax``.
    """
    first = orthomax_rotation(torch.from_numpy(loadings), 1.0, kaiser=kaiser).numpy()
    rotated = loadings @ first
    target = rotated * np.abs(rotated) ** (power - 1)
    fitted = np.linalg.lstsq(rotated, target, rcond=None)[0]  # (k, k)
    scale = np.sqrt(np.diagonal(np.linalg.inv(fitted.T @ fitted)))
    return np.linalg.inv(first @ (fitted * scale)).T  # pattern = A U = A T^-T


def starts(k: int, number: int, seed: int) -> np.ndarray:
    """The identity and random rotations, ``number`` in all (s, k, k)."""
    draws = np.random.default_rng(seed).standard_normal((number - 1, k, k))
    turned = np.linalg.qr(draws)[0] if number > 1 else draws
    return np.concatenate([np.eye(k)[None], turned])


def _at(loadings: np.ndarray, criterion: Criterion, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The criterion at T (s, k, k) and its derivative by T."""
    inverse = np.linalg.inv(turn)
    pattern = loadings @ inverse.swapaxes(-1, -2)  # (s, d, k)
    value, gradient = criterion(pattern)
    return value, -(pattern.swapaxes(-1, -2) @ gradient @ inverse).swapaxes(-1, -2)


def _projected(turn: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The gradient (s, k, k), projected onto the tangents of the spheres on which the columns of T lie."""
    projected: np.ndarray = gradient - turn * (turn * gradient).sum(-2, keepdims=True)
    return projected
