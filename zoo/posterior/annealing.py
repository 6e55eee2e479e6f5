"""Annealed importance sampling: log p(x) of a deep model, row by row, from a guide or from the prior."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from zoo.base.checks import check_whole
from zoo.base.latent_sites import Latent
from zoo.posterior.engine import Arguments, Reader
from zoo.posterior.rowwise import conditional, gaussian, log_joint, log_volume, stretch

Start = Literal["guide", "prior"]
Place = tuple[Tensor, Tensor]  # mean (b, k), and scales (b, k) or Cholesky factors (b, k, k)
MATCHED = 500  # draws from which mean and scales of a non-Gaussian guide are estimated
TARGET = 0.65  # acceptance, the optimum for HMC (Neal 2011; Beskos et al. 2013)
RATE = 0.1  # of the adaptation of log step sizes: a factor e needs about twenty temperatures


@dataclass(frozen=True)
class AIS:
    r"""Settings of annealed importance sampling with Hamiltonian Monte Carlo transitions.

    Chains move from an initial density :math:`p_0` to the posterior through
    :math:`f_t(z) = p_0(z)^{1 - \beta_t}\, p(x, z)^{\beta_t}` and accumulate the weight
    :math:`w = \prod_t f_t(z_{t-1}) / f_{t-1}(z_{t-1})`. Transition t leaves :math:`f_t` invariant, so that
    :math:`E[w] = p(x)` for any number of temperatures, and the log of the mean weight is a stochastic lower bound:
    its expectation is below :math:`\log p(x)`, and it exceeds it by c nats with a probability of at most
    :math:`e^{-c}`.

    The initial density is the guide's q(z | x) if it is Gaussian, otherwise the factorised Gaussian with the mean and
    the scales of its draws; or the prior. HMC uses coordinates in which it has unit scales. Every row has its own step
    size, adapted along the path towards an acceptance of 0.65, as in Wu et al., but by ``pilots``: additional chains
    whose weights are not used. The step size of the other chains is then independent of their own history, and the
    weights stay unbiased, which they would not under adaptation by the chains themselves.

    Args:
        temperatures: the number of steps T from the initial density to the posterior, spaced by a sigmoid (Wu et al.
            2017), or the values :math:`0 = \beta_0 < \dots < \beta_T = 1` themselves.
        chains: chains per row.
        leapfrog: leapfrog steps per transition.
        pilots: additional chains per row for the adaptation of the step size.
        start: ``"guide"`` or ``"prior"``.

    Raises:
        ValueError: a number is not a whole number of at least 1 (``chains``: 2), temperatures do not increase from 0 to
            1, or ``start`` is neither of the two.

    References:
        Neal (2001), Annealed importance sampling, Statistics and Computing 11; Wu, Burda, Salakhutdinov and Grosse
        (2017), On the quantitative analysis of decoder-based generative models, ICLR; Neal (2011), MCMC using
        Hamiltonian dynamics.
    """

    temperatures: int | Sequence[float] = 500
    chains: int = 16
    leapfrog: int = 8
    pilots: int = 4
    start: Start = "guide"

    def __post_init__(self) -> None:
        check_whole(self.chains, "chains", 2)
        check_whole(self.leapfrog, "leapfrog")
        check_whole(self.pilots, "pilots")
        if self.start not in get_args(Start):
            raise ValueError(f"start must be 'guide' or 'prior', got {self.start!r}")
        if isinstance(self.temperatures, int):
            check_whole(self.temperatures, "temperatures")
        betas = self.betas
        if len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or not (betas.diff() > 0).all():
            raise ValueError("temperatures must increase from 0 to 1: pass their number, or the values of beta")

    @property
    def betas(self) -> Tensor:
        """The inverse temperatures (T + 1,)."""
        if not isinstance(self.temperatures, int):
            return torch.as_tensor(self.temperatures, dtype=torch.float64)
        betas = torch.linspace(-4.0, 4.0, self.temperatures + 1, dtype=torch.float64).sigmoid()
        betas = (betas - betas[0]) / (betas[-1] - betas[0])
        betas[-1] = 1.0  # exactly, whatever the rounding
        return betas


def anneal(
    source: Reader, latent: Latent, arguments: Arguments, settings: AIS, start: Place | None = None
) -> tuple[Tensor, Tensor]:
    r"""The log weights (chains, b) of some rows, and the acceptance of their transitions (b,).

    Call it inside :func:`zoo.posterior.engine.reading`.

    Args:
        source: the pair and its rows.
        latent: the model's one latent site, on the real line.
        arguments: of model and guide, for the rows.
        settings: of the walk.
        start: mean and root of an initial Gaussian in place of the guide's.
    """
    count = settings.pilots + settings.chains
    from_prior = settings.start == "prior" and start is None
    if from_prior:
        u, loc, root = _from_prior(source, latent, arguments, count)
    else:
        loc, root = start or place(source, latent, arguments)
        u = torch.randn(count, *loc.shape, dtype=loc.dtype, device=loc.device)
    level = log_volume(root) + 0.5 * loc.shape[-1] * math.log(2 * math.pi)  # of the start's density, (b,)

    def look(u: Tensor) -> tuple[Tensor, ...]:
        """The log densities of start and joint (chains, b) at u, and their slopes in u (chains, b, k)."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            terms = log_joint(source, latent, loc + stretch(root, u), arguments)
            joint = sum(terms.values(), torch.zeros_like(u[..., 0]))
            first = terms[latent.name].expand_as(joint) if from_prior else -0.5 * u.square().sum(-1) - level
            (first_slope,) = torch.autograd.grad(first.sum(), u, retain_graph=True)
            (joint_slope,) = torch.autograd.grad(joint.sum(), u)
        return first.detach(), joint.detach(), first_slope, joint_slope

    n, k = loc.shape
    log_step = loc.new_full((n,), math.log(0.5 * k**-0.25))
    accepted = loc.new_zeros(n)
    weight = loc.new_zeros(count, n)
    now = look(u)
    betas = settings.betas.tolist()
    for before, beta in pairwise(betas):
        weight = weight + (beta - before) * (now[1] - now[0])
        if beta == 1.0:
            break  # the last transition does not affect the weights
        step = (log_step.exp() * (0.8 + 0.4 * torch.rand_like(log_step))).unsqueeze(-1)  # no periodic orbits
        u, now, chance = _transition(look, u, now, beta, step, settings.leapfrog)
        log_step = log_step + RATE * (chance[: settings.pilots].mean(0) - TARGET)
        accepted += chance[settings.pilots :].mean(0)
    return weight[settings.pilots :], accepted / max(1, len(betas) - 2)


def _transition(
    look: Callable[[Tensor], tuple[Tensor, ...]],
    u: Tensor,
    now: tuple[Tensor, ...],
    beta: float,
    step: Tensor,
    leapfrog: int,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """One HMC transition of every chain at a temperature: new points, densities there, acceptance probabilities."""

    def mixed(first: Tensor, joint: Tensor) -> Tensor:
        return (1 - beta) * first + beta * joint

    momentum = torch.randn_like(u)
    energy = 0.5 * momentum.square().sum(-1) - mixed(*now[:2])
    moved, seen = u, now
    for _ in range(leapfrog):
        momentum = momentum + 0.5 * step * mixed(*seen[2:])
        moved = moved + step * momentum
        seen = look(moved)
        momentum = momentum + 0.5 * step * mixed(*seen[2:])
    change = energy - 0.5 * momentum.square().sum(-1) + mixed(*seen[:2])
    chance = change.nan_to_num(-math.inf, posinf=0.0).clamp_max(0.0).exp()  # reject divergent trajectories
    take = torch.rand_like(chance) < chance
    after = tuple(
        torch.where(take if a.ndim == 2 else take.unsqueeze(-1), b, a) for a, b in zip(now, seen, strict=True)
    )
    return torch.where(take.unsqueeze(-1), moved, u), after, chance


def place(source: Reader, latent: Latent, arguments: Arguments) -> Place:
    """Mean and root of the guide's q(z | x), or mean and scales of its draws if it is not Gaussian."""
    found = gaussian(conditional(source, latent, arguments))
    if found is not None:
        return found
    z = source.draw(arguments, MATCHED).values[latent.name].reshape(MATCHED, len(arguments[0]), -1)
    return z.mean(0), z.std(0)


def _from_prior(source: Reader, latent: Latent, arguments: Arguments, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of the prior in whitened coordinates (count, b, k), with their means and scales (b, k)."""
    n = len(arguments[0])
    z = source.simulate(arguments, count + MATCHED)[0][latent.name].reshape(count + MATCHED, n, -1)
    chains, others = z[:count], z[count:].flatten(0, 1)  # the scales are from other draws than those of the chains
    loc, root = others.mean(0).expand(n, -1), others.std(0).expand(n, -1)
    return (chains - loc) / root, loc, root
