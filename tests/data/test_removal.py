"""Masks of removed entries."""

import numpy as np
import pytest
import torch

import zoo
from zoo.data import random_mask, remove


def test_the_mask_is_the_published_one():
    mask = random_mask(569, 30, 0.5, seed=1234)
    for place in (14853, 7252, 7817):  # the first three of the published draw
        assert mask.flatten()[place]
    x = zoo.data.load("breast_cancer", dtype=torch.float32).x.numpy()
    x = torch.from_numpy((x - x.mean(0)) / x.std(0))
    assert int(mask.sum()) == 8535
    assert float(x[mask].square().mean()) == pytest.approx(1.0224, abs=5e-5)  # the error of zeros
    means = remove(x, mask).nanmean(0)
    assert float((x - means)[mask].square().mean()) == pytest.approx(1.0275, abs=5e-5)


def test_masks_depend_on_their_seed_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert torch.equal(random_mask(6, 5, 0.3, seed=2), random_mask(6, 5, 0.3, seed=2))
    assert not torch.equal(random_mask(6, 5, 0.3, seed=2), random_mask(6, 5, 0.3, seed=3))
    assert int(random_mask(6, 5, 0.3, seed=2).sum()) == 9
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("share", [0.0, 1.0, 0.01])
def test_a_share_that_removes_none_or_all_is_refused(share):
    with pytest.raises(ValueError, match="removes none or all"):
        random_mask(6, 5, share, seed=0)


def test_a_mask_that_does_not_fit_is_refused():
    x = torch.arange(12.0).reshape(4, 3)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 4\) and x \(4, 3\)"):
        remove(x, torch.zeros(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="pass booleans"):
        remove(x, torch.zeros(4, 3))
    whole = torch.zeros(4, 3, dtype=torch.bool)
    whole[:3, 1] = True
    with pytest.raises(ValueError, match="column 1 with fewer than two entries"):
        remove(x, whole)


def test_removing_leaves_the_rest_and_the_rows_as_they_are():
    x = torch.arange(12.0).reshape(4, 3)
    mask = random_mask(4, 3, 0.3, seed=1)
    left = remove(x, mask)
    assert torch.equal(left.isnan(), mask)
    assert torch.equal(left[~mask], x[~mask])
    assert not x.isnan().any()
