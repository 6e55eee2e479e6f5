"""Every row of ``zoo benchmark speed`` is within its bar: ``pytest -m benchmarks -n 0 -s``, on a quiet machine."""

import pytest
from threadpoolctl import threadpool_limits

from zoo.base.random import seeded
from zoo.base.threads import exactly
from zoo.benchmark.speed.measuring import Unavailable
from zoo.benchmark.speed.suite import REPEATS, TASKS

pytestmark = pytest.mark.benchmarks


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_within_its_bar(task):
    try:
        with exactly(1), threadpool_limits(1), seeded(0):
            row = task.row(REPEATS)
    except Unavailable as why:
        pytest.skip(str(why))
    print(f"\n{row}")
    assert row["held"] != "no", row
