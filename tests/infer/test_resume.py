"""A fit that was interrupted and resumed equals one that was not, to the bit; its checkpoint is whole at any time."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pyro
import pytest
import torch

import guides
import zoo

SCRIPT = """
import sys, torch, zoo
from test_resume import BATCHES, vae, rows
x = rows()
zoo.fit(*vae(x), x, checkpoint=sys.argv[1], resume=True, progress=False, **BATCHES | {"steps": int(sys.argv[2])})
"""


def rows(n=120):
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(n, 2, generator=generator) @ torch.randn(2, 4, generator=generator)
    return low + 0.5 * torch.randn(n, 4, generator=generator)


def vae(x, **settings):
    torch.manual_seed(0)
    model = zoo.VAE(x.shape[1], 2, hidden=(6,), **settings)
    return model, guides.Amortized(model, x, hidden=(6,))


def mixture(x):
    torch.manual_seed(0)
    model = zoo.BayesianGMM(4, 2, means="independent").double()
    return model, guides.MeanField(model, x, family="conjugate")


def natural(x, size):
    model, guide = mixture(x.double())
    options = {"optim": zoo.infer.NaturalGradient(guide), "loss": zoo.infer.ClosedFormELBO(), "batch_size": size}
    return model, guide, x.double(), {"steps": 24, "every": 5} | options


def searched(x, model, family):
    model = model.double()
    return model, family(model, x.double()), x.double(), {"steps": 24, "every": 5}


def noisy(x):
    return x + 0.01 * torch.randn_like(x)


BATCHES = {"batch_size": 50, "steps": 24, "every": 5}
KINDS = {
    "minibatches": lambda x: (*vae(x), x, BATCHES),
    "a graph": lambda x: (*vae(x), x, BATCHES | {"capture": True, "batch_size": 40}),
    "held-out rows": lambda x: (*vae(x), x[:90], BATCHES | {"validation": x[90:], "patience": 2, "steps": 200}),
    "held correlations": lambda x: (*vae(x, covariance="full"), x, BATCHES | {"steps": 270, "every": 100}),
    "annealing": lambda x: (
        *vae(x),
        x,
        BATCHES
        | {"loss": zoo.infer.AnnealedELBO(beta=zoo.infer.linear_warmup(20)), "transform": noisy, "capture": True},
    ),
    "an optimizer of Pyro": lambda x: (
        *vae(x),
        x,
        BATCHES | {"optim": pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.99})},
    ),
    "a scheduler of Pyro": lambda x: (
        *vae(x),
        x,
        BATCHES
        | {
            "optim": pyro.optim.ExponentialLR(
                {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.99}
            )
        },
    ),
    "natural gradients": lambda x: natural(x, None),
    "natural gradients on minibatches": lambda x: natural(x, 50),
    "a line search": lambda x: searched(x, zoo.FactorAnalysis(4, 1), lambda m, _: guides.Exact(m)),
    "a projected line search": lambda x: searched(x, zoo.FactorAnalysis(4, 1), guides.MeanField),
    "an autoguide": lambda x: searched(x, zoo.PPCA(4, 2), lambda m, _: pyro.infer.autoguide.AutoNormal(m)),
}


def stop_at(step, number=signal.SIGINT):
    """A callback that sends a signal to this very process."""
    return lambda now, _: os.kill(os.getpid(), number) if now == step else None


def state(run):
    parts = [*run.model.state_dict().values(), *run.guide.state_dict().values(), run.losses]
    return parts if run.validation is None else [*parts, run.validation]


def same(one, other):
    ours, theirs = ({k: v for k, v in run.settings.items() if k != "seconds"} for run in (one, other))
    return ours == theirs and one.converged == other.converged and all(map(torch.equal, state(one), state(other)))


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(kind, tmp_path):
    model, guide, x, options = KINDS[kind](rows())
    whole = zoo.fit(model, guide, x, progress=False, **options)
    steps = whole.steps
    for stop in (steps // 3, steps // 3 + 1):  # within an epoch
        model, guide, x, options = KINDS[kind](rows())
        with pytest.raises(KeyboardInterrupt, match="resume=True"):
            zoo.fit(
                model,
                guide,
                x,
                checkpoint=tmp_path / "run",
                resume=True,
                callbacks=[stop_at(stop)],
                progress=False,
                **options,
            )
        kept = zoo.load(tmp_path / "run", model=model, guide=guide)
        assert torch.equal(kept.losses, whole.losses[: stop + 1])
    for _ in range(2):  # the second time the fit has ended
        model, guide, x, options = KINDS[kind](rows())
        assert same(
            zoo.fit(model, guide, x, checkpoint=tmp_path / "run", resume=True, progress=False, **options), whole
        )
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["parameters.safetensors", "settings.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.fixture
def stopped(tmp_path):
    """The checkpoint of a fit that was interrupted, and the very objects that it has trained."""
    x = rows()
    model, guide = vae(x)
    with pytest.raises(KeyboardInterrupt):
        zoo.fit(model, guide, x, checkpoint=tmp_path / "run", callbacks=[stop_at(8)], progress=False, **BATCHES)
    return tmp_path / "run", model, guide, x


def test_the_same_objects_go_on(stopped):
    folder, model, guide, x = stopped
    run = zoo.fit(model, guide, x, checkpoint=folder, resume=True, progress=False, **BATCHES)
    assert same(run, zoo.fit(*vae(x), x, progress=False, **BATCHES))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("batch_size=50, and this one has batch_size=40", {"batch_size": 40}),
        ("seed=0, and this one has seed=1", {"seed": 1}),
        ("steps=24", {"steps": 25}),
        ("loss=Trace_ELBO", {"loss": zoo.infer.IWAE(2)}),
        ("optim=Fused", {"optim": pyro.optim.Adam({"lr": 0.1})}),
        ("transform=None", {"transform": noisy}),
        ("validation=None", {"validation": rows()[:7]}),
        ("weights=None", {"weights": torch.ones(120)}),
    ],
)
def test_another_fit_is_refused(name, changed, stopped):
    folder, _, _, x = stopped
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ValueError, match=f"holds a fit with {name}.*choose another folder"):
        zoo.fit(*vae(x), x, checkpoint=folder, resume=True, progress=False, **BATCHES | changed)
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_another_pair_and_other_rows_are_refused(stopped, tmp_path):
    folder, model, _, x = stopped
    for name, pair, data in (
        ("model", vae(x, noise="constant"), x),
        ("guide", (vae(x)[0], guides.Amortized(model, x, hidden=(5,))), x),
        ("x", vae(x), x + 1e-7),
    ):
        with pytest.raises(ValueError, match=f"holds a fit with {name}="):
            zoo.fit(*pair, data, checkpoint=folder, resume=True, progress=False, **BATCHES)
    zoo.fit(*vae(x), x, steps=2, progress=False).save(tmp_path / "saved")
    with pytest.raises(ValueError, match="holds a run, and not the checkpoint of a fit"):
        zoo.fit(*vae(x), x, checkpoint=tmp_path / "saved", resume=True, progress=False, **BATCHES)
    with pytest.raises(FileExistsError, match="resume=True goes on from it"):
        zoo.fit(*vae(x), x, checkpoint=folder, progress=False, **BATCHES)
    with pytest.raises(ValueError, match="resume=True needs the folder"):
        zoo.fit(*vae(x), x, resume=True, progress=False, **BATCHES)


def test_a_state_that_cannot_be_written_is_named(tmp_path):
    class Odd:
        def see(self, fit):
            return None

        def get_state(self):
            return {"lock": threading.Lock()}

        def set_state(self, state):
            raise AssertionError

    x = rows()
    with pytest.raises(KeyboardInterrupt):
        zoo.fit(*vae(x), x, checkpoint=tmp_path, callbacks=[Odd(), stop_at(8)], progress=False, **BATCHES)
    assert len(zoo.load(tmp_path).losses) == 9
    with pytest.raises(ValueError, match=r"cannot be resumed: .*\['lock'\] is of type lock"):
        zoo.fit(*vae(x), x, checkpoint=tmp_path, resume=True, callbacks=[Odd()], progress=False, **BATCHES)


def test_sigterm_ends_a_fit_with_its_status(tmp_path, capsys):
    x = rows()
    with pytest.raises(SystemExit) as caught:
        zoo.fit(*vae(x), x, checkpoint=tmp_path, callbacks=[stop_at(8, signal.SIGTERM)], progress=False, **BATCHES)
    assert caught.value.code == 143
    assert "SIGTERM: after 9 steps the fit is saved in" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_killed_write_leaves_the_whole_checkpoint_and_is_cleared(stopped, monkeypatch):
    folder, model, guide, x = stopped
    noted = json.loads((folder / "settings.json").read_text())
    host, pid, _, rest = noted["going_on"]["owner"].split("-")
    gone = f"{host}-{pid}-1-{rest}"  # this process's number, of an earlier start
    (folder / f"parameters-{gone}.safetensors").write_bytes(b"half")
    (folder / f"state-{gone}.safetensors").write_bytes(b"half")
    (folder / f".zoo-{gone}.json").write_bytes(b"half")
    assert len(zoo.load(folder, model=model, guide=guide).losses) == 9
    zoo.fit(*vae(x), x, checkpoint=folder, resume=True, progress=False, **BATCHES)
    assert sorted(p.name for p in folder.iterdir()) == ["parameters.safetensors", "settings.json"]


@pytest.mark.slow
def test_fifty_fits_that_were_killed_at_random(tmp_path):
    chance, x, steps = random.Random(0), rows(), 3000
    whole = zoo.fit(*vae(x), x, progress=False, **BATCHES | {"steps": steps})
    kills = {signal.SIGKILL: 0, signal.SIGINT: 0, signal.SIGTERM: 0}
    here = os.path.dirname(__file__)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    number = 0
    while sum(kills.values()) < 50:
        folder, number = tmp_path / str(number), number + 1
        while not (folder / "parameters.safetensors").exists() and sum(kills.values()) < 50:
            command = [sys.executable, "-c", SCRIPT, str(folder), str(steps)]
            with subprocess.Popen(command, env=env, stderr=-1, text=True) as process:
                while process.poll() is None and not (folder / "settings.json").exists():
                    time.sleep(0.01)
                time.sleep(chance.uniform(0.0, 1.5))
                how = chance.choice(list(kills))
                process.send_signal(how)
                process.communicate()
            kills[how] += process.returncode != 0
            if folder.exists():
                run = zoo.load(folder)  # whole
                assert torch.equal(run.losses, whole.losses[: run.steps])
        model, guide = vae(x)
        options = BATCHES | {"steps": steps}
        assert same(zoo.fit(model, guide, x, checkpoint=folder, resume=True, progress=False, **options), whole)
        assert sorted(p.name for p in folder.iterdir()) == ["parameters.safetensors", "settings.json"]
    assert all(kills.values())
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".zoo")] == []
