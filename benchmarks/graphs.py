"""What graphs cost beside other programs, as ratios of times taken in turn in one run; prints JSON.

    python benchmarks/graphs.py [--chgnet PYTHON] [--rounds N] [--fit-costs PRESET]

One thread. `--chgnet` (or the variable CHGNET_PYTHON) names the interpreter of an environment that has chgnet; its
converter then builds the graphs of the same structures. `--fit-costs` fits the proportions of `CostModel` to the time
of training steps of a preset.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import vesin
from ase.build import bulk, molecule
from ase.collections import g2
from ase.io import write

from janus_graph import EdgeTables, GraphCache, Structure, build_graph, neighbor_lists
from janus_graph.ase import structure_from_ase, structure_to_ase
from janus_graph.packing import CostModel, share_out, structure_sizes
from janus_graph.search import compiler_installed, library_search, pack, preferred_search

CUTOFF, NEAR_CUTOFF = 6.0, 4.5
BOND_CUTOFFS = (3.0, 4.0)  # chgnet's own default, and one nearer to this project's

CHGNET = """
import json, statistics, sys, time
import torch
torch.set_num_threads(1)
from ase.io import read
from chgnet.graph import CrystalGraphConverter
from pymatgen.io.ase import AseAtomsAdaptor
structures = [AseAtomsAdaptor.get_structure(atoms) for atoms in read(sys.argv[1], ":")]
converters = {bond: CrystalGraphConverter(atom_graph_cutoff=6, bond_graph_cutoff=float(bond), algorithm="fast",
                                          on_isolated_atoms="ignore") for bond in sys.argv[2:]}
assert all(converter.algorithm == "fast" for converter in converters.values())
print("ready", flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    for structure in structures:
        converters[line.strip()](structure)
    print(time.perf_counter() - began, flush=True)
"""


def crystals(count: int, fewest: int, most: int, seed: int) -> list[Structure]:
    """Random cells at the density of solids, four elements."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        atoms = int(rng.integers(fewest, most + 1))
        cell = np.eye(3) + 0.25 * rng.normal(size=(3, 3))
        cell *= (atoms * rng.uniform(12.0, 22.0) / abs(np.linalg.det(cell))) ** (1 / 3)
        places = rng.uniform(size=(atoms, 3))
        made.append(Structure(rng.choice([3, 8, 14, 26], size=atoms), places @ cell, cell, [True] * 3))
    return made


def large(repeats: int) -> list[Structure]:
    """A rattled crystal of 4 · repeats³ atoms."""
    atoms = bulk("Cu", cubic=True).repeat((repeats, repeats, repeats))
    atoms.rattle(0.05, seed=1)
    return [structure_from_ase(atoms)]


def molecules() -> list[Structure]:
    """Molecules of 9 to 60 atoms, nothing periodic."""
    drawn = [molecule(name) for name in g2.names]
    return [structure_from_ase(atoms) for atoms in [*drawn, molecule("C60")] if 9 <= len(atoms) <= 60]


def with_vesin(structures: list[Structure]) -> None:
    """The best call there is: one object, one thread; unsorted edges, no reverses."""
    library = vesin.NeighborList(cutoff=CUTOFF, full_list=True, n_threads=1)
    for structure in structures:
        library.compute(structure.positions, structure.cell, structure.periodic, quantities="ijSd")


def in_turn(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call, after a first round that does not count."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, taken in zip(calls, times, strict=True):
            began = time.perf_counter()
            result = call()
            taken.append(time.perf_counter() - began)
            del result
    return [statistics.median(taken[1:]) for taken in times]


def against_vesin(rounds: int) -> dict[str, object]:
    """Sorted rows and reverse edges by us, as one set for the batch and as a list a structure; unsorted by vesin."""
    cases = {
        "crystals of 5 to 60 atoms": (crystals(60, 5, 60, seed=0), 0.45),
        "cells of 1 to 4 atoms": (crystals(60, 1, 4, seed=1), 0.2),
        "molecules of 9 to 60 atoms": (molecules(), 1.0),
        "10 976 atoms": (large(14), 1.1),
        "97 556 atoms": (large(29), 1.0),
    }
    found: dict[str, object] = {}
    for name, (structures, gate) in cases.items():
        calls: list[Callable[[], object]] = [
            lambda structures=structures: preferred_search()(pack(structures), CUTOFF),
            lambda structures=structures: with_vesin(structures),
            lambda structures=structures: neighbor_lists(structures, CUTOFF),
        ]
        small = len(structures) > 1
        if small:
            calls.append(lambda structures=structures: neighbor_lists(structures, CUTOFF, library_search))
        ours, theirs, as_lists, *fallback = in_turn(rounds if small else max(3, rounds // 4), *calls)
        edges = sum(len(listed) for listed in neighbor_lists(structures, CUTOFF))
        found[name] = {
            "ratio": ours / theirs, "gate": gate, "as_lists_ratio": as_lists / theirs,
            "ms": 1e3 * ours, "vesin_ms": 1e3 * theirs,
            "structures": len(structures), "edges": edges, "ns_per_edge": 1e9 * ours / edges,
            "without_compiler_ratio": fallback[0] / theirs if fallback else None,
        }  # fmt: skip
    return found


def against_chgnet(interpreter: str | None, rounds: int) -> object:
    """Whole graphs by us and by chgnet's fast converter in its own environment, with the same two cutoffs."""
    if not interpreter:
        return "skipped: no --chgnet PYTHON and no CHGNET_PYTHON"
    structures = crystals(16, 5, 60, seed=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "structures.extxyz"
        write(path, [structure_to_ase(structure) for structure in structures])
        arguments = [interpreter, "-c", CHGNET, str(path), *map(str, BOND_CUTOFFS)]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
            assert peer.stdin is not None
            assert peer.stdout is not None
            if peer.stdout.readline().strip() != "ready":
                return "skipped: chgnet's fast converter cannot be imported there"
            times: dict[str, list[float]] = {str(bond): [] for bond in BOND_CUTOFFS}
            ours: dict[str, list[float]] = {bond: [] for bond in times}
            for _ in range(rounds + 1):
                for bond, taken in times.items():
                    began = time.perf_counter()
                    build_graph(structures, CUTOFF, float(bond))
                    ours[bond].append(time.perf_counter() - began)
                    peer.stdin.write(f"{bond}\n")
                    peer.stdin.flush()
                    taken.append(float(peer.stdout.readline()))
            peer.stdin.close()
    found: dict[str, object] = {}
    for bond, taken in times.items():
        mine, theirs = statistics.median(ours[bond][1:]), statistics.median(taken[1:])
        found[f"near and bond cutoff {bond} Å"] = {
            "ratio": mine / theirs, "gate": 0.02,
            "ms_a_structure": 1e3 * mine / len(structures), "chgnet_ms_a_structure": 1e3 * theirs / len(structures),
        }  # fmt: skip
    return found


def memory() -> dict[str, object]:
    """Bytes of what a graph holds for each edge, with float32 vectors, and for each pair."""
    graph = build_graph(crystals(60, 5, 60, seed=0), CUTOFF, NEAR_CUTOFF)
    assert graph.reverse_edge is not None
    per_edge = [graph.edge_index, graph.edge_shifts, graph.reverse_edge, *_tensors(graph.around)]
    per_near = _tensors(graph.near)
    edges = sum(tensor.nbytes for tensor in per_edge) / graph.edges + 3 * 4
    near = sum(tensor.nbytes for tensor in per_near)
    return {
        "an_edge": edges, "gate_an_edge": 70, "a_pair": near / graph.near.pairs, "gate_a_pair": 8,
        "an_edge_with_its_pairs": edges + near / graph.edges, "pairs_an_edge": graph.near.pairs / graph.edges,
    }  # fmt: skip


def _tensors(tables: EdgeTables) -> list[torch.Tensor]:
    return [tables.edges, tables.slots, tables.sources, tables.atoms, tables.rows]


def caching(rounds: int) -> dict[str, object]:
    """A graph from the cache beside a fresh one, while nothing comes near the skin."""
    found: dict[str, object] = {}
    for repeats in (1, 2, 3, 4, 6, 14):
        structure = large(repeats)[0]
        cache = GraphCache(CUTOFF, NEAR_CUTOFF)
        fresh, kept = in_turn(
            max(5, rounds // 3),
            lambda structure=structure: build_graph([structure], CUTOFF, NEAR_CUTOFF),
            lambda structure=structure, cache=cache: cache.graph(structure),
        )
        found[f"{len(structure)} atoms"] = {"ratio": kept / fresh, "ms": 1e3 * kept, "fresh_ms": 1e3 * fresh}
    return found


def shares() -> dict[str, object]:
    """The dearest rank over the mean, of random global batches of 40 structures a rank; the worst of twenty."""
    population = [*crystals(1500, 1, 60, seed=4), *crystals(300, 60, 200, seed=5), *(molecules() * 10)]
    sizes = structure_sizes(population, CUTOFF, NEAR_CUTOFF)
    costs = CostModel()(sizes)
    rng = np.random.default_rng(0)
    found: dict[str, object] = {}
    for ranks in (8, 64):
        cost_ratios, atom_ratios = [], []
        for _ in range(20):
            batch = rng.choice(len(population), size=40 * ranks, replace=40 * ranks > len(population))
            parts = share_out(costs[batch].tolist(), sizes.atoms[batch].tolist(), ranks)
            for values, ratios in ((costs[batch], cost_ratios), (sizes.atoms[batch], atom_ratios)):
                loads = np.array([values[part].sum() for part in parts])
                ratios.append(float(loads.max() / loads.mean()))
        found[f"{ranks} ranks"] = {"cost_max_over_mean": max(cost_ratios), "gate": 1.02, "atoms": max(atom_ratios)}
    return found


def fit_costs(preset: str) -> dict[str, float]:
    """Proportions of the processor time of training steps, by non-negative least squares of relative errors."""
    from scipy.optimize import nnls

    from matris_model import MatRISMoE

    model = MatRISMoE.from_preset(preset, tasks=("any",)).float()
    rng = np.random.default_rng(0)
    counts, seconds = [], []
    for seed in range(24):
        scale, elements = rng.uniform(0.8, 1.6), rng.choice(np.arange(3, 84), size=int(rng.integers(1, 8)))
        drawn = crystals(1, 2, 40, seed)[0]
        structure = Structure(
            rng.choice(elements, size=len(drawn)), scale * drawn.positions, scale * drawn.cell, [True] * 3
        )
        graph = build_graph([structure] * 3, model.config.cutoff, model.config.near_cutoff)
        taken = []
        for _ in range(4):
            began = time.process_time()
            values = model(graph, ("energy", "forces", "stress"))
            (values.energy.sum() + values.forces.square().sum() + values.stress.square().sum()).backward()
            taken.append(time.process_time() - began)
        counts.append([graph.edges, graph.near.pairs, graph.atoms, len(graph.elements), 1.0])
        seconds.append(min(taken))
    weight = 1 / np.array(seconds)
    fitted, _ = nnls(np.array(counts) * weight[:, None], np.ones(len(weight)))
    names = ("edge", "near_pair", "atom", "element", "step")
    return {name: float(1000 * value / fitted[0]) for name, value in zip(names, fitted, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chgnet", default=os.environ.get("CHGNET_PYTHON"))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--fit-costs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.fit_costs:
        print(json.dumps(fit_costs(arguments.fit_costs)))
        return
    print(json.dumps({
        "cores": os.cpu_count(), "python": platform.python_version(), "compiled": compiler_installed(),
        "cutoff": CUTOFF, "near_cutoff": NEAR_CUTOFF,
        "against_vesin": against_vesin(arguments.rounds),
        "against_chgnet": against_chgnet(arguments.chgnet, max(5, arguments.rounds // 6)),
        "bytes": memory(), "cache": caching(arguments.rounds), "shares": shares(),
    }, indent=1))  # fmt: skip
    sys.stdout.flush()


if __name__ == "__main__":
    main()
