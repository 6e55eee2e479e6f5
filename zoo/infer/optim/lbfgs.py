"""The options of the line search for bounds without noise."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.optim import PyroOptim


class LBFGS(PyroOptim):
    r"""L-BFGS with a strong Wolfe line search, for full-batch bounds without noise (or with fixed draws).

    Pass it to :func:`zoo.fit` as ``optim=``, or to :class:`zoo.infer.LineSearchSVI` in your own loop: a line search
    evaluates the loss at several points per step, which a plain ``SVI`` does not support.

    Args:
        history: number of past steps in the approximation of the curvature.
        evaluations: the most evaluations in one iteration.
        seed: of the draws, if the bound has any, and of the probes.
        probes: Hessian-vector products per estimate of the coordinates' units; 0 searches in the parameters themselves.
        refresh: steps before which the units are estimated again and the curvature is discarded.

    Example:
        >>> import guides, zoo
        >>> x = zoo.data.load("iris").x.double()
        >>> model = zoo.PPCA(4, 1).double()
        >>> zoo.fit(model, guides.Exact(model), x, optim=LBFGS(history=10), progress=False).converged
        True

    References:
        Nocedal and Wright (2006), Numerical Optimization, ch. 3 and 7.
    """

    def __init__(
        self,
        *,
        history: int = 20,
        evaluations: int = 25,
        seed: int = 0,
        probes: int = 10,
        refresh: Sequence[int] = (0, 25, 100, 300, 1000, 3000),
    ) -> None:
        arguments = {
            "lr": 1.0,
            "max_iter": 1,
            "max_eval": evaluations,
            "history_size": history,
            "tolerance_grad": 0.0,
            "tolerance_change": 1e-14,
            "line_search_fn": "strong_wolfe",
        }
        super().__init__(torch.optim.LBFGS, arguments)
        self.seed = seed
        self.probes = probes
        self.refresh = frozenset(refresh)

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse the step of a plain ``SVI``.

        Raises:
            RuntimeError: always; names the class for these options.
        """
        raise RuntimeError(
            "LBFGS evaluates the loss at several points per step, which pyro.infer.SVI cannot do: use "
            "zoo.infer.LineSearchSVI(model, guide, LBFGS(), loss) in its place, or zoo.fit(..., optim=LBFGS())"
        )
