import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_comm.testing import run_rank_threads
from janus_train.matrices import CutStack, MatrixExchange, on_own_matrices, owners_of

shapes = st.tuples(st.lists(st.integers(0, 3), max_size=2), st.integers(1, 5), st.integers(1, 5)).map(
    lambda drawn: (*drawn[0], drawn[1], drawn[2])
)


@st.composite
def stacks_of(draw, ranks: int) -> dict[str, CutStack]:
    stacks = {}
    for place, shape in enumerate(draw(st.lists(shapes, max_size=4))):
        dimension = draw(st.integers(0, len(shape) - 1))
        cuts = sorted(draw(st.lists(st.integers(0, shape[dimension]), min_size=ranks - 1, max_size=ranks - 1)))
        ends = [0, *cuts, shape[dimension]]
        sizes = tuple(after - before for before, after in itertools.pairwise(ends))
        stacks[f"part {place}"] = CutStack(shape, dimension, sizes)
    return stacks


def gram_inverse(matrices: torch.Tensor) -> torch.Tensor:
    """Of whole matrices only: every element of the result needs every element of the matrix."""
    square = matrices @ matrices.mT + torch.eye(matrices.shape[-2], dtype=matrices.dtype)
    return torch.linalg.solve(square, matrices)


@given(data=st.data(), ranks=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_ranks_get_their_slices_of_the_function_of_whole_matrices(data, ranks: int, seed: int):
    stacks = data.draw(stacks_of(ranks))
    generator = torch.Generator().manual_seed(seed)
    whole = {name: torch.randn(stack.shape, generator=generator, dtype=torch.float64) for name, stack in stacks.items()}
    everywhere = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    expected = on_own_matrices(gram_inverse, {**whole, "everywhere": everywhere})

    def slices(tensors, rank: int) -> dict[str, torch.Tensor]:
        cut = {name: tensors[name].split(stack.sizes, dim=stack.dimension)[rank] for name, stack in stacks.items()}
        return {**cut, "everywhere": tensors["everywhere"]}

    def on_rank(communicator):
        exchange = MatrixExchange(stacks, communicator)
        return exchange(gram_inverse, slices({**whole, "everywhere": everywhere}, communicator.rank))

    for rank, found in enumerate(run_rank_threads(ranks, on_rank)):
        assert set(found) == set(expected)
        for name, tensor in slices(expected, rank).items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


@given(
    counts=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)), max_size=5),
    ranks=st.integers(1, 5),
)
def test_no_rank_has_more_than_one_matrix_more_to_do_than_another(counts, ranks: int):
    stacks = [CutStack(shape, 1, ()) for shape in counts]
    owners = owners_of(stacks, ranks)
    work = [
        sum(int((own == rank).sum()) * stack.work for own, stack in zip(owners, stacks, strict=True))
        for rank in range(ranks)
    ]
    largest = max((stack.work for stack in stacks), default=0)
    assert max(work) - min(work) <= largest
    assert [len(own) for own in owners] == [stack.count for stack in stacks]
