from collections.abc import Sequence
from typing import Any, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zoo.algebra import linear_gaussian
from zoo.algebra.missing import refuse_unobserved_columns
from zoo.base.checks import check_whole
from zoo.base.module import Module, like
from zoo.base.plates import rows
from zoo.distributions.observed import seen
from zoo.likelihoods.building import Noise, build
from zoo.likelihoods.gaussian import Covariance, Gaussian
from zoo.likelihoods.shared import FlooredLikelihood
from zoo.networks.convolution import check_image, image_decoder
from zoo.networks.perceptron import Activation, Constant, activation_class, activation_name, mlp, reset
from zoo.networks.standardize import Standardize
from zoo.networks.user_module import check_network


class VAE(Module):
    r"""Deep latent variable model, the generative part of a variational autoencoder.

    .. math:: z_n \sim N(0, I_K), \quad x_n \mid z_n \sim p(x \mid f_\theta(z_n), g_\theta(z_n))

    One network, ``mean``, outputs the locations f, one per column; another, ``scale``, the noise parameters g, from
    which the likelihood computes its scales or covariances. Both are in units of the columns: f = 0 gives the means of
    the data that the model was initialised on (:meth:`initialize`). For the Gaussian, with a the column means and b the
    standard deviations (0 and 1 before), :math:`\mu = a + b\, f(z)` and, with ``covariance="diag"``,
    :math:`\sigma^2 = b^2 (\epsilon + \mathrm{softplus}(g(z))^2)`; :mod:`zoo.likelihoods` describes the others.

    The likelihood of a flexible Gaussian decoder has no maximum: it grows without bound as a variance shrinks at a
    fitted point. The floor :math:`\epsilon` is therefore part of the model, to be reported with every result.

    With ``hidden=()`` and ``noise="constant"`` the model is linear: :class:`~zoo.PPCA` with ``covariance="scalar"``,
    :class:`~zoo.FactorAnalysis` with ``"diag"``. Missing entries (NaN) are assumed missing at random: every row
    contributes the density of its observed entries.

    Args:
        data_dim: number of columns D of the data.
        latent_dim: number of factors K.
        hidden: widths of the hidden layers of both networks; ``()`` makes them linear. With ``image``, the channels of
            transposed convolutions, from the smallest image to the largest.
        floor: the smallest variance of a column, as a fraction of its variance in the data. (Without effect for
            ``"bernoulli"``, ``"poisson"`` and ``"logistic_256"``, whose probabilities do not exceed 1.)
        likelihood: ``"gaussian"``, ``"student_t"``, ``"bernoulli"`` (0 and 1), ``"poisson"`` (counts),
            ``"logistic_256"`` (pixels k/255), or a sequence of D of them, one per column.
        covariance: of the Gaussian given z: ``"scalar"`` (one variance for all columns in the data's own units),
            ``"diag"``, ``"low_rank"`` (a diagonal and a factor with ``rank`` columns) or ``"full"``.
        noise: ``"network"``, a function of z, or ``"constant"``, learned and the same for every z. (Without effect for
            a likelihood without noise parameters.)
        rank: columns of the factor of ``"low_rank"``.
        activation, normalize, gated: of the hidden layers, see :func:`zoo.networks.perceptron.mlp`.
        image: (channels, height, width) with product D makes ``mean`` convolutional, and ``scale`` too if it outputs
            images (otherwise it is a perceptron of the same widths).
        decoder: a user's module instead of both networks, from (..., K) to (..., outputs): the D locations, then the
            noise parameters (none with ``noise="constant"``); the attribute ``outputs`` is their number. It keeps its
            weights, and the network options above do not apply to it.

    Attributes:
        likelihood: the module of :mod:`zoo.likelihoods`.
        outputs: the number of network outputs for one z.

    Raises:
        ValueError: a dimension is not a whole number of at least 1, ``floor`` is not positive, an option is not one of
            those above, the likelihood has no ``covariance``, ``image`` does not match the columns, or the output of
            ``decoder`` has the wrong width.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv 1312.6114; the linear one: Lucas, Tucker,
        Grosse and Norouzi (2019), Don't Blame the ELBO!, NeurIPS; with missing entries: Mattei and Frellsen (2019),
        MIWAE, ICML; columns of several kinds: Nazabal, Olmos, Ghahramani and Valera (2020), Handling incomplete
        heterogeneous data using VAEs, Pattern Recognition 107.
    """

    likelihood: Any
    scale: Any
    origin: Tensor

    missing = True  # accepts NaN, as entries missing at random
    weighted = True  # initialize and estimate accept weights of the rows

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
        if isinstance(self.likelihood, FlooredLikelihood):
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
            then = f", then {numbers} noise parameters" if self.outputs > locations else ""
            parts = f"{locations} locations{then}"
            self.decoder = check_network(decoder, "decoder", self.latent_dim, self.outputs, parts)
        if numbers and (constant or decoder is None):
            self.scale = Constant(numbers) if constant else network(numbers)
        self.register_buffer("origin", torch.zeros(self.latent_dim), persistent=False)  # of the prior

    @property
    def columns(self) -> Standardize:
        """Means and units of the columns, for likelihoods with units (Gaussian, Student's t, logistic)."""
        return self.likelihood.columns

    @property
    def quadratic(self) -> bool:
        """Whether log p(x, z) is quadratic in z: Gaussian columns, an affine decoder, and constant noise."""
        network = self.mean if self.decoder is None else self.decoder
        affine = all(type(m) in (nn.Sequential, nn.Linear) for m in network.modules())
        return affine and isinstance(self.likelihood, Gaussian) and isinstance(self.scale, Constant)

    def linear_form(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Loadings W (d, k), means (d,) and noise variances (d,) of a linear VAE whose noise is scalar or diagonal."""
        if not self.quadratic or self.likelihood.covariance not in ("scalar", "diag"):
            return None
        corners = torch.cat([self.origin.unsqueeze(0), torch.eye(self.latent_dim).to(self.origin)])
        found = self.decode(corners).base_dist
        mean = found.loc[0]
        return (found.loc[1:] - mean).T, mean, found.scale[0].square().expand(self.data_dim)

    def loadings(self) -> nn.Parameter | None:
        """The weights (d, k) of a decoder with a single linear layer, in units of the columns."""
        layer = self._layer()
        return layer.weight if layer is not None and isinstance(layer.weight, nn.Parameter) else None

    def _layer(self) -> nn.Linear | None:
        """The decoder, if it is a single linear layer."""
        layers = list(self.mean.children()) if self.decoder is None else []
        return layers[0] if len(layers) == 1 and isinstance(layers[0], nn.Linear) else None

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for factors (..., k): a distribution with event (d,)."""
        return self.likelihood(*self._numbers(z))

    def _numbers(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Locations and noise parameters, in the dtype of z even where autocast has lowered the precision."""
        if self.decoder is None:
            location, numbers = self.mean(z), None  # (..., d)
        else:
            locations = self.likelihood.locations
            location, numbers = self.decoder(z).split([locations, self.outputs - locations], -1)
        scale = self.scale
        numbers = numbers if scale is None else scale(z)
        return location.to(z), None if numbers is None else numbers.to(z)

    @property
    def delays(self) -> bool:
        """Whether :meth:`hold` has an effect: for a Gaussian with ``covariance="full"``."""
        return isinstance(self.likelihood, Gaussian) and self.likelihood.covariance == "full"

    def hold(self, held: bool) -> None:
        """Hold the correlations of a ``"full"`` covariance fixed, or release them.

        From a fresh start :func:`zoo.fit` holds them for the first steps: such noise can represent the dependence
        between the columns by itself, and then leaves the factors with nothing, or one of them, to explain.
        """
        if self.delays:
            self.likelihood.held = held

    @torch.no_grad()
    def at_floor(self, z: Tensor) -> Tensor | None:
        """The share (...) of variances at their floor or nearly zero, for factors (..., k); None without a floor.

        A large share means that only the floor bounds the likelihood: see :func:`zoo.likelihoods.shared.tiny`.
        """
        numbers = self._numbers(z)[1]
        if not isinstance(self.likelihood, FlooredLikelihood) or numbers is None:
            return None
        return self.likelihood.at_floor(numbers)

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """Generates or scores rows (n, d); see :func:`zoo.base.rows` for ``index`` and ``size``."""
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(self.origin, 1.0).to_event(1))  # (..., n, k)
            return pyro.sample("x", seen(self.decode(z), x), obs=x)  # (..., n, d)

    def check(self, x: Tensor) -> None:
        """Refuses data outside the support of the likelihood.

        Raises:
            ValueError: a value is outside the support (the message names its row and column), or a column has fewer
                than two observed values.
        """
        refuse_unobserved_columns(x, "a VAE")
        self.likelihood.check(x)

    @torch.no_grad()
    def estimate(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Initialises a linear VAE, and sets it to the estimate of PPCA (``"scalar"``) or factor analysis (``"diag"``).

        They are computed from the moments of ``x`` (n, d); see :meth:`zoo.FactorAnalysis.estimate`. Any other VAE is
        only initialised.
        """
        self.initialize(x, weights)
        layer = self._layer()
        if self.linear_form() is None or layer is None:
            return
        moments = linear_gaussian.filled_moments(like(x, self), weights)
        scalar = self.likelihood.covariance == "scalar"
        unit = self.likelihood.common if scalar else self.columns.unit
        if scalar:
            noise = linear_gaussian.remainder(moments, self.latent_dim)
        else:
            noise = linear_gaussian.uniqueness(moments, self.latent_dim)
        above = (noise / unit.square() - self.floor).clamp_min(1e-3)
        noise = unit.square() * (self.floor + above)
        loadings = linear_gaussian.best_weight(moments, noise.expand(self.data_dim), self.latent_dim)
        layer.weight.copy_(loadings / self.columns.unit.unsqueeze(1))
        layer.bias.copy_((moments.mean - self.columns.shift) / self.columns.unit)
        self.scale.value.copy_(above.sqrt().expm1().log())  # the inverse of softplus

    @torch.no_grad()
    def initialize(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Draws new weights with torch's global generator, and sets the columns' means and units from ``x`` (n, d).

        A user's ``decoder`` keeps its weights.
        """
        reset(self, keep=self.decoder)
        self.likelihood.place(like(x, self), weights)
