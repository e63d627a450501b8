"""MatRIS-MoE: an invariant Mixture-of-Experts potential whose forces are exact derivatives of its energy."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from janus_graph import AtomGraph, Halo, Properties, conservative_properties, no_halo
from janus_moe import ELEMENTS, GroupRows, group_rows, initial_selection
from matris_model.config import MatRISMoEConfig, preset_config
from matris_model.density import DensityEmbedding
from matris_model.elements import refuse_unseen_elements
from matris_model.embedding import AtomEmbedding, EdgeEmbedding
from matris_model.formulas import PLAIN, Formulas
from matris_model.geometry import graph_geometry
from matris_model.interaction import BlockRunner, InteractionBlock, call_block
from matris_model.norm import RMSNorm


class MatRISMoE(nn.Module):
    """The potential. `model(graph, ("energy", "forces"))` gives `Properties`.

    E = Σ_i s_task MLP(norm h_i) + E0[task, z_i], summed in float64; design after arXiv 2604.15821.

    Args:
        config: shape and meaning of the model.
        seed: the same seed gives the same weights; the caller's random state is left alone.
        formulas: how the parts of blocks are computed. `fused_formulas()` gives the same numbers to rounding, faster,
            after a minute of compiling at the first step; `triton_formulas()` is for GPUs.
        run_block: how blocks are run where a call does not say. `checkpoint_block` keeps only what goes into a block.
        frequencies: atoms of each element in the data to train on, [119]; experts are dealt out to elements so that
            these give all of them about as much to do (`janus_moe.initial_selection`). All elements alike without.

    Attributes:
        references: energy of each element in each task, eV; a buffer, saved with the weights.
        scales: eV per unit of the network's output in each task; a buffer.
    """

    references: Tensor
    scales: Tensor

    def __init__(
        self,
        config: MatRISMoEConfig,
        seed: int = 0,
        formulas: Formulas = PLAIN,
        run_block: BlockRunner = call_block,
        frequencies: Int64[Tensor, "elements"] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.tables = formulas.tables
        self.run_block = run_block
        with torch.random.fork_rng(devices=_devices_with_random_state()):  # modules draw weights when they are made
            self.atom_embedding = AtomEmbedding(config)
            self.density = DensityEmbedding(config)
            self.edge_embedding = EdgeEmbedding(config)
            self.blocks = nn.ModuleList(
                InteractionBlock(config, last=place == config.blocks - 1, formulas=formulas)
                for place in range(config.blocks)
            )
            self.readout_norm = RMSNorm(config.width, formulas)
            self.energy_hidden = nn.Linear(config.width, config.width, bias=False)
            self.energy_out = nn.Linear(config.width, 1, bias=False)
            self.magmom_hidden = nn.Linear(config.width, config.width, bias=False) if config.magnetic_moments else None
            self.magmom_out = nn.Linear(config.width, 1) if config.magnetic_moments else None
        tasks = len(config.tasks)
        self.register_buffer("references", torch.zeros(tasks, ELEMENTS, dtype=torch.float64))
        self.register_buffer("scales", torch.ones(tasks, dtype=torch.float64))
        self.reset_parameters(seed, frequencies)

    @classmethod
    def from_preset(cls, name: str, seed: int = 0, **changes: Any) -> MatRISMoE:
        """A model of a preset (`nano`, `micro`, `mini`, `base`, `S`, `M`, `L`) with random weights.

        Further keywords change fields of the preset's configuration. Under `with torch.device("meta")` the largest
        preset costs no memory.
        """
        return cls(preset_config(name, **changes), seed)

    def reset_parameters(self, seed: int, frequencies: Int64[Tensor, "elements"] | None = None) -> None:
        """Random weights that depend on the seed alone, and experts of elements as at the construction."""
        for module in (*self.blocks, self):
            self.initialize(module, seed, frequencies)

    def initialize(self, module: nn.Module, seed: int, frequencies: Int64[Tensor, "elements"] | None = None) -> None:
        """Random weights of one block, or, given the model itself, of everything outside its blocks.

        They depend on the seed and the place of the block alone: a model too large for one device gets the same
        weights block by block, wherever each of them is made. The caller's random state is left alone.

        Raises:
            ValueError: a module that is neither.
        """
        parts = {id(part): place for place, part in enumerate((*self.blocks, self))}
        if id(module) not in parts:
            raise ValueError(f"{type(module).__name__} is not a block of this model, nor the model itself")
        own = [p for name, p in module.named_parameters() if module is not self or not name.startswith("blocks.")]
        with torch.random.fork_rng(devices=_devices_with_random_state()), _in_single_precision(own):
            torch.manual_seed(int(np.random.SeedSequence([seed, parts[id(module)]]).generate_state(1)[0]))
            if isinstance(module, InteractionBlock):
                selection = initial_selection(self.config.experts, self.config.top_k, frequencies)
                module.reset_parameters(len(self.blocks), selection)
            else:
                self._reset_ends()

    def _reset_ends(self) -> None:
        """Weights of what comes before the blocks and after them."""
        self.atom_embedding.reset_parameters()
        self.density.reset_parameters()
        self.edge_embedding.reset_parameters()
        self.readout_norm.reset_parameters()
        for linear in (self.energy_hidden, self.magmom_hidden):
            if linear is not None:
                nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))
        # Small outputs: training starts from the reference energies, not from noise around them.
        nn.init.normal_(self.energy_out.weight, std=0.1 / math.sqrt(self.config.width))
        if self.magmom_out is not None:
            nn.init.normal_(self.magmom_out.weight, std=0.1 / math.sqrt(self.config.width))
            nn.init.constant_(self.magmom_out.bias, -2.0)
        self.references.zero_()
        self.scales.fill_(1.0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `.float()` and `.to(dtype)` are for the weights. Reference energies are thousands of eV: they stay float64.
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            moved = getattr(self, name)
            setattr(self, name, moved.double() if buffer.is_meta else buffer.to(moved.device))
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, and of everything but coordinates and the sum of energies."""
        return self.energy_out.weight.dtype

    def forward(
        self,
        graph: AtomGraph,
        properties: Collection[str] = ("energy", "forces"),
        halo: Halo = no_halo,
        run_block: BlockRunner | None = None,
        group: GroupRows = group_rows,
    ) -> Properties:
        """Energies of the structures and what else is asked for: forces, stress, magnetic moments.

        Args:
            graph: a batch made with this model's cutoffs.
            properties: any of "energy", "forces", "stress", "magmoms".
            halo: brings the rows of neighbours that other ranks own; energies are then sums over owned atoms.
            run_block: how blocks are run, if not as the model was made to.
            group: groups rows by element; `UnitStep.group_rows` where experts are sharded over ranks.

        Raises:
            ValueError: a graph with other cutoffs, or a property the model does not have.
        """
        if (graph.cutoff, graph.near_cutoff) != (self.config.cutoff, self.config.near_cutoff):
            raise ValueError(
                f"the graph was built with cutoffs {graph.cutoff} and {graph.near_cutoff} Å, the model needs "
                f"{self.config.cutoff} and {self.config.near_cutoff} Å; pass model.config's to build_graph"
            )
        return conservative_properties(lambda g: self.energies(g, halo, run_block, group), graph, properties)

    def energies(
        self,
        graph: AtomGraph,
        halo: Halo = no_halo,
        run_block: BlockRunner | None = None,
        group: GroupRows = group_rows,
    ) -> tuple[Float64[Tensor, "structures"], Float[Tensor, "atoms"] | None]:
        """Energies of the structures, eV, and magnetic moments of the atoms, μB (None without that head)."""
        geometry = graph_geometry(graph, self.config, self.dtype, halo, self.tables, group)
        atoms = self.density(self.atom_embedding(graph), graph, geometry)
        edges = self.edge_embedding(geometry.radial)
        for block in self.blocks:
            atoms, edges = (run_block or self.run_block)(block, atoms, edges, geometry)
        atoms = self.readout_norm(atoms)
        network = self.energy_out(silu(self.energy_hidden(atoms))).squeeze(1)
        task = graph.tasks.index_select(0, graph.structure_index)
        per_atom = network.double() * self.scales.index_select(0, task) + self.references[task, graph.atomic_numbers]
        total = per_atom.new_zeros(graph.structures).index_add(0, graph.structure_index, per_atom)
        if self.magmom_hidden is None or self.magmom_out is None:
            return total, None
        return total, softplus(self.magmom_out(silu(self.magmom_hidden(atoms)))).squeeze(1)

    def calibrate(self, graph: AtomGraph) -> None:
        """Takes from a batch of the training data what is usual around atoms of each element (`DensityEmbedding`).

        For new models: afterwards their weights mean something else.
        """
        self.density.calibrate(graph, graph_geometry(graph, self.config, torch.float64, no_halo, tables=False))

    def check_elements(self, atomic_numbers: Collection[int]) -> None:
        """Raises ValueError naming the elements that this model was not trained for."""
        refuse_unseen_elements(atomic_numbers, self.config.elements)

    def task_index(self, task: str | None) -> int:
        """Index of a task by name; None is fine where there is only one.

        Raises:
            ValueError: no such task, or several to choose from.
        """
        tasks = self.config.tasks
        if task is None and len(tasks) == 1:
            return 0
        if task not in tasks:
            asked = "several tasks" if task is None else f"no task '{task}'"
            raise ValueError(f"this model has {asked}; choose task= one of {', '.join(tasks)}")
        return tasks.index(task)


def _devices_with_random_state() -> list[int]:
    """The CUDA devices whose random state `torch.manual_seed` would change now; asking must not start CUDA."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


@contextmanager
def _in_single_precision(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Parameters are float32 in here: a model that is double from the start draws the weights of one that is cast."""
    given = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    yield
    for parameter, data in zip(parameters, given, strict=True):
        parameter.data = data.copy_(parameter.data) if parameter.dtype != data.dtype else parameter.data


def count_parameters(config: MatRISMoEConfig) -> Mapping[str, int]:
    """Total parameters, and those that are active for an atom (all but the experts its element does not use).

    Counted on the meta device: no memory, whatever the size.
    """
    with torch.device("meta"):
        model = MatRISMoE(config)
    total = sum(p.numel() for p in model.parameters())
    routed = sum(p.numel() for name, p in model.named_parameters() if "experts.experts." in name)
    idle = routed * (config.experts - config.top_k) // config.experts
    return {"parameters_total": total, "parameters_active": total - idle}
