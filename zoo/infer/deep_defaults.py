"""What a fit of a deep model does unasked: rows held out to keep the best parameters, and minibatches."""

import torch
from torch import Tensor

from zoo.base.callables import PyroCallable, unwrapped
from zoo.base.covariates import row_buffers
from zoo.base.latent_sites import Layout
from zoo.base.module import Module
from zoo.base.protocols import HoldsRows
from zoo.infer.pairing import deep, default_loss, noiseless

LEAST = 200  # rows from which a tenth is held out: fewer than 20 rows say little
HELD_OUT, MOST_HELD_OUT = 0.1, 1000  # a share of the rows, and their number at most
PATIENCE = 20  # evaluations
CLIP = 200.0  # of the gradient norm per row: about three times its usual value, so that only outliers are clipped
MANY, BATCH = 1000, 128  # rows from which steps take minibatches, and their size


def may_overfit(model: PyroCallable, guide: PyroCallable, x: Tensor, found: Layout) -> bool:
    """Whether held-out rows should and can decide which parameters are kept.

    They should for a model with networks whose bound has noise. They can where the guide is a module that serves new
    rows, the model has no covariates of the rows, and there are rows enough.
    """
    inner = unwrapped(guide)
    if len(x) < LEAST or not deep(model) or not isinstance(inner, Module) or isinstance(inner, HoldsRows):
        return False
    return not noiseless(model, guide, default_loss(model, guide, found)) and not row_buffers(model, x)


def hold_out(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The rows to train on, in their order, and a tenth of the rows that is held out, at most 1,000."""
    count = min(round(HELD_OUT * len(x)), MOST_HELD_OUT)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    return x[order[count:].sort().values], x[order[:count]]


def default_batch_size(n: int) -> int | None:
    """Rows per step, such that the last batch of an epoch has more than one; None for all of them.

    >>> default_batch_size(999), default_batch_size(60_000), default_batch_size(1 + 128 * 10)
    (None, 128, 127)
    """
    return None if n < MANY else next(size for size in range(BATCH, 1, -1) if n % size != 1)
