"""The laws that every communicator obeys, and every collective on it.

A collective is a matrix: row i of everything that comes out is the sum of some rows of everything that goes in. Each
matrix is written down here entry by entry, and one process with that matrix is the oracle for values, adjoints and
derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_comm.chain import Chain
from janus_comm.collectives import all_gather, all_reduce, all_to_all, reduce_scatter
from janus_comm.communicator import Communicator
from janus_comm.halo import make_halo, plan_halo

Table = Sequence[Sequence[int]]

_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_FEATURES = 2


def check_communicator(communicator: Communicator, table: Table | None = None) -> None:
    """Raise AssertionError on some rank unless the communicator obeys the laws; every rank of it calls this.

    ``table[s][r]`` is how many rows go from rank s to rank r; without a table, several are tried: even and uneven ones,
    one with a rank that has nothing, and one with nothing at all. The laws, for ``all_reduce``, ``all_gather``,
    ``reduce_scatter``, ``all_to_all``, their composition, and a halo in which rows go from several ranks to several:

    * values are those of one process, exactly, for floating and integer dtypes;
    * sums have the same bits on every rank, and the arguments are left alone;
    * ⟨Ax, y⟩ = ⟨x, Aᵀy⟩ over all ranks;
    * first, second and third derivatives are those of one process, on every rank, also where it has no rows.
    """
    size = communicator.size
    tables = [table] if table is not None else _tables(size)
    _check_objects(communicator)
    _check_sums(communicator)
    _check_strides(communicator)
    for each in tables:
        _check_started(communicator, [sum(row) for row in each])
        for case in _cases(communicator, each):
            _check_values(communicator, case)
            _check_adjoint(communicator, case)
            _check_derivatives(communicator, case)


@dataclass(frozen=True)
class _Case:
    """A collective on this rank, how many rows each rank gives and gets, and the matrix from all given to all got."""

    name: str
    call: Callable[[Tensor, Chain | None], Tensor]
    given: list[int]
    got: list[int]
    matrix: Tensor

    def own(self, everything: Tensor, counts: list[int], rank: int) -> Tensor:
        start = sum(counts[:rank])
        return everything[start : start + counts[rank]]


def _tables(size: int) -> list[Table]:
    ranks = range(size)
    return [
        [[2 for _ in ranks] for _ in ranks],
        [[(3 * s + 2 * r) % 4 for r in ranks] for s in ranks],
        [[0 if size - 1 in (s, r) else 1 + s for r in ranks] for s in ranks],
        [[0 for _ in ranks] for _ in ranks],
    ]


def _cases(communicator: Communicator, table: Table) -> list[_Case]:
    size, rank = communicator.size, communicator.rank
    counts = [sum(row) for row in table]
    received = [sum(row[r] for row in table) for r in range(size)]
    total, back = sum(counts), [row[rank] for row in table]
    everything = [total] * size
    same = [counts[0]] * size
    reduce, gather = _all_reduce_matrix(size, counts[0]), _all_gather_matrix(counts)
    exchange, scatter = _all_to_all_matrix(table), _all_gather_matrix(counts).T

    def composed(rows: Tensor, chain: Chain | None) -> Tensor:
        rows = all_gather(rows, communicator, counts, chain)
        rows = reduce_scatter(all_reduce(rows, communicator, chain), communicator, counts, chain)
        return all_to_all(rows, communicator, table[rank], back, chain)

    return [
        _Case("all_reduce", lambda rows, chain: all_reduce(rows, communicator, chain), same, same, reduce),
        _Case(
            "all_gather", lambda rows, chain: all_gather(rows, communicator, counts, chain), counts, everything, gather
        ),
        _Case(
            "reduce_scatter",
            lambda rows, chain: reduce_scatter(rows, communicator, counts, chain),
            everything,
            counts,
            scatter,
        ),
        _Case(
            "all_to_all",
            lambda rows, chain: all_to_all(rows, communicator, table[rank], back, chain),
            counts,
            received,
            exchange,
        ),
        _halo_case(communicator, table),
        _Case("composition", composed, counts, received, exchange @ scatter @ _all_reduce_matrix(size, total) @ gather),
    ]


def _halo_case(communicator: Communicator, table: Table) -> _Case:
    """Rank s owns as many rows as the longest of its messages and ``table[s][s]`` that nobody else needs."""
    size, rank = communicator.size, communicator.rank
    others = [[0 if s == r else table[s][r] for r in range(size)] for s in range(size)]
    owned = [table[s][s] + max(others[s]) for s in range(size)]
    # A message starts at another row for each rank, so that some rows go to several ranks and some to none.
    lists = [[[(r + i) % owned[s] for i in range(others[s][r])] for r in range(size)] for s in range(size)]
    rows = [owned[r] + sum(others[s][r] for s in range(size)) for r in range(size)]
    matrix = torch.zeros(sum(rows), sum(owned), dtype=torch.float64)
    place = 0
    for target in range(size):
        wanted = [(target, row) for row in range(owned[target])]
        wanted += [(source, row) for source in range(size) for row in lists[source][target]]
        for source, row in wanted:
            matrix[place, sum(owned[:source]) + row] = 1
            place += 1
    plan = plan_halo(owned[rank], lists[rank], [others[s][rank] for s in range(size)])

    def call(own: Tensor, chain: Chain | None) -> Tensor:
        def exchange(rows: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int]) -> Tensor:
            return all_to_all(rows, communicator, send_counts, receive_counts, chain)

        return make_halo(plan, exchange)(own)

    return _Case("halo", call, owned, rows, matrix)


def _all_reduce_matrix(size: int, rows: int) -> Tensor:
    matrix = torch.zeros(size * rows, size * rows, dtype=torch.float64)
    for target in range(size):
        for source in range(size):
            for row in range(rows):
                matrix[target * rows + row, source * rows + row] = 1
    return matrix


def _all_gather_matrix(counts: Sequence[int]) -> Tensor:
    total = sum(counts)
    matrix = torch.zeros(len(counts) * total, total, dtype=torch.float64)
    for target in range(len(counts)):
        for row in range(total):
            matrix[target * total + row, row] = 1
    return matrix


def _all_to_all_matrix(table: Table) -> Tensor:
    size = len(table)
    total = sum(sum(row) for row in table)
    matrix = torch.zeros(total, total, dtype=torch.float64)
    place = 0
    for target in range(size):
        for source in range(size):
            first = sum(sum(row) for row in table[:source]) + sum(table[source][:target])
            for row in range(table[source][target]):
                matrix[place, first + row] = 1
                place += 1
    return matrix


def _random(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, _FEATURES, generator=generator, dtype=torch.float64)


def _require(holds: bool, law: str) -> None:
    if not holds:
        raise AssertionError(law)


def _require_close(actual: Tensor, expected: Tensor, law: str, size: float = 0.0) -> None:
    """`size` is that of the terms added up, where they may be larger than their sum."""
    _require(actual.shape == expected.shape, f"{law}: shape {list(actual.shape)} instead of {list(expected.shape)}")
    if expected.numel():
        scale = max(1.0, size, float(expected.abs().max())) * max(1, expected.shape[0] if expected.dim() else 1)
        error = float((actual - expected).abs().max())
        _require(
            error <= 64 * torch.finfo(torch.float64).eps * scale, f"{law}: off by {error:.2e} at scale {scale:.2e}"
        )


def _check_objects(communicator: Communicator) -> None:
    told = communicator.gather_object({"rank": communicator.rank, "text": "·" * communicator.rank})
    expected = [{"rank": rank, "text": "·" * rank} for rank in range(communicator.size)]
    _require(told == expected, f"gather_object gave {told}")
    communicator.barrier()
    part = communicator.split(communicator.rank % 2)
    expected_ranks = list(range(communicator.rank % 2, communicator.size, 2))
    _require(
        part.gather_object(communicator.rank) == expected_ranks, "split keeps the ranks of a colour in their order"
    )
    _require(part.rank == expected_ranks.index(communicator.rank), "split numbers the ranks of a colour from 0")


def _check_sums(communicator: Communicator) -> None:
    for dtype in _FLOATING:
        for shape in ((), (7,), (3, 0), (5, 2)):
            everyone = [
                torch.randn(shape, generator=torch.Generator().manual_seed(rank), dtype=torch.float64).to(dtype)
                for rank in range(communicator.size)
            ]
            own = everyone[communicator.rank].clone()
            total = communicator.sum(own)
            _require(torch.equal(own, everyone[communicator.rank]), "sum leaves its argument alone")
            _require(total.dtype is dtype and total.shape == own.shape, f"sum keeps dtype {dtype} and shape {shape}")
            bits = communicator.gather_object(total.double().tolist())
            _require(all(theirs == bits[0] for theirs in bits), f"sum of {dtype} has the same bits on every rank")
            exact = torch.stack([theirs.double() for theirs in everyone]).sum(0)
            spread = (
                float(torch.stack([theirs.double().abs() for theirs in everyone]).sum(0).amax()) if own.numel() else 0
            )
            error = float((total.double() - exact).abs().amax()) if own.numel() else 0.0
            _require(
                error <= communicator.size * torch.finfo(dtype).eps * spread, f"sum of {dtype} is off by {error:.2e}"
            )


def _check_strides(communicator: Communicator) -> None:
    """Autograd hands over expanded and transposed tensors: values count, not how they lie in memory."""
    size = communicator.size
    total = communicator.sum(torch.ones(()).expand(1))
    _require(total.tolist() == [size], "sum takes an expanded tensor of one element")
    rank, ones = communicator.rank, [1] * size
    for rows in (
        torch.ones(1).expand(size, 3),
        torch.arange(3 * size).reshape(3, size).T,
        torch.ones(2 * size, 2)[::2],
    ):
        dense = rows.clone(memory_format=torch.contiguous_format)
        own, law = dense[rank : rank + 1], f"strides {rows.stride()} do not change values"
        _require(torch.equal(communicator.sum(rows), dense * size), law)
        _require(torch.equal(communicator.gather_rows(rows[:1], ones), dense[:1].repeat(size, 1)), law)
        _require(torch.equal(communicator.reduce_scatter_rows(rows, ones), own * size), law)
        _require(torch.equal(communicator.exchange_rows(rows, ones, ones), own.repeat(size, 1)), law)


def _check_started(communicator: Communicator, counts: Sequence[int]) -> None:
    """What is started and waited for later is what it is at once; two may be under way, waited for in any order."""
    own = _random(counts[communicator.rank], communicator.rank)
    everything = _random(sum(counts), 7 + communicator.rank)
    gathered = communicator.start_gather_rows(own, counts)
    reduced = communicator.start_reduce_scatter_rows(everything, counts)
    parts = reduced(), gathered()
    _require(torch.equal(parts[0], communicator.reduce_scatter_rows(everything, counts)), "start_reduce_scatter_rows")
    _require(torch.equal(parts[1], communicator.gather_rows(own, counts)), "start_gather_rows")


def _check_values(communicator: Communicator, case: _Case) -> None:
    # Integers so small that their sums are exact in every dtype.
    everything = torch.arange(sum(case.given) * _FEATURES, dtype=torch.float64).reshape(-1, _FEATURES) % 3
    expected = case.own(case.matrix @ everything, case.got, communicator.rank)
    for dtype in (*_FLOATING, *_INTEGER):
        own = case.own(everything, case.given, communicator.rank).to(dtype)
        given = own.clone()
        result = case.call(own, None)
        _require(result.dtype is dtype, f"{case.name} keeps {dtype}, not {result.dtype}")
        _require(torch.equal(own, given), f"{case.name} leaves its argument alone")
        _require(torch.equal(result.detach().double(), expected), f"{case.name} of {dtype} gives one process's values")
        _require(
            result.requires_grad == dtype.is_floating_point, f"{case.name} of {dtype} is in the graph if it is floating"
        )
    with torch.no_grad():
        outside = case.call(case.own(everything, case.given, communicator.rank), None)
    _require(not outside.requires_grad, f"{case.name} builds no graph under no_grad")


def _check_adjoint(communicator: Communicator, case: _Case) -> None:
    rank = communicator.rank
    given = case.own(_random(sum(case.given), 1), case.given, rank).requires_grad_()
    probe = case.own(_random(sum(case.got), 2), case.got, rank)
    got = case.call(given, None)
    (back,) = torch.autograd.grad(got, given, probe)
    forward = communicator.sum((got.detach() * probe).sum())
    backward = communicator.sum((given.detach() * back).sum())
    terms = communicator.sum((got.detach() * probe).abs().sum())
    _require_close(forward, backward, f"adjoint of {case.name}: <Ax, y> = <x, A*y>", float(terms))
    full = case.own(case.matrix.T @ _random(sum(case.got), 2), case.given, rank)
    _require_close(back, full, f"adjoint of {case.name} is the transposed matrix")


def _check_derivatives(communicator: Communicator, case: _Case) -> None:
    """The gradient of Σ sin(A(x + x²)) and, twice over, of ⟨tanh(gradient), v⟩, against one process with the matrix."""
    rank = communicator.rank
    start = _random(sum(case.given), 3)

    everything = start.clone().requires_grad_()
    expected, result = [], torch.sin(case.matrix @ (everything + everything**2)).sum()
    own = case.own(start, case.given, rank).clone().requires_grad_()
    chain = Chain(own)
    actual, local = [], chain.join(torch.sin(case.call(own + own**2, chain)).sum())
    for order in range(1, 4):
        (wanted,) = torch.autograd.grad(result, everything, create_graph=True)
        (gradient,) = torch.autograd.grad(local, own, create_graph=True)
        expected.append(case.own(wanted, case.given, rank).detach())
        actual.append(gradient.detach())
        direction = _random(sum(case.given), 3 + order) / (1 + sum(case.given))
        result = (torch.tanh(wanted) * direction).sum()
        local = chain.join((torch.tanh(gradient) * case.own(direction, case.given, rank)).sum(), gradient)
    for order, (derivative, wanted) in enumerate(zip(actual, expected, strict=True), start=1):
        _require_close(derivative, wanted, f"derivative {order} of {case.name} is that of one process")
