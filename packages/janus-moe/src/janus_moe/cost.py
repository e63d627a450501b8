"""What moving and computing cost, as integers, so that every rank plans alike."""

from __future__ import annotations

from dataclasses import dataclass

STEP_PRODUCTS = 6
"""Products of a training step by double backward, in those of a plain forward: one, one in the inner pass, four in the
outer one."""
STEP_ROW_TRIPS = 8
"""One-way trips of a moved row in such a step: there and back in the forward pass, in the inner one, and twice in the
outer one."""
STEP_WEIGHT_TRIPS = 2
"""Trips of a restored weight in such a step: as itself, and as its gradient."""


@dataclass(frozen=True)
class CostModel:
    """Picoseconds that a rank spends in a step.

    Attributes:
        pair: to compute one row by one expert.
        row: to send one row and get its result, or to take one and give its result back.
        unit: to receive, or to send, one hidden unit of an expert.
        exchange: on the restoring of experts, and on the moving of rows, whatever they carry.
    """

    pair: int
    row: int
    unit: int
    exchange: int = 0

    def __post_init__(self) -> None:
        if min(self.pair, self.row, self.unit, self.exchange) < 0:
            raise ValueError(f"costs cannot be negative: {self}")

    @classmethod
    def from_rates(
        cls,
        width: int,
        hidden: int,
        *,
        flops_per_second: float,
        bytes_per_second: float,
        seconds_per_exchange: float = 0.0,
        bytes_per_number: int = 4,
    ) -> CostModel:
        """The costs of a training step by double backward, given the rates of a rank.

        Args:
            width: features of a row.
            hidden: hidden units of an expert.
            flops_per_second: of matrix products.
            bytes_per_second: that a rank sends while it receives as many.
            seconds_per_exchange: latency of one exchange.
            bytes_per_number: of features and of weights.
        """
        second, row = 1e12, width * bytes_per_number
        return cls(
            pair=round(second * STEP_PRODUCTS * 6 * width * hidden / flops_per_second),
            row=round(second * STEP_ROW_TRIPS / 2 * row / bytes_per_second),
            unit=round(second * STEP_WEIGHT_TRIPS * 3 * row / bytes_per_second),
            exchange=round(second * STEP_ROW_TRIPS * seconds_per_exchange),
        )
