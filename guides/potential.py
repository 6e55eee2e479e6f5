from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroParam
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from guides.encoder import flatten_last, resolved
from guides.gaussian import sample_joint, shaped
from guides.shared import Shared, shared_part
from guides.sites import CannotServe, Sites, check_data, only, require_local
from zoo.base.callables import PyroCallable, mode, name_of, undecorated
from zoo.base.checks import ArrayLike, check_whole, incomplete
from zoo.base.latent_sites import Latent
from zoo.base.module import Module, like
from zoo.base.plates import rows
from zoo.base.protocols import LinearGaussian
from zoo.base.random import seeded
from zoo.networks.perceptron import Activation, mlp, reset
from zoo.networks.standardize import Standardize

START = 0.1  # scale of the first weights: near the prior, but not at 0, where the slope of L vanishes
PROBES = 8  # rows, and values of each, at which the prior is compared with the standard normal


class Potential(Module):
    r"""A product of experts: the prior times one Gaussian potential for every observed column, or block of columns.

    .. math:: q(z \mid x) \propto N(z \mid 0, I_K) \prod_{b \text{ observed}}
              \exp(h_b^T z - \tfrac12 z^T L_b z) = N(P^{-1} \textstyle\sum_b h_b, P^{-1}), \qquad
              P = I + \textstyle\sum_b L_b

    A missing entry contributes no potential, so the covariance follows the pattern of missingness without having to
    learn it. Rows in which nothing is observed have the prior.

    Without hidden layers a block is one column, in units of its standard deviation, with parameters of its own,

    .. math:: h_d = \tau_d w_d (x_d - c_d), \qquad L_d = \tau_d w_d w_d^T.

    The posterior of factor analysis and PPCA is of this form under every pattern of missing entries, with their
    loadings w, means c and noise precisions tau (:meth:`place`); here they are the guide's own. With hidden layers
    a network per block maps its columns to :math:`h_b` and to a root :math:`R_b` (k, rank) of
    :math:`L_b = R_b R_b^T`. Entries missing from a block that is observed in part enter as their column's mean.

    Both start near the prior.

    Args:
        model: a Pyro model with the signature ``(x=None, index=None, size=None)`` and one real latent site per row
            whose prior is the standard normal.
        x: data (n, d) that show the width, the dtype and the units of the columns.
        hidden: widths of the hidden layers of every block's network; None or () for potentials linear in x.
        blocks: of a guide with hidden layers, the columns of every block, counted from 0: views that one network reads
            together. They must hold every column once. None: a block for every column, which suits tens of them.
        rank: of a guide with hidden layers, the rank of every L_b; None takes the most that a block of linear columns
            could have, min(k, columns of the block).
        masked: give the network of a block of several columns the pattern of its missing entries too. None: where ``x``
            has some.
        activation, normalize, gated: of the hidden layers, see :func:`zoo.networks.perceptron.mlp`.
        shared: the covariance among the sites that all rows share: ``"mean_field"`` or ``"full_rank"``.

    Raises:
        CannotServe: the model has no site per row, several, a discrete or a constrained one, or one whose prior is not
            the standard normal; see also :meth:`guides.sites.Sites.of`.
        ValueError: ``blocks`` do not hold every column once, ``blocks`` or ``rank`` come without hidden layers, a width
            or the rank is no whole number of at least 1, or ``shared`` is none of its names.

    References:
        Hinton (2002), Training products of experts by minimizing contrastive divergence, Neural Computation 14;
        Wu and Goodman (2018), Multimodal generative models for scalable weakly-supervised learning, NeurIPS; Vedantam,
        Fischer, Huang and Murphy (2018), Generative models of visually grounded imagination, ICLR; Nazabal, Olmos,
        Ghahramani and Valera (2020), Handling incomplete heterogeneous data using VAEs, Pattern Recognition 107.
    """

    gaussian = True
    weighted = True  # initialize accepts weights of the rows

    def __init__(
        self,
        model: PyroCallable,
        x: ArrayLike,
        hidden: Sequence[int] | None = None,
        *,
        blocks: Sequence[Sequence[int]] | None = None,
        rank: int | None = None,
        masked: bool | None = None,
        activation: Activation = "silu",
        normalize: bool = False,
        gated: bool = False,
        shared: Shared = "mean_field",
    ) -> None:
        super().__init__()
        x = check_data(x, model)
        self.sites = Sites.of("Potential", model, x)
        latent = _standard_normal(model, x, self.sites)
        self.data_dim = d = x.shape[1]
        self.linear = not hidden
        masked = incomplete(x) if masked is None else bool(masked)
        self.__dict__["_resolved"] = resolved(masked, activation)
        self.columns = Standardize(d, pixels=not self.linear)
        if self.linear:
            for name, value in (("blocks", blocks), ("rank", rank)):
                if value is not None:
                    raise ValueError(f"{name} describes networks, and hidden={hidden!r} has none: pass hidden=(64,)")
            self.potentials: LinearPotentials | NetworkPotentials = LinearPotentials(d, latent.width)
        else:
            groups = _check_blocks(blocks, d)
            self.__dict__["_resolved"]["blocks"] = groups
            ranks = [min(latent.width, len(own)) if rank is None else check_whole(rank, "rank") for own in groups]
            options = activation, normalize, gated
            self.potentials = NetworkPotentials(groups, latent.width, hidden or (), ranks, masked, *options)
        self.shared = shared_part(self.sites.shared, x, shared)
        self.to(x)
        self.initialize(x)

    @torch.no_grad()
    def initialize(self, x: Tensor, weights: Tensor | None = None) -> None:
        """New parameters from the running random stream, near the prior; columns' units from ``x`` (n, d)."""
        self.columns.place(like(x, self), weights)
        self.potentials.reset_parameters()
        if self.shared is not None:
            self.shared.reset_parameters()

    @torch.no_grad()
    def place(self, model: PyroCallable) -> None:
        r"""Take the potentials of a linear-Gaussian model, at which q is its posterior.

        Args:
            model: one with ``weight`` (d, k), ``mean`` (d,) and ``noise`` (d,), as PPCA and FactorAnalysis.

        Raises:
            TypeError: the model has other parameters.
            ValueError: the guide has networks, or the model another number of columns or factors.
        """
        inner = undecorated(model)
        if not isinstance(inner, LinearGaussian):
            raise TypeError(f"place takes a linear-Gaussian model, such as FactorAnalysis, got {name_of(model)}")
        if not isinstance(self.potentials, LinearPotentials):
            raise ValueError("place sets linear potentials, and this Potential has networks: build it with hidden=None")
        own = self.potentials
        if inner.weight.shape != own.weight.shape:
            raise ValueError(
                f"the loadings of {name_of(model)} are {tuple(inner.weight.shape)}, those of this Potential "
                f"{tuple(own.weight.shape)}: build it on a model of the same columns and factors"
            )
        unit, shift = self.columns.unit, self.columns.shift
        own.weight = inner.weight.to(unit) / unit.unsqueeze(1)
        own.offset = (inner.mean.to(unit) - shift) / unit
        own.precision = unit.square() / inner.noise.to(unit)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (n, k) and Cholesky factor of the covariance (n, k, k), or (k, k) where all rows have the same.

        Raises:
            ValueError: ``x`` (n, d) has another width than the guide.
        """
        if x.shape[-1] != self.data_dim:
            raise ValueError(f"x has {x.shape[-1]} columns, Potential was built for {self.data_dim}")
        x = x.to(self.columns.unit)
        observed = (~x.isnan()).to(x) if incomplete(x) else None
        pull, precision = self.potentials.sums(self.columns(x), observed)
        root = _inverse_root(precision + torch.eye(precision.shape[-1]).to(precision))
        return (root @ (root.mT @ pull.unsqueeze(-1))).squeeze(-1), root

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> None:
        """Sample every latent site given the rows ``x``."""
        if x is None:
            raise ValueError("Potential reads the rows: pass x")
        loc, root = self.moments(x)
        if self.shared is not None:
            self.shared()
        with rows(x, index, size, name=self.sites.plate):
            sample_joint(self.sites.local, loc, root)

    def posterior(self, x: Tensor, index: Tensor | None = None) -> Distribution:
        """q of the site of the rows ``x``, a distribution with batch shape (n,).

        Raises:
            ValueError: ``x`` has another width than the guide.
        """
        loc, root = self.moments(like(x, self))
        return shaped(dist.MultivariateNormal(loc, scale_tril=root), only(self.sites))


class LinearPotentials(Module):
    """h and L of every column linear in x; see :class:`Potential`.

    Args:
        d: the number of columns.
        k: the number of factors.
    """

    def __init__(self, d: int, k: int) -> None:
        super().__init__()
        self.weight = PyroParam(torch.zeros(d, k))  # w (d, k)
        self.offset = PyroParam(torch.zeros(d))  # c (d,)
        self.precision = PyroParam(torch.ones(d), constraints.positive)  # tau (d,)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A new start from the running random stream, near the prior."""
        self.weight.normal_(0.0, START)
        self.offset.zero_()
        self.precision = torch.ones_like(self.precision)

    def sums(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sums of h (n, k) and of L, (n, k, k), or (k, k) where all entries are observed.

        Args:
            x: standardised rows (n, d).
            observed: 1 where an entry is there (n, d), or None where all are.
        """
        weight = self.weight
        scaled = self.precision.unsqueeze(1) * weight  # (d, k)
        offset = x - self.offset
        if observed is None:
            return offset @ scaled, weight.mT @ scaled
        outer = (scaled.unsqueeze(2) * weight.unsqueeze(1)).flatten(1)  # (d, k * k)
        return (observed * offset) @ scaled, (observed @ outer).unflatten(-1, (weight.shape[1], -1))


class NetworkPotentials(Module):
    """h and L of every block of columns by a network of its own; see :class:`Potential`.

    Args:
        blocks: the columns of every block.
        k: the number of factors.
        hidden: widths of the hidden layers.
        ranks: of every block's L.
        masked: whether the network of a block of several columns sees which of its entries are missing.
        activation, normalize, gated: of the hidden layers.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]],
        k: int,
        hidden: Sequence[int],
        ranks: Sequence[int],
        masked: bool,
        activation: Activation,
        normalize: bool,
        gated: bool,
    ) -> None:
        super().__init__()
        self.blocks, self.k = [list(own) for own in blocks], k
        self.masked = [masked and len(own) > 1 for own in blocks]
        inputs = [len(own) * (1 + mask) for own, mask in zip(self.blocks, self.masked, strict=True)]
        options = activation, normalize, gated
        sizes = zip(inputs, ranks, strict=True)
        self.networks = nn.ModuleList(mlp(width, hidden, k * (1 + rank), *options) for width, rank in sizes)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """New networks from the running random stream, near the prior for every row."""
        for network in self.networks:
            reset(network)
            flatten_last(network)
            last: Any = list(network.children())[-1]
            last.bias[self.k :].normal_(0.0, START)

    def sums(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sums of h (n, k) and of L (n, k, k).

        Args:
            x: standardised rows (n, d).
            observed: 1 where an entry is there (n, d), or None where all are.
        """
        pulls, roots = [], []
        for columns, masked, network in zip(self.blocks, self.masked, self.networks, strict=True):
            seen = x[..., columns]
            there = None if observed is None else observed[..., columns]
            if masked:
                seen = torch.cat([seen, torch.zeros_like(seen) if there is None else 1 - there], -1)
            out = network(seen).to(x)  # (n, k + k * rank)
            if there is not None:
                out = out * there.amax(-1, keepdim=True)  # nothing from a block of which nothing is observed
            pulls.append(out[..., : self.k])
            roots.append(out[..., self.k :].unflatten(-1, (self.k, -1)))
        root = torch.cat(roots, -1)  # (n, k, all ranks)
        return torch.stack(pulls).sum(0), root @ root.mT


def _inverse_root(precision: Tensor) -> Tensor:
    """The lower Cholesky factor of the inverse of a precision (..., k, k), without forming the inverse."""
    upper = torch.linalg.cholesky(precision.flip(-2, -1)).flip(-2, -1)  # P = U U'
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    return torch.linalg.solve_triangular(upper.mT, identity, upper=False)  # P^-1 = U^-T U^-1


def _check_blocks(blocks: Sequence[Sequence[int]] | None, d: int) -> list[list[int]]:
    """The columns of every block.

    Raises:
        ValueError: they do not hold every column once.
    """
    if blocks is None:
        return [[column] for column in range(d)]
    found = [[check_whole(column, "blocks", 0) for column in own] for own in blocks]
    if sorted(column for own in found for column in own) != list(range(d)) or not all(found):
        raise ValueError(f"blocks must hold each of the columns 0 to {d - 1} once, and none be empty; got {blocks!r}")
    return found


def _standard_normal(model: PyroCallable, x: Tensor, sites: Sites) -> Latent:
    """The one site of the rows, a real vector with the standard normal as its prior.

    Raises:
        CannotServe: the model has no such site.
    """
    require_local("Potential", model, sites)
    if sites.discrete:
        why = "is discrete, and a potential is Gaussian"
        raise CannotServe("Potential", model, sites.discrete[0].name, why, "Use MeanField or Amortized.")
    latent, *others = sites.local
    if others:
        why = f"is one of {len(sites.local)} of the rows, and the potentials cover one"
        raise CannotServe("Potential", model, others[0].name, why, "Use Amortized with covariance='full'.")
    if latent.transform is not None:
        why = f"is constrained to {latent.support}, and a potential is Gaussian"
        raise CannotServe("Potential", model, latent.name, why, "Use Amortized, which maps it to the real line.")
    count = min(len(x), PROBES)
    arguments = x[:count], torch.arange(count, device=x.device), len(x)
    with pyro.get_param_store().scope(), seeded(0), torch.no_grad(), poutine.block(), mode(False, model):
        prior = poutine.trace(model).get_trace(*arguments).nodes[latent.name]["fn"]
        values = torch.randn(PROBES, count, *latent.shape).to(x)
        found = prior.log_prob(values)
    standard = dist.Normal(torch.zeros_like(values), 1.0).to_event(latent.event_dim).log_prob(values)
    if not torch.allclose(found, standard.to(found), rtol=1e-5, atol=1e-5):
        why = "has another prior than the standard normal, which the product of experts starts from"
        instead = "Use Amortized, or write the site as a map of a standard normal one."
        raise CannotServe("Potential", model, latent.name, why, instead)
    return latent
