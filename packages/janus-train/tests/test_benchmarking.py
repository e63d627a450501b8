"""Known benchmarks: their formulas against naive ones, on small made-up files of the real forms."""

import gzip
import json
import math
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.io import write
from hypothesis import given
from hypothesis import strategies as st

from janus_train import UserError
from janus_train.benchmarking import (
    Answers,
    Judge,
    judge_discovery,
    judge_gmtkn55,
    judge_matcalc,
    judge_wiggle150,
    judge_x23,
)
from janus_train.benchmarking.discovery import Material, discovery_rows, read_summary
from janus_train.benchmarking.gmtkn55 import wtmad1, wtmad2
from janus_train.benchmarking.gmtkn55_subsets import MEAN_OF_MEANS, SUBSETS
from janus_train.benchmarking.matcalc import errors_of_properties, softening_scale
from janus_train.benchmarking.stability import stability_metrics
from janus_train.display import benchmark_table

# As ASE has them (CODATA 2014), which differ in the eighth figure.
KCAL, KJ = units.mol / units.kcal, units.mol / units.kJ


def energy_of(atoms: Atoms) -> float:
    """A made-up energy, eV: of the elements, of all distances, of charge and spin."""
    energy = -0.3 * float(np.sum(atoms.numbers)) + 0.7 * atoms.info.get("charge", 0) - 0.2 * atoms.info.get("spin", 1)
    for i in range(len(atoms)):
        for j in range(i):
            energy += 0.1 * float(np.linalg.norm(atoms.positions[i] - atoms.positions[j]))
    return energy


class MadeUp(Calculator):
    """`energy_of`, for so many calls; elements it refuses raise."""

    implemented_properties = ("energy",)

    def __init__(self, calls=10**9, refused=()):
        super().__init__()
        self.calls, self.refused, self.asked = calls, refused, 0

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.asked += 1
        if self.asked > self.calls:
            raise KeyboardInterrupt
        if set(self.refused) & set(atoms.symbols):
            raise ValueError(f"{self.refused} is unknown")
        self.results = {"energy": energy_of(atoms)}


# Stability


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.one_of(st.floats(-1, 1), st.just(math.nan))), max_size=12),
    st.sampled_from([0.0, 0.1]),
)
def test_stability_is_classified_and_its_errors_are_summed_as_by_hand(crystals, threshold):
    true, predicted = (np.array([pair[place] for pair in crystals]) for place in (0, 1))
    found = stability_metrics(true, predicted, threshold=threshold)
    counts = {"tp": 0, "fp": 0, "tn": 0, "fn": 0}
    for t, p in crystals:
        called = not math.isnan(p) and p <= threshold
        counts[("t" if called == (t <= threshold) else "f") + ("p" if called else "n")] += 1
    assert {name: found[name] for name in counts} == counts
    tp, fp, tn, fn = counts.values()
    expected = {
        "precision": (tp, tp + fp), "recall": (tp, tp + fn), "accuracy": (tp + tn, len(crystals)),
        "fpr": (fp, fp + tn), "tnr": (tn, fp + tn), "fnr": (fn, tp + fn), "f1": (2 * tp, 2 * tp + fp + fn),
        "daf": (tp * len(crystals), (tp + fp) * (tp + fn)),
    }  # fmt: skip
    for name, (part, of) in expected.items():
        if name == "f1" and tp == 0:
            assert found["f1"] is None  # precision and recall are both zero, or one is not defined
        else:
            assert found[name] == (pytest.approx(part / of) if of else None), name
    errors = [p - t for t, p in crystals if not math.isnan(p)]
    assert found["missing"] == len(crystals) - len(errors)
    assert found["mae"] == (pytest.approx(sum(map(abs, errors)) / len(errors)) if errors else None)
    assert found["rmse"] == (pytest.approx(math.sqrt(sum(e * e for e in errors) / len(errors))) if errors else None)


def test_a_prediction_of_the_mean_has_an_r2_of_zero_and_a_perfect_one_of_one():
    true = np.array([-0.2, 0.1, 0.4])
    assert stability_metrics(true, true)["r2"] == 1
    assert stability_metrics(true, np.full(3, true.mean()))["r2"] == pytest.approx(0)
    assert stability_metrics(true, np.full(3, np.nan))["r2"] is None


def test_crystals_called_stable_first_are_the_lowest_of_those_with_a_prototype_of_their_own(monkeypatch):
    from janus_train.benchmarking import discovery

    monkeypatch.setattr(discovery, "_MOST_STABLE", 2)
    true = [-0.1, 0.2, -0.3, 0.4, -0.5]
    unique = [True, True, False, True, True]
    materials = {str(place): Material(1, 0.0, t, u) for place, (t, u) in enumerate(zip(true, unique, strict=True))}
    everything, own, first = discovery_rows(materials, np.array([-0.2, -0.9, -0.3, np.nan, 0.1]))
    assert (everything["crystals"], own["crystals"], own["missing"]) == (5, 4, 1)
    # The lowest two are 1 (wrongly called stable) and 0; half of the four are stable.
    assert (first["tp"], first["fp"], first["precision"], first["daf"]) == (1, 1, 0.5, 1.0)


@pytest.fixture(scope="module")
def wbm(tmp_path_factory) -> Path:
    """Three metals of three materials, whose DFT energies are what EMT says of their relaxed cells; a fourth material
    has no structure here.
    """
    directory = tmp_path_factory.mktemp("wbm")
    rows, initial, final = [], {}, {}
    for number, (symbol, above) in enumerate((("Cu", -0.05), ("Al", 0.0), ("Ag", 0.3)), start=1):
        from janus_train.benchmarking.relaxation import relaxed

        start = bulk(symbol)
        start.set_cell(start.cell * 1.004, scale_atoms=True)
        end = relaxed(EMT(), start)
        name = f"wbm-1-{number}"
        rows.append((name, len(end), float(end.get_potential_energy()), above, number != 3))
        initial[name], final[name] = start, end
    rows.append(("wbm-1-9", 4, 0.0, 0.0, True))
    with gzip.open(directory / "2023-12-13-wbm-summary.csv.gz", "wt") as file:
        file.write(
            "material_id,formula,n_sites,uncorrected_energy,e_above_hull_mp2020_corrected_ppd_mp,unique_prototype\n"
        )
        file.writelines(f"{n},X,{s},{e!r},{a},{u}\n" for n, s, e, a, u in rows)
    for label, structures in (("initial", initial), ("relaxed", final)):
        with zipfile.ZipFile(directory / f"2024-08-04-wbm-{label}-atoms.extxyz.zip", "w") as archive:
            for name, atoms in structures.items():
                write(directory / "one.extxyz", atoms, format="extxyz")
                archive.write(directory / "one.extxyz", f"{name}.extxyz")
    (directory / "one.extxyz").unlink()
    return directory


def test_discovery_by_the_potential_that_the_energies_come_from_is_perfect(wbm: Path):
    found = judge_discovery(wbm, Judge(EMT()))
    everything = found.summary["full_test_set"]
    assert (everything["tp"], everything["tn"], everything["f1"]) == (2, 1, 1.0)
    assert everything["mae"] < 1e-6  # files hold positions to eight decimals
    assert found.summary["unique_prototypes"]["crystals"] == 2
    assert "3 of the 4 crystals" in found.notices[0]
    assert "full_test_set, f1" in benchmark_table(found)
    if find_spec("pymatgen") is None:
        assert "no RMSD" in found.notices[1]
    else:
        assert found.summary["rmsd"] < 1e-3  # relaxed to where the DFT structures are


def test_a_distance_to_the_hull_is_shifted_by_the_energy_per_atom_that_was_missed(wbm: Path):
    """Without a relaxation, by what the stretched cell has too much."""
    found = judge_discovery(wbm, Judge(EMT(), relax=False))
    errors = []
    for symbol, material in zip(("Cu", "Al", "Ag"), read_summary(next(wbm.glob("*.csv.gz"))).values(), strict=False):
        stretched = bulk(symbol)
        stretched.set_cell(stretched.cell * 1.004, scale_atoms=True)
        stretched.calc = EMT()
        errors.append(abs(stretched.get_potential_energy() - material.energy))
    assert found.summary["full_test_set"]["mae"] == pytest.approx(np.mean(errors), abs=1e-6)
    assert "rmsd" not in found.summary
    assert "not relaxed" in found.notices[-1]


def test_a_crystal_without_an_answer_counts_as_called_unstable(wbm: Path):
    class NoCopper(EMT):
        def calculate(self, atoms=None, *rest):
            if "Cu" in atoms.symbols:
                raise ValueError("no copper")
            super().calculate(atoms, *rest)

    found = judge_discovery(wbm, Judge(NoCopper(), relax=False))
    # Copper, and aluminium, which lay on the hull before its cell was stretched.
    assert (found.summary["full_test_set"]["fn"], found.summary["full_test_set"]["missing"]) == (2, 1)
    assert "wbm-1-1: ValueError: no copper" in found.notices[0]


def test_files_that_are_missing_or_of_another_form_are_named(tmp_path: Path):
    (tmp_path / "a-wbm-summary.csv").write_text("material_id,n_sites\nx,1\n")
    with pytest.raises(UserError, match=r"lacks the column\(s\) e_above_hull_mp2020_corrected_ppd_mp, uncorrected"):
        judge_discovery(tmp_path, Judge(EMT()))
    with pytest.raises(UserError, match=r"needs one file such as \*\.xyz"):
        judge_wiggle150(tmp_path, Judge(EMT()))
    with pytest.raises(UserError, match="no POSCAR_solid below"):
        judge_x23(tmp_path, Judge(EMT()))


# Wiggle150


def conformers(molecules=("ado", "bpn"), count=4) -> list[tuple[str, Atoms, float]]:
    rng = np.random.default_rng(1)
    return [
        (f"{name}_{number:02d}", Atoms("CHO", positions=rng.normal(size=(3, 3))), float(20 * rng.random()))
        for name in molecules
        for number in range(count)
    ]


def write_wiggle150(path: Path, rows) -> Path:
    text = ""
    for name, atoms, energy in rows:
        text += f"{len(atoms)}\n{name} {energy!r}\n"
        text += "".join(
            f"{s} {x!r} {y!r} {z!r}\n" for s, (x, y, z) in zip(atoms.symbols, atoms.positions.tolist(), strict=True)
        )
    path.write_text(text)
    return path


def test_wiggle150_compares_energies_relative_to_the_first_conformer_of_each_molecule(tmp_path: Path):
    rows = conformers()
    found = judge_wiggle150(write_wiggle150(tmp_path / "w.xyz", rows), Judge(MadeUp()))
    errors = {}
    for name, atoms, energy in rows:
        molecule, _, number = name.partition("_")
        if number == "00":
            zero, reference = energy_of(atoms), energy
            continue
        errors.setdefault(molecule, []).append((energy_of(atoms) - zero) * KCAL - (energy - reference))
    every = [error for own in errors.values() for error in own]
    assert found.summary["conformers"] == 6
    assert found.summary["mae"] == pytest.approx(np.mean(np.abs(every)), rel=1e-6)
    assert found.summary["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(every))), rel=1e-6)
    assert [row["mae"] for row in found.rows] == pytest.approx([np.mean(np.abs(own)) for own in errors.values()])
    assert found.notices == []


def test_wiggle150_as_json_is_that_of_xyz_whose_first_conformer_is_the_lowest(tmp_path: Path):
    rows = [(name, atoms, energy if not name.endswith("_00") else -1.0) for name, atoms, energy in conformers()]
    content = [
        {"molecule_name": molecule, "atom_symbols": ["C", "H", "O"],
         "dft_energy_profile": [energy for name, _, energy in rows if name.startswith(molecule)],
         "conformer_coordinates": [a.positions.tolist() for name, a, _ in rows if name.startswith(molecule)]}
        for molecule in ("ado", "bpn")
    ]  # fmt: skip
    (tmp_path / "wiggle150_dataset.json").write_text(json.dumps(content))
    as_json = judge_wiggle150(tmp_path / "wiggle150_dataset.json", Judge(MadeUp()))
    assert as_json == judge_wiggle150(write_wiggle150(tmp_path / "w.xyz", rows), Judge(MadeUp()))


def test_a_molecule_whose_reference_has_no_answer_is_left_out_and_said(tmp_path: Path):
    rows = conformers()
    rows[4] = (rows[4][0], Atoms("CHF", positions=rows[4][1].positions), rows[4][2])
    found = judge_wiggle150(write_wiggle150(tmp_path / "w.xyz", rows), Judge(MadeUp(refused=("F",))))
    assert found.summary["conformers"] == 3
    assert found.rows[1] == {"molecule": "bpn", "conformers": 0, "mae": None, "rmse": None}
    assert "bpn_00: ValueError" in found.notices[0]


# GMTKN55


def test_the_published_subsets_have_the_published_totals():
    assert len(SUBSETS) == 55
    assert sum(subset.reactions for subset in SUBSETS.values()) == 1505
    assert np.mean([subset.mean_energy for subset in SUBSETS.values()]) == pytest.approx(MEAN_OF_MEANS, abs=0.005)


def test_wtmad2_of_errors_as_large_as_the_energies_is_their_mean_and_wtmad1_weighs_small_energies_up():
    rows = [
        {"reactions": subset.reactions, "mean_energy": subset.mean_energy, "mad": subset.mean_energy}
        for subset in SUBSETS.values()
    ]
    assert wtmad2(rows) == pytest.approx(MEAN_OF_MEANS)
    expected = 0.0
    for row in rows:
        expected += row["mad"] * (10 if row["mean_energy"] < 7.5 else 0.1 if row["mean_energy"] > 75 else 1) / 55
    assert wtmad1(rows) == pytest.approx(expected)
    assert wtmad1([]) is None
    assert wtmad2([{"reactions": 0, "mean_energy": 1.0, "mad": None}]) is None


MOLECULES = {
    "BH76/h": (Atoms("H"), 0, 1), "BH76/h2": (Atoms("H2", [(0, 0, 0), (0, 0, 0.74)]), 0, 0),
    "BH76/oh-": (Atoms("OH", [(0, 0, 0), (0.5, 0, 0.9)]), -1, 0),
    "S22/01A": (Atoms("CO", [(0, 0, 0), (0, 0, 1.1)]), 0, 0), "S22/01": (Atoms("CO2", np.eye(3)), 0, 0),
    "MINE/li+": (Atoms("Li"), 1, 0),
}  # fmt: skip
REACTIONS = [  # subset, counts, energy
    ("BH76", {"BH76/h": -2, "BH76/h2": 1}, 7.5),
    ("BH76RC", {"BH76/oh-": -1, "BH76/h2": 2, "BH76/h": 3}, -20.0),
    ("MINE", {"MINE/li+": 1}, 3.0),
    ("S22", {"S22/01A": 1, "S22/01": -1}, 4.9),
]


@pytest.fixture
def gmtkn55(tmp_path: Path) -> Path:
    for name, (atoms, charge, unpaired) in MOLECULES.items():
        (tmp_path / name).mkdir(parents=True)
        if name == "S22/01":
            write(tmp_path / name / "coord", atoms, format="turbomole")
        else:
            write(tmp_path / name / "struc.xyz", atoms, format="xyz")
        if charge:
            (tmp_path / name / ".CHRG").write_text(f"{charge}\n")
        if unpaired:
            (tmp_path / name / ".UHF").write_text(f"{unpaired}\n")
    head = 'if [ "$TMER" == "" ]\nthen\n  tmer=tmer2++\nelse\n  tmer=$TMER\nfi\nf=$1\nw=$2\n\n# references\n'
    (tmp_path / "BH76" / ".res").write_text(f"{head}$tmer {{h,h2}}/$f  x  -2 1 $w  7.5\n")
    (tmp_path / "BH76" / ".resRC").write_text("tmer2++\toh-/$f\th2/$f\th/$f\tx\t-1\t2\t3\t\t$w\t-20.0\t# W4\n")
    (tmp_path / "S22" / ".res").write_text(f"{head}$tmer 01{{A,}}/$f  x  1 -1 $w    4.9\n")
    (tmp_path / "MINE" / ".res").write_text("w=$1\ntmer2_GMTKN li+ x 1 $w 3.0\n")
    return tmp_path


def test_gmtkn55_adds_up_reactions_with_charge_and_spin_and_weighs_their_errors(gmtkn55: Path):
    found = judge_gmtkn55(gmtkn55, Judge(MadeUp()))
    errors = {}
    for subset, counts, energy in REACTIONS:
        total = 0.0
        for name, count in counts.items():
            atoms, charge, unpaired = MOLECULES[name]
            total += count * energy_of(Atoms(atoms, info={"charge": charge, "spin": unpaired + 1}))
        errors[subset] = total * KCAL - energy
    mad = {row["subset"]: row["mad"] for row in found.rows}
    assert mad == pytest.approx({name: abs(error) for name, error in errors.items()}, rel=1e-6)
    energies = {"BH76": 18.61, "BH76RC": 21.39, "S22": 7.30, "MINE": 3.0}  # of one's own: that of its reactions
    assert found.summary["wtmad2"] == pytest.approx(np.mean([56.84 / energies[name] * mad[name] for name in energies]))
    assert found.summary["wtmad1"] == pytest.approx(
        (mad["BH76"] + mad["BH76RC"] + 10 * mad["S22"] + 10 * mad["MINE"]) / 4
    )
    assert found.summary["categories"]["intermolecular interactions"]["wtmad2"] == pytest.approx(
        56.84 / 7.30 * mad["S22"]
    )
    assert "1502 of 1505 reactions are not judged" in found.notices[-1]


def test_gmtkn55_as_yaml_is_that_of_the_directory_with_the_weights_of_the_file(gmtkn55: Path, tmp_path_factory):
    import yaml

    content: dict = {}
    for number, (subset, counts, energy) in enumerate(REACTIONS):
        species = {
            name.partition("/")[2]: {
                "Count": count, "Charge": MOLECULES[name][1], "UHF": MOLECULES[name][2],
                "Elements": list(MOLECULES[name][0].symbols), "Positions": MOLECULES[name][0].positions.tolist(),
            }
            for name, count in counts.items()
        }  # fmt: skip
        content.setdefault(subset, {})[number] = {"Energy": energy, "Weight": 1.0 + number, "Species": species}
    path = tmp_path_factory.mktemp("yaml") / "GMTKN55.yaml"
    path.write_text(yaml.safe_dump(content))
    of_yaml, of_directory = (judge_gmtkn55(place, Judge(MadeUp())) for place in (path.parent, gmtkn55))
    for one, other in zip(of_yaml.rows, of_directory.rows, strict=True):
        assert one["subset"] == other["subset"]
        assert one["mad"] == pytest.approx(other["mad"], rel=1e-6)  # coordinates of the files are rounded
    weighted = np.mean([(1 + place) * row["mad"] for place, row in enumerate(of_yaml.rows)])
    assert of_yaml.summary["mean_of_weighted"] == pytest.approx(weighted)


def test_a_reaction_that_cannot_be_read_is_named_with_its_line(gmtkn55: Path):
    path = gmtkn55 / "MINE" / ".res"
    for line, problem in (
        ("$tmer {a,b}/$f x -1 $w 3.0", "2 molecules and 1 counts"),
        ("$tmer li+/$f -1 $w 3.0", "no 'x' between"),
        ("$tmer li+/$f x -1 $w", "no counts, \\$w and energy"),
        ("$tmer other/$f x -1 $w 3.0", "no structure of other"),
    ):
        path.write_text(f"w=$1\n{line}\n")
        with pytest.raises(UserError, match=problem):
            judge_gmtkn55(gmtkn55, Judge(MadeUp()))


# X23


@pytest.fixture
def x23(tmp_path: Path) -> Path:
    for name, reference in (("argon", -7.0), ("other", -9.0)):
        home = tmp_path / "lattice_energy" / name
        home.mkdir(parents=True)
        write(home / "POSCAR_solid", bulk("Al", a=4.06 if name == "argon" else 3.94), format="vasp")
        # Two atoms that lie on both sides of their box's border.
        molecule = Atoms("Al2", [(0.3, 5, 5), (9.8, 5, 5)], cell=[12, 12, 12], pbc=True)
        write(home / "POSCAR_molecule", molecule, format="vasp")
        (home / "nmol").write_text("2\n")
        (home / "lattice_energy_DMC").write_text(f"{reference} 0.3\n")
    return tmp_path


def test_a_lattice_energy_is_that_of_the_crystal_for_each_molecule_less_that_of_the_molecule_alone(x23: Path):
    found = judge_x23(x23, Judge(EMT()))
    pair = Atoms("Al2", [(0, 0, 0), (2.5, 0, 0)], calculator=EMT())
    errors = []
    for lattice, reference in ((4.06, -7.0), (3.94, -9.0)):
        crystal = bulk("Al", a=lattice)
        crystal.calc = EMT()
        errors.append((crystal.get_potential_energy() / 2 - pair.get_potential_energy()) * KJ - reference)
    assert [row["error"] for row in found.rows] == pytest.approx(errors, rel=1e-7)
    assert found.summary["mae"] == pytest.approx(np.mean(np.abs(errors)))
    assert found.summary["mean_error"] == pytest.approx(np.mean(errors))
    assert "volume_mae_percent" not in found.summary


def test_a_judge_that_relaxes_says_how_much_volumes_change(x23: Path):
    found = judge_x23(x23, Judge(EMT(), relax=True))
    changes = [row["volume_change_percent"] for row in found.rows]
    # Both come to the same cell, as far as 0.05 eV/Å can tell.
    assert 4.06**3 * (1 + changes[0] / 100) == pytest.approx(3.94**3 * (1 + changes[1] / 100), rel=2e-2)
    assert found.summary["volume_mae_percent"] == pytest.approx(np.mean(np.abs(changes)))
    assert found.rows[0]["predicted"] == pytest.approx(found.rows[1]["predicted"], abs=0.1)


# MatCalc


def test_errors_of_properties_leave_out_what_did_not_come_out():
    rows = [{"k": (100.0, 110.0), "g": (50.0, math.nan)}, {"k": (90.0, 70.0), "g": (40.0, 41.0)}]
    found = errors_of_properties(rows, ["k", "g"])
    assert found["k"] == {"count": 2, "mae": 15.0, "rmse": pytest.approx(math.sqrt(250)), "mean_error": -5.0}
    assert found["g"] == {"count": 1, "mae": 1.0, "rmse": 1.0, "mean_error": 1.0}
    assert errors_of_properties([], ["k"])["k"] == {"count": 0, "mae": None, "rmse": None, "mean_error": None}


@given(st.floats(0.1, 2), st.integers(1, 5))
def test_forces_that_are_too_small_by_a_factor_have_it_as_their_softening_scale(factor, atoms):
    labels = np.random.default_rng(atoms).normal(size=3 * atoms)
    assert softening_scale(labels, factor * labels) == pytest.approx(factor)


def test_matcalc_computes_moduli_that_are_those_of_the_physics_card(tmp_path: Path):
    """The two share no code: matcalc fits stresses of strained relaxed cells, the card has force constants."""
    pytest.importorskip("matcalc.benchmark")
    from monty.serialization import dumpfn
    from pymatgen.io.ase import AseAtomsAdaptor

    from janus_train.physics import elastic_constants, relax

    entries, errors = [], []
    for symbol in ("Cu", "Ag"):
        crystal = relax(EMT(), bulk(symbol)).atoms
        own = elastic_constants(EMT(), crystal)
        c11, c12, _ = own.cubic
        entries.append({"mp_id": symbol, "formula": symbol, "structure": AseAtomsAdaptor.get_structure(crystal),
                        "bulk_modulus_vrh": (c11 + 2 * c12) / 3 - 5, "shear_modulus_vrh": 10.0})  # fmt: skip
        errors.append(5.0)
    dumpfn(entries, tmp_path / "moduli.json.gz")
    found = judge_matcalc(tmp_path, Judge(EMT()))
    assert found.benchmark == "matcalc elasticity"
    assert found.summary["bulk_modulus_vrh"]["mae"] == pytest.approx(np.mean(errors), rel=0.1)
    assert found.notices == []


def test_without_matcalc_it_is_said_how_to_install_it(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matcalc", None)
    (tmp_path / "moduli.json").write_text("[]")
    with pytest.raises(UserError, match=r"janus-train\[benchmarks\]"):
        judge_matcalc(tmp_path, Judge(EMT()))


# Answers


def test_a_benchmark_that_was_stopped_goes_on_and_says_the_same(tmp_path: Path):
    path = write_wiggle150(tmp_path / "w.xyz", conformers())
    whole, about = judge_wiggle150(path, Judge(MadeUp())), {"model": "made up"}
    answers = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        judge_wiggle150(path, Judge(MadeUp(calls=3), Answers(answers, about)))
    again = MadeUp()
    assert judge_wiggle150(path, Judge(again, Answers(answers, about))) == whole
    assert again.asked == 8 - 3
    with pytest.raises(UserError, match="holds answers about"):
        Answers(answers, {"model": "another"})


@given(st.integers(0, 3), st.data())
def test_answers_cut_anywhere_keep_all_whole_lines(tmp_path_factory, count, data):
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    answers = Answers(path, {"model": 1})
    for number in range(count):
        answers.get(f"structure {number}", lambda number=number: number / 3)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: data.draw(st.integers(first, len(whole)))])
    kept = path.read_bytes()[first:].count(b"\n")
    answers = Answers(path, {"model": 1})
    asked = []
    for number in range(count):
        assert answers.get(f"structure {number}", lambda n=number: asked.append(n) or n / 3) == number / 3
    # A cut between the last character of a line and its end leaves the line whole.
    assert asked in (list(range(kept, count)), list(range(kept + 1, count)))
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()[1:]] == [
        f"structure {number}" for number in range(count)
    ]
