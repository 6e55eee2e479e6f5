"""What an export contains: which groups, and in which precision."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoo.base.latent_sites import Layout
from zoo.export.variables import Groups, Variable

GROUPS = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
)
SMALL = tuple(name for name in GROUPS if not name.endswith("predictive") and name != "prior")  # no replicated data
DRAWN = ("posterior", "posterior_predictive", "prior", "prior_predictive")


@dataclass(frozen=True)
class Contents:
    """The groups of an export, and their precision.

    Attributes:
        groups: names among :data:`GROUPS`, in their order.
        compact: whether draws of sites and of data are in float32. Its rounding, 6e-8 of a value, is far below the
            error of any estimate from the draws; log densities, observations and parameters keep their precision.
    """

    groups: tuple[str, ...]
    compact: bool

    def has(self, *names: str) -> bool:
        """Whether any of these groups is in the export."""
        return any(name in self.groups for name in names)

    def of(self, groups: Groups) -> Groups:
        """Those of the groups that belong to the export and are not empty, in its precision."""
        return {
            name: {key: self._stored(each) if name in DRAWN else each for key, each in held.items()}
            for name, held in groups.items()
            if held and name in self.groups
        }

    def _stored(self, variable: Variable) -> Variable:
        wide = self.compact and variable.values.dtype == np.float64
        return variable._replace(values=variable.values.astype(np.float32)) if wide else variable


def check_groups(groups: Sequence[str] | None) -> tuple[str, ...]:
    """The groups in their order; None means all of them.

    Raises:
        ValueError: there is no such group, or none is given; the message suggests the nearest name.

    >>> check_groups(["sample_stats", "posterior"])
    ('posterior', 'sample_stats')
    """
    if groups is None:
        return GROUPS
    if isinstance(groups, str) or not len(groups):
        raise ValueError(f"groups must be a sequence of names among {', '.join(GROUPS)}, got {groups!r}")
    for name in groups:
        if name not in GROUPS:
            near = difflib.get_close_matches(str(name), GROUPS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(GROUPS)}"
            raise ValueError(f"groups has no {name!r}: {hint}")
    return tuple(name for name in GROUPS if name in groups)


def numbers_per_draw(found: Layout, n: int, d: int, groups: Sequence[str]) -> int:
    """How many numbers a draw adds to an export of (n, d) rows with these groups.

    Args:
        found: the sites of the model.
        n: the number of rows.
        d: the number of columns.
        groups: the groups.
    """
    sites = sum((n if latent.local else 1) * latent.shape.numel() for latent in found.latents)
    sizes = {"posterior": sites, "prior": sites, "posterior_predictive": n * d, "prior_predictive": n * d}
    sizes |= {"sample_stats": 3 if found.shared else 3 * n, "log_likelihood": n if found.shared else 0}
    return sum(sizes.get(name, 0) for name in groups)
