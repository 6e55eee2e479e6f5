"""Densities and posteriors of linear-Gaussian models whose signal is far above the noise, against 60 digits."""

import mpmath as mp
import pytest
import torch
from torch import Tensor

import zoo
from zoo.algebra import linear_gaussian


def example(signal: float, unequal: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (3, 6), loadings (6, 2) with this ratio to the noise in one factor or both, mean (6,) and noise (6,)."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight = draw(6, 2) * torch.tensor([signal, 1.0 if unequal else signal], dtype=torch.float64)
    noise, mean = 0.5 + draw(6).square(), draw(6)
    return draw(3, 2) @ weight.T + mean + noise.sqrt() * draw(3, 6), weight, mean, noise


def exact(x: Tensor, weight: Tensor, mean: Tensor, noise: Tensor) -> list[tuple[mp.mpf, list[mp.mpf]]]:
    """Of every row: its log density, and the posterior's mean."""
    with mp.workdps(60):
        loadings = mp.matrix(weight.tolist())
        covariance = loadings * loadings.T + mp.diag([mp.mpf(v) for v in noise.tolist()])
        logdet = mp.log(mp.det(covariance))
        found = []
        for row in x.tolist():
            offset = mp.matrix(row) - mp.matrix(mean.tolist())
            solved = mp.lu_solve(covariance, offset)
            density = -(len(row) * mp.log(2 * mp.pi) + logdet + (offset.T * solved)[0]) / 2
            found.append((density, list(loadings.T * solved)))
        return found


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("signal", [1e2, 1e5, 1e7, 1e8, 1e10])
def test_as_precise_as_the_rows_themselves(signal: float, unequal: bool, missing: bool) -> None:
    x, weight, mean, noise = example(signal, unequal)
    known = exact(x, weight, mean, noise)
    if missing:  # a further row, which sends all of them through the algebra of incomplete rows
        x = torch.cat([x, x[:1].clone().index_fill_(1, torch.tensor([2]), torch.nan)])
    density = linear_gaussian.log_marginal(x, weight, mean, noise)
    q = linear_gaussian.posterior(x, weight, mean, noise)
    for i, (log_p, loc) in enumerate(known):
        assert float(abs(density[i].item() - log_p) / abs(log_p)) < 1e-14 * signal + 1e-13
        error = max(float(abs(found - true)) for found, true in zip(q.mean[i].tolist(), loc, strict=True))
        assert error < 1e-14 * signal + 1e-13  # in units of the prior
    precision = torch.eye(2, dtype=torch.float64) + (weight.T / noise) @ weight
    if signal < 1e7:
        torch.testing.assert_close(q.covariance_matrix[0] @ precision, torch.eye(2).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("missing", [False, True])
def test_a_signal_beyond_the_numbers_is_refused(missing: bool) -> None:
    x, weight, mean, noise = example(1e14, False)
    if missing:
        x[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="beyond the precision of float64: use fewer factors"):
        linear_gaussian.log_marginal(x, weight, mean, noise)
    with pytest.raises(FloatingPointError, match="beyond the precision of float32: make the model float64"):
        linear_gaussian.posterior(x.float(), weight.float(), mean.float(), noise.float())


@pytest.mark.parametrize("signal", [1e6, 1e8, 1e10])
def test_em_finds_noise_far_below_the_signal(signal: float) -> None:
    """The likelihood of PPCA changes with the unit of the strong directions as their variance does, and no more."""
    generator = torch.Generator().manual_seed(1)
    strong = torch.randn(200, 2, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 2.0])
    weak = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q

    def fitted(unit: float) -> tuple[float, zoo.PPCA]:
        model = zoo.PPCA(6, 2).double()
        return float(zoo.em(model, torch.cat([unit * strong, weak], 1) @ turn).log_likelihood[-1]), model

    near, _ = fitted(1e3)  # the weak columns hold a negligible share of the strong directions at either unit
    far, model = fitted(signal)
    assert far == pytest.approx(near - 200 * 2 * torch.tensor(signal / 1e3).log().item(), abs=1e-3)
    x = torch.cat([signal * strong, weak], 1) @ turn
    assert far == pytest.approx(model.log_marginal(x).sum().item(), rel=1e-15 * signal + 1e-11)
