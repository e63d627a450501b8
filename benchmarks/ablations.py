"""What each choice is worth on DFT data (mlearn): short runs that differ from the defaults in one thing each.

    python benchmarks/ablations.py --data DIRECTORY [--output DIRECTORY] [--ranks RANKS] [--jobs JOBS]
        [--only NAME] [--only NAME] [SETTINGS ...]

DIRECTORY and the validation frames are those of `mlearn.py`; test frames are not looked at. SETTINGS go to all runs
(`run.max_steps=1000 model.fused=true`). So many JOBS run side by side, each on RANKS. A run that has ended is not made
again, so more of them can be added to an output. Prints a table: energy MAE in meV/atom and force MAE in eV/Å of each
element, the force RMSE over all, and minutes.
"""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ase import Atoms
from ase.io import read, write
from mlearn import ELEMENTS, command_line, errors_of_elements, four, marked, train_or_resume

VARIANTS: dict[str, tuple[str, ...]] = {
    "the defaults": (),
    "another seed": ("run.seed=1",),
    "AdamW for all": ("optim.orthogonal=false",),
    "half the learning rate": ("optim.lr=0.35e-3",),
    "twice the learning rate": ("optim.lr=1.4e-3",),
    "no weight decay": ("optim.weight_decay=0",),
    "half the weight decay": ("optim.weight_decay=0.1",),
    "twice the weight decay": ("optim.weight_decay=0.4",),
    "no mean of weights": ("optim.ema_decay=0",),
    "steps of half the size": ("data.batch_edges=8500",),
    "one expert an element": ("model.top_k=1",),
    "four experts an element": ("model.top_k=4",),
    "four wider experts an element": ("model.top_k=4", "model.expert_hidden=64"),
    "eight experts in all": ("model.experts=8",),
    "near cutoff 3.5 Å": ("model.near_cutoff=3.5",),
    "near cutoff 5 Å": ("model.near_cutoff=5",),
    "cutoff 5 Å": ("model.cutoff=5",),
    "two heads": ("model.heads=2",),
    "eight heads": ("model.heads=8",),
    "three-body filter without angles": ("model.angular_functions=1",),
    "three-body filter of 3 functions": ("model.angular_functions=3",),
    "three-body filter of 8 functions": ("model.angular_functions=8",),
    "6 radial functions": ("model.radial_functions=6",),
    "16 radial functions": ("model.radial_functions=16",),
    "32 channels of densities": ("model.density_channels=32",),
    "128 channels of densities": ("model.density_channels=128",),
    "densities up to degree 2": ("model.density_degrees=3",),
    "densities up to degree 6": ("model.density_degrees=7",),
    "a shared feature expert of half the width": ("model.feature_hidden=384",),
    "wider messages": ("model.message_hidden=96",),
    "two blocks": ("model.blocks=2",),
    "a width of 128": ("model.width=128", "model.edge_width=64"),
    "no composition": ("model.composition=false",),
    "forces: structures count alike": ("loss.forces_over=structures",),
    "forces count four times": ("loss.forces=20",),
    "energies count four times": ("loss.energy=20",),
    "energies by their square below 10 meV": ("loss.energy_huber=0.01",),
    "stress counts a tenth": ("loss.stress=5",),
}


def run(name: str, data: Path, output: Path, ranks: int, settings: list[str]) -> Path:
    """Trains a variant, unless it was, and returns its directory."""
    directory = output / name.replace(" ", "-").replace(":", "")
    if not (directory / "report.html").exists():  # what a run writes last
        train_or_resume(directory, data, ranks, [*settings, *VARIANTS[name]])
    return directory


def row(name: str, directory: Path, frames: list[Atoms]) -> str:
    """Errors of a variant on these frames."""
    with tempfile.TemporaryDirectory() as folder:
        tables = errors_of_elements(directory, frames, Path(folder))
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    over_all = next(line for line in reversed(lines) if line["kind"] == "val")["tasks"]["default"]
    own = [four(*tables[element]["tasks"].values()) for element in ELEMENTS]
    errors = " | ".join(f"{errors[0]:.2f}, {errors[2]:.4f}" for errors in own)
    return f"| {name} | {errors} | {over_all['forces_rmse']:.4f} | {lines[-1]['seconds'] / 60:.1f} |"


def main() -> None:
    parser = command_line(__doc__, Path("runs/ablations"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", action="append", choices=VARIANTS, help="of all: this one, and what others name")
    arguments = parser.parse_args()
    names = arguments.only or list(VARIANTS)
    frames = marked(read(arguments.data / "train.extxyz.gz", ":"))
    arguments.output.mkdir(parents=True, exist_ok=True)
    write(data := arguments.output / "train.extxyz", frames)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        made = [pool.submit(run, name, data, arguments.output, arguments.ranks, arguments.settings) for name in names]
    directories = [each.result() for each in made]
    judged = [atoms for atoms in frames if atoms.info["split"] == "val"]
    print(f"| | {' | '.join(ELEMENTS)} | force RMSE | minutes |\n|---|---|---|---|---|---|---|")
    for name, directory in zip(names, directories, strict=True):
        print(row(name, directory, judged), flush=True)


if __name__ == "__main__":
    main()
