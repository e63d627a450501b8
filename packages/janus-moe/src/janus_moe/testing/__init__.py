"""Oracles and laws for whoever brings a product, a router, a layer or an exchange of their own."""

from janus_moe.testing.laws import check_grouped_product, derivatives, naive_layer, naive_product
from janus_moe.testing.mixtures import MIXTURES, Mixture, rows_of_batch
from janus_moe.testing.ranks import simulate_ranks

__all__ = [
    "MIXTURES",
    "Mixture",
    "check_grouped_product",
    "derivatives",
    "naive_layer",
    "naive_product",
    "rows_of_batch",
    "simulate_ranks",
]
