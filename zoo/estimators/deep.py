"""A variational autoencoder as a scikit-learn transformer."""

import math
from typing import Any

import numpy as np
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from zoo.base.random import seeded
from zoo.estimators.common import Guide, Transformer, array, check_components, trained
from zoo.factors.decoding import decode, encode
from zoo.models.vae import VAE as VAEModel
from zoo.posterior.engine import reader, reading
from zoo.posterior.evaluation import evaluate

DRAWS = 200  # importance samples of a row's log density


class VAE(Transformer):
    r"""A deep Gaussian model with an inference network: :math:`x \mid z \sim N(m(z), \Sigma(z))`, networks m and Sigma.

    Args:
        n_components: number of factors k.
        hidden: widths of the hidden layers of decoder and encoder.
        likelihood: ``"gaussian"``, ``"bernoulli"``, ``"poisson"``, ``"student_t"`` or ``"logistic_256"``.
        noise: ``"network"`` or ``"constant"``, of a Gaussian likelihood.
        floor: the smallest variance, as a fraction of the column's.
        guide: a name such as ``"Amortized"``, ``"Flow"`` or ``"SemiAmortized"``, or a function of model and rows; it
            must serve new rows.
        max_iter: number of steps; None trains until the bound has settled.
        random_state: of the start, the minibatches and the draws.

    Attributes:
        lower_bound_: the ELBO of the last steps, in nats per row.
        n_iter_: the number of steps.
        converged_: whether the bound had settled.
        run_: the fitted run, for :func:`zoo.diagnose`, :func:`zoo.to_arviz` and all others.
        n_features_in_, feature_names_in_: of the rows.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, ICLR.
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        hidden: tuple[int, ...] = (64, 64),
        likelihood: str = "gaussian",
        noise: str = "network",
        floor: float = 1e-3,
        guide: Guide = "Amortized",
        max_iter: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.hidden = hidden
        self.likelihood = likelihood
        self.noise = noise
        self.floor = floor
        self.guide = guide
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "VAE":
        """Trains both networks on rows (n, d), in which NaN marks an entry missing at random; ``y`` is ignored."""
        rows, _ = self._given(X)
        k = check_components(self.n_components, 10_000, "far more than any table has factors")
        seed = self._seed()
        noise: Any = self.noise
        with seeded(seed):
            model = VAEModel(
                rows.shape[1], k, self.hidden, self.floor, likelihood=self.likelihood, noise=noise
            ).double()
            self.run_ = trained(model, self.guide, self._named(rows), None, self.max_iter, seed)
        self._score_seed = seed
        curve = -array(self.run_.losses)
        self.lower_bound_ = float(curve[-max(1, len(curve) // 20) :].mean())
        self.n_iter_, self.converged_ = len(curve), self.run_.converged
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Posterior means of the factors of rows (m, d) under the guide: (m, n_components)."""
        return array(encode(self.run_, self._new(X)))

    def inverse_transform(self, X: Any) -> np.ndarray:
        """The mean of the rows given factors (m, n_components): (m, d)."""
        return array(decode(self.run_, torch.from_numpy(self._given_factors(X))).mean)

    @torch.no_grad()
    def score_samples(self, X: Any) -> np.ndarray:
        r"""An importance-weighted lower bound on the log density of every row (m,), in nats.

        .. math:: \log \frac 1S \sum_s \frac{p(x, z_s)}{q(z_s \mid x)}, \qquad z_s = m(x) + L(x)\, \epsilon_s

        with the same S = 200 normal draws for every row, where q is Gaussian.
        """
        rows = self._new(X)
        run: Any = self.run_
        with reading(run, self._score_seed):
            q = run.guide.posterior(rows)
            noise = torch.randn(DRAWS, 1, q.event_shape[0], dtype=rows.dtype)
            if isinstance(q, MultivariateNormal):
                z = q.mean + (q.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)  # (s, m, k)
            elif isinstance(q, Independent) and isinstance(q.base_dist, Normal):
                z = q.mean + q.stddev * noise
            else:
                return array(evaluate(run, rows, draws=DRAWS, seed=self._score_seed).log_marginal)
            weight = reader(run, rows).score((rows,), {"z": z}).by_row - q.log_prob(z)
        return array(weight.logsumexp(0) - math.log(DRAWS))

    @property
    def _n_features_out(self) -> int:  # type: ignore[override]
        return int(self.n_components)
