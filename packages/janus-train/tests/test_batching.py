import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from janus_train.data.batching import epoch_batches, share_out

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


@given(costs, st.integers(1, 9))
def test_every_item_goes_to_one_rank_and_no_rank_is_far_above_the_mean(costs: list[int], ranks: int):
    shares = share_out(costs, ranks)
    assert len(shares) == ranks
    assert sorted(item for share in shares for item in share) == list(range(len(costs)))
    loads = [sum(costs[item] for item in share) for share in shares]
    # Graham's bound: the last item of the fullest rank was put where the load was lowest, so at most the mean.
    assert max(loads) <= sum(costs) / ranks + max(costs, default=0)
