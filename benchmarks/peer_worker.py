"""One model on the structures of a file, in the Python environment that has it: what `peers.py` starts.

    python peer_worker.py NAME STRUCTURES.extxyz

Says on its first line what it is. Then, for each line it reads, it does one piece of work ("train": energies, forces
and stress, a loss of them, gradients of all parameters; "infer": energies, forces and stress; "graph") and says how
long it took and how much memory the process ever held. What does not work is answered with its error. "rest" gives back
memory that is not in use.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from ase import Atoms
from ase.io import read
from peer_models import Contender, chgnet, fairchem, loss, mace, matgl, nequip, orb, parameters, sevenn


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
        "forces": "derivatives",
        "cutoffs": cutoffs,
        "edges": sum(graph.edges for graph in made),
        "pairs": sum(graph.near.pairs for graph in made),
        "pairs_at_once": max(graph.near.pairs for graph in made),
    }
    return Contender(about, graphs, infer, train)


def matris_moe(structures: list[Atoms], fused: bool = False) -> Contender:
    """`micro`, as it comes or with compiled formulas."""
    from matris_model import PLAIN, MatRISMoE, fused_formulas, preset_config

    formulas = fused_formulas() if fused else PLAIN
    return janus(structures, MatRISMoE(preset_config("micro"), formulas=formulas).float())


def matris(structures: list[Atoms], keep: bool = False) -> Contender:
    """The published MatRIS at the cutoffs of `micro`, one structure at once and what belongs to angles computed twice,
    as it does by itself above 60,000 angles, unless everything is kept: 16 crystals do not fit into 24 GB otherwise.
    """
    from matris_model.compat import MatRIS

    model = MatRIS.from_preset("matris-6m", three_body_cutoff=4.5).float()
    model.recompute_above = sys.maxsize if keep else 0
    return janus(structures, model, at_once=1)


CONTENDERS: dict[str, Callable[[list[Atoms]], Contender]] = {
    "matris-moe": matris_moe,
    "matris-moe-fused": lambda structures: matris_moe(structures, fused=True),
    "matris": matris,
    "matris-kept": lambda structures: matris(structures, keep=True),
    "chgnet": chgnet,
    "matgl-m3gnet": lambda structures: matgl(structures, "M3GNet"),
    "matgl-chgnet": lambda structures: matgl(structures, "CHGNet"),
    "matgl-tensornet": lambda structures: matgl(structures, "TensorNet"),
    "mace-mpa-0": mace,
    "sevennet-0": sevenn,
    "nequip-l": nequip,
    "orb-v3-conservative": lambda structures: orb(structures, direct=False),
    "orb-v3-direct": lambda structures: orb(structures, direct=True),
    "uma-s": fairchem,
}


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def give_back_memory() -> None:
    """What the C library keeps for later goes back to the system, where it is one that can."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def measured(work: Callable[[], object], before_mb: float) -> dict[str, Any]:
    """How long one piece of work takes, or what went wrong."""
    began = time.perf_counter(), time.process_time()
    try:
        work()
    except Exception as error:  # noqa: BLE001  (whatever a package raises is its answer)
        return {"error": f"{type(error).__name__}: {error}"}
    ended = time.perf_counter(), time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"seconds": ended[0] - began[0], "cpu": ended[1] - began[1], "memory_mb": max(peak - before_mb, 0.0)}


def main() -> None:
    name, path = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    structures = read(path, index=":")
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries print

    def answer(given: dict[str, Any]) -> None:
        print(json.dumps(given), file=answers, flush=True)

    try:
        contender = CONTENDERS[name](structures)
        graph = contender.graph()
    except Exception as error:  # noqa: BLE001
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({**contender.about, "atoms": sum(map(len, structures)), "torch": torch.__version__})
    before = resident_mb()
    tasks: dict[str, Callable[[], object]] = {
        "graph": contender.graph,
        "infer": lambda: contender.infer(graph),
        "train": lambda: contender.train(graph),
        "rest": give_back_memory,
    }
    for line in sys.stdin:
        answer(measured(tasks[line.strip()], before))


if __name__ == "__main__":
    main()
