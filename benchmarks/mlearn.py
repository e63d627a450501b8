"""Accuracy on DFT data: one MatRIS-MoE for Li, Ge, Si and Mo (mlearn), beside potentials for one element each.

    python benchmarks/mlearn.py --data DIRECTORY [--output DIRECTORY] [--val-only] [SETTINGS ...]

DIRECTORY has `train.extxyz.gz` and `test.extxyz.gz` (Zuo et al., J. Phys. Chem. A 2020, 124, 731). Every tenth training
frame of each element and kind of configuration is set aside to choose the best weights by; with --val-only the errors
are those on these frames, for choosing settings: test frames are not looked at. Prints errors per element as a table
and JSON. A run that was stopped goes on where its output is.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections import Counter
from pathlib import Path

from ase import Atoms
from ase.io import read, write

from janus_train import load_config, resume, train
from janus_train.recipes.matris import matris_recipe
from janus_train.recipes.matris_inference import evaluate_files

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


def errors_of_elements(model: Path, frames: list[Atoms], folder: Path) -> dict[str, tuple[float, ...]]:
    """As in the table of published ones."""
    found = {}
    for element in ELEMENTS:
        write(path := folder / f"{element}.extxyz", [a for a in frames if a.info["element"] == element])
        [errors] = evaluate_files(model, [path], None)["tasks"].values()
        found[element] = (
            1000 * errors["energy_mae"], 1000 * errors["energy_rmse"], errors["forces_mae"], errors["forces_rmse"],
        )  # fmt: skip
    return found


def table(found: dict[str, tuple[float, ...]]) -> str:
    """Errors beside published ones, with the best of those marked where it stays below."""
    lines = ["| | this | best of those for one element |", "|---|---|---|"]
    for element, own in found.items():
        best = [min(errors[element][column] for errors in PUBLISHED.values()) for column in range(4)]
        lines.append(f"| {element} | {_four(own)} | {_four(best)} |")
    return "\n".join(lines)


def _four(errors: tuple[float, ...] | list[float]) -> str:
    return f"{errors[0]:.2f}/{errors[1]:.2f}, {errors[2]:.4f}/{errors[3]:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/mlearn"))
    parser.add_argument("--val-only", action="store_true", help="errors on validation frames instead of test frames")
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_args()
    frames = marked(read(arguments.data / "train.extxyz.gz", ":"))
    data, directory = arguments.output / "train.extxyz", arguments.output / "run"
    began = time.perf_counter()
    if directory.exists():
        resume(directory, arguments.settings, matris_recipe)
    else:
        arguments.output.mkdir(parents=True, exist_ok=True)
        write(data, frames)
        train(
            load_config(None, [f"data.train={data}", f"run.dir={directory}", *SETTINGS, *arguments.settings]),
            matris_recipe,
        )
    minutes = (time.perf_counter() - began) / 60
    judged = [atoms for atoms in frames if atoms.info["split"] == "val"]
    if not arguments.val_only:
        judged = read(arguments.data / "test.extxyz.gz", ":")
    with tempfile.TemporaryDirectory() as folder:
        found = errors_of_elements(directory, judged, Path(folder))
    print(table(found))
    print(json.dumps({
        "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "minutes": minutes,
        "settings": arguments.settings, "judged": "val" if arguments.val_only else "test",
        "errors": {element: dict(zip(("energy_mae", "energy_rmse", "forces_mae", "forces_rmse"), own, strict=True))
                   for element, own in found.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
