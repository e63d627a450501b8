"""Accuracy on DFT data: one MatRIS-MoE for Li, Ge, Si and Mo (mlearn), beside potentials for one element each.

    python benchmarks/mlearn.py --data DIRECTORY [--output DIRECTORY] [--ranks RANKS] [--val-only] [SETTINGS ...]

DIRECTORY has `train.extxyz.gz` and `test.extxyz.gz` (Zuo et al., J. Phys. Chem. A 2020, 124, 731). Every tenth training
frame of each element and kind of configuration is set aside to choose the best weights by; with --val-only the errors
are those on these frames, for choosing settings: test frames are not looked at. Ranks share each step, one thread for
each. Prints errors per element and per kind of configuration as tables, and JSON. A run that was stopped goes on where
its output is.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import read, write

from janus_train.recipes.matris_inference import evaluate_files

Errors = dict[str, Any]
ELEMENTS = ("Li", "Ge", "Si", "Mo")
PUBLISHED = {
    "SNAP": {"Li": (1.03, 1.31, 0.028, 0.038), "Ge": (6.6, 9.8, 0.188, 0.295), "Si": (6.4, 8.1, 0.133, 0.205),
             "Mo": (5.5, 9.3, 0.207, 0.376)},
    "qSNAP": {"Li": (0.73, 0.85, 0.033, 0.044), "Ge": (6.5, 10.6, 0.133, 0.200), "Si": (3.8, 5.5, 0.116, 0.177),
              "Mo": (2.8, 4.0, 0.184, 0.333)},
    "NNP": {"Li": (0.75, 0.98, 0.017, 0.023), "Ge": (4.9, 7.6, 0.085, 0.125), "Si": (5.6, 6.9, 0.109, 0.170),
            "Mo": (3.7, 5.4, 0.125, 0.204)},
    "linear": {"Li": (0.57, 0.83, 0.009, 0.012), "Ge": (5.1, 7.5, 0.072, 0.106), "Si": (5.3, 7.3, 0.092, 0.141),
               "Mo": (4.8, 5.5, 0.116, 0.190)},
}  # fmt: skip
"""Test errors of potentials for one element each: energy MAE and RMSE in meV/atom, force MAE and RMSE in eV/Å."""
SETTINGS = ("data.keys.group=none", "run.val_every=250", "run.checkpoint_every=250")


def marked(frames: list[Atoms]) -> list[Atoms]:
    """The frames, every tenth of each element and kind of configuration marked for validation."""
    seen: Counter[tuple[str, str]] = Counter()
    for atoms in frames:
        kind = (atoms.info["element"], atoms.info["group"])
        atoms.info["split"] = "val" if seen[kind] % 10 == 5 else "train"
        seen[kind] += 1
    return frames


def train(ranks: int, command: list[str]) -> None:
    """Runs a command of janus-train on so many ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    threads = {"OMP_NUM_THREADS": "1"} if ranks > 1 else {}
    subprocess.run(
        [sys.executable, *launcher, "-m", "janus_train", *command], check=True, env={**os.environ, **threads}
    )


def train_or_resume(directory: Path, data: Path, ranks: int, settings: Sequence[str]) -> None:
    """Trains on these data, or goes on where a run in this directory was stopped."""
    given = [f"mesh.replica={ranks}", *settings]
    if directory.exists():
        train(ranks, ["resume", str(directory), *given])
    else:
        train(ranks, ["train", f"data.train={data}", f"run.dir={directory}", *SETTINGS, *given])


def command_line(description: str | None, output: Path) -> argparse.ArgumentParser:
    """What every program on these data is told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("settings", nargs="*")
    return parser


def errors_of_elements(model: Path, frames: list[Atoms], folder: Path) -> dict[str, Errors]:
    """By element, errors of all its frames and of each kind of configuration, as `evaluate` gives them."""
    found = {}
    for element in ELEMENTS:
        write(path := folder / f"{element}.extxyz", [a for a in frames if a.info["element"] == element])
        found[element] = evaluate_files(model, [path], None, "group")
    return found


def four(errors: Errors) -> tuple[float, ...]:
    """As in the table of published ones."""
    return 1000 * errors["energy_mae"], 1000 * errors["energy_rmse"], errors["forces_mae"], errors["forces_rmse"]


def kinds_table(found: dict[str, Errors]) -> str:
    """Shifts and errors by kind: a kind whose energies are all off together hides in the errors over all."""
    lines = ["| | | frames | energy shift, MAE, meV/atom | force MAE, eV/Å |", "|---|---|---|---|---|"]
    for element, tables in found.items():
        for name, own in tables["groups"].items():
            energies = f"{1000 * own['energy_shift']:+.1f}, {1000 * own['energy_mae']:.1f}"
            kind = name.partition("/")[2]
            lines.append(f"| {element} | {kind} | {own['structures']} | {energies} | {own['forces_mae']:.4f} |")
    return "\n".join(lines)


def table(found: dict[str, tuple[float, ...]]) -> str:
    """Errors beside the best published ones."""
    lines = ["| | this | best of those for one element |", "|---|---|---|"]
    for element, own in found.items():
        best = [min(errors[element][column] for errors in PUBLISHED.values()) for column in range(4)]
        lines.append(f"| {element} | {_four(own)} | {_four(best)} |")
    return "\n".join(lines)


def _four(errors: tuple[float, ...] | list[float]) -> str:
    return f"{errors[0]:.2f}/{errors[1]:.2f}, {errors[2]:.4f}/{errors[3]:.4f}"


def main() -> None:
    parser = command_line(__doc__, Path("runs/mlearn"))
    parser.add_argument("--val-only", action="store_true", help="errors on validation frames instead of test frames")
    arguments = parser.parse_args()
    frames = marked(read(arguments.data / "train.extxyz.gz", ":"))
    data, directory = arguments.output / "train.extxyz", arguments.output / "run"
    launches = arguments.output / "launches.jsonl"
    arguments.output.mkdir(parents=True, exist_ok=True)
    with launches.open("a") as file:
        print(json.dumps({"ranks": arguments.ranks, "settings": arguments.settings}), file=file)
    if not directory.exists():
        write(data, frames)
    train_or_resume(directory, data, arguments.ranks, arguments.settings)
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    minutes = json.loads(lines[-1])["seconds"] / 60  # of all parts of a run that was stopped
    judged = [atoms for atoms in frames if atoms.info["split"] == "val"]
    if not arguments.val_only:
        judged = read(arguments.data / "test.extxyz.gz", ":")
    with tempfile.TemporaryDirectory() as folder:
        tables = errors_of_elements(directory, judged, Path(folder))
    found = {element: four(*own["tasks"].values()) for element, own in tables.items()}
    print(f"{table(found)}\n\n{kinds_table(tables)}")
    print(json.dumps({
        "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "minutes": minutes,
        "launches": [json.loads(line) for line in launches.read_text().splitlines()],
        "judged": "val" if arguments.val_only else "test",
        "errors": {element: dict(zip(("energy_mae", "energy_rmse", "forces_mae", "forces_rmse"), own, strict=True))
                   for element, own in found.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
