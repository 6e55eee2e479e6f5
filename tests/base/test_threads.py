"""How many threads a computation runs on: suited to its work, never above the caller's, and restored."""

import threading

import pytest
import torch

import guides
import zoo
from zoo.base import threads
from zoo.base.threads import PER_THREAD, enough, exactly, on_suited_threads, suited, work_of
from zoo.diagnostics.guide import calibration


@pytest.fixture
def eight():
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


class Threads:
    """A watcher that notes the number of threads of every step."""

    def __init__(self):
        self.seen = set()

    def see(self, fit):
        self.seen.add(torch.get_num_threads())


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("work", "expected"), [(1e3, 1), (3 * PER_THREAD, 3), (1e12, 8)])
def test_as_many_as_pay_and_no_more_than_the_callers(work, expected):
    with suited(work):
        assert torch.get_num_threads() == expected
        with suited(1.0):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 8


@pytest.mark.usefixtures("eight")
def test_restored_after_an_error_and_left_alone_on_other_devices():
    with pytest.raises(RuntimeError, match="inside"), suited(1.0):
        raise RuntimeError("inside")
    assert torch.get_num_threads() == 8
    with suited(1.0, "meta"):
        assert torch.get_num_threads() == 8
    with exactly(None):
        assert torch.get_num_threads() == 8
    with pytest.raises(ValueError, match="threads"), exactly(0):
        pass


def test_work_counts_what_all_rows_share(iris):
    model = zoo.PPCA(4, 2)
    shared = sum(p.numel() for p in model.parameters())
    assert work_of(iris.shape, model) == 150 * shared
    assert work_of(iris.shape, model, guides.MeanField(model, iris.float())) == 150 * shared
    assert work_of(iris.shape, model, rows=10) == 10 * shared
    assert work_of(iris.shape) == 150 * 4
    assert enough(work_of((60_000, 784), zoo.VAE(784, 20), rows=4_096)) > 8


@pytest.mark.usefixtures("eight")
def test_small_fits_run_on_one_thread(iris, monkeypatch):
    seen, step = Threads(), zoo.PPCA.em_step
    model = zoo.PPCA(4, 2).double()
    zoo.fit(model, guides.Amortized(model, iris), iris, steps=2, callbacks=[seen], progress=False)
    monkeypatch.setattr(zoo.PPCA, "em_step", lambda self, x: (seen.see(None), step(self, x))[1])
    zoo.em(zoo.PPCA(4, 2).double(), iris, steps=2)
    assert seen.seen == {1}
    assert torch.get_num_threads() == 8


@pytest.mark.usefixtures("eight")
def test_refusals_and_failures_leave_the_number_alone(iris):
    model = zoo.PPCA(4, 2).double()
    guide = guides.Amortized(model, iris)
    with pytest.raises(ValueError, match="batch_size"):
        zoo.fit(model, guide, iris, batch_size=151, progress=False)

    def broken(step, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zoo.fit(model, guide, iris, callbacks=[broken], progress=False)
    with pytest.raises(ValueError, match="draws"):
        zoo.evaluate(zoo.Fit(model, guide), iris, draws=0)
    assert torch.get_num_threads() == 8


@pytest.mark.usefixtures("eight")
def test_reading_counts_draws():
    @on_suited_threads
    def read(run, x, *, draws=1):
        return torch.get_num_threads()

    model = zoo.PPCA(1000, 2)
    run, x = zoo.Fit(model, guides.Exact(model)), torch.zeros(1000, 1000)
    assert read(run, x) == 1
    assert read([run], x, draws=10) == enough(10 * work_of(x.shape, model)) > 1
    assert read(model, x, draws=1000) == 8
    with pytest.raises(TypeError, match="unexpected"):
        read(run, x, seeds=1)


@pytest.mark.usefixtures("eight")
def test_simulations_count_draws(monkeypatch, iris):
    model, seen, rank = zoo.PPCA(4, 2).double(), [], calibration.rank
    run = zoo.Fit(model, guides.Exact(model))
    monkeypatch.setattr(calibration, "rank", lambda *a, **k: (seen.append(torch.get_num_threads()), rank(*a, **k))[1])
    zoo.diagnostics.sbc(run, simulations=20, draws=10)
    monkeypatch.setattr(threads, "PER_THREAD", 5 * work_of((20, 1), model))
    zoo.diagnostics.sbc(run, simulations=20, draws=10)
    assert seen == [1, 2]
    assert torch.get_num_threads() == 8


@pytest.mark.usefixtures("eight")
def test_a_plan_shows_them(iris):
    model = zoo.PPCA(4, 2).double()
    plan = zoo.plan(model, guides.Exact(model), iris)
    assert plan.summary()["threads"] == "1"
    assert plan.work == work_of(iris.shape, model)
    wide = zoo.VAE(784, 20)
    x = torch.rand(3000, 784)
    plan = zoo.plan(wide, guides.Amortized(wide, x), x)
    assert plan.summary()["threads"] == str(min(8, enough(plan.work)))
    assert plan.work == work_of(x.shape, wide, guides.Amortized(wide, x), rows=plan.batch_size)


def in_a_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.mark.usefixtures("eight")
def test_a_thread_that_begins_during_a_small_fit_does_not_keep_its_number():
    found = []

    def late():
        with suited(5 * PER_THREAD):
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())

    with suited(1.0):
        in_a_thread(late)
        assert torch.get_num_threads() == 1
    assert found == [5, 8]
    assert torch.get_num_threads() == 8


@pytest.mark.usefixtures("eight")
def test_two_threads_at_once_keep_their_own_numbers():
    begun, done, found = threading.Event(), threading.Event(), {}

    def other():
        torch.set_num_threads(4)
        with suited(2 * PER_THREAD):
            begun.set()
            done.wait(10)
            found["inside"] = torch.get_num_threads()
        found["after"] = torch.get_num_threads()

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(10)
    with suited(1.0):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 8
    done.set()
    thread.join()
    assert found == {"inside": 2, "after": 4}
