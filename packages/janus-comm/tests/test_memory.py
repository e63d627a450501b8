"""Live bytes are the sum over what was allocated and not freed, at every moment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_comm import MemoryAccounting

names = st.sampled_from(["first", "second", "third", "fourth"])


@given(moves=st.lists(st.tuples(names, st.integers(0, 9)), max_size=30))
def test_live_and_peak_bytes_are_those_of_a_list_kept_by_hand(moves):
    accounting = MemoryAccounting()
    alive, history = [], []
    for name, size in moves:
        if name in [other for other, _ in alive]:
            accounting.free(name)
            alive = [(other, its_size) for other, its_size in alive if other != name]
            event = f"free {name}"
        else:
            accounting.allocate(name, size)
            alive.append((name, size))
            event = f"allocate {name}"
        history.append((event, sum(its_size for _, its_size in alive)))
        assert accounting.live == history[-1][1]
    assert accounting.timeline == history
    assert accounting.peak == max((after for _, after in history), default=0)


def test_a_buffer_is_alive_once_and_freed_once():
    accounting = MemoryAccounting()
    accounting.allocate("block 3", 8)
    with pytest.raises(ValueError, match="'block 3' is alive already"):
        accounting.allocate("block 3", 8)
    with pytest.raises(ValueError, match="no buffer 'block 4' to free; alive: 'block 3'"):
        accounting.free("block 4")
    with pytest.raises(ValueError, match="cannot hold -1 bytes"):
        accounting.allocate("block 4", -1)
    accounting.free("block 3")
    with pytest.raises(ValueError, match="no buffer 'block 3' to free; alive: none"):
        accounting.free("block 3")
    assert accounting.timeline == [("allocate block 3", 8), ("free block 3", 0)]


def test_what_was_read_does_not_change_afterwards():
    accounting = MemoryAccounting()
    accounting.allocate("block", 1)
    before = accounting.timeline
    accounting.free("block")
    assert before == [("allocate block", 1)]
