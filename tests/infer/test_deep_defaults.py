"""What a deep model gets unasked: rows held out, whose best parameters are kept, minibatches, and a steady fit."""

import pytest
import torch
from pyro.infer import Trace_ELBO
from user_models import BatchDecoder

import guides
import zoo
from zoo.infer.deep_defaults import hold_out


@pytest.fixture(scope="module")
def digits():
    return zoo.data.load("digits").x.double()


def pair(x, family=guides.Amortized, **settings):
    torch.manual_seed(0)
    model = zoo.VAE(x.shape[1], 2, **settings).double()
    return model, family(model, x)


def test_a_first_vae_takes_minibatches_and_keeps_the_best_held_out_parameters(digits):
    plan = zoo.plan(*pair(digits), digits)
    assert (len(plan.x), len(plan.validation), plan.batch_size, plan.patience) == (1617, 180, 128, 20)
    assert "180 rows, whose best parameters are kept" in str(plan)
    assert zoo.plan(*pair(digits), digits, batch_size=300).batch_size == 300


def test_few_rows_stay_in_one_batch(digits):
    plan = zoo.plan(*pair(digits[:300]), digits[:300])
    assert (len(plan.x), len(plan.validation), plan.batch_size) == (270, 30, None)
    assert zoo.plan(*pair(digits[:199]), digits[:199]).validation is None


@pytest.mark.parametrize(
    ("family", "settings", "options"),
    [
        (guides.MeanField, {}, {}),  # holds parameters of its own rows
        (guides.Amortized, {"hidden": (), "noise": "constant"}, {}),  # no noise: a line search over all rows
        (guides.Amortized, {}, {"loss": Trace_ELBO()}),
        (guides.Amortized, {}, {"patience": 0}),
    ],
    ids=["rows", "linear", "loss", "patience"],
)
def test_nothing_is_held_out_where_it_cannot_or_need_not_be(digits, family, settings, options):
    plan = zoo.plan(*pair(digits, family, **settings), digits, **options)
    assert (len(plan.x), plan.validation, plan.patience) == (1797, None, None)


def test_covariates_of_the_rows_keep_all_rows_together(digits):
    x = digits[:300, :5]
    model = BatchDecoder(torch.zeros(300, 1).double(), data_dim=5)
    assert zoo.plan(model, guides.Amortized(model, x), x).validation is None


def test_given_rows_are_used_as_they_are(digits):
    plan = zoo.plan(*pair(digits[:1500]), digits[:1500], validation=digits[1500:], patience=3)
    assert (len(plan.x), len(plan.validation), plan.batch_size, plan.patience) == (1500, 297, 128, 3)


def test_held_out_rows_are_apart_and_follow_the_seed():
    x = torch.arange(500.0).unsqueeze(1)
    train, held_out = hold_out(x, 0)
    assert torch.equal(torch.cat([train, held_out]).sort(0).values, x)
    assert torch.equal(held_out, hold_out(x, 0)[1])
    assert not torch.equal(held_out, hold_out(x, 1)[1])
    assert len(hold_out(torch.zeros(50_000, 1), 0)[1]) == 1000


@pytest.mark.filterwarnings("ignore::zoo.infer.guard.UnboundedLikelihood")  # pixels that hardly vary
def test_training_is_steady_and_ends_at_the_best_held_out_parameters(digits):
    model, guide = pair(digits)
    copies = {}

    def copy(step, loss):
        if step % 50 == 0 or step == 599:
            copies[step] = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]

    run = zoo.fit(model, guide, digits, steps=600, every=50, seed=1, callbacks=[copy], progress=False)
    blocks = run.losses[100:].reshape(10, 50).mean(1)
    assert (blocks <= blocks.cummin(0).values + 2.0).all()  # nats per row: no block falls far behind the best before it
    best = run.settings["best_step"]
    assert best == run.validation[run.validation[:, 1].argmin(), 0]
    for kept, copied in zip((*model.parameters(), *guide.parameters()), copies[best], strict=True):
        assert torch.equal(kept, copied)
