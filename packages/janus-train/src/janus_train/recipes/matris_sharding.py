"""How the ranks of a unit share a MatRIS-MoE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from janus_graph import AtomGraph
from janus_moe import MoELayer
from janus_train.data.statistics import Statistics
from janus_train.recipes.recipe import Region, Sharding
from matris_model import MatRISMoE

if TYPE_CHECKING:
    from janus_train.plan.shape import ModelShape


def matris_sharding(
    model: MatRISMoE,
    statistics: Statistics,
    seed: int,
    inherit: Callable[[MatRISMoE, nn.Module], None] | None = None,
    surroundings: Callable[[], AtomGraph] | None = None,
) -> Sharding:
    """What sharing this model needs to know of it: message experts see edges, feature experts atoms.

    Args:
        model: whole, or on the meta device.
        statistics: references, scales, and atoms of each element.
        seed: of the random weights.
        inherit: puts other weights into a block of a model, or into what is outside its blocks; none keeps random ones.
        surroundings: makes training structures that a model with random weights takes from what is usual around atoms.
    """
    config = model.config
    layers = [name for name, module in model.named_modules() if isinstance(module, MoELayer)]

    def initialize(module: nn.Module) -> None:
        model.initialize(module, seed, frequencies_of(statistics))
        if inherit is not None:
            inherit(model, module)
        elif module is model and surroundings is not None:
            model.calibrate(surroundings().to(model.references.device))
        if module is model:
            set_references(model, statistics)

    def whole() -> MatRISMoE:
        with torch.device("meta"):
            return MatRISMoE(config)

    def shape(terms: Sequence[str]) -> ModelShape:
        from janus_train.recipes.matris_plan import matris_shape

        return matris_shape(config, statistics.atoms, terms=terms, chained=True)

    return Sharding(
        blocks=list(model.blocks),
        rows=["edges" if name.endswith("message_experts") else "atoms" for name in layers],
        experts=config.experts,
        expert_hidden=config.expert_hidden,
        width=config.width,
        initialize=initialize,
        whole=whole,
        read=_read,
        shape=shape,
        replicated=lambda name: ".router." in name,
    )


def frequencies_of(statistics: Statistics) -> Int64[Tensor, "elements"]:
    """Training atoms of each element, which experts are dealt out by."""
    return torch.from_numpy(statistics.atoms)


@torch.no_grad()
def set_references(model: nn.Module, statistics: Statistics) -> None:
    """Energies of elements, and the unit of the network's output, in each task."""
    assert isinstance(model, MatRISMoE)
    model.references.copy_(torch.from_numpy(statistics.references))
    model.scales.copy_(torch.from_numpy(statistics.scales))


def _read(directory: Path, name: str, region: Region) -> Tensor:
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", framework="pt") as file:
        part: Tensor = file.get_slice(name)[region] if region else file.get_tensor(name)
    return part
