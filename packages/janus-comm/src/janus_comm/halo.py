"""The halo: a rank's own rows, followed by the rows of others that it needs.

Which rows go where is a plan of integers, made once for a partition. Applying it is a selection, an exchange and a
concatenation; its adjoint brings cotangents of ghost rows home and adds them to those of the owned rows, rank by rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from numpy.typing import ArrayLike
from torch import Tensor

from janus_comm.exchange import Exchange
from janus_comm.tangents import on_value_and_tangent


@dataclass(frozen=True)
class HaloPlan:
    """Which of its rows a rank sends to each other rank, and how many it gets."""

    owned: int
    send_rows: Int64[Tensor, " sent"]
    """Indices of owned rows, those that go to rank 0 first."""
    send_counts: tuple[int, ...]
    receive_counts: tuple[int, ...]

    def to(self, device: torch.device | str) -> HaloPlan:
        """The plan for rows on a device."""
        return HaloPlan(self.owned, self.send_rows.to(device), self.send_counts, self.receive_counts)


def plan_halo(owned: int, send_lists: Sequence[ArrayLike], receive_counts: Sequence[int]) -> HaloPlan:
    """The plan of a rank that owns ``owned`` rows and sends rows ``send_lists[r]`` to rank r.

    ``receive_counts[r]`` is how many rows rank r sends here: they follow the owned ones, in the order of the ranks and,
    for each, in that of its list.

    Raises ValueError when a list names a row that is not owned or names one twice, or there are not as many counts.
    """
    if len(send_lists) != len(receive_counts):
        raise ValueError(
            f"plan_halo: {len(send_lists)} send lists but {len(receive_counts)} receive counts; give one of each a rank"
        )
    lists = [np.asarray(rows, dtype=np.int64).reshape(-1) for rows in send_lists]
    for rank, rows in enumerate(lists):
        if rows.size and (rows.min() < 0 or rows.max() >= owned):
            raise ValueError(f"plan_halo: send_lists[{rank}] names rows outside 0..{owned - 1}, the rows owned here")
        if np.unique(rows).size != rows.size:
            raise ValueError(f"plan_halo: send_lists[{rank}] names a row twice; send it once and use its ghost twice")
    return HaloPlan(
        owned,
        torch.from_numpy(np.concatenate([np.empty(0, np.int64), *lists])),
        tuple(len(rows) for rows in lists),
        tuple(int(count) for count in receive_counts),
    )


def make_halo(
    plan: HaloPlan, exchange: Exchange
) -> Callable[[Shaped[Tensor, "owned *features"]], Shaped[Tensor, "rows *features"]]:
    """The callable ``owned rows -> owned rows followed by ghost rows``, differentiable any number of times.

    The cotangent of an owned row is its own plus those of its ghosts, added in the order of the ranks, half precision
    in float32: the same bits in every run, on every device.

    The callable raises ValueError when it is given another number of rows than the plan is for.
    """

    def halo(rows: Shaped[Tensor, "owned *features"]) -> Shaped[Tensor, "rows *features"]:
        if rows.shape[0] != plan.owned:
            raise ValueError(f"halo: the plan is for {plan.owned} owned rows, but the tensor has {list(rows.shape)}")
        if rows.device != plan.send_rows.device:
            raise ValueError(
                f"halo: rows are on {rows.device}, but the plan is on {plan.send_rows.device}; use plan.to(rows.device)"
            )
        sent = on_value_and_tangent(lambda given: _Select.apply(given, plan), rows)  # type: ignore[no-untyped-call]
        return torch.cat([rows, exchange(sent, plan.send_counts, plan.receive_counts)])

    return halo


class _Select(torch.autograd.Function):
    """The rows to send; adding such rows up where they came from is its adjoint, and it is the adjoint of that."""

    @staticmethod
    def forward(rows: Tensor, plan: HaloPlan) -> Tensor:
        return rows.index_select(0, plan.send_rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, HaloPlan], output: Tensor) -> None:
        ctx.plan = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        added: Tensor = _AddUp.apply(cotangent, ctx.plan)  # type: ignore[no-untyped-call]
        return added, None


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(sent: Tensor, plan: HaloPlan) -> Tensor:
        wide = torch.float32 if sent.dtype in (torch.float16, torch.bfloat16) else sent.dtype
        total = torch.zeros(plan.owned, *sent.shape[1:], dtype=wide, device=sent.device)
        # One rank at a time: no row occurs twice in a list, so that no addition depends on which thread is first.
        for rows, places in zip(sent.split(plan.send_counts), plan.send_rows.split(plan.send_counts), strict=True):
            total.index_add_(0, places, rows.to(wide))
        return total.to(sent.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, HaloPlan], output: Tensor) -> None:
        ctx.plan = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        selected: Tensor = _Select.apply(cotangent, ctx.plan)  # type: ignore[no-untyped-call]
        return selected, None
