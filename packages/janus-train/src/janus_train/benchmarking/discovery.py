"""Matbench-Discovery: which of 257k hypothetical crystals (WBM) are stable, after relaxation by the potential
(Riebesell et al., Nat. Mach. Intell. 2025, 7, 836, doi:10.1038/s42256-025-01055-1).
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_train.benchmarking.judge import Judge, Judgement, found_file
from janus_train.benchmarking.relaxation import relaxed
from janus_train.benchmarking.stability import stability_metrics
from janus_train.benchmarking.structures import Structures, open_structures
from janus_train.failure import UserError

if TYPE_CHECKING:
    from ase import Atoms

_SUMMARY, _INITIAL, _FINAL = "*wbm-summary.csv*", "*wbm-initial-atoms.extxyz*", "*wbm-relaxed-atoms.extxyz*"
_COLUMNS = ("material_id", "n_sites", "uncorrected_energy", "e_above_hull_mp2020_corrected_ppd_mp", "unique_prototype")
_MOST_STABLE = 10_000

# What `StructureMatcher` is told by the benchmark, and what a crystal without a match counts as.
_MATCH = {"stol": 1.0, "scale": False}
_NO_MATCH = 1.0


@dataclass(frozen=True)
class Material:
    """What is known of a crystal.

    Attributes:
        sites: atoms in its cell.
        energy: of the cell by DFT, without corrections, eV.
        above_hull: eV/atom.
        unique: whether it is the only one of its structure prototype, and not in the Materials Project.
    """

    sites: int
    energy: float
    above_hull: float
    unique: bool


def judge_discovery(data: Path, judge: Judge) -> Judgement:
    """Classification of crystals as stable, errors of their distance to the DFT hull, and RMSD of relaxed structures.

    Structures are relaxed unless the judge is not to. The predicted distance is the DFT one plus the difference of the
    two energies per atom: reference energies cancel, and so do corrections, which are taken to be those of the DFT
    entry. Thermal conductivity (κ_SRME), the benchmark's other task, is not computed here.

    Args:
        data: a directory with the benchmark's files: the summary `…wbm-summary.csv.gz`, the structures
            `…wbm-initial-atoms.extxyz.zip`, or a part of them; with `…wbm-relaxed-atoms.extxyz.zip`, and pymatgen
            installed, also the RMSD, in units of the cube root of the volume per atom; 1 without a match.
        judge: asks the potential.

    Raises:
        UserError: a file is missing or not of that form.
    """
    if not data.is_dir():
        raise UserError(f"{data} is no directory; --data needs one with {_SUMMARY} and {_INITIAL}")
    materials = read_summary(found_file(data, (_SUMMARY,), "the summary of the crystals"))
    structures = open_structures(found_file(data, (_INITIAL,), "the structures to begin with"))
    wants_rmsd = judge.relax is not False and any(data.rglob(_FINAL)) and find_spec("pymatgen") is not None
    final = open_structures(found_file(data, (_FINAL,), "the relaxed structures")) if wants_rmsd else None
    names, predicted, distances = [], [], []
    with structures, final if final is not None else structures:
        for name, make in judge.progress(structures.items(), len(structures), "crystals"):
            if name not in materials:
                raise UserError(f"{structures.path} has {name}, which is not in the summary; give files that belong")
            found = judge.ask(
                name, lambda name=name, make=make: _answer(make(), judge, final, name)  # type: ignore[misc]
            )  # fmt: skip
            material = materials[name]
            names.append(name)
            shift = np.nan if found is None else found["energy"] / material.sites - material.energy / material.sites
            predicted.append(material.above_hull + shift)
            distances.append(_NO_MATCH if found is None or found.get("rmsd") is None else found["rmsd"])
    known = {name: materials[name] for name in names}
    rows = discovery_rows(known, np.array(predicted, dtype=np.float64))
    summary: dict[str, Any] = {row["subset"]: {k: v for k, v in row.items() if k != "subset"} for row in rows}
    if final is not None:
        summary["rmsd"] = float(np.mean(distances)) if distances else None
    columns = ("subset", "crystals", "f1", "daf", "precision", "recall", "accuracy", "mae", "rmse", "r2")
    return Judgement("matbench-discovery", "eV/atom", summary, [{c: row[c] for c in columns} for row in rows],
                     _notices(materials, known, data, final, judge))  # fmt: skip


def discovery_rows(materials: Mapping[str, Material], predicted: np.ndarray) -> list[dict[str, Any]]:
    """The numbers of the benchmark's three sets of crystals.

    All; those with a prototype of their own; and the 10,000 of these with the lowest predicted distance to the hull,
    whose DAF is over the prevalence among all of these.
    """
    true = np.array([material.above_hull for material in materials.values()], dtype=np.float64)
    unique = np.array([material.unique for material in materials.values()], dtype=bool)
    rows = [{"subset": "full_test_set", **stability_metrics(true, predicted)}]
    own_true, own = true[unique], predicted[unique]
    rows.append({"subset": "unique_prototypes", **stability_metrics(own_true, own)})
    first = np.argsort(own, kind="stable")[:_MOST_STABLE]  # NaN comes last
    first = first[np.isfinite(own[first])]
    prevalence = float((own_true <= 0).mean()) if len(own_true) else None
    rows.append({"subset": "most_stable_10k", **stability_metrics(own_true[first], own[first], prevalence)})
    return rows


def read_summary(path: Path) -> dict[str, Material]:
    """The crystals of a summary, by their id.

    Raises:
        UserError: a column is missing, or a value is no number.
    """
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as file:
        reader = csv.DictReader(file)
        lacking = sorted(set(_COLUMNS) - set(reader.fieldnames or ()))
        if lacking:
            raise UserError(
                f"{path} lacks the column(s) {', '.join(lacking)}; it should be the benchmark's own summary"
            )
        try:
            return {
                row["material_id"]: Material(
                    int(row["n_sites"]),
                    float(row["uncorrected_energy"]),
                    float(row["e_above_hull_mp2020_corrected_ppd_mp"]),
                    row["unique_prototype"].strip().lower() in ("true", "1"),
                )
                for row in reader
            }
        except ValueError as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def _answer(atoms: Atoms, judge: Judge, final: Structures | None, name: str) -> dict[str, Any]:
    if judge.relax is False:
        atoms.calc = judge.calculator
        return {"energy": float(atoms.get_potential_energy())}
    found = relaxed(judge.calculator, atoms)
    answer: dict[str, Any] = {"energy": float(found.get_potential_energy())}
    if final is not None:
        answer["rmsd"] = _rmsd(found, final.get(name))
    return answer


def _rmsd(found: Atoms, reference: Atoms) -> float | None:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.io.ase import AseAtomsAdaptor

    pair = [AseAtomsAdaptor.get_structure(atoms) for atoms in (found, reference)]
    distances = StructureMatcher(**_MATCH).get_rms_dist(*pair)
    return None if distances is None else float(distances[0])


def _notices(
    materials: Mapping[str, Material], known: Mapping[str, Material], data: Path, final: Structures | None, judge: Judge
) -> list[str]:
    notices = judge.notices("crystals")
    if len(known) < len(materials):
        notices.append(f"{len(known)} of the {len(materials)} crystals of the summary have a structure here; the "
                       "numbers are those of these")  # fmt: skip
    if judge.relax is False:
        notices.append("structures were not relaxed; the benchmark relaxes them")
    elif final is None and any(data.rglob(_FINAL)):
        notices.append("no RMSD: it needs pymatgen (pip install 'janus-train[benchmarks]')")
    return notices
