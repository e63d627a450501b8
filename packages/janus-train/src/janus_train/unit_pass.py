"""One pass of a rank through a share of a batch: what it needs of the other ranks of its unit, in one order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from janus_comm import Chain, KeptResults, make_halo, plan_halo
from janus_comm import evaluate as evaluate_inputs
from janus_graph import Properties, no_halo, strained
from janus_graph.geometry import stress_of
from janus_moe.expert_parallel import UnitStep
from janus_train.data.batch import Batch, FrameSource
from janus_train.data.unit_batch import UnitBatch
from janus_train.evaluate import Prediction

if TYPE_CHECKING:
    from janus_train.sharded import ShardedStep


class UnitPass:
    """One batch on one rank: what its halo, its experts and its blocks need of other ranks, in one order.

    Args:
        step: of which this is a pass.
        share: this rank's part of the batch.
    """

    def __init__(self, step: ShardedStep, share: UnitBatch) -> None:
        self.step, self.share = step, share
        device = step.device
        self.batch: Batch = share.batch.to(device)
        self.counted = share.counted.to(device)
        self.kept: dict[nn.Module, KeptResults] = {}
        self._chain: Chain | None = None
        graph, part = self.batch.graph, share.part
        # Weights are restored once, also where a block is computed again: not among what its collectives gave.
        self.experts = UnitStep(
            step.plan(share), step.mesh.unit_index, step.exchange("rows", lambda: self._chain), device,
            step.exchange("experts", lambda: None),
        )  # fmt: skip
        if share.cut:
            plan = plan_halo(graph.atoms, part.send_rows, part.receive_counts).to(device)
            self._halo = make_halo(plan, step.exchange("halo", lambda: self._chain))
        else:
            self._halo = no_halo
        own = np.flatnonzero(share.shared.numpy() >= 0)
        self._shared_rows = torch.from_numpy(own).to(device)
        self._table_rows = share.shared[torch.from_numpy(own)].to(device)

    @property
    def inputs(self) -> list[Tensor]:
        """What energies are differentiated with respect to: positions, and strains where there is a stress to learn."""
        graph = self.batch.graph
        return [graph.positions] + ([torch.zeros_like(graph.cells)] if "stress" in self.step.weights else [])

    def end(self) -> None:
        """Lets go of the graph, which would stay until Python looks for cycles."""
        self._chain = None
        self.kept.clear()

    @property
    def chain(self) -> Chain:
        """The order of the collectives that are called now."""
        assert self._chain is not None
        return self._chain

    @contextmanager
    def on_chain(self, chain: Chain) -> Iterator[Chain]:
        """Collectives that are called inside are links of this chain."""
        self._chain, before = chain, self._chain
        try:
            yield chain
        finally:
            self._chain = before

    def potential(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """This rank's parts of the energies of its structures, and the moments of its atoms where they are learnt."""
        chain = self._chain = Chain(*inputs)
        graph = self.batch.graph.replace(positions=inputs[0])
        if len(inputs) > 1:
            graph = strained(graph, inputs[1])
        asked = ("energy", "magmoms") if "magmoms" in self.step.weights else ("energy",)
        found = self.step.model(graph, asked, self._halo, self._run_block, self.experts.group_rows)
        energy = chain.join(found.energy)
        return (energy,) if found.magmoms is None else (energy, found.magmoms)

    def _run_block(self, block: nn.Module, *features: Any) -> Any:
        return self.step.run_block(self.chain, block, *features)

    def properties(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Properties:
        """What the whole unit says of the structures, as a function of what this rank has a part in.

        Of a structure that is cut, values are those of all ranks together, and derivatives those in this rank's part:
        summed over ranks they are the derivative of the whole.
        """
        energy, forces = outputs[0], -gradients[0]
        virial = gradients[1] if len(gradients) > 1 else None
        if self.share.cut:
            columns = [energy[:, None]] + ([] if virial is None else [virial.flatten(1)])
            own = torch.cat(columns, dim=1).detach()
            table = own.new_zeros(self.share.cut, own.shape[1])
            table.index_add_(0, self._table_rows, own.index_select(0, self._shared_rows))
            table = self.step.sum_in_unit(table)
            others = torch.zeros_like(own)
            others[self._shared_rows] = table.index_select(0, self._table_rows) - own[self._shared_rows]
            energy = energy + others[:, 0]
            virial = None if virial is None else virial + others[:, 1:].view_as(virial)
        stress = None if virial is None else stress_of(self.batch.graph, virial)
        return Properties(energy, forces, stress, outputs[1] if len(outputs) > 1 else None)

    def predict(self, source: FrameSource, places: Sequence[int], properties: Collection[str]) -> list[Prediction]:
        """Predictions for all frames of the unit's batch, the same on all its ranks."""
        graph, held = self.batch.graph, torch.tensor(self.share.places)
        outputs, gradients = evaluate_inputs(self.potential, self.inputs, self.step.phase)
        sizes = source.atoms[list(places)]
        first = np.cumsum(sizes) - sizes
        own_sizes = sizes[list(self.share.places)]
        offsets = first[list(self.share.places)] - (np.cumsum(own_sizes) - own_sizes)
        rows = graph.input_index.cpu() + torch.from_numpy(offsets)[graph.structure_index.cpu()]
        columns = 3 + (len(outputs) > 1)
        per_structure = torch.zeros(len(places), 1 + 9, dtype=torch.float64)
        per_atom = torch.zeros(int(sizes.sum()), columns, dtype=torch.float64)
        per_structure[held, 0] = outputs[0].double().cpu()
        if len(gradients) > 1:
            per_structure[held, 1:] = gradients[1].double().cpu().flatten(1)
        per_atom[rows, :3] = -gradients[0].double().cpu()
        if len(outputs) > 1:
            per_atom[rows, 3] = outputs[1].double().cpu()
        flat = torch.cat([per_structure.flatten(), per_atom.flatten()]).to(self.step.device)
        flat = self.step.sum_in_unit(flat).cpu()
        per_structure = flat[: per_structure.numel()].view_as(per_structure)
        per_atom = flat[per_structure.numel() :].view_as(per_atom)
        return _predictions(source, places, per_structure.numpy(), per_atom.numpy(), properties)


def _predictions(
    source: FrameSource,
    places: Sequence[int],
    per_structure: np.ndarray,
    per_atom: np.ndarray,
    properties: Collection[str],
) -> list[Prediction]:
    found = []
    rows = np.split(per_atom, np.cumsum(source.atoms[list(places)])[:-1])
    for place, values, atoms in zip(places, per_structure, rows, strict=True):
        structure = source.frames[place].structure
        stress = None
        if "stress" in properties and structure.has_volume:
            stress = values[1:].reshape(3, 3) / abs(np.linalg.det(structure.cell))
        found.append(
            Prediction(
                float(values[0]),
                atoms[:, :3] if "forces" in properties else None,
                stress,
                atoms[:, 3] if "magmoms" in properties else None,
            )
        )
    return found
