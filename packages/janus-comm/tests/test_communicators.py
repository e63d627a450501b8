"""Every implementation obeys the laws, and the laws notice one that does not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_comm import Accounting, Checked, Counted, RankFailed, SingleRank, torch_group
from janus_comm.testing import check_communicator, run_rank_processes, run_rank_threads

row_counts = st.integers(0, 3)


@st.composite
def tables(draw):
    """How many rows go from each rank to each, some ranks without any."""
    size = draw(st.integers(1, 4))
    return draw(st.lists(st.lists(row_counts, min_size=size, max_size=size), min_size=size, max_size=size))


def test_one_rank_obeys_the_laws():
    check_communicator(SingleRank())


@given(table=tables())
def test_rank_threads_obey_the_laws_for_any_row_counts(table):
    run_rank_threads(len(table), lambda communicator: check_communicator(communicator, table))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_obey_the_laws(size):
    run_rank_processes(size, check_communicator)


def test_parts_of_a_split_obey_the_laws():
    def check(communicator):
        part = communicator.split(communicator.rank // 2)
        check_communicator(part)
        return part.rank, part.size

    expected = [(0, 2), (1, 2), (0, 1)]
    assert run_rank_threads(3, check) == expected
    assert run_rank_processes(3, check) == expected


def test_a_counted_communicator_obeys_the_laws():
    run_rank_threads(2, lambda communicator: check_communicator(Counted(communicator, Accounting())))


def test_sums_have_the_same_bits_on_threads_and_processes():
    def total(communicator):
        generator = torch.Generator().manual_seed(communicator.rank)
        return communicator.sum(torch.randn(101, generator=generator) * 10.0 ** (3 * communicator.rank))

    for on_threads, on_processes in zip(run_rank_threads(3, total), run_rank_processes(3, total), strict=True):
        assert torch.equal(on_threads, on_processes)


def test_torch_gets_the_group_under_wrappers_and_its_failures_are_told():
    def use(communicator):
        aside = Counted(Checked(communicator), Accounting()).split(0)
        with torch_group(aside, "a gather of torch") as group:
            sizes = group.size()
        if communicator.rank == 0:
            with torch_group(aside, "a barrier of torch") as group:
                group.barrier().wait()
        return sizes

    with pytest.raises(RankFailed, match=r"rank 1 of 2 has left; rank 0 waited in a barrier of torch \(call 2\)"):
        run_rank_processes(2, use)
    with torch_group(SingleRank(), "a gather of torch") as group:
        assert group is None

    def lend(communicator):
        with torch_group(communicator, "a gather of torch"):
            pass

    with pytest.raises(TypeError, match="no process group that a gather of torch could use"):
        run_rank_threads(2, lend)


class Altered:
    """A communicator one of whose methods does something else."""

    def __init__(self, communicator, **methods):
        self._communicator = communicator
        self._methods = methods

    def __getattr__(self, name):
        return self._methods.get(name) or getattr(self._communicator, name)


def misplaced_rows(communicator):
    return {"gather_rows": lambda rows, counts: communicator.gather_rows(rows, counts).flip(0)}


def forgotten_rank(communicator):
    return {"sum": lambda tensor: communicator.sum(tensor * (communicator.rank < 1))}


def scaled_part(communicator):
    return {"reduce_scatter_rows": lambda rows, counts: communicator.reduce_scatter_rows(rows, counts) * 2}


def kept_rows(communicator):
    def exchange_rows(rows, send_counts, receive_counts):
        received = communicator.exchange_rows(rows, send_counts, receive_counts)
        return rows.clone() if rows.shape == received.shape else received

    return {"exchange_rows": exchange_rows}


def rounded_sum(communicator):
    return {"sum": lambda tensor: communicator.sum(tensor.bfloat16()).to(tensor.dtype)}


@pytest.mark.parametrize("mistake", [misplaced_rows, forgotten_rank, scaled_part, kept_rows, rounded_sum])
def test_the_laws_notice_a_wrong_communicator(mistake):
    with pytest.raises((AssertionError, RankFailed)):
        run_rank_threads(2, lambda communicator: check_communicator(Altered(communicator, **mistake(communicator))))


def test_an_argument_that_requires_grad_is_refused_by_values_only_methods():
    with pytest.raises(ValueError, match="sum has no derivative"):
        SingleRank().sum(torch.ones(2, requires_grad=True))


def test_dtypes_without_a_sum_are_refused():
    with pytest.raises(TypeError, match="cannot add booleans"):
        SingleRank().sum(torch.ones(2, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"sum cannot add torch\.uint16; pass tensor\.to\(torch\.int64\)"):
        SingleRank().sum(torch.ones(2, dtype=torch.uint16))
    with pytest.raises(TypeError, match=r"cannot add torch\.float8_e5m2; pass tensor\.to\(torch\.float32\)"):
        SingleRank().reduce_scatter_rows(torch.ones(2).to(torch.float8_e5m2), [2])
    with pytest.raises(TypeError, match="takes real tensors"):
        SingleRank().sum(torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one: one.gather_rows(torch.ones(2, 1), [3]), r"counts\[0\]=3 rows on this rank"),
        (lambda one: one.gather_rows(torch.ones(2, 1), [1, 1]), "2 entries for 1 ranks"),
        (lambda one: one.reduce_scatter_rows(torch.ones(2), [-2]), "negative row count"),
        (lambda one: one.exchange_rows(torch.ones(()), [0], [0]), "means 0 rows, but the tensor has shape"),
        (lambda one: one.exchange_rows(torch.ones(2), [2], [1]), "sends 2 rows to itself but expects 1"),
    ],
)
def test_counts_that_do_not_fit_the_rows_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(SingleRank())


@pytest.mark.parametrize("run", [run_rank_threads, run_rank_processes])
def test_dtypes_that_cannot_be_added_travel(run):
    def swap(communicator):
        other = 1 - communicator.rank
        counts = [int(rank == other) for rank in range(2)]
        answers = []
        for dtype in (torch.bool, torch.uint16, torch.uint32, torch.uint64):
            own = torch.tensor([communicator.rank]).to(dtype)
            received = communicator.exchange_rows(own, counts, counts)
            gathered = communicator.gather_rows(own, [1, 1])
            answers.append((received.dtype is dtype, received.tolist(), gathered.tolist()))
        return answers

    for rank, answers in enumerate(run(2, swap)):
        assert answers == [(True, [1 - rank], [0, 1])] * 4
