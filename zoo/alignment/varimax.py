"""The varimax rotation of loadings."""

from typing import Literal

import torch
from torch import Tensor

Rotation = Literal["principal", "varimax"]


def varimax_rotation(loadings: Tensor, sweeps: int = 1000) -> Tensor:
    """The rotation (k, k) of loadings (d, k) that maximises Kaiser's criterion, by Kaiser's plane rotations.

    In a plane the criterion is a constant plus ``amplitude * cos(4 (angle - best)) / 4``, and every step goes to its
    maximum. The fixed-point iteration by singular values would stay at any stationary point, and the principal basis of
    two equal groups of columns is one (a minimum).
    """
    d, k = loadings.shape
    length = loadings.square().sum(1, keepdim=True).sqrt()
    known = length > 1e-8 * length.max()  # a column without factors has no direction
    z = torch.where(known, loadings / length, torch.zeros_like(loadings))
    both = torch.cat([z, torch.eye(k, dtype=z.dtype, device=z.device)])  # the loadings and the rotation, (d + k, k)
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
