"""How a step that a unit of ranks shares spends memory and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from janus_moe.cost import CostModel


@dataclass(frozen=True)
class Strategy:
    """How a sharded step spends memory and time.

    Attributes:
        route: to the gradient of a loss of forces: by double backward, or by a tangent.
        weights: of the backward route: whole from the forward pass until their gradient is reduced, or gathered again
            for each pass.
        checkpoint: compute blocks again instead of keeping what is inside them.
        pass_edges: most edges that a rank computes at a time; None for no limit.
        expert_costs: what plans of experts weigh against each other; None for guesses by the kind of device.
    """

    route: Literal["backward", "tangent"] = "backward"
    weights: Literal["keep", "regather"] = "keep"
    checkpoint: bool = False
    pass_edges: int | None = None
    expert_costs: CostModel | None = None
