"""Which component a row of a mixture belongs to, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from zoo.alignment.canonical import canonical_transform
from zoo.alignment.symmetry import mixture_of
from zoo.base.callables import name_of, undecorated
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.latent_sites import layout
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.protocols import Conjugate, Pair
from zoo.base.tables import row_names
from zoo.factors.decoding import closed_posterior
from zoo.factors.generation import guide_draws
from zoo.posterior.engine import reader, reading


@dataclass(frozen=True, eq=False)
class Classification:
    """The components of rows, numbered in canonical order: see :func:`classify`.

    Attributes:
        responsibilities: q(component = j) for every row (n, k), in float64 on the CPU.
        order: the model's own number of every component (k,).
        index: the names of the rows (n,); None where they are merely counted.
    """

    responsibilities: Tensor
    order: tuple[int, ...]
    index: np.ndarray | None = field(default=None, repr=False)

    @property
    def labels(self) -> Tensor:
        """The most probable component of every row (n,)."""
        return self.responsibilities.argmax(1)

    @property
    def uncertainty(self) -> Tensor:
        """1 minus the largest responsibility (n,): the probability that the label is wrong, if the model is right."""
        return 1 - self.responsibilities.amax(1)

    def rand_index(self, labels: Tensor | np.ndarray | Sequence[Any]) -> float:
        """The adjusted Rand index of the labels against given ones (n,): 1 for the same partition, 0 as by chance.

        Raises:
            ValueError: the number of labels differs from that of the rows.

        References:
            Hubert and Arabie (1985), Comparing partitions, Journal of Classification 2; by scikit-learn's
            ``adjusted_rand_score``.
        """
        from sklearn.metrics import adjusted_rand_score  # imported here, as it takes half a second

        given = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        if given.shape != (len(self.responsibilities),):
            raise ValueError(f"labels has shape {given.shape}: pass one per row, ({len(self.responsibilities)},)")
        return float(adjusted_rand_score(given, self.labels.numpy()))

    def summary(self) -> dict[str, float]:
        """The rows, the components that have some, the rows' mean uncertainty, and how many have more than a tenth."""
        return {
            "rows": float(len(self.responsibilities)),
            "components": float(len(self.labels.unique())),
            "uncertainty": float(self.uncertainty.mean()),
            "uncertain": float((self.uncertainty > 0.1).sum()),
        }

    def frame(self) -> pl.DataFrame:
        """A line per row: its name or number, its label, the uncertainty, and the responsibility of every component."""
        names = range(len(self.responsibilities)) if self.index is None else self.index
        shares = {f"component {j}": column.numpy() for j, column in enumerate(self.responsibilities.T)}
        known = {"row": names, "label": self.labels.numpy(), "uncertainty": self.uncertainty.numpy()}
        return pl.DataFrame({**known, **shares})

    def __repr__(self) -> str:
        counts = torch.bincount(self.labels, minlength=len(self.order)).tolist()
        found = self.summary()
        return (
            f"Classification of {found['rows']:.0f} rows: {', '.join(map(str, counts))} in components 0 to "
            f"{len(counts) - 1}; {found['uncertain']:.0f} with an uncertainty above 0.1"
        )


def classify(run: Trained, x: ArrayLike, *, draws: int = 200, seed: int = 0) -> Classification:
    r"""The component of every row under the guide: responsibilities :math:`q(c_n = j)`, labels and uncertainty.

    Components are numbered as by :func:`zoo.to_canonical`, in order of decreasing weight, whatever their order in the
    model; those of a model other than a Gaussian mixture with parameters by decreasing sums of the responsibilities.
    Plots number them in the same way.

    Args:
        run: a trained pair, of a mixture with a discrete ``component`` per row, or a conjugate model alone.
        x: rows (n, d), with missing entries where the model accepts them; the index of a data frame is kept.
        draws: number of draws for the responsibilities, where these have no closed form.
        seed: seed of these draws.

    Raises:
        ValueError: the model has no discrete ``component`` per row.

    >>> import torch, zoo
    >>> data = zoo.data.load("iris", dtype=torch.float64)
    >>> found = classify(zoo.em(zoo.GMM(4, 3).double(), data.x), data)
    >>> found
    Classification of 150 rows: 55, 50, 45 in components 0 to 2; 3 with an uncertainty above 0.1
    >>> round(found.rand_index(data.labels), 4)
    0.9039
    """
    run = pair_of(run)
    data = rows_of(run, x)
    with run.scope():
        found = {site.name: site for site in layout(run.model, data).local}
    count = found["component"].cardinality if "component" in found else None
    if count is None:
        raise ValueError(f"{name_of(run.model)} has no discrete component per row and thus no responsibilities")
    shares = _responsibilities(run, data, count, draws, seed).double().cpu()
    with run.scope():
        known = None if mixture_of(run.model) is None else canonical_transform(run.model).order
    order = (-shares.sum(0)).argsort(stable=True) if known is None else known.cpu()
    return Classification(shares[:, order], tuple(order.tolist()), row_names(x))


@torch.no_grad()
def _responsibilities(run: Pair, x: Tensor, components: int, draws: int, seed: int) -> Tensor:
    """q(component) (n, k), in the order of the model."""
    with reading(run, seed):
        source = reader(run, x)
        q = closed_posterior(run, x)
        model = undecorated(run.model)
        if not isinstance(q, Categorical) and isinstance(model, Conjugate):
            drawn = source.draw((x,), 1, points=True).values
            q = model.posterior(x) if "component" not in drawn else q  # the guide leaves it out
        if isinstance(q, Categorical):
            return q.probs
        held: dict[str, Tensor] = {}
        parts = []
        for _, arguments in source.chunks(rows_at_once(draws * max(components, x.shape[1]))):
            chosen = guide_draws(source, arguments, check_whole(draws, "draws"), held)["component"].long()
            parts.append(nn.functional.one_hot(chosen, components).double().mean(0))
    return torch.cat(parts)
