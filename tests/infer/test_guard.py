"""What a fit keeps on its way: early stopping, the last good parameters, checkpoints, batches that are transformed."""

import os

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

import zoo
from guides import Amortized, Exact, MeanField
from zoo.infer.guard import Diverged, UnboundedLikelihood
from zoo.infer.optim.fused import Fused
from zoo.infer.running import copied, put_back


def pair(x, hidden=(16,)):
    """A small VAE with an encoder."""
    model = zoo.VAE(x.shape[1], 2, hidden=hidden).to(x)
    return model, Amortized(model, x, hidden=hidden)


def adam(lr=0.03):
    return Fused(torch.optim.Adam, {"lr": lr})


def values(*modules):
    return [p.detach().clone() for m in modules for p in m.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Breaks(Trace_ELBO):
    """A loss whose gradient turns to NaN after some steps."""

    def __init__(self, after):
        super().__init__()
        self.after, self.count = after, 0

    def loss_and_grads(self, model, guide, *args, **kwargs):
        value = super().loss_and_grads(model, guide, *args, **kwargs)
        self.count += 1
        if self.count == self.after:
            for p in model.parameters():
                p.grad.fill_(torch.nan)
        return value


# Early stopping.


def test_patience_keeps_the_best_parameters(some):
    torch.manual_seed(0)
    model, guide = pair(some)
    seen = {}

    def remember(step, _):
        seen[step] = values(model, guide)

    run = zoo.fit(
        model,
        guide,
        some[:20],  # few rows and a large rate: it overfits
        steps=3000,
        optim=adam(0.05),
        validation=some[20:],
        patience=5,
        every=10,
        callbacks=[remember],
    )
    steps, bounds = run.validation.T.tolist()
    best = bounds.index(min(bounds))
    assert run.converged
    assert run.settings["best_step"] == steps[best]
    assert len(bounds) == best + 1 + 5
    assert len(run.losses) < 3000
    assert same(values(model, guide), seen[int(steps[best])])


def test_a_bound_that_gets_better_runs_to_the_end(some):
    model = zoo.PPCA(4, 2).double()
    run = zoo.fit(
        model, Exact(model), some, steps=60, optim=adam(), validation=some, patience=2, every=10, start="random"
    )
    assert not run.converged
    assert len(run.losses) == 60


def test_patience_needs_held_out_rows(some):
    model, guide = pair(some)
    with pytest.raises(ValueError, match="patience needs held-out rows: pass validation"):
        zoo.fit(model, guide, some, patience=3)
    with pytest.raises(ValueError, match="every must be a whole number"):
        zoo.fit(model, guide, some, every=0)


def test_a_guide_of_the_rows_of_x_has_no_held_out_bound(some):
    model = zoo.PPCA(4, 2).double()
    with pytest.raises(ValueError, match="not for the 9 of validation: use Amortized or Exact"):
        zoo.fit(model, MeanField(model, some), some, validation=some[:9])


def test_held_out_rows_are_taken_in_chunks(some, monkeypatch):
    model = zoo.PPCA(4, 2).double()
    whole = zoo.fit(model, Exact(model), some, steps=1, optim=adam(), validation=some).validation[0, 1].item()
    monkeypatch.setattr("zoo.base.memory.NUMBERS", 4 * 7)
    other = zoo.PPCA(4, 2).double()
    chunked = zoo.fit(other, Exact(other), some, steps=1, optim=adam(), validation=some).validation[0, 1].item()
    assert chunked == pytest.approx(whole, abs=1e-9)


# A loss that is no number.


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's own word on it
@pytest.mark.parametrize("held_out", [False, True])
def test_a_loss_that_turns_nan(some, tmp_path, held_out, untouched):
    torch.manual_seed(0)
    model, guide = pair(some)
    held = {"validation": some[40:]} if held_out else {}
    before = {}

    def remember(step, _):
        before[step] = values(model, guide)

    with untouched():
        with pytest.raises(Diverged, match=r"the loss is nan at step 200 .* has nan") as caught:
            zoo.fit(
                model,
                guide,
                some[:40],
                steps=500,
                every=50,
                loss=Breaks(200),
                optim=adam(),
                checkpoint=tmp_path / "run",
                callbacks=[remember],
                **held,
            )
        error = caught.value
        assert error.step == 200
        assert len(error.run.losses) == 200
        assert same(values(model, guide), before[149])  # as they were for the loss of step 150, which was a number
        kept = zoo.load(tmp_path / "run")
        if held_out:
            wanted = before[kept.settings["best_step"]]
            assert kept.settings["best_step"] == kept.validation[kept.validation[:, 1].argmin(), 0]
        else:
            wanted = before[149]
        assert same(values(kept.model, kept.guide), wanted)
        assert zoo.fit(model, guide, some[:40], steps=3, optim=adam()).losses.isfinite().all()


@pytest.mark.filterwarnings("ignore:Encountered")
def test_the_error_names_the_site(some):
    model, guide = pair(some)
    steps = []

    def spoil(batch):
        return batch if len(steps) < 7 else batch.fill_(torch.inf)

    with pytest.raises(Diverged, match="the loss is nan at step 7 .site 'z' has values of nan") as caught:
        zoo.fit(model, guide, some, batch_size=20, transform=spoil, callbacks=[lambda step, _: steps.append(step)])
    assert caught.value.site == "z"


# Checkpoints.


def test_an_interrupted_run_is_on_disk(some, tmp_path):
    model, guide = pair(some)

    def interrupt(step, _):
        if step == 37:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zoo.fit(model, guide, some, steps=100, every=10, checkpoint=tmp_path / "a" / "run", callbacks=[interrupt])
    run = zoo.load(tmp_path / "a" / "run")
    assert len(run.losses) in (11, 21, 31)  # those of its parameters
    assert not run.converged
    assert zoo.fit(run.model, run.guide, some, steps=5).losses[0] < run.losses[0]  # it goes on from there


def test_the_checkpoint_of_a_whole_fit_is_the_fit(some, tmp_path):
    (tmp_path / "run").mkdir()
    model, guide = pair(some)
    run = zoo.fit(model, guide, some, steps=25, every=10, checkpoint=tmp_path / "run", validation=some, patience=9)
    kept = zoo.load(tmp_path / "run")
    assert same(values(kept.model, kept.guide), values(model, guide))
    assert torch.equal(kept.losses, run.losses)
    assert torch.equal(kept.validation, run.validation)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_takes_no_folder_of_others(some, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    model, guide = pair(some)
    start = values(model, guide)
    with pytest.raises(FileExistsError, match="contains other files"):
        zoo.fit(model, guide, some, checkpoint=tmp_path)
    assert same(values(model, guide), start)


def test_what_others_put_beside_a_checkpoint_stays(some, tmp_path):
    model, guide = pair(some)

    def note(step, _):
        if step == 15:
            (tmp_path / "run" / "note.txt").write_text("mine")

    zoo.fit(model, guide, some, steps=30, every=10, checkpoint=tmp_path / "run", callbacks=[note])
    assert (tmp_path / "run" / "note.txt").read_text() == "mine"
    assert len(zoo.load(tmp_path / "run").losses) == 30


def test_a_checkpoint_that_cannot_be_replaced_leaves_the_old_one(some, tmp_path, monkeypatch):
    model, guide = pair(some)
    run = zoo.fit(model, guide, some, steps=3, checkpoint=tmp_path / "run")
    held = sorted(p.name for p in (tmp_path / "run").iterdir())
    move = os.replace

    def fail(source, target):
        if str(target).endswith("settings.json"):
            monkeypatch.undo()
            raise OSError("no space left")
        move(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        zoo.infer.storage.checkpoint.replace(run, tmp_path / "run")
    assert len(zoo.load(tmp_path / "run").losses) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == held == ["parameters.safetensors", "settings.json"]


# What a step sees.


def test_batches_are_transformed(some):
    seen = []

    def halve(batch):
        seen.append(len(batch))
        return batch / 2

    model, guide = pair(some)
    run = zoo.fit(model, guide, some, steps=9, batch_size=20, transform=halve, validation=some[:9])
    assert seen.count(20) >= 9
    assert 9 in seen
    assert run.settings["transform"] == "halve"


def test_a_full_batch_that_is_drawn_anew_is_no_case_for_a_line_search(some):
    model = zoo.PPCA(4, 2).double()
    run = zoo.fit(model, Exact(model), some, steps=5, transform=lambda x: x + 0.1 * torch.randn_like(x))
    assert run.settings["optimizer"] == "Fused"


def test_a_transform_keeps_the_shape(some):
    model, guide = pair(some)
    with pytest.raises(ValueError, match=r"transform turns x's rows \(60, 4\) into \(60, 3\)"):
        zoo.fit(model, guide, some, transform=lambda x: x[:, :3])


def test_mixed_precision_keeps_the_parameters_type(some):
    x = some.float()
    model, guide = pair(x, hidden=(64,))
    plain = zoo.fit(*pair(x, hidden=(64,)), x, steps=100, optim=adam(0.01))
    run = zoo.fit(model, guide, x, steps=100, optim=adam(0.01), autocast=torch.bfloat16)
    assert {p.dtype for p in values(model, guide)} == {torch.float32}
    assert run.losses[-20:].mean() == pytest.approx(plain.losses[-20:].mean(), abs=0.5)


def test_copies_hold_what_the_store_holds():
    with pyro.get_param_store().scope():
        loose = pyro.param("loose", torch.ones(3))
        copy = copied()
        with torch.no_grad():
            loose.fill_(torch.nan)
        put_back(copy)
        assert torch.equal(loose, torch.ones(3))


# The floor.


@pytest.mark.parametrize(
    ("covariance", "columns"), [("diag", 64), pytest.param("low_rank", 64, marks=pytest.mark.slow), ("full", 30)]
)
def test_an_unbounded_likelihood_is_named(covariance, columns):
    """A flexible decoder whose floor is as good as none, on fifty rows."""
    torch.manual_seed(0)
    x = zoo.data.load("digits", dtype=torch.float64).x[:50, :columns]
    x = x[:, x.amax(0) > x.amin(0)]
    model = zoo.VAE(x.shape[1], 8, hidden=(128,), floor=1e-10, covariance=covariance).double()
    with pytest.warns(UnboundedLikelihood, match="there the likelihood is unbounded"):
        run = zoo.fit(model, Amortized(model, x), x, steps=1000, optim=adam(0.005))
    assert run.settings["at_floor"] > 0.05


def test_a_covariance_that_is_none_any_more(some):
    model = zoo.VAE(4, 2, hidden=(8,), covariance="full").double()
    guide = Amortized(model, some)
    start = values(model, guide)

    def spoil(step, _):
        if step == 4:
            with torch.no_grad():
                model.scale[-1].bias.fill_(1e160)

    with pytest.raises(Diverged, match="at step 5 .*linalg.cholesky"):
        zoo.fit(model, guide, some, steps=9, optim=adam(), callbacks=[spoil])
    assert not same(values(model, guide), start)
    assert all(v.isfinite().all() for v in values(model, guide))


def test_a_bounded_one_is_not(some):
    model, guide = pair(some)
    assert zoo.fit(model, guide, some, steps=300, optim=adam()).settings["at_floor"] < 0.05
    counts = zoo.VAE(4, 2, hidden=(8,), likelihood="poisson").double()
    x = some.round()
    assert "at_floor" not in zoo.fit(counts, Amortized(counts, x), x, steps=3).settings
