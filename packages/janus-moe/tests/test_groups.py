"""Plans for rows that are sorted by element."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_moe import group_rows


@given(st.dictionaries(st.integers(1, 118), st.integers(0, 9)))
def test_groups_are_the_slices_of_the_elements_that_are_present(counts):
    elements = sorted(counts)
    groups = group_rows(elements, [counts[z] for z in elements])
    rows = [z for z in elements for _ in range(counts[z])]
    assert groups.rows == len(rows)
    assert groups.elements.tolist() == sorted(set(rows))
    assert groups.elements.dtype == torch.int64
    assert groups.ends.dtype == torch.int32
    start = 0
    for z, end, count in zip(groups.elements.tolist(), groups.ends.tolist(), groups.counts, strict=True):
        assert rows[start:end] == [z] * count
        assert count > 0
        start = end
    assert start == len(rows)


@pytest.mark.parametrize(
    ("elements", "counts", "message"),
    [
        ([1, 8], [2], "2 elements but 1 counts"),
        ([8, 1], [2, 3], "must ascend"),
        ([8, 8], [2, 3], "must ascend and not repeat"),
        ([1, 8], [2, -1], "cannot be negative"),
    ],
)
def test_plans_that_make_no_sense_are_refused(elements, counts, message):
    with pytest.raises(ValueError, match=message):
        group_rows(elements, counts)
