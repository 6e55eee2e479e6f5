"""What every suite of the package promises: names, protocols, citations, and claims that rows must bear out."""

import pytest

from zoo.benchmark.citing import cited
from zoo.benchmark.named import SUITES, named_suite
from zoo.benchmark.parallel import lost_row
from zoo.benchmark.running import table_of, tasks_of
from zoo.benchmark.suite import BUDGETS
from zoo.benchmark.writing import write


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", SUITES)
def test_names_protocols_and_citations(name, budget):
    suite = named_suite(name, budget)
    assert (suite.name, suite.budget) == (name, budget)
    tasks = tasks_of(suite, range(suite.seeds), None, None, "cpu")
    assert {task.cell.case.name for task in tasks} == {case.name for case in suite.cases}
    assert {task.method.name for task in tasks} == {method.name for method in suite.methods}
    assert suite.question.endswith("?")
    assert suite.text.strip()
    assert all(case.protocol for case in suite.cases)
    assert cited(suite)
    measures = {measure.name for measure in suite.measures}
    for case in suite.cases:
        for key, published in case.published.items():
            method, measure = ("", key) if isinstance(key, str) else key
            assert measure in measures, f"{case.name}: {key}"
            assert not method or method in {one.name for one in suite.methods}, f"{case.name}: {key}"
            assert published.source


@pytest.mark.parametrize("name", SUITES)
def test_without_results_nothing_is_claimed(name, tmp_path):
    suite = named_suite(name)
    rows = [lost_row(task, MemoryError("none"), 1) for task in tasks_of(suite, [0], None, None, "cpu")]
    found = write(suite, table_of(suite, rows), tmp_path)
    assert {claim.held for claim in found.claims} <= {None}
