"""The rows of a benchmark on disk."""

import pytest

from zoo.benchmark.rows import Rows


def test_a_line_that_was_cut_off_runs_again(tmp_path):
    rows = Rows(tmp_path)
    rows.append({"case": "a", "seed": 0})
    rows.append({"case": "b", "seed": 0})
    log = tmp_path / "rows.jsonl"
    whole = log.read_text()
    log.write_text(whole[:-5])
    assert [row["case"] for row in Rows(tmp_path)] == ["a"]
    assert log.read_text() == whole.splitlines(keepends=True)[0]
    log.write_text(whole[:5] + "\n" + whole)
    with pytest.raises(ValueError, match="line 1, is damaged"):
        Rows(tmp_path)
