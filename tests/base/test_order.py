"""zoo.base.order: minibatches epoch by epoch, from any step on."""

from itertools import chain, islice

import torch

from zoo.base.order import RowOrder


def first(order, count, step=0):
    """The first ``count`` batches from a step on."""
    return [batch.tolist() for batch in islice(chain.from_iterable(order.epochs(step)), count)]


def test_to_go_on_is_a_seek():
    order = RowOrder(23, 5, seed=3)
    whole = first(order, 17)
    for step in (0, 1, 4, 5, 12):
        assert first(order, 17 - step, step) == whole[step:]
    assert order.position(12) == (2, 2)


def test_every_epoch_has_every_row_once_in_an_order_of_its_own():
    orders = [torch.cat(RowOrder(40, 7, seed).batches(epoch)).tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len(set(map(tuple, orders))) == len(orders)
