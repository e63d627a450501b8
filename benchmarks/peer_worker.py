"""One model on the structures of a file, in the Python environment that has it: what `peers.py` starts.

    python peer_worker.py NAME STRUCTURES.extxyz

Says on its first line what it is. Then, for each line it reads, it does one piece of work ("train": energies, forces
and stress, a loss of them, gradients of all parameters; "infer": energies, forces and stress; "graph") and says how
long it took and how much memory the process ever held.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ase import Atoms
from ase.io import read


@dataclass
class Contender:
    """A model with its own kind of batch."""

    about: dict[str, Any]
    graph: Callable[[], Any]
    infer: Callable[[Any], None]
    train: Callable[[Any], None]


def loss(energy: torch.Tensor, forces: torch.Tensor, stress: torch.Tensor) -> torch.Tensor:
    return energy.abs().sum() + forces.square().sum(dim=-1).add(1e-12).sqrt().sum() + stress.abs().sum()


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def janus(structures: list[Atoms], model: Any, at_once: int | None = None) -> Contender:
    """Any potential of this project, at its own cutoffs; in one batch, or so many structures at once."""
    from janus_graph import build_graph
    from janus_graph.ase import structure_from_ase

    inputs = [structure_from_ase(atoms) for atoms in structures]
    cutoffs = model.config.cutoff, model.config.near_cutoff
    step = at_once or len(inputs)

    def graphs() -> list[Any]:
        return [build_graph(inputs[first : first + step], *cutoffs) for first in range(0, len(inputs), step)]

    def infer(batches: list[Any]) -> None:
        with torch.no_grad():
            for graph in batches:
                model(graph, ("energy", "forces", "stress"))

    def train(batches: list[Any]) -> None:
        model.zero_grad()
        for graph in batches:
            found = model(graph, ("energy", "forces", "stress"))
            loss(found.energy, found.forces, found.stress).backward()

    made = graphs()
    about = {
        "parameters": parameters(model),
        "cutoffs": cutoffs,
        "edges": sum(graph.edges for graph in made),
        "pairs": sum(graph.near.pairs for graph in made),
        "pairs_at_once": max(graph.near.pairs for graph in made),
    }
    return Contender(about, graphs, infer, train)


def matris_moe(structures: list[Atoms]) -> Contender:
    from matris_model import MatRISMoE

    return janus(structures, MatRISMoE.from_preset("micro").float())


def matris_moe_fused(structures: list[Atoms]) -> Contender:
    from matris_model import MatRISMoE, fused_formulas, preset_config

    return janus(structures, MatRISMoE(preset_config("micro"), formulas=fused_formulas()).float())


def matris(structures: list[Atoms], keep: bool = False) -> Contender:
    """The published MatRIS at the cutoffs of `micro`, one structure at once and what belongs to angles computed twice,
    as it does by itself above 60,000 angles, unless everything is kept: 16 crystals do not fit into 24 GB otherwise.
    """
    from matris_model.compat import MatRIS

    model = MatRIS.from_preset("matris-6m", three_body_cutoff=4.5).float()
    model.recompute_above = sys.maxsize if keep else 0
    return janus(structures, model, at_once=1)


def chgnet(structures: list[Atoms]) -> Contender:
    from chgnet.model.model import CHGNet
    from pymatgen.io.ase import AseAtomsAdaptor

    crystals = [AseAtomsAdaptor.get_structure(atoms) for atoms in structures]
    model = CHGNet()
    model.graph_converter.set_isolated_atom_response("ignore")

    def graph() -> Any:
        return [model.graph_converter(crystal) for crystal in crystals]

    def values(graphs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = model(graphs, task="efs")
        return found["e"], torch.cat(list(found["f"])), torch.stack(list(found["s"]))

    def train(graphs: Any) -> None:
        model.train()
        model.zero_grad()
        loss(*values(graphs)).backward()

    def infer(graphs: Any) -> None:
        model.eval()
        values(graphs)

    made = graph()
    about = {
        "parameters": parameters(model),
        "cutoffs": (model.graph_converter.atom_graph_cutoff, model.graph_converter.bond_graph_cutoff),
        "edges": sum(len(one.atom_graph) for one in made),
        "pairs": sum(len(one.bond_graph) for one in made),
        "pairs_at_once": sum(len(one.bond_graph) for one in made),
    }
    return Contender(about, graph, infer, train)


def matgl(structures: list[Atoms], kind: str) -> Contender:
    """A model of matgl, with its own defaults."""
    from matgl import models
    from matgl.apps.pes import Potential
    from matgl.ext.ase import Atoms2Graph
    from torch_geometric.data import Batch

    elements = tuple(sorted({symbol for atoms in structures for symbol in atoms.get_chemical_symbols()}))
    model = getattr(models, kind)(element_types=elements, is_intensive=False)
    potential, converter = Potential(model), Atoms2Graph(elements, model.cutoff)

    def graph() -> Any:
        made = [converter.get_graph(atoms) for atoms in structures]
        return Batch.from_data_list([one[0] for one in made]), torch.cat([one[1].reshape(-1, 3, 3) for one in made])

    def train(batch: Any) -> None:
        potential.train()
        potential.zero_grad()
        energy, forces, stress, *_ = potential(*batch)
        loss(energy, forces, stress).backward()

    def infer(batch: Any) -> None:
        potential.eval()
        potential(*batch)

    near = getattr(model, "threebody_cutoff", None)
    about = {
        "parameters": parameters(model),
        "cutoffs": (model.cutoff, near),
        "edges": graph()[0].edge_index.shape[1],
        "pairs": pairs(structures, near) if near else 0,
        "pairs_at_once": pairs(structures, near) if near else 0,
    }
    return Contender(about, graph, infer, train)


def pairs(structures: list[Atoms], cutoff: float) -> int:
    """Ordered pairs of neighbours within a cutoff, for models that do not say how many they have."""
    from ase.neighborlist import neighbor_list

    counts = [torch.bincount(torch.from_numpy(neighbor_list("i", atoms, cutoff))) for atoms in structures]
    return int(sum((count * (count - 1)).sum() for count in counts))


CONTENDERS: dict[str, Callable[[list[Atoms]], Contender]] = {
    "matris-moe": matris_moe, "matris-moe-fused": matris_moe_fused, "matris": matris,
    "matris-kept": lambda structures: matris(structures, keep=True),
    "chgnet": chgnet,
    "matgl-m3gnet": lambda structures: matgl(structures, "M3GNet"),
    "matgl-chgnet": lambda structures: matgl(structures, "CHGNet"),
    "matgl-tensornet": lambda structures: matgl(structures, "TensorNet"),
}  # fmt: skip


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    name, path = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    structures = read(path, index=":")
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries print
    contender = CONTENDERS[name](structures)
    about = {**contender.about, "atoms": sum(map(len, structures)), "torch": torch.__version__}
    print(json.dumps(about), file=answers, flush=True)
    graph = contender.graph()
    before = resident_mb()
    for line in sys.stdin:
        began = time.perf_counter(), time.process_time()
        work = line.strip()
        if work == "graph":
            contender.graph()
        else:
            {"train": contender.train, "infer": contender.infer}[work](graph)
        ended = time.perf_counter(), time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        answer = {"seconds": ended[0] - began[0], "cpu": ended[1] - began[1], "memory_mb": max(peak - before, 0.0)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
