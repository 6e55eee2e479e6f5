"""Models with point-estimated parameters in ArviZ's comparison: by held-out rows."""

from typing import Any

import torch

from zoo.compat.container import elpd_data


def elpd(log_density: Any) -> Any:
    r"""The expected log density of new rows, from held-out ones, as ``az.compare`` and ``az.plot_compare`` take it.

    .. math:: \widehat{\mathrm{elpd}} = \sum_{i=1}^n \log p(x_i), \qquad
              \mathrm{se} = \sqrt{n \operatorname{Var}_i \log p(x_i)}

    Leave-one-out estimates reweight draws of the parameters. Where the parameters are point estimates there are none,
    and held-out rows take the place: every model's log p of the same rows, that none has been fitted to.

    >>> import torch, zoo
    >>> model, test = zoo.PPCA(3, 1), torch.randn(40, 3)
    >>> estimate = elpd(model.log_marginal(test))
    >>> estimate["n_data_points"]
    40

    ``az.compare({"1 factor": estimate, "2 factors": another})`` then ranks them.

    Args:
        log_density: log p(x_i) of n held-out rows (n,), in nats: ``model.log_marginal(test)``, or
            ``zoo.evaluate(run, test).log_marginal``.

    Returns:
        ArviZ's ``ELPDData``; its number of effective parameters is 0, as none was estimated from these rows.

    Raises:
        ValueError: not of shape (n,), fewer than two rows, or entries that are not finite.

    References:
        Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and
        WAIC, Statistics and Computing 27.
    """
    values = torch.as_tensor(log_density).detach().double().cpu()
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"log_density has shape {tuple(values.shape)}: pass one number for each of two rows or more")
    wrong = (~values.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"log_density of row {wrong[0]} is {values[wrong[0]].item()} (and {len(wrong) - 1} more are not finite): "
            "the model gives these rows no density"
        )
    return elpd_data(values.numpy())
