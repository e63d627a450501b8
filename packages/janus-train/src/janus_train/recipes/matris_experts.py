"""The experts of a MatRIS-MoE: how they settle, and what they do, for the log and the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from janus_moe import ELEMENTS, MoELayer
from janus_moe.exploration import noise_scale, selection_noise
from janus_moe.statistics import expert_statistics
from janus_train.config import RouterConfig
from janus_train.failure import UserError
from janus_train.recipes.recipe import ExpertMap


def moe_layers(model: nn.Module) -> Iterator[tuple[str, MoELayer]]:
    """The layers with experts, under names that people read."""
    for name, layer in model.named_modules():
        if isinstance(layer, MoELayer):
            yield name.replace("blocks.", "block ").replace(".", ": ").replace("_experts", " update"), layer


class ExpertsSettle:
    """What routers do before each step: explore with noise that fades out, then freeze the experts of elements.

    The state of the model says whether they are frozen; this only remembers that it need not ask any more.

    Args:
        config: how large the noise is, and when it ends.
        seed: of the noise.
    """

    def __init__(self, config: RouterConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self._settled = False

    def __call__(self, model: nn.Module, step: int) -> None:
        """Brings the routers of all layers to where they are at this step.

        Raises:
            UserError: the step is one of exploring, and they were frozen before.
        """
        if self._settled:
            return
        self._settled = step >= self.config.freeze_at
        scale = noise_scale(step, self.config.noise, self.config.freeze_at)
        for place, (name, layer) in enumerate(moe_layers(model)):
            frozen_at = int(layer.router.frozen_at)
            if not self._settled and frozen_at >= 0:
                raise UserError(
                    f"model.router.freeze_at is {self.config.freeze_at}, but the experts of {name} were frozen at step "
                    f"{frozen_at} and step {step} is next; set it to {frozen_at}"
                )
            if not self._settled:
                layer.router.explore(scale * selection_noise(layer.router.logits.shape[1], self.seed, step, place))
            elif frozen_at < 0:
                layer.router.freeze(step)


@torch.no_grad()
def expert_maps(model: nn.Module, atoms_of_element: np.ndarray) -> list[ExpertMap]:
    """Weights of the experts for each element that occurs, and the rows that each expert computes, layer by layer.

    Args:
        model: the potential.
        atoms_of_element: how many atoms of each atomic number the data have, [119].
    """
    from ase.data import chemical_symbols

    present = np.flatnonzero(atoms_of_element)
    rows = torch.from_numpy(atoms_of_element.astype(np.int64))
    maps: list[ExpertMap] = []
    for name, layer in moe_layers(model):
        selection, gates = (
            found.cpu() for found in layer.router(torch.arange(ELEMENTS, device=layer.router.selection.device))
        )
        weights = layer.router.expert_map().cpu()
        found = expert_statistics(selection, gates, rows, weights.shape[1])
        maps.append(
            {
                "name": name,
                "symbols": [chemical_symbols[z] for z in present],
                "weights": np.round(weights[present].double().numpy(), 4).tolist(),
                "load": list(found.load),
                "statistics": {
                    "max_over_mean": round(found.max_over_mean, 4),
                    "load_entropy": round(found.load_entropy, 4),
                    "dead": len(found.dead),
                    "gate_entropy": round(found.gate_entropy, 4),
                    "effective_experts": round(found.effective_experts, 2),
                },
            }
        )
    return maps


def atoms_of_run(path: Path, elements: Sequence[int]) -> np.ndarray:
    """Atoms of each element that the run at this path learnt from, [119]; one of each of these elements without a run.

    An empty sequence stands for all elements.
    """
    counts = np.zeros(ELEMENTS, dtype=np.int64)
    about = (path if path.is_dir() else path.parent) / "data.json"
    atoms: dict[str, Any] = json.loads(about.read_text()).get("atoms", {}) if about.exists() else {}
    for z in elements or range(1, ELEMENTS):
        counts[z] = 1
    if atoms:
        counts[:] = 0
        counts[[int(z) for z in atoms]] = list(atoms.values())
    return counts
