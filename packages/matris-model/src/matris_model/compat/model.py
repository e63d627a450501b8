"""The published MatRIS: an invariant potential with a graph of atoms and bonds and one of bonds and angles."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from janus_graph import AtomGraph, Properties, conservative_properties
from janus_moe import ELEMENTS
from matris_model.compat.checkpoint import check_state, read_file, split_checkpoint
from matris_model.compat.config import HIGHEST_ELEMENT, MatRISConfig, preset_config
from matris_model.compat.embedding import AtomEmbedding, EdgeEmbedding, ReferenceEnergy, ThreeBodyEmbedding
from matris_model.compat.geometry import graph_geometry
from matris_model.compat.interaction import InteractionBlock
from matris_model.compat.layers import MLP, make_norm
from matris_model.elements import CHEMICAL_SYMBOLS, refuse_unseen_elements


class MatRIS(nn.Module):
    """The published potential (arXiv 2603.02002, V0.9), exact to rounding, defects included. It trains like any other.

    Its energy jumps where an edge or an angle crosses a cutoff, and what a structure without angles gives depends on
    what else is in the batch; docs/matris.md lists what to know. New models are better off as `MatRISMoE`.

    Args:
        config: shape and meaning of the model.
        seed: the same seed gives the same weights; the caller's random state is left alone.

    Attributes:
        recompute_above: with more angles than this in a batch, the line graph's layers are computed again where a
            derivative needs them, instead of being kept: less memory, the same values. As published.
    """

    def __init__(self, config: MatRISConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.recompute_above = 60_000
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            self.reference_energy = None if config.reference_energy is None else ReferenceEnergy()
            self.atom_embedding = AtomEmbedding(config.node_feat_dim)
            self.edge_embedding = EdgeEmbedding(config)
            self.three_body_embedding = ThreeBodyEmbedding(config)
            self.interaction_block = nn.ModuleList(InteractionBlock(config) for _ in range(config.num_layers))
            self.readout_norm = make_norm(config.node_feat_dim, config.norm_type)
            self.energy_head = EnergyHead(config.node_feat_dim, config.mlp_hidden_dims)
            self.magmom_head = MagneticMomentHead(config.node_feat_dim)

    @classmethod
    def from_preset(cls, name: str, seed: int = 0, **changes: Any) -> MatRIS:
        """A model of a preset (`matris-6m`, `matris-10m`) with random weights; keywords change its configuration."""
        return cls(preset_config(name, **changes), seed)

    @classmethod
    def from_reference(cls, checkpoint: Mapping[str, Any]) -> MatRIS:
        """The model of a published checkpoint, in the precision of its weights.

        Args:
            checkpoint: `{"config": the 24 constructor arguments, "state_dict": tensors by name}`.

        Raises:
            ValueError: something else, a configuration that is not supported, or weights that do not belong to it.
        """
        values, state = split_checkpoint(checkpoint)
        model = cls(MatRISConfig.from_reference(values))
        model.to(check_state(state, model.state_dict())).load_state_dict(dict(state))
        return model.eval()

    @classmethod
    def from_file(cls, path: str | Path) -> MatRIS:
        """The model in a published file. Opening it never runs code.

        Raises:
            ValueError: no such file, or one that holds something else; the message names it.
        """
        try:
            return cls.from_reference(read_file(Path(path)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, and of everything but coordinates and the sum of energies."""
        return self.atom_embedding.embedding.weight.dtype

    @property
    def references(self) -> Float64[Tensor, "tasks elements"]:
        """Energy of each element (column = atomic number) in the one task, eV; zero where the weights have none."""
        table = torch.zeros(1, ELEMENTS, dtype=torch.float64, device=self.atom_embedding.embedding.weight.device)
        if self.reference_energy is not None:
            table[:, 1 : HIGHEST_ELEMENT + 1] = self.reference_energy.fc.weight.detach().double()
        return table

    def forward(self, graph: AtomGraph, properties: Collection[str] = ("energy", "forces")) -> Properties:
        """Energies of the structures and what else is asked for: forces, stress, magnetic moments.

        Args:
            graph: a batch made with this model's cutoffs. Charges, spins and tasks mean nothing to this model.
            properties: any of "energy", "forces", "stress", "magmoms".

        Raises:
            ValueError: a graph with other cutoffs, elements beyond plutonium, or a property that does not exist.
        """
        if (graph.cutoff, graph.near_cutoff) != (self.config.cutoff, self.config.near_cutoff):
            raise ValueError(
                f"the graph was built with cutoffs {graph.cutoff} and {graph.near_cutoff} Å, the model needs "
                f"{self.config.cutoff} and {self.config.near_cutoff} Å; pass model.config's to build_graph"
            )
        _check_known(graph.elements)
        return conservative_properties(self.energies, graph, properties)

    def energies(self, graph: AtomGraph) -> tuple[Float64[Tensor, "structures"], Float[Tensor, "atoms"]]:
        """Energies of the structures, eV, and magnetic moments of the atoms, μB."""
        geometry = graph_geometry(graph, self.edge_embedding, self.dtype)
        atoms = self.atom_embedding(graph.atomic_numbers)
        bonds = self.edge_embedding(geometry.radial)
        angles = self.three_body_embedding(geometry.cosines)
        recompute = torch.is_grad_enabled() and len(angles) > self.recompute_above
        for block in self.interaction_block:
            atoms, bonds, angles = block(atoms, bonds, angles, geometry, recompute)
        atoms = self.readout_norm(atoms)
        per_atom = self.energy_head(atoms).double()
        total = per_atom.new_zeros(graph.structures).index_add(0, graph.structure_index, per_atom)
        if self.reference_energy is not None:
            sizes = torch.bincount(graph.structure_index, minlength=graph.structures)
            total = total + sizes * self.reference_energy(graph.composition)
        return total, self.magmom_head(atoms)

    def check_elements(self, atomic_numbers: Collection[int]) -> None:
        """Raises ValueError naming the elements that this model was not trained for."""
        _check_known(atomic_numbers)
        refuse_unseen_elements(atomic_numbers, self.config.elements)

    def task_index(self, task: str | None) -> int:
        """Index of a task by name: 0, as there is one.

        Raises:
            ValueError: no such task.
        """
        if task not in (None, *self.config.tasks):
            raise ValueError(f"this model has no task '{task}'; it has one, {self.config.tasks[0]}")
        return 0


class EnergyHead(nn.Module):
    """Energy of each atom, eV."""

    def __init__(self, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.energy_head = MLP(width, hidden, 1)

    def forward(self, atoms: Float[Tensor, "atoms width"]) -> Float[Tensor, "atoms"]:
        """One number an atom."""
        return self.energy_head(atoms).squeeze(1)


class MagneticMomentHead(nn.Module):
    """Magnitude of the magnetic moment of each atom, μB."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.magmom_head = MLP(width, (2 * width,), 1)

    def forward(self, atoms: Float[Tensor, "atoms width"]) -> Float[Tensor, "atoms"]:
        """One number an atom."""
        return self.magmom_head(atoms).squeeze(1).abs()


def _check_known(atomic_numbers: Collection[int]) -> None:
    beyond = sorted(z for z in set(atomic_numbers) if z > HIGHEST_ELEMENT)
    if beyond:
        raise ValueError(
            f"this model has not seen {', '.join(CHEMICAL_SYMBOLS[z] for z in beyond)} in training; "
            f"its elements end at {CHEMICAL_SYMBOLS[HIGHEST_ELEMENT]}"
        )
