"""The exchange on one rank and many, the grid of ranks, and errors that reach every rank."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_comm import LaunchError, RankFailed, SingleRank, agree, identity_exchange, make_exchange, make_mesh
from janus_comm.testing import run_rank_processes, run_rank_threads


@given(count=st.integers(0, 3))
def test_the_exchange_of_one_rank_is_the_identity(count):
    rows = torch.randn(count, 2, requires_grad=True)
    assert make_exchange(SingleRank())(rows, [count], [count]) is rows


def test_an_exchange_of_one_rank_refuses_counts_of_others():
    with pytest.raises(ValueError, match="2 entries for 1 ranks"):
        identity_exchange(torch.ones(2, 1), [1, 1], [1, 1])
    with pytest.raises(ValueError, match="one rank gets the rows it sends"):
        identity_exchange(torch.ones(2, 1), [1], [1])


def test_an_exchange_there_and_back_is_the_identity_on_any_number_of_ranks():
    def roundtrip(communicator):
        exchange = make_exchange(communicator)
        there = [rank % 2 for rank in range(communicator.size)]
        back = [communicator.rank % 2] * communicator.size
        rows = torch.arange(sum(there) * 2.0).reshape(-1, 2) + 10 * communicator.rank
        return torch.equal(exchange(exchange(rows, there, back), back, there), rows)

    for size in range(1, 5):
        assert all(run_rank_threads(size, roundtrip))


@given(replica=st.integers(1, 3), unit=st.integers(1, 3))
def test_a_mesh_places_every_rank_once_and_its_axes_cross_there(replica, unit):
    def place(world):
        mesh = make_mesh(world, replica, unit)
        in_unit = mesh.unit_axis.gather_object(mesh.rank)
        across = mesh.replica_axis.gather_object(mesh.rank)
        assert in_unit == [mesh.replica_index * unit + column for column in range(unit)]
        assert across == [row * unit + mesh.unit_index for row in range(replica)]
        assert in_unit[mesh.unit_axis.rank] == across[mesh.replica_axis.rank] == mesh.rank
        return mesh.replica_index, mesh.unit_index

    places = run_rank_threads(replica * unit, place)
    assert places == [(row, column) for row in range(replica) for column in range(unit)]


def test_sums_along_the_two_axes_add_up_to_the_world_on_processes():
    def totals(world):
        mesh = make_mesh(world, 2, 2)
        own = torch.tensor([10.0**world.rank])
        return mesh.unit_axis.sum(own).item(), mesh.replica_axis.sum(mesh.unit_axis.sum(own)).item()

    assert run_rank_processes(4, totals) == [(11, 1111), (11, 1111), (1100, 1111), (1100, 1111)]


@pytest.mark.parametrize(
    ("size", "replica", "unit", "message"),
    [
        (
            3,
            2,
            1,
            "mesh.replica=2 × mesh.unit=1 needs 2 ranks, but 3 were launched; "
            "start with torchrun --nproc-per-node 2 or set mesh.replica=3",
        ),
        (
            1,
            2,
            2,
            "mesh.replica=2 × mesh.unit=2 needs 4 ranks, but 1 was launched; "
            "start with torchrun --nproc-per-node 4 or set mesh.replica=1 mesh.unit=1",
        ),
        (
            2,
            1,
            1,
            "mesh.replica=1 × mesh.unit=1 needs 1 rank, but 2 were launched; "
            "start without torchrun or set mesh.replica=2",
        ),
        (2, 0, 2, "mesh.replica=0 × mesh.unit=2: both must be at least 1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_on_every_rank_before_any_talks(size, replica, unit, message):
    def attempt(world):
        try:
            make_mesh(world, replica, unit)
        except LaunchError as error:
            return str(error)
        return None

    assert run_rank_threads(size, attempt) == [message] * size


class TakesTwo(Exception):
    """An error that cannot be made again from what it keeps."""

    def __init__(self, what, where):
        super().__init__(f"{what} in {where}")


@pytest.mark.parametrize("run", [run_rank_threads, run_rank_processes])
@pytest.mark.parametrize("failing", [[], [1], [0, 2]])
def test_every_rank_raises_or_none_does(run, failing):
    def outcome(communicator):
        error = KeyError(f"frame {communicator.rank}") if communicator.rank in failing else None
        try:
            agree(communicator, error)
        except KeyError as raised:
            return str(raised)
        return "agreed"

    expected = f"'frame {failing[0]}'" if failing else "agreed"
    assert run(3, outcome) == [expected] * 3


def test_an_error_that_cannot_travel_is_quoted():
    def outcome(communicator):
        try:
            agree(communicator, TakesTwo("nan", "frame 3") if communicator.rank == 1 else None)
        except RankFailed as raised:
            return str(raised)
        return "agreed"

    expected = "rank 1 of 2 failed with TakesTwo: nan in frame 3"
    assert run_rank_threads(2, outcome) == [expected] * 2
