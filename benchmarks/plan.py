"""How far are plans of steps from what is counted, measured and published?

    python benchmarks/plan.py [--presets nano micro mini] [--edges 8000] [--rounds 5]

Three tables. *Cut structures*: operations and bytes of ranks, foretold from the sizes of a structure, beside those of
the parts it is really cut into (which are those that a step counts: `tests/test_plan.py`). *This machine*: seconds and
memory of steps on one thread, beside plans for a device with the rates of one large product and of one large addition,
measured before. *Published*: steps of the runs of arXiv 2604.15821, with edges a device such that the published
operations are done; one set of assumptions for all rows.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from partition import structures as large_structures

from janus_comm.testing.measure import peak_bytes
from janus_graph import Structure, build_graph
from janus_graph.ase import structure_from_ase
from janus_graph.packing import CostModel
from janus_graph.partition import atom_work, partition_atoms
from janus_graph.parts import graph_part
from janus_moe.cost import CostModel as ExpertCosts
from janus_moe.planner import plan_experts
from janus_train.data.load import bundled_frames
from janus_train.plan.expected import unit_workloads
from janus_train.plan.machine import Machine, load_machine
from janus_train.plan.memory import bytes_held, kept_for_parameters
from janus_train.plan.scaling import LARGEST, strong_scaling, weak_scaling
from janus_train.plan.statistics import DataStatistics, data_statistics
from janus_train.plan.step import Layout, StepPlan, flops_of_ranks, plan_step
from janus_train.plan.time import seconds_of_a_step
from janus_train.plan.traffic import bytes_sent
from janus_train.plan.workload import Workload, rows_of_layers, workload_of_graph, workload_of_part
from janus_train.recipes.matris_plan import matris_shape
from matris_model import MatRISMoE, MatRISMoEConfig, preset_config

UNIT = 8
PUBLISHED = {
    # Seconds a step, share of the peak, weak and strong scaling of arXiv 2604.15821, as far as they are known.
    "cnis": {"devices": 45_056, "seconds": 2.66, "of_peak": 0.355, "weak": 0.938, "strong": 0.539},
    "lineshine": {"devices": 40_960, "seconds": None, "of_peak": 0.244, "weak": 0.903, "strong": None},
}


def small_structures() -> Iterator[tuple[str, Structure]]:
    """A crystal, an alloy, and a liquid of some hundred atoms; and the large ones of `partition.py`."""
    rng = np.random.default_rng(0)
    salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat((4, 4, 4))
    metal = bulk("Cu", cubic=True).repeat((6, 6, 6))
    for name, atoms in (("NaCl", salt), ("Cu", metal)):
        atoms.rattle(0.1, seed=1)
        yield name, structure_from_ase(atoms)
    edge = (600 / 0.1) ** (1 / 3)
    numbers = rng.choice([1, 8], 600, p=[2 / 3, 1 / 3])
    yield "liquid", Structure(numbers, rng.random((600, 3)) * edge, np.eye(3) * edge, np.ones(3, bool))
    yield from large_structures()


def workloads_of_parts(structure: Structure, ranks: int, config: MatRISMoEConfig) -> list[Workload]:
    graph = build_graph([structure], config.cutoff, config.near_cutoff)
    work = graph.in_input_order(torch.from_numpy(atom_work(graph, CostModel()))).numpy()
    (owner,) = partition_atoms([structure], [work], ranks, config.cutoff)
    owner = owner[graph.input_index.numpy()]
    return [workload_of_part(graph_part(graph, owner, rank, ranks)) for rank in range(ranks)]


def cost_of_experts(config: MatRISMoEConfig) -> ExpertCosts:
    return ExpertCosts.from_rates(config.width, config.expert_hidden, flops_per_second=3e13, bytes_per_second=2e11)


def step_of_parts(workloads: list[Workload], config: MatRISMoEConfig) -> tuple[list[int], list[int], list[int]]:
    """Operations and bytes of every rank, and bytes of halos alone."""
    shape = matris_shape(config, chained=len(workloads) > 1)
    rows = rows_of_layers(workloads, shape.layers)
    experts = plan_experts(rows, shape.selection, shape.experts, shape.expert_hidden, cost_of_experts(config))
    sent = bytes_sent(shape, workloads, experts)
    flops = flops_of_ranks(shape, workloads, experts.load.pairs.sum(0).tolist())
    return flops, [sum(kinds.values()) for kinds in sent], [kinds["halo"] for kinds in sent]


def cut_rows(preset: str) -> Iterator[dict[str, Any]]:
    config = preset_config(preset)
    for name, structure in small_structures():
        data = data_statistics([structure], config.cutoff, config.near_cutoff)
        for ranks in (1, 2, 4, 8):
            true = step_of_parts(workloads_of_parts(structure, ranks, config), config)
            foretold = step_of_parts(unit_workloads(data.sizes, ranks, data.cutoff), config)
            found = {
                f"{what}_{kind}": of(planned) / of(counted) - 1 if of(counted) else 0.0
                for what, planned, counted in zip(("flops", "bytes", "halo"), foretold, true, strict=True)
                for kind, of in (("mean", np.mean), ("most", max))
            }
            yield {"structure": name, "atoms": len(structure), "ranks": ranks, **found}


def seconds(work: Callable[[], object]) -> float:
    """Of processor time: others may share the machine."""
    began = time.process_time()
    work()
    return time.process_time() - began


def this_machine() -> Machine:
    """One thread of this machine: one large product, one large addition, now."""
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    peak = 2 * 1536**3 / min(seconds(lambda: a @ b) for _ in range(7))
    x, y, z = (torch.randn(2**25) for _ in range(3))
    moved = 3 * 4 * 2**25 / min(seconds(lambda: torch.add(x, y, out=z)) for _ in range(7))
    link = {"gb_per_s": 1.0, "latency_us": 50.0}
    return Machine.model_validate(
        {
            "name": "one thread of this machine", "devices_per_node": 2, "memory_gb": 12, "peak_tflops": peak / 1e12,
            "product_rate": 0.75, "memory_gb_per_s": moved / 1e9, "operation_us": 5, "within": link, "between": link,
        }
    )  # fmt: skip


def measured_rows(presets: list[str], edges: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Seconds and memory of steps on one process, measured and planned."""
    frames = [frame.structure for frame in bundled_frames() if frame.task in ("ionic", "metals")]
    for preset in presets:
        config = preset_config(preset)
        chosen = [frames[place] for place in np.random.default_rng(0).permutation(len(frames))]
        sizes = data_statistics(chosen, config.cutoff, config.near_cutoff).sizes
        last = int(np.searchsorted(np.cumsum([size.all_edges for size in sizes]), edges)) + 1
        graph = build_graph(chosen[:last], config.cutoff, config.near_cutoff)
        model = MatRISMoE(config)

        def step(model: MatRISMoE = model, graph: Any = graph) -> None:
            model.zero_grad()
            found = model(graph, ("energy", "forces", "stress"))
            (found.energy.sum() + found.forces.square().sum() + found.stress.square().sum()).backward()

        step()
        machine, work = this_machine(), workload_of_graph(graph)
        taken = statistics.median(seconds(step) for _ in range(rounds))
        model.zero_grad()
        held = peak_bytes(step)
        shape = matris_shape(config)
        rows = rows_of_layers([work], shape.layers)
        experts = plan_experts(rows, shape.selection, shape.experts, shape.expert_hidden, cost_of_experts(config))
        (flops,) = flops_of_ranks(shape, [work], experts.load.pairs.sum(0).tolist())
        memory = bytes_held(shape, work, experts, 0, kept=kept_for_parameters(False, False))
        (sent,) = bytes_sent(shape, [work], experts)
        planned = seconds_of_a_step(
            shape, machine, flops=flops, memory=memory, sent=sent, unit=1, replicas=1, regather=False
        )
        predicted = planned.computing - planned.parts["update"]
        yield {
            "preset": preset, "atoms": graph.atoms, "edges": graph.edges, "gflop": flops / 1e9,
            "peak_gflop_per_s": machine.peak_tflops * 1e3, "gb_per_s": machine.memory_gb_per_s,
            "seconds": taken, "planned_seconds": predicted, "time_error": predicted / taken - 1,
            "products_alone": planned.parts["products"], "peak_mb": held / 1e6,
            "planned_mb": memory["activations"] / 1e6, "memory_error": memory["activations"] / held - 1,
        }  # fmt: skip


def published_rows(data: DataStatistics) -> Iterator[dict[str, Any]]:
    """The large preset on both machines, with the edges that the published rate and time amount to."""
    shape = matris_shape(preset_config("L"), data.atoms_of_element(119), chained=True)
    for name, row in PUBLISHED.items():
        machine = load_machine(name)
        layout = Layout(replicas=row["devices"] // UNIT, unit=UNIT)
        of_edge = flops_of_an_edge(plan_step(shape, data, 5000 * row["devices"], layout, machine))
        wanted = (PUBLISHED["cnis"]["seconds"] * PUBLISHED["cnis"]["of_peak"] * load_machine("cnis").peak_tflops) * 1e12
        edges = round(wanted / of_edge)
        plan = plan_step(shape, data, edges * row["devices"], layout, machine)
        scale = data, edges * row["devices"], layout, machine, row["devices"]
        weak = weak_scaling(shape, *scale)[-1].efficiency
        # From a sixteenth of the machine on: what the published figure begins with is not known.
        begin = plan_step(shape, data, edges * row["devices"], Layout(layout.replicas // 16, UNIT), machine)
        strong = begin.seconds.with_overlap / 16 / plan.seconds.with_overlap
        yield {
            "machine": name, "edges_a_device": edges, "published": row, "seconds": plan.seconds.with_overlap,
            "without_overlap": plan.seconds.without_overlap, "of_peak": plan.of_peak, "weak": weak,
            "strong_from_a_sixteenth": strong, "strong_from_one_unit": strong_scaling(shape, *scale)[-1].efficiency,
        }  # fmt: skip


def flops_of_an_edge(plan: StepPlan) -> float:
    return plan.all_flops / plan.work["edges"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["nano", "micro", "mini"])
    parser.add_argument("--edges", type=int, default=4000, help="of a measured step, about")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cut = list(cut_rows("micro"))
    measured = list(measured_rows(arguments.presets, arguments.edges, arguments.rounds))
    structures = [frame.structure for frame in bundled_frames()]
    config = preset_config("L")
    published = list(published_rows(data_statistics(structures, config.cutoff, config.near_cutoff)))
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "devices": LARGEST}
    print(json.dumps({"setting": vars(arguments), "machine": machine, "cut": cut, "measured": measured,
                      "published": published}, indent=1))  # fmt: skip
    print("\n| structure | atoms | ranks | operations, mean, most | bytes, mean, most | halo, mean, most |")
    print("|---|---|---|---|---|---|")
    for row in cut:
        errors = (f"{100 * row[f'{what}_mean']:+.1f} %, {100 * row[f'{what}_most']:+.1f} %"
                  for what in ("flops", "bytes", "halo"))  # fmt: skip
        print(f"| {row['structure']} | {row['atoms']} | {row['ranks']} | {' | '.join(errors)} |")
    print("\n| preset | edges | Gflop | s a step | planned | error | MB held | planned | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in measured:
        print(f"| `{row['preset']}` | {row['edges']} | {row['gflop']:.1f} | {row['seconds']:.2f} "
              f"| {row['planned_seconds']:.2f} | {100 * row['time_error']:+.0f} % | {row['peak_mb']:.0f} "
              f"| {row['planned_mb']:.0f} | {100 * row['memory_error']:+.0f} % |")  # fmt: skip
    print("\n| machine | edges a device | s a step, published | of peak, published | weak, published "
          "| strong from 1/16, from one unit, published |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for row in published:
        told = row["published"]
        print(f"| {row['machine']} | {row['edges_a_device']} | {row['seconds']:.2f}, {told['seconds'] or '–'} "
              f"| {row['of_peak']:.3f}, {told['of_peak']} | {row['weak']:.3f}, {told['weak']} "
              f"| {row['strong_from_a_sixteenth']:.3f}, {row['strong_from_one_unit']:.3f}, "
              f"{told['strong'] or '–'} |")  # fmt: skip


if __name__ == "__main__":
    main()
