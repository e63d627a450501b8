"""How much experts have to do and how elements mix them, as numbers and as a file for people."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from janus_moe.routing import expert_load


@dataclass(frozen=True)
class ExpertStatistics:
    """What the experts of one layer do.

    Attributes:
        load: rows that each expert computes.
        max_over_mean: rows of the busiest expert over an even share; 1 is even.
        load_entropy: entropy of the load over that of an even one; 1 is even, 0 one expert alone.
        dead: experts that no element with rows selects.
        gate_entropy: entropy of an element's gates over that of equal ones, mean over rows; 0 where one expert does
            all the work of each element.
        effective_experts: as many experts, used alike, would be as diverse: exp of the entropy of what each expert
            counts for, its gates summed over rows.
    """

    load: tuple[int, ...]
    max_over_mean: float
    load_entropy: float
    dead: tuple[int, ...]
    gate_entropy: float
    effective_experts: float


def expert_statistics(
    selection: Int64[Tensor, "elements top_k"],
    gates: Float[Tensor, "elements top_k"],
    rows_per_element: Int64[Tensor, "elements"],
    experts: int,
) -> ExpertStatistics:
    """What the experts of a layer do, given how many rows every element has. All tensors on the host.

    Without any row nothing is uneven: ratios and entropies are those of an even load, and no expert is of use.
    """
    load = expert_load(selection, rows_per_element, experts)
    rows = rows_per_element.double()
    gates = torch.where(rows_per_element[:, None] > 0, gates.double(), 0.0)
    carried = torch.zeros(experts, dtype=torch.float64)
    carried.index_add_(0, selection.flatten(), (gates * rows[:, None]).flatten())
    total = float(rows.sum())
    shares = load.double() / load.sum().clamp(min=1)
    mixed = gates.shape[1] > 1 and total > 0
    return ExpertStatistics(
        load=tuple(load.tolist()),
        max_over_mean=float(shares.max()) * experts if total else 1.0,
        load_entropy=float(_entropy(shares)) / math.log(experts) if total and experts > 1 else 1.0,
        dead=tuple((load == 0).nonzero().flatten().tolist()),
        gate_entropy=float((_entropy(gates) * rows).sum()) / (total * math.log(gates.shape[1])) if mixed else 1.0,
        effective_experts=float(_entropy(carried / total).exp()) if total else 0.0,
    )


def _entropy(shares: Tensor) -> Tensor:
    """−Σ p ln p over the last dimension, where 0 ln 0 is 0."""
    return -torch.xlogy(shares, shares).sum(-1)


def write_expert_maps(
    maps: Mapping[str, Float[Tensor, "elements experts"]], elements: Collection[int], path: str | Path
) -> None:
    """Writes which experts these elements use and how much each counts for them (`ElementRouter.expert_map`), by layer.

    A `.csv` file has a line for each use: layer, atomic_number, expert, weight. A `.json` file holds
    `{layer: {atomic_number: {expert: weight}}}`.

    Raises:
        ValueError: a file name that ends otherwise.
    """
    path = Path(path)
    tables = {layer: weights.tolist() for layer, weights in maps.items()}
    uses = [
        (layer, z, expert, weight)
        for layer, table in tables.items()
        for z in sorted(elements)
        for expert, weight in enumerate(table[z])
        if weight > 0
    ]
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("layer", "atomic_number", "expert", "weight"), *uses])
    elif path.suffix == ".json":
        content: dict[str, dict[str, dict[str, float]]] = {layer: {} for layer in maps}
        for layer, z, expert, weight in uses:
            content[layer].setdefault(str(z), {})[str(expert)] = weight
        path.write_text(json.dumps(content, indent=1) + "\n")
    else:
        raise ValueError(f"{path.name} is to be a table of experts; end its name in .csv or .json")
