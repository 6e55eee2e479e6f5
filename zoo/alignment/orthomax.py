"""Orthogonal rotations of loadings by the orthomax criteria: varimax and quartimax."""

from typing import Literal

import torch
from torch import Tensor

Rotation = Literal["principal", "varimax", "quartimax"]
GAMMA = {"varimax": 1.0, "quartimax": 0.0}  # of the orthomax criterion


def orthomax_rotation(loadings: Tensor, gamma: float = 1.0, *, kaiser: bool = True, sweeps: int = 1000) -> Tensor:
    r"""The rotation (k, k) of loadings (d, k) that maximises the orthomax criterion, by Kaiser's plane rotations.

    .. math:: \sum_j \Big(\sum_i l_{ij}^4 - \frac{\gamma}{d} \big(\sum_i l_{ij}^2\big)^2\Big)

    In a plane the criterion is a constant plus ``amplitude * cos(4 (angle - best)) / 4``, and every step goes to its
    maximum. The fixed-point iteration by singular values would stay at any stationary point, and the principal basis of
    two equal groups of columns is one (a minimum).

    Args:
        loadings: (d, k).
        gamma: 1 for varimax, 0 for quartimax.
        kaiser: whether every column's loadings are first scaled to length 1 (Kaiser's normalisation).
        sweeps: the most rounds through all planes.
    """
    d, k = loadings.shape
    length = loadings.square().sum(1, keepdim=True).sqrt()
    known = length > 1e-8 * length.max()  # a column without factors has no direction
    z = torch.where(known, loadings / length, torch.zeros_like(loadings)) if kaiser else loadings
    both = torch.cat([z, torch.eye(k, dtype=z.dtype, device=z.device)])  # the loadings and the rotation, (d + k, k)
    pairs = [(i.to(z.device), j.to(z.device)) for i, j in _rounds(k)]
    for _ in range(sweeps):
        moved = 0.0
        for i, j in pairs:
            x, y = both[:, i], both[:, j]
            u, v = x[:d].square() - y[:d].square(), 2 * x[:d] * y[:d]
            a, b = u.mean(0), v.mean(0)
            sine = 2 * ((u * v).mean(0) - gamma * a * b)
            cosine = (u * u - v * v).mean(0) - gamma * (a * a - b * b)
            amplitude = torch.hypot(sine, cosine)
            # Where it is zero, the criterion does not depend on the angle, and rounding would determine it.
            angle = torch.where(amplitude > 1e-12, torch.atan2(sine, cosine) / 4, torch.zeros_like(sine))
            moved = max(moved, float((amplitude * angle.abs()).max()))
            c, s = angle.cos(), angle.sin()
            both[:, i], both[:, j] = c * x + s * y, c * y - s * x
        if moved < 1e-14:
            break
    left, _, right = torch.linalg.svd(both[d:])
    return left @ right  # orthogonal to machine precision, whatever the number of steps


def _rounds(k: int) -> list[tuple[Tensor, Tensor]]:
    """All pairs out of k, in rounds of disjoint pairs as in a round-robin tournament; one round is rotated at once."""
    players = list(range(k + k % 2))  # for odd k there is one more, whose pairs are skipped
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        met = [sorted(pair) for pair in zip(players[:half], reversed(players[half:]), strict=True) if max(pair) < k]
        if met:
            first, second = torch.tensor(met).T
            rounds.append((first, second))
        players = [players[0], players[-1], *players[1:-1]]
    return rounds
