"""The words of the table that ``zoo fit`` prints."""

import pytest

from zoo.commands.fit_shown import _compared


@pytest.mark.parametrize(
    ("nats", "words"),
    [(0.001, "equal"), (3.0, "not reached by the fit"), (-3.4, "EM ended at a lower optimum")],
)
def test_the_higher_of_em_and_the_fit_is_named(nats, words):
    assert _compared(nats) == words
