"""What ``zoo list`` shows: models, guides and data sets, and where each comes from; no class of them is imported."""

from collections import Counter

from rich.table import Table

from zoo import __version__
from zoo.commands import catalogue
from zoo.commands.console import out
from zoo.registry.announced import GROUPS, Announced, announced, plain


def list_() -> None:
    """Show the models, the guides available for each, those of other packages, and the data sets."""
    table = Table("model", "guides", "not served by", title=f"models and their guides in Latent Zoo {__version__}")
    for model, refused in catalogue.MODELS.items():
        reasons: dict[str, list[str]] = {}
        for guide, reason in refused.items():
            reasons.setdefault(reason, []).append(guide)
        table.add_row(
            model,
            ", ".join(guide for guide in catalogue.GUIDES if guide not in refused),
            "; ".join(f"{', '.join(names)} (site {reason})" for reason, names in reasons.items()),
        )
    out.print(table)
    if others := announced():
        out.print(_others(others))
    else:
        out.print(
            f"No installed package announces others (entry points {' and '.join(GROUPS.values())}).",
            highlight=False,
            soft_wrap=True,
        )
    out.print("A model or guide of your own is named FILE.py:NAME or PACKAGE.MODULE:NAME.", soft_wrap=True)
    data = Table("data set", "source", "licence", title="data sets, or the path of a .csv, .tsv, .parquet or .npy file")
    for name, found in catalogue.DATA.items():
        data.add_row(name, found["source"], found["licence"])
    out.print(data)


def _others(others: list[Announced]) -> Table:
    """The models and guides that other packages announce, with what keeps one from being used."""
    names = Counter((each.role, plain(each.name)) for each in others)
    known = {("model", plain(name)) for name in catalogue.MODELS} | {
        ("guide", plain(name)) for name in catalogue.GUIDES
    }
    table = Table("name", "kind", "from", "class", "note", title="models and guides of other packages")
    for each in others:
        key = each.role, plain(each.name)
        note = ""
        if each.broken is not None:
            note = f"broken: {each.broken}"
        elif key in known:
            note = f"Latent Zoo has one of this name: write {each.value}"
        elif names[key] > 1:
            note = f"announced more than once: write {each.value}"
        table.add_row(each.name, each.role, each.distribution, each.value, note)
    return table
