"""The catalogue of data sets with a name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources

import polars as pl

from zoo.data.files import read_csv
from zoo.data.frey_faces import read_frey_faces
from zoo.data.mnist import read_mnist
from zoo.data.table import FrameTable, Table


@dataclass(frozen=True)
class Entry:
    """The reader of a data set, its default columns and labels, and its origin."""

    read: Callable[[], Table]
    source: str
    licence: str
    labels: str | None = None
    columns: tuple[str, ...] | None = None  # all but the labels


def scikit_learn(name: str, label: str) -> FrameTable:
    """A data set included in scikit-learn: its raw values and the column ``label``."""
    from sklearn import datasets  # imported here, as it takes a second

    bunch = getattr(datasets, f"load_{name}")()
    classes = [str(each) for each in bunch.target_names]
    frame = pl.DataFrame(bunch.data, schema=[str(each) for each in bunch.feature_names])
    frame = frame.with_columns(pl.Series(label, [classes[k] for k in bunch.target], dtype=pl.Enum(classes)))
    return FrameTable(frame.lazy(), tuple(frame.columns), name)


def shipped(file: str) -> FrameTable:
    """A CSV file in the folder ``tables`` of this package."""
    with resources.as_file(resources.files("zoo.data") / "tables" / file) as path:
        table = read_csv(path)
        return FrameTable(table.frame.collect().lazy(), table.columns, file, table.rows)


UCI = "CC BY 4.0 (UCI Machine Learning Repository)"
MNIST = "LeCun, Cortes and Burges (1998), The MNIST database of handwritten digits"

CATALOGUE = {
    "iris": Entry(
        partial(scikit_learn, "iris", "species"),
        "Fisher (1936), Annals of Eugenics 7; from scikit-learn",
        UCI,
        labels="species",
    ),
    "wine": Entry(
        partial(scikit_learn, "wine", "cultivar"),
        "Aeberhard, Coomans and de Vel (1992), UCI Wine; from scikit-learn",
        UCI,
        labels="cultivar",
    ),
    "digits": Entry(
        partial(scikit_learn, "digits", "digit"),
        "Alpaydin and Kaynak (1998), UCI Optical Recognition of Handwritten Digits; from scikit-learn",
        UCI,
        labels="digit",
    ),
    "breast_cancer": Entry(
        partial(scikit_learn, "breast_cancer", "diagnosis"),
        "Street, Wolberg and Mangasarian (1993), UCI Breast Cancer Wisconsin (Diagnostic); from scikit-learn",
        UCI,
        labels="diagnosis",
    ),
    "faithful": Entry(
        partial(shipped, "faithful.csv"),
        "Azzalini and Bowman (1990), Applied Statistics 39; from R's datasets::faithful",
        "GPL-2 or GPL-3 (R)",
    ),
    "holzinger": Entry(
        partial(shipped, "holzinger_swineford1939.csv"),
        "Holzinger and Swineford (1939), A study in factor analysis; from lavaan's HolzingerSwineford1939",
        "GPL-2 or later (lavaan)",
        labels="school",
        columns=tuple(f"x{j}" for j in range(1, 10)),
    ),
    "mnist": Entry(partial(read_mnist, "train", 60000), MNIST, "CC BY-SA 3.0", labels="digit"),
    "mnist-test": Entry(partial(read_mnist, "t10k", 10000), MNIST, "CC BY-SA 3.0", labels="digit"),
    "frey_faces": Entry(
        read_frey_faces,
        "Brendan Frey's face, as in Roweis and Saul (2000), Science 290; from Sam Roweis' page",
        "none stated: fetched, not distributed",
    ),
}
