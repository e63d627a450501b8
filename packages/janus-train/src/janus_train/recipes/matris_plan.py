"""MatRIS-MoE for the planner: its products of matrices, its parameters, and what a step keeps of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import torch
from jaxtyping import Int64

from janus_moe import ELEMENTS, initial_selection
from janus_train.config import Config
from janus_train.data.load import load_data
from janus_train.failure import UserError
from janus_train.plan.products import Operand, Passes, Product, passes
from janus_train.plan.shape import ModelShape
from janus_train.plan.statistics import DataStatistics, data_statistics
from janus_train.recipes.matris import model_config
from janus_train.recipes.matris_kept import kept_tensors
from matris_model import MatRISMoE, MatRISMoEConfig

_FIXED, _TRAINED, _MOVING = Operand.CONSTANT, Operand.TRAINED, Operand.MOVING
_XYZ = 3
# Counted on steps on one process with plain formulas and one or two dense tables: 961 to 1124, and 971 to 1212.
_OPERATIONS_OF_BLOCK, _OPERATIONS_OUTSIDE = 1000, 950


def products(config: MatRISMoEConfig, *, stress: bool = True, chained: bool = False) -> tuple[Product, ...]:
    """All products but those of routed experts, whose rows a plan may move.

    Args:
        config: shape of the model.
        stress: whether the loss has stress, so that there is a strain to differentiate by.
        chained: whether features pass the links of a chain: the cotangent of the energy then counts as trained.
    """
    return (
        *_geometry(config, stress),
        *_embedding(config),
        *(part for block in range(config.blocks) for part in _block(config, block)),
        *_readout(config, chained),
    )


def _geometry(config: MatRISMoEConfig, stress: bool) -> Iterator[Product]:
    cells = _MOVING if stress else _FIXED
    yield Product("translations", "edges", _XYZ**2, passes(_FIXED, cells))
    if stress:
        yield Product("strained positions", "atoms", _XYZ**2, passes(_MOVING, _MOVING))
        yield Product("strained cells", "structures", _XYZ**3, passes(_FIXED, _MOVING))
    yield Product("cosines", "near_places", _XYZ, passes(_MOVING, _MOVING))


def _embedding(config: MatRISMoEConfig) -> Iterator[Product]:
    width, structure, edge = config.width, config.structure_width, config.edge_width
    yield Product("charge and spin", "structures", 3 * structure, passes(_FIXED, _TRAINED))
    if config.composition:
        yield Product("composition", "structures", ELEMENTS * structure, passes(_FIXED, _TRAINED))
    yield Product("structure", "structures", structure**2, passes(_TRAINED, _TRAINED))
    yield Product("atoms' features", "atoms", (width + structure) * width, passes(_TRAINED, _TRAINED))
    channels, degrees = config.density_channels, config.density_degrees
    yield Product("channels of the density", "edges", config.radial_functions * channels, passes(_MOVING, _TRAINED))
    for degree in range(1, degrees - 1):
        harmonics = _XYZ * (2 * degree + 1) * (2 * degree + 3)
        yield Product("harmonics of one more degree", "edges", harmonics, passes(_MOVING, _FIXED))
    yield Product("density", "places", degrees**2 * channels, passes(_MOVING, _MOVING))
    yield Product("its mix", "atoms", degrees**2 * channels**2, passes(_MOVING, _TRAINED))
    yield Product("its mix of three", "atoms", (3 + 5 + 5) * channels**2, passes(_MOVING, _TRAINED))
    yield Product("tensors of three", "atoms", 3 * 5 * _XYZ**2 * channels, passes(_FIXED, _MOVING))
    features = channels * (3 + degrees) + width
    yield Product("density to atoms", "atoms", (features + width) * width, passes(_MOVING, _TRAINED))
    yield Product("edges' features", "edges", (config.radial_functions + edge) * edge, passes(_MOVING, _TRAINED))


def _block(config: MatRISMoEConfig, block: int) -> Iterator[Product]:
    width, edge, heads = config.width, config.edge_width, config.heads
    weight, pair = passes(_MOVING, _TRAINED), passes(_MOVING, _MOVING)

    def product(name: str, over: str, multiplications: int, how_often: Passes = weight) -> Product:
        return Product(name, over, multiplications, how_often, block)

    yield product("query, key, value and out of near edges", "near_edges", 4 * edge**2)
    yield product("functions of angles", "near_places", 2 * heads * config.angular_functions)
    yield product("logits and values of near edges", "near_places", 2 * edge, pair)
    yield product("neighbour and centre", "atoms", 2 * width**2)
    yield product("edge to message", "edges", edge * width)
    yield product("shared expert of messages", "edges", 3 * width * config.message_hidden)
    yield product("query", "atoms", 2 * width * edge, Passes(weight.forward, 0, 0))
    yield product("derivatives of the query", "askers", 2 * width * edge, Passes(0, weight.inner, weight.outer))
    yield product("functions of distances", "places", heads * config.radial_functions)
    yield product("logits of messages", "places", heads * width, pair)
    yield product("sums of messages", "places", heads * width, pair)
    yield product("value and out", "atoms", 2 * width**2)
    if block < config.blocks - 1:
        yield product("message to edge", "edges", width * edge)
    yield product("shared expert of atoms", "atoms", 3 * width * config.feature_hidden)


def _readout(config: MatRISMoEConfig, chained: bool) -> Iterator[Product]:
    width = config.width
    yield Product("energy", "atoms", width**2, passes(_MOVING, _TRAINED))
    yield Product("energy out", "atoms", width, passes(_MOVING, _TRAINED, trained_above=chained))
    if config.magnetic_moments:
        # They enter the loss as they are: no derivative in the positions is taken.
        yield Product("magnetic moment", "atoms", (width + 1) * width, Passes(forward=1, inner=0, outer=2))


def matris_shape(
    config: MatRISMoEConfig,
    frequencies: Int64[np.ndarray, "elements"] | None = None,
    *,
    terms: Collection[str] = ("energy", "forces", "stress"),
    chained: bool = False,
) -> ModelShape:
    """What the planner knows of a model.

    Args:
        config: shape of the model.
        frequencies: atoms of each element in the data, which decide on the experts of elements.
        terms: of the loss.
        chained: whether blocks are called in step with a chain and experts are shards, as in a unit of several ranks.
    """
    with torch.device("meta"):
        model = MatRISMoE(config)
    blocks: list[list[tuple[int, ...]]] = [[] for _ in range(config.blocks)]
    rest: list[tuple[int, ...]] = []
    replicated = 0
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            continue
        if ".router." in name:
            replicated += parameter.numel()
            continue
        place = name.split(".")
        (blocks[int(place[1])] if place[0] == "blocks" else rest).append(tuple(parameter.shape))
    layers = ("edges", "atoms") * config.blocks
    rows = None if frequencies is None else torch.from_numpy(frequencies)
    selection = initial_selection(config.experts, config.top_k, rows).numpy()
    return ModelShape(
        name="MatRIS-MoE",
        products=products(config, stress="stress" in terms, chained=chained),
        blocks=tuple(tuple(shapes) for shapes in blocks),
        rest=tuple(rest),
        replicated=replicated,
        terms=tuple(terms),
        layers=layers,
        experts=config.experts,
        expert_hidden=config.expert_hidden,
        width=config.width,
        edge_width=config.edge_width,
        selection=np.stack([selection] * len(layers)),
        kept=kept_tensors(config, sharded=chained),
        operations=_OPERATIONS_OF_BLOCK * config.blocks + _OPERATIONS_OUTSIDE,
    )


def planned_shape(config: Config, data: DataStatistics) -> ModelShape:
    """What the planner knows of the model that a configuration asks for.

    Raises:
        UserError: no such preset or field, or data that were measured with other cutoffs.
    """
    model = model_config(config.model)
    if (model.cutoff, model.near_cutoff) != (data.cutoff, data.near_cutoff):
        raise UserError(
            f"the statistics are of edges below {data.cutoff:g} and {data.near_cutoff:g} Å, the model needs "
            f"{model.cutoff:g} and {model.near_cutoff:g} Å; measure the data again with this model"
        )
    frequencies = data.atoms_of_element(ELEMENTS)
    return matris_shape(model, frequencies, terms=config.loss.weights, chained=config.mesh.unit > 1)


def statistics_of(config: Config) -> DataStatistics:
    """Sizes of the structures that a configuration trains on, with its model's cutoffs."""
    model = model_config(config.model)
    return data_statistics([frame.structure for frame in load_data(config).train], model.cutoff, model.near_cutoff)
