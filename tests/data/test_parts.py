"""The input of a benchmark: splits, binarised pixels and fingerprints that come out the same anywhere."""

import hashlib
import json

import numpy as np
import pytest
import torch

from zoo.data import binarised, binarising, fingerprint, load, load_parts, rows_in_order, split_rows
from zoo.data.binarisation import BLOCK, _uniform

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def test_a_split_takes_every_row_once():
    split = split_rows(101, SHARES, seed=7)
    assert [len(split[name]) for name in split] == [61, 20, 20]
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(101))
    assert all((np.diff(rows) > 0).all() and rows.dtype == np.int64 for rows in split.values())


def test_a_split_is_that_of_its_seed_alone(untouched):
    with untouched():
        first, again, other = (split_rows(500, SHARES, seed) for seed in (3, 3, 4))
    assert first.checksum == again.checksum != other.checksum
    assert first.record() == again.record()
    assert json.loads(json.dumps(first.record())) == first.record()
    # Written down, so that another version of NumPy that changed the stream would be noticed.
    assert first["test"][:6].tolist() == [2, 15, 21, 24, 33, 40]
    assert first.checksum.startswith("2750abb00a12")


def test_the_checksum_knows_names_and_cuts():
    sums = {rows_in_order(sizes).checksum for sizes in ({"a": 2, "b": 3}, {"a": 3, "b": 2}, {"b": 2, "a": 3}, {"a": 5})}
    assert len(sums) == 4


def test_rows_in_order():
    split = rows_in_order({"train": 3, "test": 2})
    assert {name: rows.tolist() for name, rows in split.items()} == {"train": [0, 1, 2], "test": [3, 4]}
    assert split.record()["seed"] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_rows(10, {"a": 0.5, "b": 0.4}, 0), "sum to 1"),
        (lambda: split_rows(10, {"a": 1.5, "b": -0.5}, 0), "positive"),
        (lambda: split_rows(10, {}, 0), "sum to 1"),
        (lambda: split_rows(10, {"a": 0.99, "b": 0.01}, 0), "'b' without a row"),
        (lambda: split_rows(10, SHARES, -1), "seed must be a whole number"),
        (lambda: rows_in_order({"a": 0}), "size of 'a'"),
        (lambda: rows_in_order({}), "at least one part"),
    ],
)
def test_impossible_splits(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_fingerprint_is_of_dtype_shape_and_values():
    x = torch.arange(6.0).reshape(2, 3)
    expected = hashlib.sha256(b"float32 (2, 3) " + x.numpy().astype("<f4").tobytes()).hexdigest()
    assert fingerprint(x) == expected
    assert fingerprint(x.T.contiguous().T) == expected
    assert fingerprint(x.numpy()) == fingerprint(x.numpy().astype(">f4")) == expected
    assert fingerprint(x, 12) == expected[:12]
    others = [x.double(), x.reshape(3, 2), x + 1, x.bfloat16(), x[:0]]
    assert len({expected, *map(fingerprint, others)}) == 6


def test_binarised_draws_with_the_probability_of_each_value():
    x = torch.tensor([0.0, 0.2, 0.7, 1.0]).repeat(4000, 1)
    drawn = binarised(x, "fixed", seed=1)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    error = (x[0] * (1 - x[0]) / 4000).sqrt()
    assert ((drawn.mean(0) - x[0]).abs() <= 5 * error).all()
    assert torch.equal(drawn, binarised(x, "fixed", seed=1))
    assert not torch.equal(drawn, binarised(x, "fixed", seed=2))
    assert not torch.equal(drawn, binarised(x, "fixed", seed=1, stream=1))
    assert torch.equal(drawn.double(), binarised(drawn.double(), "dynamic", seed=9))  # zeros and ones stay


def test_draws_do_not_depend_on_blocks_nor_on_the_global_stream(untouched):
    with untouched():
        draws = _uniform(BLOCK + 3, 5, 0)
    assert torch.equal(draws[:3], _uniform(3, 5, 0))
    bits = np.random.PCG64(np.random.SeedSequence(5, spawn_key=(0,))).random_raw(BLOCK + 3)
    assert draws[-1].item() == (int(bits[-1]) >> 11) / 2**53
    assert 0 <= draws.min() < draws.max() < 1


def test_threshold_and_missing_entries():
    x = torch.tensor([[0.5, 0.51, float("nan")]])
    assert binarised(x, "threshold").nan_to_num(9).tolist() == [[0, 1, 9]]
    assert binarised(x, "fixed").isnan().tolist() == [[False, False, True]]


def test_what_cannot_be_binarised():
    with pytest.raises(ValueError, match=r"entry \(1, 0\) is 1.5; scale the data"):
        binarised(torch.tensor([[0.5], [1.5]]), "fixed")
    for call in (lambda: binarised(torch.zeros(1, 1), "both"), lambda: binarising("both")):
        with pytest.raises(ValueError, match="how must be one of 'fixed', 'dynamic', 'threshold'; got 'both'"):
            call()


def test_parts_are_recorded():
    parts = load_parts("digits", seed=1)
    whole = load("digits")
    for name, rows in parts.split.items():
        part = getattr(parts, name)
        assert torch.equal(part.x, whole.x[rows])
        assert torch.equal(part.labels, whole.labels[rows])
        assert parts.record()["fingerprints"][name] == fingerprint(part.x)
    record = parts.record()
    assert record["source"] == whole.source
    assert record["licence"] == whole.licence
    assert record["split"]["sha256"] == parts.split.checksum
    assert record["binarised"] is None
    assert parts.transform is None
    with pytest.raises(ValueError, match="fractions must be of train, validation, test; got train, test"):
        load_parts("iris", fractions={"train": 0.5, "test": 0.5})


def test_parts_in_zeros_and_ones(tmp_path):
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).random((50, 4)))
    grey = load_parts(str(tmp_path / "grey.npy"))
    fixed, dynamic = grey.binarised("fixed", 2), grey.binarised("dynamic", 2)
    assert set(fixed.train.x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(dynamic.train.x, grey.train.x)
    assert torch.equal(dynamic.test.x, fixed.test.x)
    assert not torch.equal(fixed.test.x, binarised(grey.test.x, "fixed", 2))  # each part has its own draws
    assert dynamic.transform is torch.bernoulli
    assert fixed.transform is None
    assert fixed.record()["binarised"] == {"how": "fixed", "seed": 2}
    with pytest.raises(ValueError, match=r"grey is binarised already \(fixed\)"):
        fixed.binarised("threshold")


def test_the_published_split_of_mnist(shared_data, monkeypatch):
    monkeypatch.setenv("LATENT_ZOO_DATA", str(shared_data))
    parts = load_parts("mnist", dtype=torch.float32)
    assert parts.record()["split"]["sizes"] == {"train": 50_000, "validation": 10_000, "test": 10_000}
    assert parts.validation.labels[:5].tolist() == [3, 8, 6, 9, 6]  # as in every copy of this split
    assert parts.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert fingerprint(parts.train.x, 12) == "408987c9478b"
