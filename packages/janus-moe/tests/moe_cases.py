"""Layers with stirred weights and rows of any elements, for the tests of this package."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from janus_moe import ElementGroups, GroupedProduct, MoELayer, group_rows, loop_product


@dataclass(frozen=True)
class Case:
    width: int
    experts: int
    top_k: int
    hidden: int
    shared_hidden: int
    counts: dict[int, int]
    seed: int

    def layer(self, product: GroupedProduct = loop_product) -> MoELayer:
        return stirred_layer(self, product)

    def rows(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(sum(self.counts.values()), self.width, generator=generator, dtype=torch.float64)

    def groups(self) -> ElementGroups:
        return group_rows(list(self.counts), list(self.counts.values()))

    def atomic_numbers(self) -> list[int]:
        return [z for z, count in self.counts.items() for _ in range(count)]


def stirred_layer(case: Case, product: GroupedProduct = loop_product) -> MoELayer:
    """A layer in float64 of which no weight is zero and no two gates are equal."""
    layer = MoELayer(case.width, case.experts, case.top_k, case.hidden, case.shared_hidden, product).double()
    generator = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return layer


@st.composite
def cases(draw: st.DrawFn, largest_count: int = 3) -> Case:
    experts = draw(st.integers(1, 6))
    elements = draw(st.lists(st.integers(1, 118), max_size=4, unique=True))
    return Case(
        width=draw(st.integers(1, 5)),
        experts=experts,
        top_k=draw(st.integers(1, experts)),
        hidden=draw(st.integers(1, 4)),
        shared_hidden=draw(st.integers(1, 4)),
        counts={z: draw(st.integers(0, largest_count)) for z in sorted(elements)},
        seed=draw(st.integers(0, 1000)),
    )
