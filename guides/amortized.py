from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from guides.encoder import encode, flatten_last, positive, raw_positive, resolved, set_affine
from guides.gaussian import sample_factorised, sample_joint, shaped, width
from guides.projection import gaussian_projection, posterior_projection
from guides.shared import Shared, shared_part
from guides.sites import CannotServe, Sites, check_data, discrete, follows, for_discrete, only, require_local
from zoo.algebra.projected import common_covariance, discriminant, posterior_map
from zoo.base.callables import PyroCallable, in_evaluation_mode, undecorated
from zoo.base.checks import ArrayLike, check_whole, incomplete
from zoo.base.module import Module, like
from zoo.base.plates import rows
from zoo.base.protocols import GaussianMixture, Projection, linear_form
from zoo.networks.convolution import check_image, image_encoder
from zoo.networks.linear_path import LinearPath
from zoo.networks.perceptron import Activation, mlp, reset
from zoo.networks.standardize import Standardize
from zoo.networks.user_module import check_network

Covariance = Literal["diag", "low_rank", "full"]
WHITENED = 1000  # columns up to which the root of their correlations is cheap


class Amortized(Module):
    r"""An inference network: the posterior's parameters for every row are a function of the row.

    .. math:: q(\theta) \prod_n q(z_n \mid x_n)\, q(c_n \mid x_n), \quad
              q(z_n \mid x_n) = N(m_\phi(x_n), S_\phi(x_n)), \quad
              q(c_n \mid x_n) = \mathrm{Cat}(\mathrm{softmax}\, l_\phi(x_n))

    Its inputs are columns standardised by the statistics of ``x`` (unchanged if all lie in [0, 1], as pixels do), and
    it starts at the standard normal. In a fit (:meth:`initialize`) it starts at the best q for a linear-Gaussian
    model, or a mixture with one covariance, whose means and logits are affine in x: a linear path beside a network with
    hidden layers represents it, and the network starts at 0.

    With ``hidden=()`` it is the encoder of the linear VAE, with a mean affine in x
    and one covariance for all rows (Lucas et al. 2019); up to a thousand columns are then whitened as well, so that all
    weights are learned at the same rate. With hidden layers mean and covariance both depend on x.

    Missing entries (NaN) are replaced by their column's mean, and a masked network also has their indicators as inputs.
    The network depends on ``x`` only, not on covariates of the model (``MeanField``, ``FullRank`` and ``SemiAmortized``
    do depend on them).

    Args:
        model: any Pyro model with the signature ``(x=None, index=None, size=None)``.
        x: data (n, d), for the number, the dtype and the scale of the columns.
        hidden: widths of the hidden layers; with ``image`` channels of convolutions, each halving height and width.
        covariance: the joint covariance of the continuous sites: ``"diag"``, ``"low_rank"`` (a factor with ``rank``
            columns plus a diagonal) or ``"full"`` (a Cholesky factor).
        rank: columns of the factor of ``"low_rank"``.
        masked: give the network the indicators of missing entries as d further inputs. None: if ``x`` has some.
        activation, normalize, gated: of the hidden layers, see :func:`zoo.networks.perceptron.mlp`.
        image: (channels, height, width) with product d makes the network convolutional; the indicators of missing
            entries are further channels.
        network: your own module in place of it, from standardised rows (..., d), or (..., 2 d) if masked, to
            (..., outputs): means, covariance and logits, ``outputs`` numbers in all. The covariance then depends on x
            whatever ``hidden`` is. Its weights are kept, the output 0 means the standard normal, and the network
            options above have no effect.
        shared: the covariance of the sites shared by all rows: ``"mean_field"`` or ``"full_rank"``.
        skip: put a linear path beside the hidden layers. None: for linear-Gaussian models and Gaussian mixtures. (Not
            with your own ``network``.)

    Attributes:
        outputs: the number of outputs of the network per row.

    Raises:
        CannotServe: all sites of the model are shared by all rows, or are discrete while ``covariance`` is not
            ``"diag"``; see also :meth:`guides.sites.Sites.of`.
        ValueError: ``covariance`` or ``shared`` is not one of its names, a width or the rank is not a whole number
            of at least 1, the activation is unknown, ``image`` does not match the columns, or ``network`` has another
            number of outputs.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv 1312.6114; Lucas, Tucker, Grosse and
        Norouzi (2019), Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse, NeurIPS.
    """

    gaussian = True  # all sites are Gaussian (in unconstrained coordinates) or categorical
    weighted = True  # initialize accepts weights of the rows
    absent: ClassVar[Mapping[str, Any]] = {"skip": False}  # runs saved before there were linear paths

    def __init__(
        self,
        model: PyroCallable,
        x: ArrayLike,
        hidden: Sequence[int] = (64, 64),
        covariance: Covariance = "diag",
        rank: int = 1,
        masked: bool | None = None,
        *,
        activation: Activation = "silu",
        normalize: bool = False,
        gated: bool = False,
        image: Sequence[int] | None = None,
        network: nn.Module | None = None,
        shared: Shared = "mean_field",
        skip: bool | None = None,
    ) -> None:
        super().__init__()
        x = check_data(x, model)
        if covariance not in get_args(Covariance):
            raise ValueError(f"covariance must be one of {', '.join(get_args(Covariance))}; got {covariance!r}")
        self.sites = Sites.of("Amortized", model, x)
        require_local("Amortized", model, self.sites)
        if covariance != "diag" and not self.sites.local:
            site = self.sites.discrete[0].name
            why, other = f"is discrete and has no {covariance} covariance", "covariance='diag'"
            raise CannotServe("Amortized", model, site, why, f"{for_discrete(model, other)}.")
        self.covariance = covariance
        self.rank = check_whole(rank, "rank")
        self.data_dim = x.shape[1]
        k = width(self.sites.local)
        spread = {"diag": k, "low_rank": k * (self.rank + 1), "full": k * (k + 1) // 2}[covariance]
        levels = sum(latent.cardinality or 0 for latent in self.sites.discrete)
        self.split = [k, spread, levels]
        self.linear = len(hidden) == 0 and network is None
        self.outputs = k + levels + (0 if self.linear else spread)
        self.columns = Standardize(self.data_dim, whiten=self.linear and self.data_dim <= WHITENED, pixels=True)
        self.masked = incomplete(x) if masked is None else bool(masked)
        self.own = network is not None
        self.__dict__["model"] = model  # referred to, not registered
        affine = linear_form(model) is not None or isinstance(undecorated(model), GaussianMixture)
        skip = not self.linear and network is None and (affine if skip is None else bool(skip))
        self.__dict__["_resolved"] = {**resolved(self.masked, activation), "skip": skip}
        inputs = self.data_dim * (1 + self.masked)
        if network is not None:
            parts = f"{k} means, {spread} numbers of the covariance and {levels} logits"
            self.encoder: nn.Module = check_network(network, "network", inputs, self.outputs, parts)
        else:
            own = self._network(inputs, hidden, image, (activation, normalize, gated))
            self.encoder = LinearPath(own, inputs, self.outputs) if skip else own
        if self.linear and spread:
            self.spread = nn.Parameter(torch.zeros(spread))
        self.shared = shared_part(self.sites.shared, x, shared)
        self.to(x)
        self._draw(x)

    def _network(
        self, inputs: int, hidden: Sequence[int], image: Sequence[int] | None, options: tuple[Activation, bool, bool]
    ) -> nn.Sequential:
        """The network from standardised rows to the outputs: a perceptron, or convolutions of an ``image``."""
        if image is None:
            return mlp(inputs, hidden, self.outputs, *options)
        channels, *sides = check_image(image, self.data_dim)
        return image_encoder((channels * (1 + self.masked), *sides), hidden, self.outputs, *options)

    @torch.no_grad()
    def initialize(self, x: Tensor, weights: Tensor | None = None) -> None:
        """New random weights, near the standard normal; scales of the columns from ``x`` (n, d).

        Where the posterior of the model is affine in the row, the linear path is that of the best q for the model's
        current parameters. (For a mixture with several covariances, that of their mean.) Your own ``network`` keeps its
        weights.
        """
        self._draw(x, weights)
        with suppress(torch.linalg.LinAlgError):  # degenerate parameters of the model
            self._e_step()

    @torch.no_grad()
    def _draw(self, x: Tensor, weights: Tensor | None = None) -> None:
        """New random weights, near the standard normal."""
        self.columns.place(like(x, self), weights)
        if self.own:
            if self.shared is not None:
                self.shared.reset_parameters()
            return
        reset(self)
        flatten_last(self.encoder)  # close to the standard normal for every row
        if self.linear and self.split[1]:
            self.spread.normal_(0.0, 0.01)

    @property
    def _path(self) -> nn.Linear | None:
        """The linear layer of the encoder, or the path beside its network; None if it has neither."""
        if self.own:
            return None
        if isinstance(self.encoder, LinearPath):
            return self.encoder.path
        last = self.encoder[-1] if self.linear and isinstance(self.encoder, nn.Sequential) else None
        return last if isinstance(last, nn.Linear) else None

    @torch.no_grad()
    def _e_step(self) -> None:
        """The best q for the model's current parameters and complete rows, where its means or logits are affine in x.

        An approximation for a mixture with several covariances, and for a ``"low_rank"`` covariance.
        """
        path, columns = self._path, self.columns
        if path is None or self.sites.shared or len(self.sites.local) + len(self.sites.discrete) != 1:
            return
        form, inner = linear_form(self.model), undecorated(self.model)
        if form is not None and self.sites.local and form[0].shape[1] == self.split[0]:
            weight, mean, noise = (value.double() for value in form)
            slope, covariance = posterior_map(weight, noise)
            if not slope.isfinite().all():  # degenerate parameters of the model, which the loss will report
                return
            set_affine(path, columns, slope, slope @ (columns.shift - mean))
            self._set_spread(path, covariance)
        elif isinstance(inner, GaussianMixture) and self.sites.discrete:
            weight, mean = inner.weight.double(), inner.mean.double()
            common = common_covariance(weight, inner.scale.double(), inner.covariance, mean.shape[1])
            set_affine(path, columns, *discriminant(weight, mean, common, columns.shift))
        else:
            return
        if isinstance(self.encoder, LinearPath):
            self.encoder.straighten()

    def _set_spread(self, path: nn.Linear, covariance: Tensor) -> None:
        """Set the outputs of the covariance to the best constants for posteriors with this covariance (k, k)."""
        k, spread, _ = self.split
        raw = self.spread if self.linear else path.bias[k : k + spread]
        if not self.linear:
            path.weight[k : k + spread] = 0.0
        if self.covariance == "full":
            root = torch.linalg.cholesky(covariance)
            row, column = torch.tril_indices(k, k, -1, device=root.device)
            raw.copy_(torch.cat([raw_positive(root.diagonal()), root[row, column]]))
        else:
            raw[:k] = raw_positive(torch.linalg.inv(covariance).diagonal().rsqrt())

    def projection(self, model: PyroCallable, x: Tensor) -> Projection | None:
        """The best q of a linear-Gaussian model, or a mixture with one covariance, on complete rows.

        For a ``"diag"`` or ``"full"`` covariance, and a network with a linear path or without hidden layers.
        """
        if self._path is None or incomplete(x) or not follows(self, model, self.sites):
            return None
        if self.sites.local:
            if linear_form(model) is None or self.covariance == "low_rank":
                return None
            return gaussian_projection(model, x, self._e_step, factorised=self.covariance == "diag")
        inner = undecorated(model)
        if not isinstance(inner, GaussianMixture) or inner.covariance != "tied":
            return None
        return posterior_projection(model, x, self._e_step)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (n, k), raw covariance (n, s) or (s,), and logits (n, levels) of the rows ``x`` (n, d).

        Raises:
            ValueError: ``x`` has another width than the network.
        """
        k, spread, levels = self.split
        out = encode("Amortized", self.encoder, self.columns, self.masked, x)
        if self.linear:
            loc, logits = out.split([k, levels], -1)
            return loc, self.spread if spread else out[..., :0], logits
        return out.split(self.split, -1)

    def _scale(self, raw: Tensor) -> Tensor:
        """Standard deviations (..., k) for ``"diag"``, else a Cholesky factor (..., k, k)."""
        k = self.split[0]
        if self.covariance == "diag":
            return positive(raw)
        if self.covariance == "low_rank":
            factor = raw[..., k:].unflatten(-1, (k, self.rank))
            diagonal = positive(raw[..., :k]).square()
            return torch.linalg.cholesky(factor @ factor.mT + torch.diag_embed(diagonal))
        row, column = torch.tril_indices(k, k, -1, device=raw.device)
        lower = raw.new_zeros(*raw.shape[:-1], k, k)
        lower[..., row, column] = raw[..., k:]
        return lower + torch.diag_embed(positive(raw[..., :k]))

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> None:
        """Sample every latent site given the rows ``x``."""
        if x is None:
            raise ValueError("Amortized needs the rows: pass x")
        loc, raw, logits = self.encode(x)
        if self.shared is not None:
            self.shared()
        with rows(x, index, size, name=self.sites.plate):
            if self.sites.local:
                sample = sample_factorised if self.covariance == "diag" else sample_joint
                sample(self.sites.local, loc, self._scale(raw))
            levels = [latent.cardinality or 0 for latent in self.sites.discrete]
            for latent, own in zip(self.sites.discrete, logits.split(levels, -1), strict=True):
                pyro.sample(latent.name, discrete(latent, own))

    @in_evaluation_mode
    def posterior(self, x: Tensor, index: Tensor | None = None) -> Distribution:
        """q of the model's single local site given the rows ``x``, a distribution with batch shape (n,).

        Raises:
            ValueError: the model has several local sites, or ``x`` another width than the network.
        """
        latent = only(self.sites)
        loc, raw, logits = self.encode(like(x, self))
        if latent.cardinality is not None:
            return discrete(latent, logits)
        if self.covariance == "diag":
            return shaped(dist.Normal(loc, self._scale(raw)).to_event(1), latent)
        return shaped(dist.MultivariateNormal(loc, scale_tril=self._scale(raw)), latent)
