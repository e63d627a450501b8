"""The card of a calculator: what is chosen, what is on it, and that one failure costs nothing else."""

import json

import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT

from janus_graph.ase import structure_from_ase
from janus_train.data.frame import Frame
from janus_train.data.load import bundled_frames
from janus_train.display import physics_table
from janus_train.physics import card as card_module
from janus_train.physics.card import NO_PHONOPY, CardSettings, Subject, physics_card, subject_of_frames
from janus_train.physics.prototypes import choose_pairs, choose_prototypes, time_step
from janus_train.report import build_report, read_run
from janus_train.report.physics import physics_sections
from test_report import NASTY, SPOILT, Page

BRIEF = CardSettings(structures=2, pairs=3, picoseconds=0.02, reach=5.0)


def frame(atoms: Atoms, task: str = "metals") -> Frame:
    return Frame(structure_from_ase(atoms), task)


def rattled(atoms: Atoms, **info) -> Atoms:
    atoms.rattle(0.05, seed=1)
    atoms.info = info
    return atoms


METALS = [
    frame(rattled(bulk("Cu", cubic=True) * (2, 1, 1))),
    frame(rattled(bulk("CuAu", "cesiumchloride", a=3.1))),
    frame(rattled(bulk("Al", cubic=True))),
    frame(rattled(fcc111("Ag", (1, 1, 3), vacuum=5.0))),
]


@pytest.fixture(scope="module")
def card() -> dict:
    return physics_card([subject_of_frames("metals", EMT(), METALS, BRIEF)], BRIEF)


def test_one_of_every_stoichiometry_comes_first_and_elements_in_their_standard_crystal():
    names = [atoms.get_chemical_formula() for atoms in choose_prototypes(METALS, 9)]
    assert names == ["Al", "AuCu", "Cu", "Ag3"]
    assert [len(atoms) for atoms in choose_prototypes(METALS, 2)] == [1, 2]
    assert choose_prototypes(METALS, 0) == choose_prototypes([], 3) == []


def test_free_atoms_are_no_prototype_and_charged_and_tiny_molecules_come_last():
    frames = [frame(rattled(molecule(name), charge=charge, spin=1 + charge), "m")
              for name, charge in (("CH4", 1), ("N2", 0), ("C2H6", 0), ("NH3", 0))]  # fmt: skip
    frames.append(frame(Atoms("O"), "m"))
    found = choose_prototypes(frames, 9)
    assert [atoms.get_chemical_formula() for atoms in found] == ["H3N", "C2H6", "N2", "CH4"]
    assert found[-1].info == {"charge": 1, "spin": 2}


def test_pairs_are_those_that_occur_together_most_often_first():
    frames = [frame(molecule(name), "m") for name in ("H2O", "CH4", "CO", "O2", "CH3OH")]
    assert set(choose_pairs(frames, 99)) == {("H", "H"), ("H", "C"), ("H", "O"), ("C", "O"), ("O", "O")}
    # H-H is in three of them; H-C, H-O and C-O in two each, O-O in one.
    assert choose_pairs(frames, 4) == [("H", "H"), ("H", "C"), ("H", "O"), ("C", "O")]
    assert choose_pairs([], 3) == []


def test_every_task_of_the_bundled_data_has_prototypes_and_pairs():
    frames = [frame for frame in bundled_frames() if frame.split == "val"]
    for task in {frame.task for frame in frames}:
        own = [frame for frame in frames if frame.task == task]
        assert len(choose_prototypes(own, 3)) == 3
        assert len(choose_pairs(own, 8)) == 8


def test_hydrogen_asks_for_a_shorter_time_step():
    assert (time_step(molecule("H2O")), time_step(bulk("Cu"))) == (0.5, 1.0)


def test_a_card_holds_every_quantity_that_a_structure_has(card):
    crystal, alloy = card["tasks"]["metals"]["prototypes"]
    for row in (crystal, alloy):
        for name in ("relaxation", "equation_of_state", "elasticity", "phonons"):
            assert "failed" not in row[name], row[name]
        assert row["relaxation"]["converged"]
    assert abs(crystal["dynamics"]["drift"]) < 50
    assert crystal["dynamics"]["atoms"] >= 16
    assert "dynamics" not in alloy
    assert len(card["tasks"]["metals"]["dimers"]) == 3
    assert json.loads(json.dumps(card, allow_nan=False)) == card


def test_a_surface_and_a_molecule_have_no_elastic_constants():
    subject = Subject("t", EMT(), [fcc111("Cu", (1, 1, 3), vacuum=5.0), molecule("N2")], [], spins=False)
    for row in physics_card([subject], CardSettings(picoseconds=0))["tasks"]["t"]["prototypes"]:
        assert set(row) == {"name", "kind", "atoms", "relaxation"}
        assert row["kind"] in ("surface", "molecule")


def test_one_quantity_that_fails_costs_no_other():
    class Unstressed(EMT):
        def calculate(self, *arguments, **named):
            super().calculate(*arguments, **named)
            if len(self.atoms) == 2:
                raise ZeroDivisionError("a pair")

    subject = Subject("t", Unstressed(), [bulk("CuAu", "cesiumchloride", a=3.1), bulk("Cu")], [("Cu", "Cu")], False)
    found = physics_card([subject], BRIEF)["tasks"]["t"]
    assert found["dimers"] == [{"failed": "ZeroDivisionError: a pair"}]
    broken, whole = found["prototypes"]
    assert broken["relaxation"] == {"failed": "ZeroDivisionError: a pair"}
    assert set(broken) == {"name", "kind", "atoms", "relaxation"}
    assert "drift" in whole["dynamics"]
    assert "failed" not in whole["elasticity"]


def test_a_spin_is_given_to_odd_dimers_where_the_task_has_spins():
    seen = []

    class Watching(EMT):
        def calculate(self, atoms=None, *rest):
            seen.append(atoms.info.get("spin", 1))
            super().calculate(atoms, *rest)

    for spins in (True, False):
        for pair in (("C", "O"), ("N", "O")):
            physics_card([Subject("t", Watching(), [], [pair], spins)], BRIEF)
    counts = {spin: seen.count(spin) for spin in set(seen)}
    assert counts == {1: 3 * counts[2], 2: counts[2]}


def test_without_phonopy_the_card_says_so(monkeypatch):
    monkeypatch.setattr(card_module, "find_spec", lambda name: None)
    found = physics_card([Subject("t", EMT(), [bulk("Cu")], [], False)], CardSettings(picoseconds=0))
    assert found["notices"] == [NO_PHONOPY]
    assert "phonons" not in found["tasks"]["t"]["prototypes"][0]
    assert NO_PHONOPY in physics_table(found)


def test_the_table_of_the_command_line_names_what_is_there(card):
    text = physics_table(card)
    assert "metals: Al " in text
    assert f"{card['tasks']['metals']['prototypes'][0]['equation_of_state']['volume']:.4g}" in text
    broken = json.loads(json.dumps(card))
    broken["tasks"]["metals"]["dimers"][0]["hole_below"] = 0.5
    broken["tasks"]["metals"]["prototypes"][0]["phonons"] = {"failed": "because"}
    text = physics_table(broken)
    assert "below 0.50 Å" in text
    assert "Al: phonons: because" in text


def test_the_report_shows_the_card_and_only_where_there_is_one(tmp_path, card):
    assert 'id="physics"' not in build_report(tmp_path).read_text()
    assert not any("physics" in remark for remark in read_run(tmp_path).remarks)
    (tmp_path / "physics.json").write_text(json.dumps(card))
    page = Page(build_report(tmp_path).read_text())
    assert page.open == []
    assert "physics" in page.attributes("id")
    labels = page.attributes("aria-label")
    assert {"dimers-0", "dimer-forces-0", "states-0", "phonons-0-0", "phonons-0-1", "dynamics-0"} <= set(labels)
    assert len(labels) == len(set(labels))
    text = " ".join(page.text)
    assert "Al" in text
    assert "AuCu" in text


@pytest.mark.parametrize("content", [*SPOILT, b'{"tasks": {"a": {"dimers": 3, "prototypes": [4]}}}'])
def test_a_spoilt_card_costs_the_report_nothing_else(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 0.5}\n')
    (tmp_path / "physics.json").write_bytes(content)
    page = Page(build_report(tmp_path).read_text())
    assert page.open == []
    assert {"summary", "learning", "experts"} <= set(page.attributes("id"))
    assert len(read_run(tmp_path).train) == 1


def test_names_in_a_card_cannot_become_markup_and_failures_are_told(tmp_path):
    rows = [
        {"name": name, "kind": name, "atoms": None, "relaxation": {"converged": False, "steps": 7},
         "equation_of_state": {"failed": name}, "elasticity": {"cubic": [1, "x"], "stable": name},
         "phonons": {"along": [0, 1], "frequencies": [[1], [2]], "labels": [name, "G"]},
         "dynamics": {"times": [0, 1], "energies": [0, None], "drift": float("inf")}}
        for name in NASTY
    ]  # fmt: skip
    dimers = [{"symbols": [name, 3], "distances": [1, 2], "energies": [1, 0], "hole_below": 0.3} for name in NASTY]
    card = {"tasks": {name: {"dimers": dimers, "prototypes": rows} for name in NASTY[:3]}, "notices": NASTY}
    (tmp_path / "physics.json").write_text(json.dumps(card))
    content = build_report(tmp_path).read_text(encoding="utf-8")
    page = Page(content)
    assert page.open == []
    assert {tag for tag, _ in page.tags}.isdisjoint({"b", "i", "script"})
    assert "equation of state failed" in content
    assert "had not ended after 7 steps" in content


def test_arrays_that_do_not_fit_together_are_not_drawn(tmp_path):
    row = {"name": "x", "equation_of_state": {"volumes": [1, 2], "energies": [1], "volume": 1, "energy": 0},
           "phonons": {"along": [0, 1], "frequencies": [[1], [1, 2]]}, "dynamics": {"times": 3}}  # fmt: skip
    card = {"tasks": {"a": {"dimers": [{"distances": [1], "energies": []}], "prototypes": [row]}}}
    (tmp_path / "physics.json").write_text(json.dumps(card))
    (section,) = physics_sections(read_run(tmp_path))
    assert "<svg" not in section.body
