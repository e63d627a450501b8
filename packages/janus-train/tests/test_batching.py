import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from janus_train.data.batching import epoch_batches

costs = st.lists(st.integers(0, 50), max_size=40)


@given(costs, st.integers(1, 100), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_has_every_frame_once_within_the_budget(costs: list[int], budget: int, seed: int, epoch: int):
    batches = epoch_batches(np.array(costs, dtype=np.int64), budget, seed, epoch)
    assert sorted(place for batch in batches for place in batch.tolist()) == list(range(len(costs)))
    for batch in batches:
        assert len(batch) == 1 or sum(costs[place] for place in batch) <= budget


def test_epochs_and_seeds_shuffle_differently_and_repeatably():
    ones = np.ones(50, dtype=np.int64)
    orders = {(seed, epoch): np.concatenate(epoch_batches(ones, 7, seed, epoch)).tolist()
              for seed in range(2) for epoch in range(2)}  # fmt: skip
    assert len({tuple(order) for order in orders.values()}) == 4
    assert orders[1, 1] == np.concatenate(epoch_batches(ones, 7, 1, 1)).tolist()


def test_every_frame_is_equally_likely_in_every_step():
    """Dear frames and cheap ones alike: over many epochs each is about as often in the first batch as in the last."""
    epochs, frames = 2000, 12
    uneven = np.array([1, 40] * (frames // 2), dtype=np.int64)
    first, last = np.zeros(frames), np.zeros(frames)
    for epoch in range(epochs):
        order = np.concatenate(epoch_batches(uneven, 120, 0, epoch))
        first[order[: frames // 3]] += 1
        last[order[-(frames // 3) :]] += 1
    # Five standard deviations of a binomial.
    margin = 5 * np.sqrt(epochs * (1 / 3) * (2 / 3))
    np.testing.assert_allclose(first, epochs / 3, atol=margin)
    np.testing.assert_allclose(last, epochs / 3, atol=margin)
