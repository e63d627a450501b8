"""MatCalc-Bench: elasticity, heat capacities, formation energies and softening, computed by the package matcalc
(https://github.com/materialsvirtuallab/matcalc) on a file of its benchmark data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_train.benchmarking.energies import mean_absolute, root_mean_square
from janus_train.benchmarking.judge import Judge, Judgement, found_file
from janus_train.failure import UserError

# What the entries of a file have, the class of matcalc that judges them, and the units of its properties.
_KINDS = (
    ("bulk_modulus_vrh", "ElasticityBenchmark", "GPa"),
    ("heat_capacity", "PhononBenchmark", "J/(K mol)"),
    ("formation_energy_per_atom", "EquilibriumBenchmark", "eV/atom"),
)
_MODEL, _TRUTH = "_predicted", "_DFT"


def judge_matcalc(data: Path, judge: Judge) -> Judgement:
    """MAE and RMSE of the properties that a benchmark file of matcalc holds.

    Bulk and shear moduli (Voigt-Reuss-Hill, GPa), heat capacity at 300 K (J/(K mol)), formation energy (eV/atom, of
    relaxed structures and elements); of high-energy states the softening scale, the slope of predicted over DFT force
    components (Deng et al., npj Comput. Mater. 2025, 11, 9): 1 where forces are neither too soft nor too hard.

    Args:
        data: such as `mp-binary-pbe-elasticity-2025.1.json.gz`, or a directory with one such file.
        judge: asks the potential, by way of matcalc.

    Raises:
        UserError: matcalc is not installed, or the file is none of its.
    """
    path = found_file(data, ("*.json.gz", "*.json"), "a benchmark of matcalc")
    try:
        from matcalc import benchmark
        from monty.serialization import loadfn
    except ImportError as error:
        raise UserError(f"--benchmark matcalc: {error}; pip install 'janus-train[benchmarks]'") from error
    entries = loadfn(path)
    if isinstance(entries, dict):
        return _softening(benchmark.SofteningBenchmark(benchmark_name=path), judge)
    first = entries[0] if isinstance(entries, list) and entries else {}
    for key, name, units in _KINDS:
        if isinstance(first, Mapping) and key in first:
            return _properties(getattr(benchmark, name)(benchmark_name=path), units, judge)
    known = ", ".join(key for key, *_ in _KINDS)
    raise UserError(f"{path} holds no benchmark of matcalc: its entries have none of {known}")


def _properties(benchmark: Any, units: str, judge: Judge) -> Judgement:
    names = [name for name in benchmark.properties if name != "structure"]
    property_calculator = benchmark.get_prop_calc(judge.calculator, **benchmark.kwargs)
    rows: list[dict[str, Any]] = []
    entries = list(zip(benchmark.ground_truth, benchmark.structures, strict=True))
    for truth, structure in judge.progress(entries, len(entries), "structures"):

        def question(structure: Any = structure) -> dict[str, float]:
            found = benchmark.process_result(property_calculator.calc(structure), _MODEL.strip("_"))
            return {name: float(found[f"{name}{_MODEL}"]) for name in names}

        found = judge.ask(str(truth[benchmark.index_name]), question)
        if found is not None:
            rows.append({name: (truth[f"{name}{_TRUTH}"], found[name]) for name in names})
    kind = type(benchmark).__name__.removesuffix("Benchmark").lower()
    summary = {"structures": len(rows), **errors_of_properties(rows, names)}
    return Judgement(f"matcalc {kind}", units, summary, [], judge.notices("structures"))


def errors_of_properties(rows: Sequence[Mapping[str, tuple[float, float]]], names: Sequence[str]) -> dict[str, Any]:
    """For each property MAE, RMSE and mean error over the rows that have a finite label and prediction."""
    found: dict[str, Any] = {}
    for name in names:
        pairs = [row[name] for row in rows if np.isfinite(np.asarray(row[name], dtype=np.float64)).all()]
        errors = [predicted - label for label, predicted in pairs]
        found[name] = {
            "count": len(errors),
            "mae": mean_absolute(errors),
            "rmse": root_mean_square(errors),
            "mean_error": float(np.mean(errors)) if errors else None,
        }
    return found


def softening_scale(labels: np.ndarray, predictions: np.ndarray) -> float:
    """The slope of predicted over labelled force components, through zero, by least squares."""
    return float(np.vdot(labels, predictions) / np.vdot(labels, labels))


def _softening(benchmark: Any, judge: Judge) -> Judgement:
    from pymatgen.io.ase import AseAtomsAdaptor

    def question(frames: Mapping[str, Mapping[str, Any]]) -> float:
        labels, predictions = [], []
        for frame in frames.values():
            atoms = AseAtomsAdaptor.get_atoms(frame["structure"])
            atoms.calc = judge.calculator
            predictions.append(atoms.get_forces().ravel())
            labels.append(np.asarray(frame["vasp_f"], dtype=np.float64).ravel())
        return softening_scale(np.concatenate(labels), np.concatenate(predictions))

    scales = []
    for name in judge.progress(benchmark.material_ids, len(benchmark.material_ids), "materials"):
        scale = judge.ask(str(name), lambda name=name: question(benchmark.data[name]))  # type: ignore[misc]
        scales += [] if scale is None else [scale]
    summary = {
        "materials": len(scales),
        "softening_scale": float(np.mean(scales)) if scales else None,
        "mean_distance_from_one": mean_absolute([scale - 1 for scale in scales]),
    }
    return Judgement("matcalc softening", "1", summary, [], judge.notices("materials"))
