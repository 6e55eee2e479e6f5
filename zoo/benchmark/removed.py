"""Tables of which entries are removed: the cases of the suite ``imputation``."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.benchmark.suite import Case, Data, Published
from zoo.data.fingerprints import fingerprint
from zoo.data.loading import load
from zoo.data.removal import random_mask, remove

SHARE = 0.5  # of the entries
FIXED = "breast cancer, published mask"
RARE = 0.01  # share of images in which a pixel must be nonzero: its column may else be constant where it is left


@dataclass(frozen=True)
class Table:
    """A complete table and the seeds of its masks.

    Attributes:
        case: the name of the case.
        data: the name of the data set.
        mask: the seed of the mask, from the seed of the run.
        rare: columns that are nonzero in at most this share of the rows are left out.
    """

    case: str
    data: str
    mask: Callable[[int], int]
    rare: float | None = None

    def complete(self) -> Tensor:
        """The rows (n, d), float32, every column with mean 0 and standard deviation 1 (divided by n)."""
        x = load(self.data, dtype=torch.float32).x.numpy()
        if self.rare is not None:
            x = x[:, (x != 0).mean(0) > self.rare]
        return torch.from_numpy((x - x.mean(0)) / x.std(0))


TABLES = (
    Table(FIXED, "breast_cancer", lambda seed: 1234),
    Table("wine", "wine", lambda seed: seed),
    Table("breast cancer, new masks", "breast_cancer", lambda seed: seed),
    Table("digits", "digits", lambda seed: seed, RARE),
)


def latents(columns: int) -> int:
    """Factors for a table: ten as in the published experiment, or a quarter of few columns."""
    return 10 if columns >= 30 else max(1, columns // 4)


def removed_case(table: Table) -> Case:
    """The case of a table: half of its entries removed."""

    def rows(seed: int) -> Data:
        x = table.complete()
        mask = random_mask(len(x), x.shape[1], SHARE, table.mask(seed))
        return of_mask(x, mask)

    x = table.complete()
    published: dict[str | tuple[str, str], Published] = {
        ("MIWAE", "mse"): Published(0.28673, "Mattei and Frellsen (2019), notebook of the paper", "MIWAE imputation")
    }
    return Case(
        table.case,
        rows,
        {
            "data": table.data,
            "rows": len(x),
            "columns": x.shape[1],
            "left out": "constant columns" if table.rare is None else f"columns nonzero in at most {table.rare:.0%}",
            "scaled": "mean 0, standard deviation 1, on all rows before the removal",
            "removed": SHARE,
            "mask": "zoo.data.random_mask, seed " + ("1234" if table.case == FIXED else "of the run"),
            "fingerprint": fingerprint(x),
            "latent_dim": latents(x.shape[1]),
        },
        published if table.case == FIXED else {},
        (table.data,),
    )


def of_mask(complete: Tensor, mask: Tensor) -> Data:
    """The rows with the entries of a mask removed.

    Args:
        complete: the rows (n, d).
        mask: True for entries to remove (n, d).

    Raises:
        ValueError: the mask has another shape, or leaves nothing of a column; see :func:`zoo.data.remove`.
    """
    left = remove(complete, mask)
    return Data(left, left, extra={"complete": complete, "mask": mask})
