"""MatRIS-MoE beside other potentials: the same structures, energies, forces and stress, measured in turn in one run.

    python benchmarks/peers.py                              # every package below
    python benchmarks/peers.py matris chgnet mace-torch     # some of them, and the published MatRIS

Each contender runs in a process of its own, in the environment that has it: this one, or a virtual environment in the
folder `--environments`, one a package, which is made from the package index (with uv) where it is missing. Rounds go
through all contenders one after the other, so all see the same machine. Figures are medians. Weights are random: speed
and memory do not depend on them. What cannot be installed, built or trained is reported with its error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import write

from janus_graph.ase import structure_to_ase
from janus_train.data.load import bundled_frames

HERE = Path(__file__).parent
REFERENCE = "matris-moe"
OURS = ("matris", "matris-kept", "matris-moe-fused")
"""What else there is of this project: the published MatRIS, the same with everything kept, compiled formulas."""
PEERS = {
    "chgnet": ("chgnet",),
    "matgl": ("matgl-m3gnet", "matgl-chgnet", "matgl-tensornet"),
    "mace-torch": ("mace-mpa-0",),
    "sevenn": ("sevennet-0",),
    "nequip": ("nequip-l",),
    "orb-models": ("orb-v3-conservative", "orb-v3-direct"),
    "fairchem-core": ("uma-s",),
}
"""What runs where which package is installed."""
WORK = ("graph", "infer", "train")


def crystals(count: int) -> list[Any]:
    """Bundled crystals, ionic and metallic, drawn once and for all."""
    frames = [frame for frame in bundled_frames() if frame.task in ("ionic", "metals") and frame.split == "train"]
    chosen = np.random.default_rng(0).permutation(len(frames))[:count]
    return [structure_to_ase(frames[place].structure) for place in chosen]


def python_with(package: str, environments: Path) -> str:
    """A Python that has a package beside the torch of this one, made where it is missing.

    Raises:
        RuntimeError: the installer is missing or fails; the message ends with what it said.
    """
    uv = shutil.which("uv")
    if uv is None:
        raise RuntimeError("environments are made with uv, which is not on the path: pip install uv")
    python = environments / package / "bin" / "python"
    torch = version("torch").split("+")[0]  # the build, for a CPU say, is the site's choice
    steps = [[uv, "pip", "install", "--python", str(python), package, f"torch=={torch}", "ase"]]
    if not python.exists():
        steps.insert(0, [uv, "venv", "--python", sys.executable, str(environments / package)])
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(step)}: {done.stderr.strip()[-1000:]}")
    return str(python)


def version_of(package: str, python: str) -> str:
    """The version of a package in another environment."""
    question = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", question], capture_output=True, text=True, check=True).stdout.strip()


def said(news: str) -> None:
    """Where it is: all rounds together take a while."""
    print(news, file=sys.stderr, flush=True)


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
            return {"error": f"its process ended with {self.process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def do(self, work: str) -> dict[str, Any]:
        """One piece of work; "rest" gives back memory that is not in use."""
        if self.process.poll() is not None:
            return {"error": f"its process ended with {self.process.returncode}"}
        assert self.process.stdin is not None
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        if self.process.poll() is None:
            self.process.communicate()


def measured(workers: dict[str, Worker], rounds: int) -> dict[str, dict[str, Any]]:
    """Medians of each contender; errors in place of what does not work.

    A turn starts with a training step that does not count, and ends with giving back memory: several of them would not
    fit into memory at once otherwise, and what comes right after is slower (`micro`: 1.4 times in inference).
    """
    answers: dict[str, dict[str, list[dict[str, Any]]]] = {name: {work: [] for work in WORK} for name in workers}
    errors: dict[str, dict[str, str]] = {name: {} for name in workers}
    for round_ in range(rounds):
        for name, worker in workers.items():
            if "error" in worker.about:
                continue
            worker.do("train")
            for work in WORK:
                answer = worker.do(work)
                if "error" in answer:
                    errors[name][work] = answer["error"]
                else:
                    answers[name][work].append(answer)
            worker.do("rest")
            said(f"round {round_ + 1} of {rounds}, {name}: {errors[name] or 'done'}")
    return {name: summary(workers[name].about, answers[name], errors[name]) for name in workers}


def summary(about: dict[str, Any], answers: dict[str, list[dict[str, Any]]], errors: dict[str, str]) -> dict[str, Any]:
    """What one contender is and how fast it was."""
    if "error" in about:
        return about
    done = {work: given for work, given in answers.items() if given and work not in errors}
    times = {work: statistics.median(answer["seconds"] for answer in given) for work, given in done.items()}
    found = {
        **about,
        "seconds": times,
        "cpu_seconds": {work: statistics.median(answer["cpu"] for answer in given) for work, given in done.items()},
        "atoms_per_s": {work: about["atoms"] / seconds for work, seconds in times.items()},
    }
    if errors:
        found["errors"] = errors
    if "train" in times:
        memory = max(answer["memory_mb"] for answer in done["train"])
        found["training_parameters_times_atoms_per_s"] = about["parameters"] * about["atoms"] / times["train"]
        found["training_memory_mb"] = memory
        found["training_kb_a_pair"] = 2**10 * memory / about["pairs_at_once"] if about["pairs_at_once"] else None
    return found


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Ours over theirs in speed, theirs over ours in memory; what was not measured is left out."""
    found = {}
    for name, work in (("training_atoms_per_s", "train"), ("inference_atoms_per_s", "infer")):
        if work in theirs.get("atoms_per_s", {}):
            found[name] = ours["atoms_per_s"][work] / theirs["atoms_per_s"][work]
    per_parameter = "training_parameters_times_atoms_per_s"
    if per_parameter in theirs:
        found["training_atoms_per_s_per_parameter"] = ours[per_parameter] / theirs[per_parameter]
    if theirs.get("training_kb_a_pair"):
        found["their_memory_a_pair_over_ours"] = theirs["training_kb_a_pair"] / ours["training_kb_a_pair"]
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("beside", nargs="*", metavar="NAME", help=f"of {', '.join((*PEERS, *OURS))}")
    arguments.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "janus-peers")
    arguments.add_argument("--structures", type=int, default=16)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = arguments.parse_args()
    if unknown := set(options.beside) - {*PEERS, *OURS}:
        arguments.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join((*PEERS, *OURS))}")
    beside = options.beside or [*PEERS]
    pythons = {REFERENCE: sys.executable} | {name: sys.executable for name in beside if name in OURS}
    versions, failed = {}, {}
    for package in (name for name in beside if name in PEERS):
        try:
            python = python_with(package, options.environments)
            versions[package] = version_of(package, python)
            pythons |= dict.fromkeys(PEERS[package], python)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            failed[package] = str(error)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "structures.extxyz"
        write(path, crystals(options.structures))
        workers = {}
        try:
            for name, python in pythons.items():
                workers[name] = Worker(python, name, path, options.threads)
                said(f"{name}: {workers[name].about}")
            found = measured(workers, options.rounds)
        finally:
            for worker in workers.values():
                worker.close()
    print(json.dumps({
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}", "threads": options.threads,
        "versions": versions, "contenders": found,
        "ours_over_theirs": {name: ratios(found[REFERENCE], other) for name, other in found.items()
                             if name != REFERENCE},
        "could_not_be_installed": failed,
        "not_asked_for": [name for name in (*PEERS, *OURS) if name not in beside],
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
