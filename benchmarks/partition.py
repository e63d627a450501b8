"""How even parts of a structure are, how many neighbours they need, and what cutting costs; beside METIS.

    python benchmarks/partition.py [--parts 2 4 8 64] [--cutoff 6.0]

One thread. Work is `atom_work`, halo the ghost atoms of all parts together, and time that of `partition_atoms` over the
neighbour list of the same structure, both best of three. METIS is allowed 3 % of uneven work.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ase.build import bulk, fcc111

from janus_graph import Structure, build_graph, neighbor_lists
from janus_graph.ase import structure_from_ase
from janus_graph.metis import partition_by_metis
from janus_graph.packing import CostModel
from janus_graph.partition import atom_work, partition_atoms


def structures() -> Iterator[tuple[str, Structure]]:
    rng = np.random.default_rng(0)
    crystal = bulk("Cu", cubic=True).repeat((17, 17, 17))
    slab = fcc111("Cu", (58, 58, 6), vacuum=15, periodic=True)
    wire = bulk("Cu", cubic=True).repeat((8, 8, 78))
    wire.center(vacuum=12, axis=(0, 1))
    for name, atoms in (("bulk", crystal), ("slab with vacuum", slab), ("nanowire", wire)):
        atoms.rattle(0.1, seed=1)
        yield name, structure_from_ase(atoms)
    edge = (20000 / 0.1) ** (1 / 3)
    numbers = rng.choice([1, 8], 20000, p=[2 / 3, 1 / 3])
    yield "liquid box", Structure(numbers, rng.random((20000, 3)) * edge, np.eye(3) * edge, np.ones(3, bool))
    grid = np.stack(np.meshgrid(*[np.arange(60)] * 3, indexing="ij"), -1).reshape(-1, 3)
    struts = grid[(grid % 20 < 5).sum(1) >= 2] * 2.2
    positions = struts + rng.normal(0, 0.1, struts.shape)
    yield "porous framework", Structure(np.full(len(struts), 14), positions, np.eye(3) * 132, np.ones(3, bool))


def seconds(work: Callable[[], Any]) -> float:
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def halo(centre: np.ndarray, neighbour: np.ndarray, owner: np.ndarray) -> int:
    abroad = owner[centre] != owner[neighbour]
    return len(np.unique(owner[centre[abroad]] * len(owner) + neighbour[abroad]))


def measure(name: str, structure: Structure, cutoff: float, part_counts: list[int]) -> list[dict[str, Any]]:
    graph = build_graph([structure], cutoff, min(cutoff, 4.5))
    work = atom_work(graph, CostModel())
    order = graph.input_index.numpy()
    given = np.empty_like(work)
    given[order] = work
    listing = seconds(lambda: neighbor_lists([structure], cutoff))
    centre, neighbour = graph.edge_index.numpy()
    found = []
    for parts in part_counts:
        taken = seconds(lambda parts=parts: partition_atoms([structure], [given], parts, cutoff))
        owner = partition_atoms([structure], [given], parts, cutoff)[0][order]
        began = time.perf_counter()
        by_metis = partition_by_metis(graph, work, parts)
        metis_seconds = time.perf_counter() - began
        shares, metis_shares = (np.bincount(who, work, minlength=parts) for who in (owner, by_metis))
        ghosts, metis_ghosts = halo(centre, neighbour, owner), halo(centre, neighbour, by_metis)
        found.append(
            {
                "structure": name,
                "atoms": graph.atoms,
                "parts": parts,
                "work_max_over_mean": float(shares.max() / shares.mean()),
                "halo_over_atoms": ghosts / graph.atoms,
                "halo_over_metis": ghosts / metis_ghosts,
                "time_over_neighbour_list": taken / listing,
                "metis_work_max_over_mean": float(metis_shares.max() / metis_shares.mean()),
                "metis_time_over_neighbour_list": metis_seconds / listing,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, nargs="+", default=[2, 4, 8, 64])
    parser.add_argument("--cutoff", type=float, default=6.0)
    arguments = parser.parse_args()
    results = [row for name, one in structures() for row in measure(name, one, arguments.cutoff, arguments.parts)]
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"setting": vars(arguments), "machine": machine, "results": results}, indent=1))
    print("\n| structure | parts | work, most over mean | halo over atoms | over METIS | time over neighbour list |")
    print("|---|---|---|---|---|---|")
    for row in results:
        print(
            f"| {row['structure']}, {row['atoms']} atoms | {row['parts']} | {row['work_max_over_mean']:.4f} "
            f"| {row['halo_over_atoms']:.2f} | {row['halo_over_metis']:.2f} | {row['time_over_neighbour_list']:.2f} |"
        )


if __name__ == "__main__":
    main()
