# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["ase==3.29.0", "numpy==2.4.6", "scipy==1.17.1", "tblite==0.8.0"]
# ///
"""Makes the data set that comes with janus-train: `uv run datasets/bundled/make.py`.

Synthetic labels from open tools; see the README beside this file for what they are and are not. The same seed gives the
same bytes: `--check` makes the set again and compares, `--verify` compares forces and stress with finite differences.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

# Sums in another order have other last bits.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import ionic
import metals
import molecules
import numpy as np
from frames import Frame, Labeller, write_frames

SEED = 20261124
SHIPPED = Path(__file__).parents[2] / "packages/janus-train/src/janus_train/data/bundled.extxyz.gz"
HELD_OUT = 0.1  # of a task's frames go to val, and as many to test
RARE = 8  # families with an element that fewer families have are for training
TASKS = {
    "molecules": molecules.frames,
    "ionic": ionic.frames,
    "metals": metals.metal_frames,
    "surfaces": metals.surface_frames,
}


def make() -> list[tuple[Frame, str]]:
    """All frames with their splits."""
    everything = []
    for (task, frames), seed in zip(TASKS.items(), np.random.SeedSequence(SEED).spawn(len(TASKS)), strict=True):
        made = list(frames(seed))
        everything += _split(made, np.random.default_rng([SEED, list(TASKS).index(task)]))
    return everything


def _split(frames: list[Frame], rng: np.random.Generator) -> list[tuple[Frame, str]]:
    """80/10/10, drawn at random by family: val shares families with training, test does not.

    A family is a molecule with all its charge states, so test asks for molecules that training has never seen; every
    other frame is a family of its own. Free atoms and families with a rare element are for training.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for place, frame in enumerate(frames):
        members[_family(frame)].append(place)
    families_of_element = Counter(z for group in members.values() for z in set(frames[group[0]].atoms.numbers.tolist()))
    free = [
        family
        for family, group in members.items()
        if len(frames[group[0]].atoms) > 1
        and min(families_of_element[z] for z in frames[group[0]].atoms.numbers.tolist()) >= RARE
    ]
    splits = ["train"] * len(frames)
    wanted = HELD_OUT * len(frames)
    for family in rng.permutation(free).tolist():
        if splits.count("test") < wanted:
            for place in members[family]:
                splits[place] = "test"
    left = [place for family in free for place in members[family] if splits[place] == "train"]
    for place in rng.permutation(left)[: round(wanted)].tolist():
        splits[place] = "val"
    return list(zip(frames, splits, strict=True))


def _family(frame: Frame) -> str:
    return frame.atoms.get_chemical_formula() if frame.task == "molecules" else frame.group


def summary(frames: list[tuple[Frame, str]]) -> str:
    """Counts, sizes and forces of every task."""
    lines = ["task        train  val  test  elements  mean atoms  force MAE of zero  force RMS  stress"]
    for task in TASKS:
        own = [(frame, split) for frame, split in frames if frame.task == task]
        count = [sum(split == name for _, split in own) for name in ("train", "val", "test")]
        forces = np.concatenate([frame.forces for frame, _ in own])
        elements = {z for frame, _ in own for z in frame.atoms.numbers.tolist()}
        lines.append(
            f"{task:10}  {count[0]:5}  {count[1]:3}  {count[2]:4}  {len(elements):8}  "
            f"{np.mean([len(frame.atoms) for frame, _ in own]):10.1f}  {np.abs(forces).mean():17.3f}  "
            f"{np.sqrt(np.mean(forces**2)):9.3f}  {sum(frame.stress is not None for frame, _ in own):6}"
        )
    elements = {z for frame, _ in frames for z in frame.atoms.numbers.tolist()}
    return "\n".join([*lines, f"{len(frames)} frames, {len(elements)} elements"])


def verify(frames: list[tuple[Frame, str]], each: int = 5) -> float:
    """Largest difference between labels and central finite differences, eV/Å and eV/Å³, over some frames of a task."""
    worst = 0.0
    for task in TASKS:
        own = [frame for frame, _ in frames if frame.task == task and len(frame.atoms) > 1]
        for frame in own[:: max(1, len(own) // each)]:
            worst = max(worst, _difference(frame, _labeller(frame)))
    return worst


def _labeller(frame: Frame) -> Labeller:
    if frame.task == "molecules":
        return molecules.labeller(frame.charge, frame.spin)
    return ionic.label if frame.task == "ionic" else metals.label


def _difference(frame: Frame, label: Labeller, step: float = 1e-4) -> float:
    atom = len(frame.atoms) // 2
    worst = 0.0
    for axis in range(3):
        energies = []
        for sign in (1, -1):
            moved = frame.atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(label(moved)[0])
        worst = max(worst, abs(-(energies[0] - energies[1]) / (2 * step) - frame.forces[atom, axis]))
        if frame.stress is not None:
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[axis, (axis + 1) % 3] += sign * step / 2
                strain[(axis + 1) % 3, axis] += sign * step / 2
                strained = frame.atoms.copy()
                strained.set_cell(frame.atoms.cell.array @ strain, scale_atoms=True)
                energies.append(label(strained)[0])
            slope = (energies[0] - energies[1]) / (2 * step) / frame.atoms.get_volume()
            worst = max(worst, abs(slope - frame.stress[axis, (axis + 1) % 3]))
    return worst


def main() -> int:
    """Makes, checks or verifies the set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=SHIPPED)
    parser.add_argument("--check", action="store_true", help="make it again and compare with what is there")
    parser.add_argument("--verify", action="store_true", help="compare labels with finite differences")
    arguments = parser.parse_args()
    frames = make()
    print(summary(frames))
    if arguments.verify:
        worst = verify(frames)
        print(f"labels differ from finite differences by at most {worst:.1e}")
        return 0 if worst < 1e-4 else 1
    if arguments.check:
        with tempfile.TemporaryDirectory() as folder:
            again = Path(folder) / "again.extxyz.gz"
            write_frames(again, frames)
            same = again.read_bytes() == arguments.output.read_bytes()
        print("the same bytes" if same else f"different from {arguments.output}")
        return 0 if same else 1
    write_frames(arguments.output, frames)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
