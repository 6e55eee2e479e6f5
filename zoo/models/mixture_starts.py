"""Where a Gaussian mixture starts: by k-means, at rows of the data, or at what the user gives."""

import warnings
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from zoo.algebra.missing import column_moments
from zoo.algebra.mixture_covariances import in_form, is_matrix, scatter
from zoo.base.checks import incomplete

Start = Literal["kmeans", "k-means++", "random"]
MOST = 10_000  # rows that seed a start


class Placement(NamedTuple):
    """A start.

    Attributes:
        weight: proportions (k,).
        mean: means (k, d).
        covariance: of the components, or one for all, in the form of :func:`zoo.algebra.mixture_covariances.scatter`,
            in float64.
        spread: the variances of the columns of the data (d,), 1 for a constant one.
    """

    weight: Tensor
    mean: Tensor
    covariance: Tensor
    spread: Tensor


def drawn(x: Tensor, weights: Tensor | None, components: int, kind: str, start: str) -> Placement:
    """A random start on rows (n, d), with torch's global generator; see :meth:`zoo.GMM.initialize`.

    Args:
        x: the rows; NaN where an entry is missing.
        weights: of the rows (n,); None for ones.
        components: their number k.
        kind: of the covariances, one of :data:`zoo.algebra.mixture_covariances.KINDS`.
        start: ``"kmeans"``, ``"k-means++"`` or ``"random"``.
    """
    order = torch.randperm(len(x), device=x.device)[:MOST]  # enough for a start
    spread, centre = column_moments(x, weights)
    some, own = filled(x[order], centre), None if weights is None else weights[order].to(x)
    mean, label = labelled(some, components, start, own)
    weight = x.new_ones(components)
    if label is not None:
        weight = torch.bincount(label, own, components).clamp_min(1e-6).to(x)  # an empty one may fill
    spread = torch.where(spread > 0, spread, 1.0)
    covariance = in_form(pooled(some, spread, mean, label, own), kind)
    return Placement(weight / weight.sum(), mean, covariance.double(), spread)


def given(
    x: Tensor,
    weights: Tensor | None,
    components: int,
    kind: str,
    means: Tensor | None,
    responsibilities: Tensor | None,
    labels: Tensor | None,
) -> Placement:
    """The user's start; see :meth:`zoo.GMM.start_from`.

    Raises:
        ValueError: not exactly one of ``means``, ``responsibilities`` and ``labels`` is given; or its shape or range is
            wrong.
    """
    if sum(one is not None for one in (means, responsibilities, labels)) != 1:
        raise ValueError("give exactly one of means, responsibilities and labels")
    spread, centre = column_moments(x, weights)
    spread, some = torch.where(spread > 0, spread, 1.0), filled(x, centre)
    if means is None:
        share = responsibilities_of(x, components, responsibilities, labels, weights)
        return Placement(*from_shares(some, share, kind), spread)
    mean, shape = torch.as_tensor(means, device=x.device).to(x), (components, x.shape[1])
    if mean.shape != shape or not mean.isfinite().all():
        raise ValueError(f"means has shape {tuple(mean.shape)}: give finite ones {shape}")
    covariance = in_form(pooled(some, spread, mean, None, weights), kind)
    return Placement(x.new_full((components,), 1 / components), mean, covariance.double(), spread)


def labelled(
    x: Tensor, components: int, start: str, weights: Tensor | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor | None]:
    """Means (k, d) of a start, and the components of the rows (n,) where k-means has found them.

    Args:
        x: complete rows (n, d), at most a few thousand.
        components: their number k, at most n.
        start: ``"kmeans"``, ``"k-means++"`` or ``"random"``.
        weights: of the rows (n,); None for ones.
        generator: on the CPU; None for torch's global one.

    References:
        Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding, SODA.
    """
    if start == "random":
        return x[torch.randperm(len(x), generator=generator)[:components].to(x.device)], None
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    unit = column_moments(x, weights)[0].sqrt()
    scaled = (x / torch.where(unit > 0, unit, torch.ones_like(unit))).cpu().numpy()
    own = None if weights is None else weights.cpu().numpy()
    if start == "k-means++":
        from sklearn.cluster import kmeans_plusplus  # imported here, as it takes half a second

        chosen = kmeans_plusplus(scaled, components, sample_weight=own, random_state=seed)[1]
        return x[torch.as_tensor(chosen, device=x.device)], None
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer places than clusters: some stay empty
        found = KMeans(components, n_init=1, random_state=seed).fit(scaled, sample_weight=own).labels_
    label = torch.as_tensor(found, device=x.device).long()
    member = torch.nn.functional.one_hot(label, components).to(x)
    member = member if weights is None else member * weights.to(x).unsqueeze(1)
    total = member.sum(0).unsqueeze(-1)
    return torch.where(total > 0, member.T @ x / total, x[:components]), label


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


def hard_responsibilities(
    x: Tensor, components: int, start: str, generator: torch.Generator, weights: Tensor | None = None
) -> Tensor:
    """Responsibilities (n, k) of 0 and 1 by the nearest mean of a start; see :func:`labelled`.

    Args:
        x: rows (n, d) with missing entries at the mean of their column.
        components: their number k, at most n.
        start: ``"kmeans"``, ``"k-means++"`` or ``"random"``.
        generator: on the CPU.
        weights: of the rows (n,); None for ones.
    """
    unit = x.std(0, correction=0) if weights is None else column_moments(x, weights)[0].sqrt()
    scaled = x / torch.where(unit > 0, unit, torch.ones_like(unit))
    order = torch.randperm(len(x), generator=generator)[:MOST].to(x.device)
    own = None if weights is None else weights[order]
    mean, _ = labelled(scaled[order], components, start, own, generator)
    return torch.nn.functional.one_hot(torch.cdist(scaled, mean).argmin(1), components).double()


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
