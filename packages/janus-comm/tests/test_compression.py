"""Rows that travel as FP16 arrive within the bound that is documented, in every order of derivative."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_comm import (
    Accounting,
    Chain,
    Counted,
    MeasuredError,
    SingleRank,
    make_compressed_exchange,
    make_exchange,
    make_halo,
    plan_compression,
    plan_halo,
)
from janus_comm.accounting import bytes_of_compressed_exchange, bytes_of_exchange
from janus_comm.testing import run_rank_processes, run_rank_threads

ROUNDING, SUBNORMAL = 2.0**-11, 2.0**-38
FEATURES = 2


@st.composite
def messages(draw):
    """Group of each row that goes from each rank to each; some messages are empty, and so are some ranks."""
    size = draw(st.integers(1, 3))
    message = st.lists(st.sampled_from([0, 1, 92, -5]), max_size=3)
    return [[draw(message) for _ in range(size)] for _ in range(size)]


def any_number(dtype):
    width = 32 if dtype is torch.float32 else 64
    tiny = torch.finfo(dtype).tiny
    return st.one_of(
        st.just(0.0),
        st.floats(width=width),
        st.floats(-tiny, tiny, width=width),
        st.floats(-1, 1, width=width),
    )


def dtypes():
    return st.sampled_from([torch.float32, torch.float64])


def compressed(communicator, plan, chain=None, measured=None):
    both = (torch.float32, torch.float64)
    return make_compressed_exchange(communicator, plan, chain, measured, dtypes=both)


def counts_of(groups, rank):
    size = len(groups)
    return [len(groups[rank][r]) for r in range(size)], [len(groups[s][rank]) for s in range(size)]


def plan_of(groups, rank):
    send_counts, receive_counts = counts_of(groups, rank)
    sent = [group for message in groups[rank] for group in message]
    received = [group for source in groups for group in source[rank]]
    return plan_compression(rank, send_counts, sent, receive_counts, received)


def numbered(groups):
    """Each row's source, target, place in the message and group, in the order in which senders hold them."""
    return [
        (source, target, place, group)
        for source, row in enumerate(groups)
        for target, message in enumerate(row)
        for place, group in enumerate(message)
    ]


def sent_by(rows, everything, rank):
    return [values for (source, *_), values in zip(rows, everything, strict=True) if source == rank]


def received_by(rows, everything, rank):
    return [values for (_, target, *_), values in zip(rows, everything, strict=True) if target == rank]


def tensor(values, dtype):
    return torch.tensor(values, dtype=dtype).reshape(-1, FEATURES)


def largest_of_group(rows, everything, row):
    """The largest finite magnitude among the rows that share the scale of one: the same message and group."""
    source, target, _, group = row
    return max(
        (
            abs(entry)
            for (s, t, _, g), values in zip(rows, everything, strict=True)
            for entry in values
            if (s, t, g) == (source, target, group) and math.isfinite(entry)
        ),
        default=0.0,
    )


def assert_within_bound(rows, everything, arrived):
    """Each entry is off by at most 2⁻¹¹ of itself or 2⁻³⁸ of its group; rows that stay, and infinities, are exact."""
    for row, values, got in zip(rows, everything, arrived, strict=True):
        source, target, *_ = row
        largest = largest_of_group(rows, everything, row)
        for exact, rounded in zip(values, got, strict=True):
            if source == target or not math.isfinite(exact):
                assert rounded == exact or (math.isnan(rounded) and math.isnan(exact))
            else:
                assert abs(rounded - exact) <= max(ROUNDING * abs(exact), SUBNORMAL * largest)
                assert abs(rounded - exact) <= ROUNDING * largest


def put_together(rows, by_rank, end):
    """What all ranks hold at one end of the messages, 0 where they are sent and 1 where they arrive, row by row."""
    taken = {rank: iter(values) for rank, values in enumerate(by_rank)}
    return [next(taken[row[end]]) for row in rows]


@given(groups=messages(), data=st.data(), dtype=dtypes())
def test_values_and_both_derivatives_are_within_the_bound_for_any_numbers(groups, data, dtype):
    rows = numbered(groups)
    values = st.lists(any_number(dtype), min_size=FEATURES, max_size=FEATURES)
    sent, cotangents, directions = (data.draw(st.lists(values, min_size=len(rows), max_size=len(rows))) for _ in "123")

    def passes(communicator):
        rank = communicator.rank
        own = tensor(sent_by(rows, sent, rank), dtype).requires_grad_()
        weight = tensor(received_by(rows, cotangents, rank), dtype).requires_grad_()
        direction = tensor(sent_by(rows, directions, rank), dtype)
        chain = Chain(own, weight)
        exchange = compressed(communicator, plan_of(groups, rank), chain)
        received = exchange(own, *counts_of(groups, rank))
        assert received.dtype is dtype
        (gradient,) = torch.autograd.grad(received, own, weight, create_graph=True)
        (second,) = torch.autograd.grad(gradient, weight, direction)
        return received.tolist(), gradient.tolist(), second.tolist()

    results = run_rank_threads(len(groups), passes)
    received, gradient, second = zip(*results, strict=True)
    assert_within_bound(rows, sent, put_together(rows, received, 1))
    # The cotangent of a row that was received goes back to its sender, and the direction along it there again.
    assert_within_bound(rows, cotangents, put_together(rows, gradient, 0))
    assert_within_bound(rows, directions, put_together(rows, second, 1))


@given(groups=messages(), seed=st.integers(0, 99), exponent=st.integers(-9, 1), dtype=dtypes())
def test_derivatives_of_a_nonlinear_function_have_one_error_for_each_exchange_on_their_way(
    groups, seed, exponent, dtype
):
    """g = ∂/∂x Σ sin(y) and ∂/∂x Σ v g of the rows y that arrive, and what the errors of their exchanges add up to."""
    rows = numbered(groups)
    generator = torch.Generator().manual_seed(seed)
    sent, directions = (
        (torch.randn(len(rows), FEATURES, generator=generator, dtype=torch.float64) * scale).to(dtype).tolist()
        for scale in (10.0**exponent, 1.0)
    )

    def passes(communicator):
        rank = communicator.rank
        own = tensor(sent_by(rows, sent, rank), dtype).requires_grad_()
        chain = Chain(own)
        exchange = compressed(communicator, plan_of(groups, rank), chain)
        result = chain.join(torch.sin(exchange(own, *counts_of(groups, rank))).sum())
        (gradient,) = torch.autograd.grad(result, own, create_graph=True)
        outer = chain.join((gradient * tensor(sent_by(rows, directions, rank), dtype)).sum(), gradient)
        return gradient.tolist(), torch.autograd.grad(outer, own)[0].tolist()

    first, second = zip(*run_rank_threads(len(groups), passes), strict=True)
    slack = 1 + 2.0**-8  # errors of errors
    last_place = 8 * torch.finfo(dtype).eps
    for row, x, v, g, h in zip(
        rows, sent, directions, put_together(rows, first, 0), put_together(rows, second, 0), strict=True
    ):
        travels = row[0] != row[1]
        of_value = ROUNDING * largest_of_group(rows, sent, row) * travels
        of_cotangent = ROUNDING * travels
        size = largest_of_group(rows, directions, row)
        for feature in range(FEATURES):
            assert abs(g[feature] - math.cos(x[feature])) <= slack * (of_value + of_cotangent) + last_place
            # sin of a rounded value, times a rounded direction, rounded on the way back
            expected = -math.sin(x[feature]) * v[feature]
            assert abs(h[feature] - expected) <= slack * size * (of_value + 2 * of_cotangent) + last_place * size


@given(groups=messages(), dtype=dtypes())
def test_integers_of_eleven_bits_arrive_exactly_in_every_order(groups, dtype):
    rows = numbered(groups)
    sent = [[float((31 * i) % 2048), float(-(17 * i) % 2048)] for i in range(len(rows))]

    def passes(communicator):
        rank = communicator.rank
        own = tensor(sent_by(rows, sent, rank), dtype).requires_grad_()
        results = []
        for exchange in (make_exchange(communicator), compressed(communicator, plan_of(groups, rank))):
            received = exchange(own, *counts_of(groups, rank))
            results.append([received, *torch.autograd.grad(received, own, received)])
        return all(torch.equal(plain, rounded) for plain, rounded in zip(*results, strict=True))

    assert all(run_rank_threads(len(groups), passes))


@pytest.mark.parametrize("run", [run_rank_threads, run_rank_processes])
def test_a_rare_group_of_tiny_rows_keeps_its_digits_beside_one_of_huge_rows(run):
    groups = [[[], [1, 2, 1]], [[2], []]]

    def relative_error(communicator):
        rank = communicator.rank
        own = torch.tensor([[3.3e37, 1.1e30], [1.7e-37, -1.3e-37], [-2.9e37, 0.0]])[: [3, 1][rank]]
        received = compressed(communicator, plan_of(groups, rank))(own, *counts_of(groups, rank))
        exact = make_exchange(communicator)(own, *counts_of(groups, rank))
        return ((received - exact).abs() <= ROUNDING * exact.abs()).all().item()

    assert run(2, relative_error) == [True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_numbers_stay_finite_and_the_smallest_stay_exact(dtype):
    groups = [[[], [1, 2]], [[], []]]
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps

    def arrived(communicator):
        own = torch.tensor([[largest, -largest], [smallest, -3 * smallest]], dtype=dtype)[
            : 2 * (communicator.rank == 0)
        ]
        exchange = compressed(communicator, plan_of(groups, communicator.rank))
        return exchange(own, *counts_of(groups, communicator.rank)).tolist()

    _, (huge, tiny) = run_rank_threads(2, arrived)
    assert huge == pytest.approx([largest, -largest], rel=ROUNDING, abs=0)
    assert tiny == [smallest, -3 * smallest]


def test_numbers_that_are_not_finite_arrive_as_they_are_and_leave_the_others_alone():
    inf, nan = math.inf, math.nan
    groups = [[[], [1, 1, 1, 2]], [[], []]]

    def arrived(communicator):
        own = torch.tensor([[1.0, inf], [nan, 3.0], [-inf, 1e-3], [nan, inf]])[: 4 * (communicator.rank == 0)]
        exchange = compressed(communicator, plan_of(groups, communicator.rank))
        return exchange(own, *counts_of(groups, communicator.rank)).tolist()

    _, rows = run_rank_threads(2, arrived)
    assert [rows[0], rows[1][1], rows[2][0], rows[3][1]] == [[1.0, inf], 3.0, -inf, inf]
    assert math.isnan(rows[1][0])
    assert math.isnan(rows[3][0])
    assert rows[2][1] == pytest.approx(1e-3, rel=ROUNDING, abs=0)


@given(groups=messages(), features=st.integers(0, 3), dtype=dtypes())
def test_bytes_through_two_backward_passes_are_those_of_the_formula(groups, features, dtype):
    def count(communicator):
        rank = communicator.rank
        accounting = Accounting()
        exchange = compressed(Counted(communicator, accounting, "halo"), plan_of(groups, rank))
        send_counts, receive_counts = counts_of(groups, rank)
        own = torch.ones(sum(send_counts), features, dtype=dtype, requires_grad=True)
        with accounting.phase("forward"):
            received = exchange(own, send_counts, receive_counts)
        weight = torch.ones_like(received).requires_grad_()
        with accounting.phase("inner"):
            (gradient,) = torch.autograd.grad(received, own, weight, create_graph=True)
        with accounting.phase("outer"):
            torch.autograd.grad(gradient, weight, torch.ones_like(gradient))
        return accounting

    for rank, accounting in enumerate(run_rank_threads(len(groups), count)):
        if len(groups) == 1:
            assert accounting.tallies == {}
            continue
        send_counts, receive_counts = counts_of(groups, rank)
        scales_sent = [len(set(message)) * (target != rank) for target, message in enumerate(groups[rank])]
        scales_got = [len(set(source[rank])) * (other != rank) for other, source in enumerate(groups)]
        there = bytes_of_compressed_exchange(send_counts, scales_sent, features, rank)
        back = bytes_of_compressed_exchange(receive_counts, scales_got, features, rank)
        assert accounting.total("halo", "forward") == (1, there)
        assert accounting.total("halo", "inner") == (1, back)
        assert accounting.total("halo", "outer") == (1, there)
        plain = bytes_of_exchange(send_counts, features * 4, rank)
        assert there == plain // 2 + 2 * sum(scales_sent)


def test_measured_errors_are_those_of_the_rows_that_were_sent():
    groups = [[[], [1, 8]], [[8, 8], [1]]]
    sent = [[[1 + 2.0**-12, 0.5], [0.0, 0.0]], [[3.0, 1.0], [4.0, 1 / 3], [0.1, 0.1]]]

    def measure(communicator):
        rank = communicator.rank
        measured = MeasuredError()
        assert (measured.largest(), measured.by_group()) == (0.0, {})
        own = torch.tensor(sent[rank], dtype=torch.float64, requires_grad=True)
        exchange = compressed(communicator, plan_of(groups, rank), measured=measured)
        received = exchange(own, *counts_of(groups, rank))
        before = measured.by_group()
        torch.autograd.grad(received, own, torch.full_like(received, 1 + 2.0**-12))
        return before, measured.by_group(), measured.largest()

    third = abs(float(torch.tensor(1 / 3).half()) - 1 / 3) / 4
    rounded = 2.0**-12 / (1 + 2.0**-12)
    first, second = run_rank_threads(2, measure)
    assert first == ({1: rounded, 8: 0.0}, {1: rounded, 8: rounded}, rounded)
    assert second == ({8: pytest.approx(third)}, {1: rounded, 8: rounded}, rounded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_dtypes_travel_as_they_are(dtype):
    groups = [[[1], [1, 2]], [[], [2]]]

    def same(communicator):
        own = (torch.arange(6).reshape(3, 2)[: [3, 1][communicator.rank]] * 1000).to(dtype)
        counts = counts_of(groups, communicator.rank)
        arrived = compressed(communicator, plan_of(groups, communicator.rank))(own, *counts)
        return arrived.dtype is dtype and torch.equal(arrived, make_exchange(communicator)(own, *counts))

    assert run_rank_threads(2, same) == [True, True]


def test_on_one_rank_nothing_is_rounded():
    rows = torch.tensor([[1 / 3]], dtype=torch.float64)
    assert compressed(SingleRank(), plan_compression(0, [1], [6], [1], [6]))(rows, [1], [1]) is rows


@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
def test_rows_may_have_any_number_of_dimensions(shape):
    groups = [[[], [1, 1, 2]], [[2, 1, 1], []]]

    def same(communicator):
        own = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
        counts = counts_of(groups, communicator.rank)
        arrived = compressed(communicator, plan_of(groups, communicator.rank))(own, *counts)
        return torch.equal(arrived, make_exchange(communicator)(own, *counts))

    assert run_rank_threads(2, same) == [True, True]


def test_a_compressed_halo_is_within_the_bound_and_owned_rows_are_exact():
    lists, numbers = [[[], [0, 2]], [[1], []]], [[1, 8, 26], [8, 1]]

    def both(communicator):
        rank, other = communicator.rank, 1 - communicator.rank
        plan = plan_halo(len(numbers[rank]), lists[rank], [len(source[rank]) for source in lists])
        own = torch.tensor(numbers[rank])
        ghosts = communicator.exchange_rows(own[plan.send_rows], plan.send_counts, plan.receive_counts)
        assert ghosts.tolist() == [numbers[other][row] for row in lists[other][rank]]
        scales = plan_compression(rank, plan.send_counts, own[plan.send_rows], plan.receive_counts, ghosts)
        rows = (own[:, None] / torch.tensor([3.0, 7.0])).requires_grad_()
        exact = make_halo(plan, make_exchange(communicator))(rows)
        rounded = make_halo(plan, compressed(communicator, scales.to("cpu")))(rows)
        gradients = [torch.autograd.grad(torch.sin(appended).sum(), rows)[0] for appended in (exact, rounded)]
        return exact.detach(), rounded.detach(), *gradients

    for rank, (exact, rounded, gradient, rounded_gradient) in enumerate(run_rank_threads(2, both)):
        owned = len(numbers[rank])
        assert torch.equal(exact[:owned], rounded[:owned])
        assert not torch.equal(exact, rounded)
        assert ((exact - rounded).abs() <= ROUNDING * exact.abs()).all()
        # One ghost a row here, with a cotangent of at most one: its value is rounded, and so is its cotangent.
        assert ((gradient - rounded_gradient).abs() <= 1.01 * ROUNDING * (1 + max(numbers[rank]))).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, [0, 2], [1], [0, 0], []), r"2 rows are sent, but groups_sent has shape \[1\]"),
        ((0, [0, 0], [], [0, 1], [1, 1]), r"1 rows are received, but groups_received has shape \[2\]"),
        ((0, [0, 1], [1], [0], []), "receive_counts has 1 entries for 2 ranks"),
        ((2, [0, 1], [1], [0, 0], []), "there are counts for 2 ranks, and none of them is 2"),
        ((0, [0, -1], [], [0, 0], []), "negative row count"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_compression(*arguments)


def test_an_exchange_that_the_plan_is_not_for_is_refused_before_it_moves():
    def attempt(communicator):
        rank, other = communicator.rank, 1 - communicator.rank
        exchange = compressed(communicator, plan_of([[[], [1]], [[1], []]], rank))
        counts = [2 * (r == other) for r in range(2)]
        with pytest.raises(ValueError, match=r"the plan is for counts .* plan each exchange"):
            exchange(torch.ones(2, 1), counts, counts)

    run_rank_threads(2, attempt)


def test_a_plan_on_another_device_than_the_rows_is_refused():
    def attempt(communicator):
        rank, other = communicator.rank, 1 - communicator.rank
        exchange = compressed(communicator, plan_of([[[], [1]], [[1], []]], rank).to("meta"))
        counts = [int(r == other) for r in range(2)]
        with pytest.raises(ValueError, match=r"rows are on cpu, but the plan is on meta; use plan\.to\(rows\.device\)"):
            exchange(torch.ones(1, 1), counts, counts)

    run_rank_threads(2, attempt)


def test_only_the_dtypes_that_are_named_are_rounded():
    groups = [[[], [1]], [[], []]]

    def arrived(communicator):
        counts, exchanges = counts_of(groups, communicator.rank), []
        plan = plan_of(groups, communicator.rank)
        for options in ({}, {"dtypes": (torch.float64,)}):
            exchange = make_compressed_exchange(communicator, plan, **options)
            for dtype in (torch.float32, torch.float64):
                rows = torch.full((1 - communicator.rank, 1), 1 / 3, dtype=dtype)
                exchanges.append(exchange(rows, *counts).tolist() == [[rows.new_tensor(1 / 3).item()]])
        return exchanges

    _, exact = run_rank_threads(2, arrived)
    assert exact == [False, True, True, False]


def test_dtypes_that_cannot_be_compressed_are_refused():
    with pytest.raises(ValueError, match="only float32 and float64 can be compressed"):
        make_compressed_exchange(SingleRank(), plan_compression(0, [0], [], [0], []), dtypes=(torch.float16,))
