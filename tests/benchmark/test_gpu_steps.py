"""The script for a GPU runs on a CPU as well, in small."""

import json

import gpu_steps
import pytest
import torch

pytestmark = pytest.mark.slow


def test_steps_by_hand_eager_and_captured(monkeypatch):
    monkeypatch.setattr(gpu_steps, "ROUNDS", 1)
    monkeypatch.delenv("LATENT_ZOO_DATA", raising=False)
    found = gpu_steps.measure("cpu", 16, 64, 20, hidden=8, latent=2)
    assert [row["kind"] for row in found] == ["by hand", "eager", "captured"]
    assert found[0]["ratio"] == 1
    assert all(row["rows_per_second"] * row["microseconds"] == pytest.approx(16e6) for row in found)


def test_the_protocol_writes_its_curve_and_ends_in_time(tmp_path, monkeypatch):
    torch.manual_seed(0)
    parts = tuple(torch.rand(count, 784).round() for count in (200, 50, 50))
    monkeypatch.setattr(gpu_steps, "mnist", lambda: parts)
    row = gpu_steps.protocol("cpu", 1.0, tmp_path, epochs=3)
    assert row["epochs"] == row["planned"] == 3
    assert json.loads((tmp_path / "protocol.json").read_text()) == row
    curve = (tmp_path / "curve.csv").read_text().splitlines()
    assert curve[0].startswith("epoch,seconds")
    assert len(curve) == 5
