"""ArviZ's model comparison for models with point-estimated parameters, by held-out rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.compat.container import elpd_data


def elpd(log_density: Tensor | np.ndarray | Sequence[float]) -> Any:
    r"""The expected log density of new rows, estimated from held-out rows, for ``az.compare`` and ``az.plot_compare``.

    .. math:: \widehat{\mathrm{elpd}} = \sum_{i=1}^n \log p(x_i), \qquad
              \mathrm{se} = \sqrt{n \operatorname{Var}_i \log p(x_i)}

    Leave-one-out estimates reweight draws of the parameters. With point estimates there are no such draws; models are
    compared by their log p of the same held-out rows, to which none of them was fitted.

    >>> import torch, zoo
    >>> model, test = zoo.PPCA(3, 1), torch.randn(40, 3)
    >>> estimate = elpd(model.log_marginal(test))
    >>> estimate["n_data_points"]
    40

    ``az.compare({"1 factor": estimate, "2 factors": another})`` ranks the models.

    Args:
        log_density: log p(x_i) of n held-out rows (n,), in nats: ``model.log_marginal(test)``, or
            ``zoo.evaluate(run, test).log_marginal``.

    Returns:
        ArviZ's ``ELPDData``; its effective number of parameters is 0, since none was estimated from these rows.

    Raises:
        ValueError: ``log_density`` is not of shape (n,), has fewer than two rows, or entries that are not finite.

    References:
        Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and
        WAIC, Statistics and Computing 27.
    """
    values = torch.as_tensor(log_density).detach().double().cpu()
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"log_density has shape {tuple(values.shape)}: pass one number per row, for at least two rows")
    wrong = (~values.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"log_density of row {wrong[0]} is {values[wrong[0]].item()} (and {len(wrong) - 1} more are not finite): "
            "the model assigns no density to these rows"
        )
    return elpd_data(values.numpy())
