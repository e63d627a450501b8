"""MatRIS-MoE beside other potentials: the same structures, energies, forces and stress, measured in turn in one run.

    python benchmarks/peers.py --chgnet /path/to/python/with/chgnet ...

Each contender runs in a process of its own, in the environment that has it: this one, or the Python that an option
names (`python -m venv there && there/bin/pip install chgnet`). Rounds go through all of them one after the other, so
all see the same machine. Figures are medians. Weights are random: speed and memory do not depend on them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import write

from janus_graph.ase import structure_to_ase
from janus_train.data.load import bundled_frames

HERE = Path(__file__).parent
OURS = "matris-moe"
PEERS = {"chgnet": ("chgnet",), "matgl": ("matgl-m3gnet", "matgl-chgnet", "matgl-tensornet")}
"""What runs where which package is installed."""


def crystals(count: int) -> list[Any]:
    """Bundled crystals, ionic and metallic, drawn once and for all."""
    frames = [frame for frame in bundled_frames() if frame.task in ("ionic", "metals") and frame.split == "train"]
    chosen = np.random.default_rng(0).permutation(len(frames))[:count]
    return [structure_to_ase(frames[place].structure) for place in chosen]


class Worker:
    """A contender's process."""

    def __init__(self, python: str, name: str, structures: Path, threads: int) -> None:
        # A peer's environment has neither the paths nor the settings of this one.
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment["OMP_NUM_THREADS"] = str(threads)
        self.process = subprocess.Popen(
            [python, str(HERE / "peer_worker.py"), name, str(structures)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contender ended: {self.process.args}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def do(self, work: str) -> dict[str, Any]:
        """One piece of work."""
        assert self.process.stdin is not None
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def measured(workers: dict[str, Worker], rounds: int) -> dict[str, dict[str, Any]]:
    """Medians of each contender, after one round that does not count."""
    answers: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in workers}
    for round_ in range(rounds + 1):
        for name, worker in workers.items():
            for work in ("graph", "infer", "train"):
                answer = worker.do(work)
                if round_:
                    answers[name].setdefault(work, []).append(answer)
    found = {}
    for name, worker in workers.items():
        atoms, about = worker.about["atoms"], worker.about
        times = {work: statistics.median(a["seconds"] for a in given) for work, given in answers[name].items()}
        memory = max(answer["memory_mb"] for answer in answers[name]["train"])
        found[name] = {
            **about,
            "seconds": times,
            "atoms_per_s": {work: atoms / seconds for work, seconds in times.items()},
            "training_parameters_times_atoms_per_s": about["parameters"] * atoms / times["train"],
            "training_memory_mb": memory,
            "training_kb_a_pair": 2**10 * memory / about["pairs_at_once"] if about["pairs_at_once"] else None,
        }
    return found


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--structures", type=int, default=16)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments.add_argument("--fused", action="store_true", help="compiled formulas too: a minute of compiling")
    arguments.add_argument("--kept", action="store_true", help="the published MatRIS with everything kept, too")
    for peer in PEERS:
        arguments.add_argument(f"--{peer}", metavar="PYTHON", help=f"a Python that has {peer}")
    options = arguments.parse_args()
    pythons = {OURS: sys.executable, "matris": sys.executable}
    if options.fused:
        pythons["matris-moe-fused"] = sys.executable
    if options.kept:
        pythons["matris-kept"] = sys.executable
    pythons |= {name: python for peer, names in PEERS.items() if (python := getattr(options, peer)) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "structures.extxyz"
        write(path, crystals(options.structures))
        workers = {n: Worker(python, n, path, options.threads) for n, python in pythons.items()}
        try:
            found = measured(workers, options.rounds)
        finally:
            for worker in workers.values():
                worker.close()
    ours = found[OURS]
    ratios = {
        name: {
            "training_atoms_per_s": ours["atoms_per_s"]["train"] / other["atoms_per_s"]["train"],
            "inference_atoms_per_s": ours["atoms_per_s"]["infer"] / other["atoms_per_s"]["infer"],
            "training_atoms_per_s_per_parameter":
                ours["training_parameters_times_atoms_per_s"] / other["training_parameters_times_atoms_per_s"],
            "their_memory_a_pair_over_ours":
                other["training_kb_a_pair"] and other["training_kb_a_pair"] / ours["training_kb_a_pair"],
        }
        for name, other in found.items() if name != OURS
    }  # fmt: skip
    print(json.dumps({
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}", "threads": options.threads,
        "contenders": found, "ours_over_theirs": ratios,
        "not_run": [peer for peer in PEERS if not getattr(options, peer)],
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
