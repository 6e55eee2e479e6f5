"""Tables of a benchmark: means, what is in bold, and every form in which they are written."""

import dataclasses
import json
import math
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import xarray as xr

from tests.benchmark import tiny
from zoo.benchmark.averages import entries, good_methods, standard_error
from zoo.benchmark.latex import document, escaped, latex
from zoo.benchmark.layout import layout
from zoo.benchmark.markdown import markdown
from zoo.benchmark.running import run
from zoo.benchmark.suite import Case, Claim, Measure, Method, Own, Published
from zoo.benchmark.writing import write

LOWER, HIGHER = Measure("error", better="lower", digits=2), Measure("error", better="higher", digits=2)


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """A suite of which a method fails in one seed of three, and its table."""
    suite = tiny.suite(
        Method("un_lucky", tiny.fails_in_seed_1, {"step": 0.1}),
        seeds=3,
        text="About the tiny rows.",
        claims=lambda table: [Claim("a mean is better", True, "1.1 < 2"), Claim("more", None, "")],
    )
    return suite, run(suite, tmp_path_factory.mktemp("failed"))


@pytest.fixture
def curve(tmp_path):
    """A suite that measures along steps, at two stages, and its table."""

    def measure(fitted, data, cell):
        return [
            {"stage": stage, "steps": steps, "error": factor / steps + cell.seed, "size": 1.0}
            for stage, factor in (("start", 10.0), ("end", 1.0))
            for steps in (1, 10)
        ]

    suite = tiny.suite(measure=measure, along=("stage", "steps"), cases=[Case("a", tiny.load)])
    return suite, run(suite, tmp_path)


def test_standard_errors_are_paired():
    noise = {0: 0.0, 1: 5.0, 2: -5.0}
    values = {
        "best": noise,
        "near": {0: 0.1, 1: 5.3, 2: -4.8},  # 0.2 behind, with a paired standard error of 0.058
        "noisy": {0: 3.0, 1: 4.0, 2: -3.9},  # 1.03 behind, with one of 1.02
    }
    assert good_methods(values, LOWER) == ["best", "noisy"]
    opposite = {name: {seed: -value for seed, value in own.items()} for name, own in values.items()}
    assert good_methods(opposite, HIGHER) == ["best", "noisy"]
    within = 0.2 - 2 * standard_error([0.1, 0.3, 0.2])
    assert 0 < within < 0.1


def test_what_is_printed_alike_is_set_alike_and_fewer_seeds_do_not_win():
    assert good_methods({"a": {0: 1.0}, "b": {0: 1.004}, "c": {0: 1.006}}, LOWER) == ["a", "b"]
    assert good_methods({"a": {0: 1e-9}, "b": {0: 2e-9}}, Measure("e", better="lower", scientific=True)) == ["a"]
    whole = {"a": {0: 1.0, 1: 9.0}, "b": {0: 1.5, 1: 9.6}, "c": {0: 1.4}}
    assert good_methods(whole, LOWER) == ["a"]
    assert good_methods(whole | {"c": {0: 0.9}}, LOWER) == ["a", "c"]
    assert good_methods({}, LOWER) == []


def test_entries_hold_means_and_what_failed(failed):
    suite, table = failed
    found = entries(suite, table, suite.measures[0])
    values = [float(tiny.error(tiny.mean(tiny.load(s), None), tiny.load(s), None)["error"]) for s in range(3)]
    mean = found[("second",), "mean"]
    assert mean.mean == pytest.approx(sum(values) / 3, rel=1e-12)
    assert mean.se == pytest.approx(np.std(values, ddof=1) / math.sqrt(3), rel=1e-12)
    unlucky = found[("second",), "un_lucky"]
    assert (sorted(unlucky.values), unlucky.failed, unlucky.refused) == ([0, 2], 1, 0)
    assert found[("second",), "refuses"].refused == 3
    assert not any(entry.best for entry in entries(suite, table, suite.measures[1]).values())


def test_markdown(failed):
    suite, table = failed
    text = markdown(layout(suite, table))
    assert "| | error ↓ (units^2) | size | seconds (s) |\n|---|---:|---:|---:|\n| **first\\_case** | | | |" in text
    assert "| refuses | refused | refused | refused |" in text
    assert "| un\\_lucky (n = 2, 1 failed) | 0.9" in text
    assert "[1.000 (a)]" in text
    assert "| published | [1.050 (b)] |  |  |" in text
    assert "(a) Somebody (1901)\n\n(b) Nobody (1900)" in text
    assert "over 3 seeds" in text
    one = markdown(layout(suite, table.filter(seed=0)))
    assert "One seed, so no standard errors" in one
    assert "±" not in one
    assert one.count("**") == 2 * (2 + 2)  # two cases, and the best of each


def test_cells_that_were_not_run_are_marked(failed):
    suite, table = failed
    part = table.filter((pl.col("case") == "second") | (pl.col("method") != "mean"))
    text = markdown(layout(suite, part))
    assert "| mean | not run | not run | not run |" in text
    methods = [replace(m, cases=lambda case: case.name == "second") for m in suite.methods if m.name == "mean"]
    assert "| mean |" not in markdown(layout(replace(suite, methods=methods), part.filter(case="first_case")))


def test_the_page_has_the_command_of_a_users_own_method(failed, tmp_path):
    suite, table = failed
    protocol = {"model": "mine.py:A", "guide": "mine.py:B", "guide_settings": {"df": 4.0, "kind": "a b", "on": True}}
    own = replace(suite, seeds=2, own=lambda own: Method(own.name, tiny.mean)).with_own(Own("A, B", protocol=protocol))
    write(own, table, tmp_path)
    options = "--model mine.py:A --guide mine.py:B --guide-set df=4.0 --guide-set 'kind=a b' --guide-set on=true"
    page = (tmp_path / "page.md").read_text()
    assert f"\n    zoo benchmark tiny --budget quick --seeds 3 {options} --out runs/tiny\n" in page


def test_long_tables_have_one_measure_each_and_wide_ones_come_in_parts(failed):
    suite, table = failed
    many = [f"method {number}" for number in range(13)]
    copies = [table.with_columns(pl.concat_str(pl.lit(name + " "), "method").alias("method")) for name in many]
    laid = layout(suite, pl.concat(copies))
    assert {block.title for block in laid.blocks} == {"error ↓ (units^2)", "size", "seconds (s)"}
    assert laid.blocks[0].head == ("first_case", "second")
    assert [name for name, _ in laid.blocks[0].groups[0][1]][-1] == "published"
    cases = [table.with_columns(pl.lit(name).alias("case")) for name in many]
    laid = layout(suite, pl.concat([table, *cases]))
    assert laid.blocks[0].head == ("mean", "guess", "refuses", "un_lucky", "published")
    assert laid.blocks[0].groups[0][1][0][0] == "first_case"


def test_along_numbers_the_end_counts_and_texts_have_rows(curve):
    suite, table = curve
    assert len(table.filter(method="mean")) == 2 * 4
    found = entries(suite, table, suite.measures[0])
    assert found[("a", "start"), "mean"].values == {0: 1.0, 1: 2.0}
    assert found[("a", "end"), "mean"].values == {0: 0.1, 1: 1.1}
    assert found[("a", "end"), "refuses"].refused == 2
    text = markdown(layout(suite, table))
    assert "| **a, start** |" in text
    assert "Along stage, steps the last point counts." not in text
    assert "Along steps the last point counts." in text


def test_a_measure_has_rows_where_it_was_taken_and_may_be_left_out(tmp_path):
    def measure(fitted, data, cell):
        noise = [{"stage": f"s{i}", "error": 1.0, "size": 2.0} for i in range(30)]
        return [*noise, {"stage": "end", "bound": 3.0}]

    suite = tiny.suite(measure=measure, along=("stage",), cases=[Case("a", tiny.load)])
    measures = [Measure("error"), Measure("size", shown=False), Measure("bound")]
    suite = dataclasses.replace(suite, measures=measures)
    blocks = {block.title: block for block in layout(suite, run(suite, tmp_path)).blocks}
    rows = {title: [name for name, _ in block.groups[0][1]] for title, block in blocks.items()}
    assert rows["error"] == [f"a, s{i}" for i in range(30)]
    assert rows["bound"] == ["a, end"]
    assert rows["seconds (s)"] == ["a"]
    (_, (first, *_)), *_ = blocks["seconds (s)"].groups[0][1]
    assert first.mean == "0.0"
    assert "size" not in rows


def test_every_file_is_written(failed, curve, tmp_path):
    suite, table = failed
    found = write(suite, table, tmp_path, tmp_path / "pages/tiny.md")
    assert "- **held**: a mean is better (1.1 < 2)\n- **not decided**: more" in str(found)
    assert pl.read_csv(tmp_path / "table.csv")["error"].drop_nulls().is_not_nan().sum() == 16
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert (tmp_path / "pages/images/benchmark-tiny.png").exists()
    page = (tmp_path / "page.md").read_text()
    for part in (
        "# tiny\n\nIs a mean better than a guess?\n\nAbout the tiny rows.",
        "zoo benchmark tiny --budget quick",
        "- **held**: a mean is better",
        "![Is a mean better than a guess?](figure.png)",
        "- first\\_case, un\\_lucky, seed 1: failed: ArithmeticError: no luck; tiny.py, line ",
        "seed 0, 1, 2: refused: CannotServe: Guess cannot serve",
        "- method **un\\_lucky**: step 0.1",
        "1 thread a cell",
        "- method **guess** (a baseline): nothing to set",
        "(PPCA)",
    ):
        assert part in page, part
    keys = ("latentzoo", "fisher1936use", "tipping1999probabilistic", "scrucca2016mclust")
    assert all(f"{{{key}," in (tmp_path / "cite.bib").read_text() for key in keys)
    assert "% To cite, with cite.bib: \\cite{latentzoo," in (tmp_path / "table.tex").read_text()
    write(suite, table.filter(case="second"), tmp_path / "second")
    assert "fisher1936use" not in (tmp_path / "second/cite.bib").read_text()
    assert "(images/benchmark-tiny.png)" in (tmp_path / "pages/tiny.md").read_text()

    suite, table = curve
    write(suite, table, tmp_path)
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert "## Claims" not in (tmp_path / "page.md").read_text()


def test_arrays(failed, curve, tmp_path):
    suite, table = failed
    write(suite, table, tmp_path)
    with xr.open_dataset(tmp_path / "table.nc") as stored:
        assert stored["error"].dims == ("case", "method", "seed")
        assert stored["error"].attrs["units"] == "units^2"
        assert stored["seconds"].attrs["units"] == "s"
        value = table.filter(case="second", method="guess", seed=2)["error"].item()
        assert stored["error"].sel({"case": "second", "method": "guess", "seed": 2}).item() == value
        assert np.isnan(stored["error"].sel({"method": "un_lucky", "seed": 1})).all()
        assert stored["status"].sel({"case": "second", "method": "un_lucky"}).values.tolist() == [
            "done",
            "failed",
            "done",
        ]
        assert stored.attrs["budget"] == "quick"
        assert {"case": "first_case", "of": "error", "value": 1.05}.items() <= json.loads(stored.attrs["published"])[
            0
        ].items()
    suite, table = curve
    write(suite, table, tmp_path)
    with xr.open_dataset(tmp_path / "table.nc") as stored:
        assert stored["error"].dims == ("case", "method", "seed", "point")
        point = stored.sel({"case": "a", "method": "guess", "seed": 1}).isel(point=3)
        assert (point["stage"].item(), point["steps"].item(), point["error"].item()) == ("end", 10.0, 1.1)


def test_latex_escapes_and_marks():
    assert escaped("50% of x_1 & {\N{GREEK SMALL LETTER SIGMA}} ± \\ é") == (
        r"50\% of x\_1 \& \{$\sigma$\} $\pm$ \textbackslash{} é"
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex with booktabs")
def test_latex_compiles(failed, tmp_path):
    suite, table = failed
    case = Case(
        "50% of x_1 & {\N{GREEK SMALL LETTER SIGMA}} #^~", tiny.load, published={"size": Published(-1.0, "A & B <1>")}
    )
    copies = [table.filter(case="second").with_columns(pl.lit(f"{i} {case.name}").alias("case")) for i in range(60)]
    for number, rows in enumerate([table, pl.concat(copies)]):
        text = latex(layout(suite, rows), suite.name, suite.question)
        (tmp_path / f"{number}.tex").write_text(document(text), encoding="utf-8")
        words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{number}.tex"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Overfull \\hbox" not in done.stdout, done.stdout
        assert (tmp_path / f"{number}.pdf").exists()
