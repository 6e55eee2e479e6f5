from collections.abc import Sequence
from typing import Any, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zoo.algebra.missing import refuse_unobserved_columns
from zoo.base.checks import check_whole
from zoo.base.module import Module, like
from zoo.base.plates import rows
from zoo.distributions.observed import seen
from zoo.likelihoods.building import Noise, build
from zoo.likelihoods.gaussian import Covariance, Gaussian
from zoo.networks.convolution import check_image, image_decoder
from zoo.networks.perceptron import Activation, Constant, activation_class, activation_name, mlp, reset
from zoo.networks.standardize import Standardize
from zoo.networks.user_module import check_network


class VAE(Module):
    r"""Deep latent variable model, the generative half of a variational autoencoder.

    .. math:: z_n \sim N(0, I_K), \quad x_n \mid z_n \sim p(x \mid f_\theta(z_n), g_\theta(z_n))

    One network, ``mean``, gives the locations f, one for every column; another, ``scale``, the noise numbers g, from
    which the likelihood builds its scales or covariances. Both speak in units of the columns, so that f = 0 gives the
    means of the data the model is placed on (:meth:`initialize`). For the Gaussian, with a the column means and b the
    standard deviations (0 and 1 before), :math:`\mu = a + b\, f(z)` and, with ``covariance="diag"``,
    :math:`\sigma^2 = b^2 (\epsilon + \mathrm{softplus}(g(z))^2)`; :mod:`zoo.likelihoods` holds the others.

    The likelihood of a flexible Gaussian decoder has no maximum: it grows without bound as a variance shrinks on a
    fitted point. The floor :math:`\epsilon` is therefore part of the model and belongs beside every number it gives.

    With ``hidden=()`` and ``noise="constant"`` the model is a linear one: with ``covariance="scalar"``
    :class:`~zoo.PPCA`, with ``"diag"`` (a noise of its own for every column) :class:`~zoo.FactorAnalysis`. Missing
    entries (NaN) are missing at random: every row counts with what is observed of it.

    Args:
        data_dim: number of columns D of the data.
        latent_dim: number of factors K.
        hidden: widths of the hidden layers of both networks; ``()`` makes them linear. With ``image`` they are the
            channels of transposed convolutions, from the smallest image to the largest.
        floor: the least variance of a column, as a fraction of its variance in the data. (Of no effect on
            ``"bernoulli"``, ``"poisson"`` and ``"logistic_256"``, whose probabilities do not exceed 1.)
        likelihood: ``"gaussian"``, ``"student_t"``, ``"bernoulli"`` (0 and 1), ``"poisson"`` (counts),
            ``"logistic_256"`` (pixels k/255), or a sequence of D of them, one for every column.
        covariance: of the Gaussian given z: ``"scalar"`` (one variance for all columns in the data's own units),
            ``"diag"``, ``"low_rank"`` (a diagonal and a factor with ``rank`` columns) or ``"full"``.
        noise: ``"network"``, a function of z, or ``"constant"``, learned and the same for every z. (Of no effect where
            a likelihood has no noise of its own.)
        rank: columns of the factor of ``"low_rank"``.
        activation, normalize, gated: of the hidden layers, see :func:`zoo.networks.perceptron.mlp`.
        image: (channels, height, width) with product D makes ``mean`` convolutional, and ``scale`` too where its
            numbers are images (otherwise it is a perceptron of the same widths).
        decoder: a module of your own in place of both networks, from (..., K) to (..., outputs): the D locations, then
            the noise numbers (none where ``noise="constant"``), as the attribute ``outputs`` counts them. It keeps the
            weights it comes with; the network options above have no effect on it.

    Attributes:
        likelihood: the module of :mod:`zoo.likelihoods`.
        outputs: the width of what the networks give for one z.

    Raises:
        ValueError: a dimension is no whole number of at least 1, ``floor`` is not positive, an option is none of those
            above, ``covariance`` is asked of a likelihood without one, ``image`` does not fit the columns, or
            ``decoder`` gives another width.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv 1312.6114; the linear one: Lucas, Tucker,
        Grosse and Norouzi (2019), Don't Blame the ELBO!, NeurIPS; with missing entries: Mattei and Frellsen (2019),
        MIWAE, ICML; columns of several kinds: Nazabal, Olmos, Ghahramani and Valera (2020), Handling incomplete
        heterogeneous data using VAEs, Pattern Recognition 107.
    """

    likelihood: Any
    scale: Any
    origin: Tensor

    missing = True  # NaN is an entry missing at random

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        hidden: Sequence[int] = (64, 64),
        floor: float = 1e-3,
        *,
        likelihood: str | Sequence[str] = "gaussian",
        covariance: Covariance = "diag",
        noise: Noise = "network",
        rank: int = 1,
        activation: Activation = "silu",
        normalize: bool = False,
        gated: bool = False,
        image: Sequence[int] | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.data_dim = check_whole(data_dim, "data_dim")
        self.latent_dim = check_whole(latent_dim, "latent_dim")
        if noise not in get_args(Noise):
            raise ValueError(f"noise must be one of {', '.join(get_args(Noise))}; got {noise!r}")
        activation_class(activation)
        self.__dict__["_resolved"] = {"activation": activation_name(activation)}
        if image is not None:
            check_image(image, self.data_dim)
        self.likelihood = build(likelihood, self.data_dim, floor, covariance, rank)
        if hasattr(self.likelihood, "floor"):
            self.floor = float(floor)
        locations, numbers = self.likelihood.locations, self.likelihood.noise
        constant = noise == "constant"
        self.outputs = locations + (0 if constant else numbers)

        def network(outputs: int) -> nn.Module:
            if image is None or outputs % self.data_dim:
                return mlp(self.latent_dim, hidden, outputs, activation, normalize, gated)
            channels = image[0] * (outputs // self.data_dim)
            return image_decoder(self.latent_dim, hidden, (channels, *image[1:]), activation, normalize, gated)

        self.decoder = self.scale = None
        if decoder is None:
            self.mean = network(locations)
        else:
            parts = f"{locations} locations" + (f", then {numbers} noise numbers" if self.outputs > locations else "")
            self.decoder = check_network(decoder, "decoder", self.latent_dim, self.outputs, parts)
        if numbers and (constant or decoder is None):
            self.scale = Constant(numbers) if constant else network(numbers)
        self.register_buffer("origin", torch.zeros(self.latent_dim), persistent=False)  # of the prior

    @property
    def columns(self) -> Standardize:
        """Means and units of the columns, where the likelihood (Gaussian, Student's t, logistic) has units."""
        return self.likelihood.columns

    @property
    def quadratic(self) -> bool:
        """Whether log p(x, z) is quadratic in z: Gaussian columns, an affine decoder, and noise that ignores z."""
        network = self.mean if self.decoder is None else self.decoder
        affine = all(type(m) in (nn.Sequential, nn.Linear) for m in network.modules())
        return affine and isinstance(self.likelihood, Gaussian) and isinstance(self.scale, Constant)

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for factors (..., k): a distribution with event (d,)."""
        return self.likelihood(*self._numbers(z))

    def _numbers(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Locations and noise numbers; in the type of z, whatever mixed precision made of the networks' products."""
        if self.decoder is None:
            location, numbers = self.mean(z), None  # (..., d)
        else:
            locations = self.likelihood.locations
            location, numbers = self.decoder(z).split([locations, self.outputs - locations], -1)
        scale = self.scale
        numbers = numbers if scale is None else scale(z)
        return location.to(z), None if numbers is None else numbers.to(z)

    @torch.no_grad()
    def at_floor(self, z: Tensor) -> Tensor | None:
        """The share (...) of variances at their floor or nearly zero, for factors (..., k); None without a floor.

        Where it is large, the likelihood has no maximum of its own: see :func:`zoo.likelihoods.shared.tiny`.
        """
        if not hasattr(self, "floor"):
            return None
        return self.likelihood.at_floor(self._numbers(z)[1])

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """Generate or score rows (n, d); see :func:`zoo.base.rows` for ``index`` and ``size``."""
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(self.origin, 1.0).to_event(1))  # (..., n, k)
            return pyro.sample("x", seen(self.decode(z), x), obs=x)  # (..., n, d)

    def check(self, x: Tensor) -> None:
        """Refuse data that the likelihood cannot give.

        Raises:
            ValueError: names a value outside the support with its row and column, or a column with fewer than two
                observed values.
        """
        refuse_unobserved_columns(x, "a VAE")
        self.likelihood.check(x)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """New weights from the running random stream, and the columns' means and units from ``x`` (n, d).

        A ``decoder`` of your own keeps its weights.
        """
        reset(self, keep=self.decoder)
        self.likelihood.place(like(x, self))
