"""Variational Bayes by coordinate ascent, with the factors in a :class:`guides.MeanField`."""

from functools import partial

from guides.mean_field import MeanField
from zoo.base.callables import PyroCallable
from zoo.base.checks import ArrayLike
from zoo.infer.coordinate_ascent import VariationalBayes, ascend


def cavi(
    model: PyroCallable,
    x: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    sweeps: int = 5000,
    tol: float = 1e-9,
    restarts: int = 10,
    seed: int = 0,
) -> VariationalBayes:
    r"""Raise the evidence lower bound over q(Z) q(theta) by coordinate ascent, from several starts; keep the best.

    Each factor is set to its optimum given the others,
    :math:`\log q_j = E_{-j}[\log p(x, Z, \theta)] + \mathrm{const}`, in turn; the bound never falls. For linear models,
    after twenty plain sweeps factors and loadings are rotated together after every sweep (Luttinen and Ilin 2010).
    Computed in float64.

    A start that fails is reported with its error (:meth:`VariationalBayes.frame`), and the others go on.

    Args:
        model: a :class:`~zoo.base.protocols.ConditionallyConjugate` model: BayesianPCA, BayesianFactorAnalysis,
            BayesianGMM, or one of your own. A fresh model first places its priors on the data, as in :func:`zoo.fit`;
            one that was placed by an earlier call, changed or loaded keeps its priors, so that bounds are comparable.
            For other data build a new one, or call ``model.initialize(x)``.
        x: the data (n, d), as a tensor, an array, a data frame or another table.
        weights: how often every row counts (n,), at least 0: whole numbers are the same as repeating rows, 0 the same
            as leaving a row out of the fit. None for once.
        sweeps: the most sweeps of each start.
        tol: stop when the limit of the bound, extrapolated by Aitken's rule, is nearer than ``tol`` nats per row.
        restarts: the number of starts.
        seed: of the first start; the others follow.

    Returns:
        the best of them, with a :class:`guides.MeanField` of the factors' own families: it can be evaluated, sampled,
        saved, and trained further by :func:`zoo.fit`.

    Raises:
        TypeError: the model is not conditionally conjugate, or accepts no weights.
        ValueError: data unfit for the model, or a number or weight out of range.
        FloatingPointError: every start failed; the message lists why. A bound that falls, which coordinate ascent
            never does, is such a failure.

    References:
        Bishop (2006), Pattern Recognition and Machine Learning, ch. 10; Blei, Kucukelbir and McAuliffe (2017),
        Variational inference: a review for statisticians, JASA 112.

    >>> import torch, zoo
    >>> x = zoo.data.load("iris", dtype=torch.float64).x
    >>> model = zoo.BayesianPCA(4, 2, mean=False).double()
    >>> found = cavi(model, x - x.mean(0), restarts=2)
    >>> round(float(found[-1]), 3), found.converged
    (-456.328, True)
    """
    hold = partial(MeanField, family="conjugate")
    return ascend(model, x, hold, weights=weights, sweeps=sweeps, tol=tol, restarts=restarts, seed=seed)
