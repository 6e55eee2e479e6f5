import math
import warnings
from collections.abc import Sequence
from typing import Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import ConditionalAffineAutoregressive, ConditionalSplineAutoregressive
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Distribution

from guides.encoder import encode, flatten_last, positive, resolved
from guides.gaussian import shaped, unshaped, width
from guides.local_flow import LocalFlow
from guides.shared import Shared, shared_part
from guides.sites import CannotServe, Sites, check_data, only, require_local, summed_out
from zoo.base.callables import PyroCallable, in_evaluation_mode
from zoo.base.checks import ArrayLike, check_whole, incomplete
from zoo.base.module import Module, like
from zoo.base.plates import rows
from zoo.distributions.bent import Bent
from zoo.networks.perceptron import Activation, activation_class, mlp, reset
from zoo.networks.standardize import Standardize

Kind = Literal["iaf", "spline"]
LEAST_SLOPE = 1e-3  # added to every slope by Pyro's splines


class Flow(Module):
    r"""An inference network with autoregressive flows, conditioned on the row.

    .. math:: z = T_L \circ \dots \circ T_1(m_\phi(x) + s_\phi(x) \odot \epsilon;\ h_\phi(x)), \quad
              \epsilon \sim N(0, I), \qquad
              \log q(z \mid x) = \log N(\epsilon) - \sum_j \log s_j - \sum_l \log |\det \partial T_l|

    The encoder gives the mean, the scale and a context h for every row. Each of ``length`` transforms changes every
    coordinate of the draw by a function of the context and of the coordinates before it, in the reverse order from one
    transform to the next. They are inverse autoregressive, so that all coordinates are drawn in one pass. The guide
    starts near the standard normal, with transforms near the identity.

    Several sites are drawn one after the other, each by its own flow, whose context includes the values of the previous
    sites, which gives a joint density without auxiliary sites. Missing entries (NaN) are replaced by their column's
    mean, and a masked network also has their indicators as inputs.

    Args:
        model: any Pyro model with the signature ``(x=None, index=None, size=None)`` whose latent sites are
            continuous.
        x: data (n, d), for the number, the dtype and the scale of the columns.
        hidden: widths of the hidden layers of the encoder and of the networks of the transforms; the latter have one
            layer of 64 for ``hidden=()``, and no layer narrower than the site.
        transform: ``"iaf"``: affine, as in Kingma et al.; ``"spline"``: monotonic rational splines (of linear order, on
            [-bound, bound] in units of the base), which can have several modes.
        length: the number of transforms per site.
        context: the width of the context h.
        bins: segments of a spline.
        bound: the end of the splines' interval, beyond which they are the identity.
        masked: give the network the indicators of missing entries as d further inputs. None: if ``x`` has some.
        activation: of the hidden layers, see :func:`zoo.networks.perceptron.mlp`.
        shared: the covariance of the sites shared by all rows, which are Gaussian and not transformed by a flow:
            ``"mean_field"`` or ``"full_rank"``.

    Raises:
        CannotServe: the model has a discrete site, or no local site.
        ValueError: ``transform`` or ``shared`` is not one of its names, a number is not a whole one of at least 1
            (``bins``: 2), ``bound`` is not positive, or the activation is unknown.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), Improved variational inference with inverse
        autoregressive flow, NeurIPS; Dolatabadi, Erfani and Leckie (2020), Invertible generative modeling using linear
        rational splines, AISTATS; Durkan, Bekasov, Murray and Papamakarios (2019), Neural spline flows, NeurIPS.
    """

    weighted = True  # initialize accepts weights of the rows

    def __init__(
        self,
        model: PyroCallable,
        x: ArrayLike,
        hidden: Sequence[int] = (64, 64),
        transform: Kind = "iaf",
        length: int = 2,
        *,
        context: int = 16,
        bins: int = 8,
        bound: float = 4.0,
        masked: bool | None = None,
        activation: Activation = "silu",
        shared: Shared = "mean_field",
    ) -> None:
        super().__init__()
        x = check_data(x, model)
        if transform not in get_args(Kind):
            raise ValueError(f"transform must be one of {', '.join(get_args(Kind))}; got {transform!r}")
        check_whole(length, "length")
        check_whole(context, "context")
        check_whole(bins, "bins", 2)
        if not 0 < bound < math.inf:
            raise ValueError(f"bound must be a positive number, got {bound!r}")
        self.sites = Sites.of("Flow", model, x)
        for latent in self.sites.discrete:
            why = "is discrete, and a flow transforms real numbers"
            instead = f"Use Amortized or MeanField. {summed_out('Flow', model, latent)}."
            raise CannotServe("Flow", model, latent.name, why, instead)
        require_local("Flow", model, self.sites)
        self.data_dim = x.shape[1]
        self.masked = incomplete(x) if masked is None else bool(masked)
        self.__dict__["_resolved"] = resolved(self.masked, activation)
        k = width(self.sites.local)
        self.split = [k, k, context]
        self.columns = Standardize(self.data_dim, pixels=True)
        self.encoder = mlp(self.data_dim * (1 + self.masked), hidden, sum(self.split), activation)
        self.flows = nn.ModuleList()
        before = 0
        for latent in self.sites.local:
            own = latent.width
            layers = [max(size, own) for size in hidden] or [max(64, own)]
            steps = [
                _step(transform, own, context + before, layers, flip % 2 == 1, bins, bound, activation)
                for flip in range(length)
            ]
            self.flows.append(nn.ModuleList(steps))
            before += own
        self.shared = shared_part(self.sites.shared, x, shared)
        self.to(x)
        self.initialize(x)

    @torch.no_grad()
    def initialize(self, x: Tensor, weights: Tensor | None = None) -> None:
        """New random weights, near the standard normal; scales of the columns from ``x`` (n, d)."""
        self.columns.place(like(x, self), weights)
        reset(self)
        for network in (self.encoder, *(step.nn.layers for flow in self.flows for step in flow)):  # type: ignore[attr-defined]
            flatten_last(network)  # close to the standard normal for every row
        for flow in self.flows:
            for step in flow:  # type: ignore[attr-defined]
                if isinstance(step, ConditionalSplineAutoregressive):
                    slopes = step.nn.param_slices[2]  # widths, heights, slopes, midpoints of the segments
                    bias = step.nn.layers[-1].bias.view(step.nn.output_multiplier, step.input_dim)
                    bias[slopes] = math.log(math.expm1(1.0 - LEAST_SLOPE))  # slopes of 1: the identity

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (n, k), scales (n, k) and context (n, c) of the rows ``x`` (n, d).

        Raises:
            ValueError: ``x`` has another width than the network.
        """
        out = encode("Flow", self.encoder, self.columns, self.masked, x)
        loc, raw, context = out.split(self.split, -1)
        return loc, positive(raw), context

    def _site(self, number: int, loc: Tensor, scale: Tensor, context: Tensor) -> dist.TorchDistribution:
        """q of a site given its context, which includes the previous sites."""
        latent, flow = self.sites.local[number], self.flows[number]
        steps = [step.condition(context) for step in flow]  # type: ignore[attr-defined]
        q = shaped(Bent(dist.Normal(loc, scale).to_event(1), steps), latent)
        if isinstance(q, dist.TransformedDistribution):  # cache draws, so that scoring them needs no inverse
            return dist.TransformedDistribution(q.base_dist, [t.with_cache() for t in q.transforms])
        return q

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> None:
        """Sample every latent site given the rows ``x``."""
        if x is None:
            raise ValueError("Flow needs the rows: pass x")
        loc, scale, context = self.encode(x)
        sizes = [latent.width for latent in self.sites.local]
        if self.shared is not None:
            self.shared()
        with rows(x, index, size, name=self.sites.plate):
            for number, (m, s) in enumerate(zip(loc.split(sizes, -1), scale.split(sizes, -1), strict=True)):
                latent = self.sites.local[number]
                value = pyro.sample(latent.name, self._site(number, m, s, context))
                if number < len(sizes) - 1:
                    real = unshaped(value, latent)
                    context = torch.cat([context.expand(*real.shape[:-1], context.shape[-1]), real], -1)

    @in_evaluation_mode
    def posterior(self, x: Tensor, index: Tensor | None = None) -> Distribution:
        """q of the model's single local site given the rows ``x``, a distribution with batch shape (n,).

        The log density of its own draws is cached. That of other values is exact, but takes one pass through the
        networks per coordinate of the site and transform. Mean and variance have no closed form.

        Raises:
            ValueError: the model has several local sites, or ``x`` another width than the network.
        """
        only(self.sites)
        return self._site(0, *self.encode(like(x, self)))

    @torch.no_grad()
    def local(self, x: Tensor) -> LocalFlow:
        """The family of flows with parameters of their own for every row ``x`` (b, d), which starts at this guide's q.

        Raises:
            ValueError: the model has several local sites, or ``x`` another width than the network.
        """
        only(self.sites)
        return LocalFlow(self.flows[0], *self.encode(like(x, self)))  # type: ignore[arg-type]


def _step(
    kind: Kind,
    width: int,
    context: int,
    layers: Sequence[int],
    flipped: bool,
    bins: int,
    bound: float,
    activation: Activation,
) -> nn.Module:
    """A conditional transform of ``width`` coordinates, in their order or, if ``flipped``, in reverse."""
    order = torch.arange(width)
    with warnings.catch_warnings():  # Pyro warns of autoregression for width 1, where only the context matters
        warnings.filterwarnings("ignore", message="ConditionalAutoRegressiveNN input_dim = 1")
        network = ConditionalAutoRegressiveNN(
            width,
            context,
            list(layers),
            param_dims=[1, 1] if kind == "iaf" else [bins, bins, bins - 1, bins],
            permutation=order.flip(0) if flipped else order,
            nonlinearity=activation_class(activation)(),
        )
    if kind == "iaf":
        return ConditionalAffineAutoregressive(network)
    return ConditionalSplineAutoregressive(width, network, count_bins=bins, bound=bound, order="linear")
