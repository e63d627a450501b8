"""Element-type routed Mixture-of-Experts layers with exact derivatives of any order."""

from janus_moe.experts import SwiGLU, SwiGLUExperts, gated_silu
from janus_moe.fusion import TensorFunction, fused
from janus_moe.groups import ElementGroups, GroupRows, group_rows
from janus_moe.layer import MoELayer
from janus_moe.products import GroupedProduct, grouped_product, loop_product
from janus_moe.routing import ElementRouter, expert_load
from janus_moe.selection import ELEMENTS, initial_selection, periodic_table_order

__all__ = [
    "ELEMENTS",
    "ElementGroups",
    "ElementRouter",
    "GroupRows",
    "GroupedProduct",
    "MoELayer",
    "SwiGLU",
    "SwiGLUExperts",
    "TensorFunction",
    "expert_load",
    "fused",
    "gated_silu",
    "group_rows",
    "grouped_product",
    "initial_selection",
    "loop_product",
    "periodic_table_order",
]
