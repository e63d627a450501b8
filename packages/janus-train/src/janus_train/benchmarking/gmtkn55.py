"""GMTKN55: 1505 reaction, barrier and interaction energies in 55 subsets (Goerigk et al., Phys. Chem. Chem. Phys. 2017,
19, 32184, doi:10.1039/C7CP04913G).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_train.benchmarking.energies import mean_absolute
from janus_train.benchmarking.gmtkn55_files import read_directory, read_yaml
from janus_train.benchmarking.gmtkn55_subsets import MEAN_OF_MEANS, SUBSETS
from janus_train.benchmarking.judge import EV_TO_KCAL_PER_MOL, Judge, Judgement, found_file


def judge_gmtkn55(data: Path, judge: Judge) -> Judgement:
    """Mean absolute deviations of reaction energies by subset, and their weighted means, kcal/mol.

    Charge and number of unpaired electrons of a molecule are in `atoms.info["charge"]` and `["spin"]` (2S + 1) when the
    calculator is asked. Reactions one of whose molecules has no energy are left out.

    Args:
        data: the database's directory, with a `.res` file and molecules in each subset's directory; or a YAML file of
            subsets, such as GMTKN55.yaml or the subsets of DietGMTKN55.
        judge: asks the potential.

    Raises:
        UserError: no such files, or they are not of that form.
    """
    if any(data.glob("*/.res")) or any(data.glob("*/.resRC")):
        reactions = read_directory(data)
    else:
        reactions = read_yaml(found_file(data, ("*.yaml", "*.yml"), "the subsets, or a directory for each with a .res"))
    molecules = {name: make for reaction in reactions for name, make in reaction.molecules.items()}
    energies = {
        name: judge.energy(name, make())
        for name, make in judge.progress(molecules.items(), len(molecules), "molecules")
    }
    errors: dict[str, list[float]] = {}
    weighted: list[float] = []
    for reaction in reactions:
        known = [energy for name in reaction.molecules if (energy := energies[name]) is not None]
        found = errors.setdefault(reaction.subset, [])
        if len(known) == len(reaction.counts):
            found.append(EV_TO_KCAL_PER_MOL * float(np.dot(reaction.counts, known)) - reaction.energy)
            weighted += [] if reaction.weight is None else [reaction.weight * abs(found[-1])]
    references = {name: [r.energy for r in reactions if r.subset == name] for name in errors}
    rows = [_row(name, errors[name], references[name]) for name in errors]
    return Judgement("gmtkn55", "kcal/mol", _summary(rows, weighted), rows, _notices(rows, judge))


def wtmad1(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Equation 1 of the paper: the mean over subsets of `w · MAD`, with w = 10 where the mean absolute reference energy
    is below 7.5 kcal/mol, 0.1 where it is above 75, and 1 between.
    """
    judged = [row for row in rows if row["mad"] is not None]
    if not judged:
        return None
    weights = [10.0 if row["mean_energy"] < 7.5 else 0.1 if row["mean_energy"] > 75 else 1.0 for row in judged]
    return float(np.mean([weight * row["mad"] for weight, row in zip(weights, judged, strict=True)]))


def wtmad2(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Equation 2 of the paper: the mean over reactions, each with its subset's `56.84 kcal/mol / mean energy · MAD`."""
    judged = [row for row in rows if row["mad"] is not None]
    total = sum(row["reactions"] for row in judged)
    if not total:
        return None
    return float(sum(row["reactions"] * MEAN_OF_MEANS / row["mean_energy"] * row["mad"] for row in judged) / total)


def _row(subset: str, errors: Sequence[float], references: Sequence[float]) -> dict[str, Any]:
    known = SUBSETS.get(subset)
    return {
        "subset": subset,
        "category": known.category if known else "other",
        "reactions": len(errors),
        "mean_energy": known.mean_energy if known else mean_absolute(references),
        "mad": mean_absolute(errors),
        "mean_deviation": float(np.mean(errors)) if errors else None,
    }


def _summary(rows: Sequence[Mapping[str, Any]], weighted: Sequence[float]) -> dict[str, Any]:
    categories = {
        category: {"wtmad1": wtmad1(own), "wtmad2": wtmad2(own), "reactions": sum(row["reactions"] for row in own)}
        for category in dict.fromkeys(row["category"] for row in rows)
        if (own := [row for row in rows if row["category"] == category])
    }
    found = {"wtmad1": wtmad1(rows), "wtmad2": wtmad2(rows), "reactions": sum(row["reactions"] for row in rows)}
    if weighted:
        found["mean_of_weighted"] = float(np.mean(weighted))
    return {**found, "categories": categories}


def _notices(rows: Sequence[Mapping[str, Any]], judge: Judge) -> list[str]:
    notices = judge.notices("molecules")
    counted = {row["subset"]: row["reactions"] for row in rows}
    lacking = {name: subset.reactions - counted.get(name, 0) for name, subset in SUBSETS.items()}
    absent = {name: count for name, count in lacking.items() if count > 0}
    if absent:
        notices.append(
            f"{sum(absent.values())} of {sum(subset.reactions for subset in SUBSETS.values())} reactions are not "
            f"judged, so WTMADs are those of a part: {', '.join(f'{n} ({c})' for n, c in absent.items())}"
        )
    return notices
