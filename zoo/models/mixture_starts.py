"""Where a Gaussian mixture starts: by k-means, at rows of the data, or at what the user gives."""

from typing import Literal

import torch
from torch import Tensor

from zoo.algebra.missing import column_moments
from zoo.algebra.mixture_covariances import is_matrix, scatter
from zoo.base.checks import incomplete

Start = Literal["kmeans", "k-means++", "random"]
MOST = 10_000  # rows that seed a start


def labelled(x: Tensor, components: int, start: str, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Means (k, d) of a start, and the components of the rows (n,) where k-means has found them.

    Args:
        x: complete rows (n, d), at most a few thousand.
        components: their number k, at most n.
        start: ``"kmeans"``, ``"k-means++"`` or ``"random"``.
        weights: of the rows (n,); None for ones.

    References:
        Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding, SODA.
    """
    if start == "random":
        return x[torch.randperm(len(x), device=x.device)[:components]], None
    seed = int(torch.randint(2**31 - 1, ()))
    unit = column_moments(x, weights)[0].sqrt()
    scaled = (x / torch.where(unit > 0, unit, torch.ones_like(unit))).cpu().numpy()
    own = None if weights is None else weights.cpu().numpy()
    if start == "k-means++":
        from sklearn.cluster import kmeans_plusplus  # imported here, as it takes half a second

        chosen = kmeans_plusplus(scaled, components, sample_weight=own, random_state=seed)[1]
        return x[torch.as_tensor(chosen, device=x.device)], None
    from sklearn.cluster import KMeans

    found = KMeans(components, n_init=1, random_state=seed).fit(scaled, sample_weight=own).labels_
    label = torch.as_tensor(found, device=x.device).long()
    member = torch.nn.functional.one_hot(label, components).to(x)
    member = member if weights is None else member * weights.to(x).unsqueeze(1)
    return member.T @ x / member.sum(0).clamp_min(1e-12).unsqueeze(-1), label


def pooled(x: Tensor, spread: Tensor, mean: Tensor, label: Tensor | None, weights: Tensor | None) -> Tensor:
    """The covariance (d, d) of rows around their component's mean, or around the mean of all rows without labels.

    Args:
        x: rows (n, d) whose missing entries are set to the mean of the column.
        spread: the variances of the columns' observed entries (d,), to which the covariance is scaled up.
        mean: means (k, d) of the components.
        label: components of the rows (n,), or None.
        weights: of the rows (n,); None for ones.
    """
    narrow, centre = column_moments(x, weights)
    centred = (x - (centre if label is None else mean[label])) * torch.where(narrow > 0, (spread / narrow).sqrt(), 1.0)
    share = torch.full_like(x[:, :1], 1 / len(x)) if weights is None else (weights / weights.sum()).to(x).unsqueeze(1)
    return (share * centred).T @ centred + torch.diag(1e-6 * spread)


def filled(x: Tensor, mean: Tensor) -> Tensor:
    """Rows (n, d) with missing entries at the mean of their column (d,)."""
    return torch.where(x.isnan(), mean, x) if incomplete(x) else x


def from_shares(x: Tensor, share: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Proportions (k,), means (k, d) and scatter of the M-step from responsibilities (n, k), on complete rows (n, d).

    The scatter is in the form of :func:`zoo.algebra.mixture_covariances.scatter`, all in float64.
    """
    share, x = share.double(), x.double()
    counts = share.sum(0)
    mean = share.T @ x / counts.unsqueeze(-1)
    offset = x - mean.unsqueeze(1)  # (k, n, d)
    heavy = share.T.unsqueeze(-1) * offset
    second = heavy.mT @ offset if is_matrix(kind) else (heavy * offset).sum(1)
    return counts / counts.sum(), mean, scatter(counts, second, torch.zeros_like(mean), kind)


def responsibilities_of(
    x: Tensor, components: int, responsibilities: Tensor | None, labels: Tensor | None, weights: Tensor | None
) -> Tensor:
    """Responsibilities (n, k) from those given, or from labels, times the weights of the rows if they have some.

    Raises:
        ValueError: their shape or range is wrong, or a component is given no rows; the message names the row.
    """
    n = len(x)
    if labels is not None:
        label = torch.as_tensor(labels, device=x.device)
        if label.shape != (n,):
            raise ValueError(f"labels has shape {tuple(label.shape)}: give one label per row of x, ({n},)")
        wrong = ((label < 0) | (label >= components) | (label != label.round())).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"the label of row {wrong[0]} is {label[wrong[0]].item()}: labels are whole numbers from 0 to "
                f"{components - 1}, the components"
            )
        share = torch.nn.functional.one_hot(label.long(), components).to(x)
    else:
        share = torch.as_tensor(responsibilities, device=x.device).to(x)
        if share.shape != (n, components):
            raise ValueError(f"responsibilities has shape {tuple(share.shape)}: give ({n}, {components})")
        wrong = (~((share >= 0).all(1) & ((share.sum(1) - 1).abs() < 1e-6))).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(f"the responsibilities of row {wrong[0]} are no probabilities that sum to 1")
    share = share if weights is None else share * weights.to(share).unsqueeze(1)
    empty = (share.sum(0) <= 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"component {empty[0]} is given no rows: use fewer components, or give it some")
    return share
