"""What a training step of MatRIS-MoE by double backward keeps for its derivatives, in numbers a row."""

from __future__ import annotations

from collections.abc import Iterator

from janus_train.plan.kept import Kept
from matris_model import MatRISMoEConfig


def kept_tensors(config: MatRISMoEConfig, sharded: bool = False) -> tuple[Kept, ...]:
    """Tensors that live when the outer pass begins, of the plain formulas, weights left out.

    Counted on the tensors that autograd holds after the forward and the inner pass, each once, and written down as
    multiples of the model's sizes; a few numbers a row that go with none of these are left out.

    Args:
        config: shape of the model.
        sharded: whether experts are restored for each step, whose units are then kept beside the matrices made of them.
    """
    return (*_geometry(config), *(part for block in range(config.blocks) for part in _block(config, block, sharded)))


def _geometry(config: MatRISMoEConfig) -> Iterator[Kept]:
    radial, angular, edge = config.radial_functions, config.angular_functions, config.edge_width
    yield Kept("distances and their embedding", "edges", 6 * radial + 6 * edge + 124)
    channels, degrees = config.density_channels, config.density_degrees
    yield Kept("densities of edges", "edges", 3 * channels + 4 * degrees**2 - 17)
    yield Kept("densities in tables", "places", 3 * channels + degrees**2)
    of_channel = 6 * degrees**2 + 5 * degrees + 31
    yield Kept("densities of atoms", "atoms", of_channel * channels + 24 * config.width + 52)
    yield Kept("angles", "near_places", 3 * angular - 4)
    yield Kept("embedding and readout", "atoms", 10 * config.width)


def _block(config: MatRISMoEConfig, block: int, sharded: bool) -> Iterator[Kept]:
    width, edge, heads = config.width, config.edge_width, config.heads
    shared, routed = config.message_hidden, config.top_k * config.expert_hidden
    last = block == config.blocks - 1

    def kept(name: str, over: str, numbers: int) -> Kept:
        return Kept(name, over, numbers, block)

    yield kept("messages", "edges", (9 if last else 10) * width + 4 * edge + 4)
    yield kept("experts of messages", "edges", 12 * (shared + routed))
    yield kept("attention over messages", "places", width + 13 * heads)
    yield kept("near edges", "near_edges", 14 * edge + 3)
    yield kept("near edges in tables", "near_slots", 4 * edge + 6 * heads)
    yield kept("attention among near edges", "near_places", 11 * heads + 2 * config.angular_functions)
    yield kept("atoms", "atoms", 20 * width + 6 * heads * width + 3 * edge)
    yield kept("experts of atoms", "atoms", 12 * (config.feature_hidden + routed))
    yield kept("weights of experts side by side", "present", (6 if sharded else 3) * routed * width)
