"""Every row of ``zoo benchmark speed`` is within its bar: ``pytest -m benchmarks -n 0 -s``, on a quiet machine."""

import pytest

from zoo.benchmark.speed.measuring import Unavailable
from zoo.benchmark.speed.suite import TASKS, measure

pytestmark = pytest.mark.benchmarks


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_within_its_bar(task):
    try:
        row = measure(task)
    except Unavailable as why:
        pytest.skip(str(why))
    print(f"\n{row}")
    assert row["held"] != "no", row
