"""What the README and ``zoo list`` say of the models and guides is what the package holds.

``pytest tests/test_listings.py --update`` writes both; new models and guides come last.
"""

import functools
import json
from collections.abc import Iterable
from pathlib import Path

import pyro
import pytest
import torch

import zoo
from guides import CannotServe
from zoo.base.random import seeded
from zoo.commands import catalogue
from zoo.likelihoods.kinds import LIKELIHOODS
from zoo.registry import finding, making

README = Path(__file__).parents[1] / "README.md"
CATALOGUE = Path(catalogue.__file__).with_suffix(".json")
SIZES = {"latent_dim": 2, "components": 2}


@functools.cache
def refusals() -> dict[str, dict[str, CannotServe]]:
    """Every model of the package, with the guides that refuse it and how."""
    found: dict[str, dict[str, CannotServe]] = {}
    with seeded(0), pyro.get_param_store().scope():
        for name, cls in finding.models().items():
            sizes = {key: size for key, size in SIZES.items() if key in making.options(cls)}
            found[name] = {}
            for guide, kind in finding.guide_classes().items():
                try:
                    making.build(kind, {}, model=making.build(cls, sizes, data_dim=3), x=torch.randn(5, 3))
                except CannotServe as refusal:
                    found[name][guide] = refusal
    return found


def in_order(names: Iterable[str], listed: Iterable[str]) -> list[str]:
    """The names that are listed in their order, then the others."""
    names, listed = list(names), list(listed)
    return [name for name in listed if name in names] + [name for name in names if name not in listed]


def models() -> list[str]:
    return in_order(finding.models(), catalogue.MODELS)


def guide_names() -> list[str]:
    return in_order(finding.guide_classes(), catalogue.GUIDES)


def file() -> str:
    """The catalogue of the commands."""
    sites = {name: refusals()[name] for name in models()}
    content = {
        "models": {
            name: {guide: refused[guide].site for guide in guide_names() if guide in refused}
            for name, refused in sites.items()
        },
        "guides": guide_names(),
        "likelihoods": in_order(LIKELIHOODS, catalogue.LIKELIHOODS),
        "data": {name: vars(zoo.data.provenance(name)) for name in zoo.data.names()},
    }
    return json.dumps(content, indent=2) + "\n"


def cell(refusal: CannotServe | None) -> str:
    """``yes``, or the site and the beginning of the reason."""
    if refusal is None:
        return "yes"
    return f"no: `{refusal.site}` {refusal.reason.split(',')[0].split(' and ')[0]}"


def readme() -> str:
    """The README with its table of models and guides."""
    before, rest = README.read_text(encoding="utf-8").split("<!-- table -->\n")
    _, after = rest.split("\n\n", 1)
    lines = [f"| | {' | '.join(guide_names())} |", "|---" * (len(guide_names()) + 1) + "|"]
    for name in models():
        cells = [cell(refusals()[name].get(guide)) for guide in guide_names()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([f"{before}<!-- table -->", *lines, "", after])


@pytest.mark.parametrize(("path", "written"), [(CATALOGUE, file), (README, readme)], ids=["catalogue", "readme"])
def test_listings_are_those_of_the_package(path, written, pytestconfig):
    expected = written()
    if pytestconfig.getoption("update"):
        path.write_text(expected, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == expected, "run pytest tests/test_listings.py --update"
