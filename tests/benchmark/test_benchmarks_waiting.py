"""What a user waits for: starting up, checks, pages, files, and the gain from threads; figures with ``-s -n 0``.

Seconds are those of the processor, which other work on the machine hardly changes.
"""

import resource
import statistics
import subprocess
import sys
import time

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from typer.testing import CliRunner

import guides
import zoo
from zoo.base.threads import PER_THREAD, enough, exactly, work_of
from zoo.commands.main import app
from zoo.report import report

pytestmark = pytest.mark.benchmarks


def of_a_process(*words):
    """CPU seconds of an interpreter, median of five."""
    found = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(found)


def seconds(call):
    start = time.process_time()
    call()
    return time.process_time() - start


@pytest.mark.parametrize("words", ["--help", "list"])
def test_the_command_starts_within_a_second(words):
    took = of_a_process("-c", f"from zoo.commands.main import app; app([{words!r}])")
    print(f"zoo {words}: {took:.2f} s")
    assert took < 1.0


def test_import_costs_no_more_than_pyro():
    pyro, own = of_a_process("-c", "import pyro"), of_a_process("-c", "import zoo")
    wings = of_a_process("-c", "import guides, zoo.diagnostics, zoo.export, zoo.factors, zoo.infer, zoo.models")
    ratios = f"x {own / pyro:.2f} and x {wings / pyro:.2f}"
    print(f"import pyro {pyro:.2f} s, zoo {own:.2f} s, every wing {wings:.2f} s: {ratios}")
    assert own < 1.1 * pyro


@pytest.mark.parametrize("family", [guides.Exact, guides.MeanField, guides.FullRank, guides.Amortized])
def test_diagnose_digits(family):
    x = zoo.data.load("digits", dtype=torch.float64).x
    model = zoo.PPCA(64, 10).double()
    zoo.em(model, x)
    guide = family(model) if family is guides.Exact else family(model, x)
    run = zoo.fit(model, guide, x, steps=20, progress=False)
    with exactly(1):
        took = seconds(lambda: zoo.diagnose(run, x))
    print(f"diagnose digits, PPCA 10, {family.__name__}: {took:.2f} s")
    assert took < 8.0


def test_report_holzinger(tmp_path):
    x = zoo.data.load("holzinger", dtype=torch.float64)
    model = zoo.FactorAnalysis(9, 3).double()
    run = zoo.fit(model, guides.MeanField(model, x.x), x.x, progress=False)
    with exactly(1):
        took = seconds(lambda: report(run, x, tmp_path / "report.html"))
    print(f"report Holzinger: {took:.2f} s")
    assert took < 6.0


def test_load_and_select_size(tmp_path):
    x = zoo.data.load("digits", dtype=torch.float64).x
    model = zoo.PPCA(64, 10).double()
    zoo.fit(model, guides.MeanField(model, x), x, steps=2, progress=False).save(tmp_path / "run")
    loading = seconds(lambda: zoo.load(tmp_path / "run"))
    sizes = [1, 5, 10]
    selecting = seconds(lambda: zoo.select_size(lambda k, rows: zoo.PPCA(64, k).double(), x, sizes, seeds=2))
    print(f"load {loading:.2f} s; select_size of {sizes} on the digits, 2 starts, 5 folds: {selecting:.1f} s")
    assert loading < 1.0


def test_first_command_writes_a_small_file(tmp_path):
    words = ["fit", "FactorAnalysis", "holzinger", "--guide", "MeanField", "-k", "3", "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(app, [*words, "--quiet"]).exit_code == 0
    size = (tmp_path / "run" / "arviz.nc").stat().st_size
    print(f"ArviZ file of the first command: {size / 1e6:.2f} MB")
    assert size < 5e6


def test_threads_of_a_step():
    """The time of a step by the number of threads, around the size from which a second one is used."""
    cores = torch.get_num_threads()
    loss = Trace_ELBO()
    for rows in (2**6, 2**8, 2**10, 2**12, 2**14):
        model, x = zoo.VAE(64, 4), torch.randn(rows, 64)
        guide = guides.Amortized(model, x)
        work = work_of(x.shape, model, guide)
        took = {}
        for count in sorted({1, 2, 4, 8, min(enough(work), cores)} & set(range(1, cores + 1))):
            with exactly(count), pyro.get_param_store().scope():
                loss.loss_and_grads(model, guide, x)
                start = time.perf_counter()
                for _ in range(20):
                    loss.loss_and_grads(model, guide, x)
                took[count] = (time.perf_counter() - start) / 20
        chosen = min(enough(work), cores)
        each = ", ".join(f"{count}: {1e3 * value:.2f} ms" for count, value in took.items())
        print(f"{work:.1e} multiply-adds, {chosen} threads chosen at {PER_THREAD:.0e} each; {each}")
        assert took[chosen] < 1.5 * min(took.values())
