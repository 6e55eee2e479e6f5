"""What a model or guide declares of its density, and what takes it back."""

import pytest
from pyro import poutine
from pyro.infer import config_enumerate

import zoo
from guides import Amortized, Exact, Flow, FullRank, MeanField, SemiAmortized
from zoo.base.protocols import declares


class Renamed(zoo.PPCA):
    """The same story."""


class Other(zoo.PPCA):
    """Another story, of which nothing is declared."""

    def forward(self, x=None, index=None, size=None):
        return super().forward(x, index, size)


class Again(Other):
    """Declared anew."""

    quadratic = True


def test_a_story_of_its_own_takes_the_parents_declarations_back():
    assert declares(zoo.PPCA(4, 2), "quadratic")
    assert declares(Renamed(4, 2), "quadratic")
    assert not declares(Other(4, 2), "quadratic")
    assert declares(Again(4, 2), "quadratic")
    model = Other(4, 2)
    model.quadratic = True
    assert declares(model, "quadratic")


def test_handlers_that_change_the_density_declare_nothing():
    model = zoo.GMM(4, 2)
    assert declares(config_enumerate(model), "quadratic")
    assert not declares(poutine.scale(model, 0.5), "quadratic")
    assert not declares(lambda x=None: None, "quadratic")


@pytest.mark.parametrize(
    ("family", "gaussian"),
    [(MeanField, True), (FullRank, True), (Amortized, True), (Flow, False), (SemiAmortized, False)],
)
def test_which_guides_are_gaussian(family, gaussian, some):
    assert declares(family(zoo.PPCA(4, 2).double(), some), "gaussian") is gaussian
    assert not declares(family(zoo.PPCA(4, 2).double(), some), "tight")
    assert declares(Exact(zoo.PPCA(4, 2)), "tight")
