"""The potential as an ASE calculator. Needs the `ase` extra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from janus_graph import AtomGraph, GraphCache, Structure, build_graph
from janus_graph.ase import structure_from_ase
from matris_model.frozen import frozen_model
from matris_model.model_file import SavedModel


class MatRISCalculator(Calculator):  # type: ignore[misc] # ASE has no types
    """Energy, forces, stress and magnetic moments of ASE structures.

    Charge and spin multiplicity are read from `atoms.info["charge"]` and `atoms.info["spin"]` (0 and 1 where they are
    missing). The structure that is passed in is never changed.

    Args:
        model_or_path: a model, or where one was saved (a run directory, `model.safetensors`, `model.json`).
        task: which data set's reference energies to use; needed only where the model was trained on several.
        device: where to compute.
        dtype: precision of the weights; that of the model where None.
        skin: how far beyond the cutoff edges are kept from call to call (Å): quicker in dynamics and relaxations of
            many atoms, and never another graph. With 0 edges are looked for in every call.

    Raises:
        ValueError: no such model, task or element; the message names those there are.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress", "magmoms"]

    def __init__(
        self,
        model_or_path: SavedModel | str | Path,
        task: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        skin: float = 0.5,
    ) -> None:
        super().__init__()
        self.model = frozen_model(model_or_path, device, dtype)
        self.task = self.model.task_index(task)
        self._graph_of = graph_builder(self.model.config.cutoff, self.model.config.near_cutoff, skin)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation; ASE itself does not look at charge and spin in `atoms.info`."""
        changes: list[str] = super().check_state(atoms, tol)
        if self.atoms is not None:
            changes += [name for name in ("charge", "spin") if atoms.info.get(name) != self.atoms.info.get(name)]
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fills `results` with what was asked for and what comes with it."""
        super().calculate(atoms, properties, system_changes)
        wanted = set(properties or ["energy"])
        self.model.check_elements(set(self.atoms.get_atomic_numbers().tolist()))
        structure = structure_from_ase(self.atoms, task=self.task)
        if "stress" in wanted and not structure.has_volume:
            raise PropertyNotImplementedError(
                f"stress needs a structure that repeats in three directions; here pbc is {structure.periodic.tolist()}"
            )
        if "magmoms" in wanted and not self.model.config.magnetic_moments:
            raise PropertyNotImplementedError("this model was trained without magnetic moments")
        graph = self._graph_of(structure).to(self.model.references.device)
        with torch.no_grad():
            computed = self.model(graph, wanted - {"free_energy"} | {"forces"})
        self.results = self._results(graph.in_input_order, computed)

    def _results(self, in_input_order: Any, computed: Any) -> dict[str, Any]:
        energy = float(computed.energy[0])
        results: dict[str, Any] = {"energy": energy, "free_energy": energy}
        results["forces"] = np.asarray(in_input_order(computed.forces).cpu())
        if computed.stress is not None:
            results["stress"] = full_3x3_to_voigt_6_stress(np.asarray(computed.stress[0].cpu()))
        if computed.magmoms is not None:
            results["magmoms"] = np.asarray(in_input_order(computed.magmoms).double().cpu())
        return results


def graph_builder(cutoff: float, near_cutoff: float, skin: float) -> Callable[[Structure], AtomGraph]:
    """What makes the graph of one structure after the other: with a skin edges are kept between them.

    Raises:
        ValueError: a skin below zero.
    """
    if skin == 0:
        return lambda structure: build_graph([structure], cutoff, near_cutoff)
    return GraphCache(cutoff, near_cutoff, skin).graph
