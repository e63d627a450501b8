"""A run directory with made-up numbers of realistic size, for the tests of the report."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from janus_train.report.periodic_table import ATOMIC_NUMBERS

FILES = (
    "metrics.jsonl", "evaluation.json", "parity.npz", "experts.json", "config.yaml", "environment.json", "data.json",
)  # fmt: skip

ELEMENTS = {
    "molecules": "H C N O F P S Cl Br I".split(),
    "ionic": "Li O F Na Mg Cl K Ca Ti Br Sr Zr Cs Ba La Ce".split(),
    "metals": "Al Ni Cu Pd Ag Pt Au".split(),
}
FORCES = {"molecules": 1.1, "ionic": 0.8, "metals": 0.35}


def write_run(directory: Path, steps: int = 1500) -> Path:
    """A run directory as training leaves it, with made-up numbers of realistic size."""
    random = np.random.default_rng(7)
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(10, steps + 1, 10):
        lines.append(train_line(step, steps, random))
        if step % 100 == 0 or step == steps:
            tasks = {task: errors_at(task, step, random) for task in ELEMENTS}
            lines.append({"kind": "val", "step": step, "loss": 0.1 + 9 * math.exp(-step / 350), "best": True,
                          "tasks": tasks, "seconds": 0.41 * step})  # fmt: skip
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    atoms = {symbol: int(random.integers(40, 9000)) for row in ELEMENTS.values() for symbol in row}
    by_element = {symbol: {"atoms": n, "forces_mae": float(0.3 * n**-0.25)} for symbol, n in atoms.items()}
    evaluation = {"split": "val", "step": steps, "tasks": lines[-1]["tasks"], "elements": by_element}
    (directory / "evaluation.json").write_text(json.dumps(evaluation))
    arrays: dict[str, np.ndarray] = dict(parity_arrays(random))
    np.savez_compressed(directory / "parity.npz", **arrays)
    (directory / "experts.json").write_text(json.dumps({"layers": expert_layers(atoms, random)}))
    (directory / "config.yaml").write_text("run:\n  max_steps: 1500\n  seed: 0\noptim:\n  lr: 0.003\n")
    (directory / "environment.json").write_text(json.dumps({"python": "3.11.7", "torch": "2.13.0", "gpu": None}))
    (directory / "data.json").write_text(json.dumps(coverage()))
    return directory


def train_line(step: int, steps: int, random: np.random.Generator) -> dict[str, Any]:
    noise = math.exp(0.25 * random.standard_normal())
    forces, energy = noise * (0.09 + 1.5 * math.exp(-step / 300)), noise * (0.012 + 0.4 * math.exp(-step / 120))
    stress = noise * (0.002 + 0.03 * math.exp(-step / 250))
    return {
        "kind": "train", "step": step, "epoch": step / 120, "loss": 5 * (forces + energy + stress),
        "loss_energy": energy, "loss_forces": forces, "loss_stress": stress, "loss_magmoms": None,
        "lr": 0.003 * min(step / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps)) + 3e-5,
        "grad_norm": 4 * noise**2 * math.exp(-step / 600), "structures_per_s": 38 + 2 * random.standard_normal(),
        "atoms_per_s": 910 + 40 * random.standard_normal(), "edges_per_s": 41000 + 1500 * random.standard_normal(),
        "seconds": 0.41 * step, "memory_mb": 900 + 80 * (1 - math.exp(-step / 50)),
        "bytes_sent": {"halo": 52_000 * step, "gradients": 1_400_000 * step},
    }  # fmt: skip


def errors_at(task: str, step: int, random: np.random.Generator) -> dict[str, Any]:
    forces = FORCES[task] * (0.08 + 0.8 * math.exp(-step / 280)) * math.exp(0.04 * random.standard_normal())
    stress = None if task == "molecules" else 0.0007 + 0.01 * math.exp(-step / 300)
    return {
        "structures": 55, "atoms": 1234, "energy_mae": forces / 9, "energy_rmse": forces / 6,
        "energy_shift": -forces / 20, "forces_mae": forces, "forces_rmse": 1.6 * forces,
        "forces_mae_zero": FORCES[task], "stress_mae": stress, "stress_rmse": stress and 2 * stress,
        "magmoms_mae": None,
    }  # fmt: skip


def parity_arrays(random: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    for task, size in FORCES.items():
        for label, count, spread in (("energy", 55, 2.5), ("forces", 3702, size), ("stress", 495, 0.03)):
            if (label, task) != ("stress", "molecules"):
                labels = spread * random.standard_t(4, count)
                errors = 0.06 * spread * random.standard_t(3, count)
                yield f"{label}/{task}", np.stack([labels, labels + errors], axis=1)


def expert_layers(atoms: dict[str, int], random: np.random.Generator) -> list[dict[str, Any]]:
    symbols = sorted(atoms, key=ATOMIC_NUMBERS.__getitem__)
    layers = []
    for block in range(3):
        for part in ("messages", "update"):
            scores = random.gumbel(size=(len(symbols), 8)) * 1.5
            scores[:, 5] = -9
            kept = scores >= np.sort(scores, axis=1)[:, -2:-1]
            weights = np.where(kept, np.exp(scores), 0)
            load = kept.T @ np.array([atoms[symbol] for symbol in symbols])
            layers.append({"name": f"block {block} {part}", "symbols": symbols,
                           "weights": (weights / weights.sum(1, keepdims=True)).tolist(),
                           "load": load.tolist(),
                           "statistics": {"max_over_mean": 2.34, "load_entropy": 0.87, "dead": 1,
                                          "gate_entropy": 0.66, "effective_experts": 5.43}})  # fmt: skip
    return layers


def coverage() -> dict[str, Any]:
    rows = {
        task: {"train": 450, "val": 55, "energy": 450, "forces": 449, "stress": 0 if task == "molecules" else 440,
               "magmoms": 0, "elements": symbols}
        for task, symbols in ELEMENTS.items()
    }  # fmt: skip
    return {"tasks": rows, "fingerprint": "cbd4df447b6be89b", "warnings": []}
