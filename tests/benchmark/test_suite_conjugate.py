"""The suite ``conjugate``: optima that are known, refusals, a user's guide and model, and the quick budget whole."""

import pytest
import torch

from zoo.benchmark.named import named_suite
from zoo.benchmark.owning import own_named
from zoo.benchmark.problems import CONJUGATE, digits, simulated
from zoo.benchmark.running import run


def test_every_method_reaches_the_optimum(tmp_path):
    table = run(named_suite("conjugate"), tmp_path, only="iris PPCA 2")
    assert table["status"].to_list() == ["done"] * 11
    assert table["distance"].abs().max() < 1e-8  # scikit-learn's too, once its n - 1 is undone
    ours = table.filter(table["method"] != "scikit-learn")
    assert ours["gap"].abs().max() < 1e-8
    assert ours["mean_error"].max() < 1e-3
    assert ours.filter(ours["method"].str.ends_with("random start")).height == 5
    assert named_suite("conjugate").claims(table)[0].held


def test_mixtures_from_several_starts(tmp_path):
    chosen = ["scikit-learn", "Exact", "FullRank"]
    table = run(named_suite("conjugate"), tmp_path, only="faithful GMM 2", methods=chosen)
    assert table["status"].to_list() == ["done", "done", "refused"]
    assert table["log_marginal"].max() * 272 == pytest.approx(-1130.26396, abs=1e-3)
    assert table["distance"].max() < 1e-6


@pytest.mark.slow
def test_svi_with_conjugate_factors_reaches_coordinate_ascent(tmp_path):
    table = run(named_suite("conjugate"), tmp_path, only="BayesianPCA")
    assert table["method"].to_list() == ["CAVI", "MeanField"]
    assert table["distance"].abs().max() < 1e-6
    assert table["elbo"][0] * 150 == pytest.approx(-480.71257, abs=1e-4)
    assert table["log_marginal"].is_nan().all()


OWN = """
import torch
import guides, zoo


class Plain(guides.MeanField):
    pass


class Failing(zoo.PPCA):
    def __init__(self, data_dim, latent_dim=1):
        super().__init__(data_dim, latent_dim)
        if torch.initial_seed() == 3:
            raise RuntimeError("not in seed 3")
"""


def test_a_guide_and_a_model_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    own = own_named(guide=f"{tmp_path}/mine.py:Plain")
    table = run(named_suite("conjugate").with_own(own), tmp_path / "guide", only="iris PPCA", methods=["Plain"])
    assert table["distance"].abs().max() < 1e-8
    assert '"guide": "mine.py:Plain"' in table["method_protocol"][0]
    assert str(tmp_path) not in table["method_protocol"][0]

    own = own_named(f"{tmp_path}/mine.py:Failing", settings={"latent_dim": 2})
    suite = named_suite("conjugate").with_own(own)
    table = run(suite, tmp_path / "model", only="iris", methods=["Failing"], seeds=[2, 3, 4])
    assert table["case"].to_list() == ["iris PPCA 2"] * 3  # once for a data set
    assert table["status"].to_list() == ["done", "failed", "done"]
    assert "not in seed 3" in table["message"][1]
    assert table["distance"].drop_nans().abs().max() < 1e-6


def test_own_names_are_refused():
    with pytest.raises(ValueError, match="neither model nor guide is given"):
        own_named()
    with pytest.raises(ValueError, match="settings width are given without a guide"):
        own_named("PPCA", guide_settings={"width": 3})
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py"):
        own_named("nowhere.py:Model")


def test_simulated_rows_are_always_the_same():
    state = torch.get_rng_state()
    assert torch.equal(simulated(), simulated())
    assert torch.equal(state, torch.get_rng_state())
    assert digits().shape == (1797, 61)
    assert len({problem.name for problem in CONJUGATE}) == 14


@pytest.mark.slow
def test_quick(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    suite = named_suite("conjugate").with_own(
        own_named("PPCA", f"{tmp_path}/mine.py:Plain", settings={"latent_dim": 1})
    )
    table = run(suite, tmp_path, jobs=2)
    assert set(table["status"]) == {"done", "refused"}
    assert table.filter(method="PPCA, Plain")["distance"].is_finite().to_list() == [True] * 3
    assert all(claim.held for claim in named_suite("conjugate").claims(table))
