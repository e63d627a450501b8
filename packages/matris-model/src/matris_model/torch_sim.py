"""The potential for torch-sim, which relaxes and simulates many systems in one batch. Needs the `torch-sim` extra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_sim.models.interface import ModelInterface

from janus_graph import Structure, build_graph
from matris_model.frozen import frozen_model
from matris_model.model import MatRISMoE


class MatRISTorchSimModel(ModelInterface):  # type: ignore[misc] # torch-sim is an extra
    """Energies, forces and stress of all systems of a torch-sim state at once.

    Charges and spin multiplicities are read from the state's `charge` and `spin` where it has them (one number a
    system), else they are 0 and 1. Graphs and sums of energies are in float64 whatever the precisions below.

    Args:
        model_or_path: a model, or where one was saved (a run directory, `model.safetensors`, `model.json`).
        task: which data set's reference energies to use; needed only where the model was trained on several.
        device: where to compute and where the states are.
        dtype: precision of the weights; that of the model where None.
        state_dtype: precision of the states, so of positions, momenta and of what is handed back. torch-sim makes
            states with it, and float32 rounds a total energy of 10 keV to 1 meV.
        compute_stress: whether stress is computed; MD and relaxations in fixed cells are quicker without.

    Raises:
        ValueError: no such model, task or element; the message names those there are.
    """

    def __init__(
        self,
        model_or_path: MatRISMoE | str | Path,
        task: str | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        state_dtype: torch.dtype = torch.float64,
        compute_stress: bool = True,
    ) -> None:
        super().__init__()
        self.model = frozen_model(model_or_path, device, dtype)
        self.task = self.model.task_index(task)
        self._device, self._dtype = torch.device(device), state_dtype
        self._compute_forces, self._compute_stress = True, compute_stress
        self._memory_scales_with = "n_atoms_x_density"

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Of each system: energy (eV) and, where it is computed, stress (eV/Å³); of each atom: forces (eV/Å).

        Stress is zero for systems that do not repeat in all three directions.

        Args:
            state: a torch-sim state, or a dictionary with its fields.
        """
        config = self.model.config
        structures = structures_of_state(state, self.task)
        self.model.check_elements({int(z) for structure in structures for z in structure.atomic_numbers})
        graph = build_graph(structures, config.cutoff, config.near_cutoff).to(self._device)
        with torch.no_grad():
            found = self.model(graph, ("energy", "forces") + ("stress",) * self._compute_stress)
        results = {"energy": found.energy, "forces": graph.in_input_order(found.forces)}
        if found.stress is not None:
            results["stress"] = found.stress
        return {name: values.to(self._dtype) for name, values in results.items()}


def structures_of_state(state: Any, task: int = 0) -> list[Structure]:
    """The systems of a torch-sim state (or of a dictionary with its fields) as structures, on the host.

    Raises:
        ValueError: what `Structure` refuses.
    """
    field: Callable[[str], Any] = state.get if isinstance(state, dict) else lambda name: getattr(state, name, None)
    numbers, positions = _host(field("atomic_numbers")), _host(field("positions"))
    # torch-sim keeps lattice vectors as columns.
    cells = _host(field("cell")).reshape(-1, 3, 3).swapaxes(1, 2)
    owner = field("system_idx")
    sizes = [len(numbers)] if owner is None else np.bincount(_host(owner), minlength=len(cells))
    periodic = np.broadcast_to(_host(field("pbc")), (3,))
    charges, spins = (_labels(field(name), default, len(cells)) for name, default in (("charge", 0), ("spin", 1)))
    cuts = np.cumsum(sizes)[:-1]
    rows = zip(np.split(numbers, cuts), np.split(positions, cuts), cells, charges, spins, strict=True)
    return [
        Structure(own_numbers, own_positions, cell, periodic, charge, spin, task)
        for own_numbers, own_positions, cell, charge, spin in rows
    ]


def _labels(values: Any, default: int, count: int) -> list[int]:
    if values is None:
        return [default] * count
    return [int(value) for value in np.broadcast_to(_host(values), (count,)).round()]


def _host(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
