"""Mistakes that people make with labels are found, and the frames are named; data that are right raise no suspicion."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.io import write

from janus_train.check_data import check
from janus_train.check_data.looks import energy_outliers, rounded_to_float32
from janus_train.check_data.series import displaced_pairs, strained_pairs
from janus_train.check_data.verdicts import force_verdict, stress_verdict
from janus_train.data.frame import Frame
from made_data import crystal, displaced_series, elastic_series, molecule, moved, pair_frame, to_atoms

HARTREE, BOHR = 27.211386, 0.52917721
MLEARN = Path(__file__).parents[4] / "shared" / "data" / "mlearn"


def in_vasp_order(stress: np.ndarray) -> np.ndarray:
    """Six numbers in VASP's order, taken for ASE's."""
    xx, yy, zz, xy, yz, zx = stress[[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0]]
    return np.array([[xx, zx, yz], [zx, yy, xy], [yz, xy, zz]])


@pytest.fixture(scope="module")
def elastic() -> list[Frame]:
    return elastic_series()


@pytest.fixture(scope="module")
def displaced() -> list[Frame]:
    return displaced_series()


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda stress, volume: stress, None),
        (lambda stress, volume: -stress, "the sign of the stress is wrong"),
        (lambda stress, volume: -1602.1766 * stress, "LAMMPS say pressure), and stresses look like kB"),
        (lambda stress, volume: 160.21766 * stress, "stresses look like GPa"),
        (lambda stress, volume: volume * stress, "virials in eV"),
        (lambda stress, volume: 2.5 * stress, "that of a slab"),
        (lambda stress, volume: in_vasp_order(stress), "six stress components are in VASP's order"),
        (lambda stress, volume: -1602.1766 * in_vasp_order(stress), "in ASE's (xx yy zz yz xz xy); also, the sign"),
        (lambda stress, volume: np.roll(stress, 1, axis=1), "out of order"),
    ],
)  # fmt: skip
def test_stress_of_the_wrong_sign_unit_order_or_volume_is_told_by_finite_differences(
    elastic: list[Frame], mistake: Callable[[np.ndarray, float], np.ndarray], said: str | None
):
    wrong = [
        replace(frame, stress=mistake(frame.stress, abs(np.linalg.det(frame.structure.cell)))) for frame in elastic
    ]
    verdict = stress_verdict(strained_pairs(wrong))
    assert verdict is not None
    if said is None:
        assert verdict.suspicion is None
        assert abs(verdict.factor - 1) < 0.02
        assert verdict.correlation > 0.999
    else:
        assert said in str(verdict.suspicion)
        assert {"frame 0 of series.extxyz", "frame 7 of series.extxyz"} <= set(verdict.origins)


@pytest.mark.parametrize(
    ("energy", "force", "said"),
    [
        (1.0, 1.0, None),
        (1.0, -1.0, "the sign of the forces is wrong"),
        (1 / HARTREE, 1.0, "energies look like Hartree"),
        (1 / HARTREE, BOHR / HARTREE, "energies look like Hartree and forces look like Hartree/bohr"),
        (23.0605, 1.0, "energies look like kcal/mol"),
        (1.0, 1 / 0.0433641, "forces look like kcal/mol/Å"),
        (1 / 13.605693, -1.0, "the sign of the forces is wrong (they are gradients), and energies look like Rydberg"),
        (0.25, 1.0, "energies look like those of an atom"),
        (7.0, 1.0, "energies are 7 times what the forces say"),
    ],
)
def test_energies_and_forces_of_other_units_or_signs_are_told_by_finite_differences(
    displaced: list[Frame], energy: float, force: float, said: str | None
):
    wrong = [replace(frame, energy=energy * frame.energy, forces=force * frame.forces) for frame in displaced]
    verdict = force_verdict(displaced_pairs(wrong))
    assert verdict is not None
    assert verdict.pairs == len(displaced) - 1
    if said is None:
        assert verdict.suspicion is None
        assert abs(verdict.factor - 1) < 0.01
    else:
        assert said in str(verdict.suspicion)
        assert "frame 0 of steps.extxyz" in verdict.origins


def test_forces_of_another_calculation_are_told(displaced: list[Frame]):
    rng = np.random.default_rng(0)
    wrong = [replace(frame, forces=rng.normal(size=frame.forces.shape)) for frame in displaced]
    assert "not the derivative" in str(force_verdict(displaced_pairs(wrong)).suspicion)


def test_series_are_of_the_same_atoms_cell_task_and_charge_and_near():
    """Nothing is concluded from frames that are not neighbours, and nothing from none."""
    frames = displaced_series(3)
    far = frames[0].structure.positions + 0.5
    others = [
        frames[0], replace(frames[1], task="other"),
        replace(frames[1], structure=replace(frames[1].structure, charge=1)),
        replace(frames[1], structure=replace(frames[1].structure, positions=far + np.eye(4, 3))),
        replace(frames[1], energy=None), replace(frames[1], forces=None), frames[0],
    ]  # fmt: skip
    assert displaced_pairs(others) == []
    assert len(displaced_pairs([frames[0], replace(frames[1], task="other"), frames[1]])) == 1
    assert strained_pairs([crystal(1), crystal(2), molecule(1)]) == []
    assert displaced_pairs([]) == strained_pairs([]) == []
    assert force_verdict([]) is stress_verdict([]) is None


def report(tmp_path: Path, frames: list[Frame], *settings: str):
    path = tmp_path / "frames.extxyz"
    atoms = []
    for frame in frames:
        atoms.append(to_atoms(frame))
        atoms[-1].info["split"] = frame.split or "train"
    write(path, atoms)
    return check(None, [f"data.train={path}", "loss.stress=0", *settings])


def volume_series(sign: float = 1.0, size: float = 1.0) -> list[Frame]:
    """A crystal whose atoms move freely while the cell grows: no series to differentiate along, but a trend."""
    frames = []
    for number in range(7):
        cell = np.eye(3) * (2.9 + 0.06 * number)
        frame = crystal(number, cell, scatter=0.005)
        frames.append(replace(frame, stress=sign * size * frame.stress, split="val" if number == 3 else "train"))
    return frames


@pytest.mark.parametrize(("sign", "size", "said"), [(1, 1, None), (-1, 1, "under tension"), (1, 1602.2, "which is")])
def test_stress_of_frames_without_a_series_is_judged_by_its_size_and_trend(
    tmp_path: Path, sign: float, size: float, said: str | None
):
    found = report(tmp_path, volume_series(sign, size))
    texts = [each["what"] for each in found.content["suspicions"]]
    assert found.suspicious == (said is not None) == bool(texts)
    if said is not None:
        assert said in texts[0]
        assert found.content["suspicions"][0]["frames"][0].startswith("frame ")
        assert texts[0] in found.text


def test_a_report_names_outliers_contacts_leaks_and_counts_elements(tmp_path: Path):
    frames = [replace(molecule(seed), split="val" if seed > 16 else "train", task="a") for seed in range(20)]
    frames[4] = replace(frames[4], energy=frames[4].energy + 40.0)
    frames[5] = pair_frame([8, 1, 1], np.array([[0, 0, 0], [0.45, 0, 0], [0, 2.1, 0]]))
    frames[5] = replace(
        frames[5],
        task="a",
        split="train",
        energy=frames[6].energy,
        forces=np.array([[60.0, 0, 0], [-60, 0, 0], [0, 0, 0]]),
    )
    frames[18] = replace(frames[2], structure=moved(frames[2].structure, 3), split="val")
    frames[9] = replace(frames[8], split="train")
    frames[11] = replace(frames[11], energy=None)
    found = report(tmp_path, frames)
    said = {each["what"]: each["frames"] for each in found.content["suspicions"]}
    by = {
        word: next(text for text in said if word in text)
        for word in ("too close", "above 50", "far off", "in training too")
    }
    assert all(text in found.text for text in said)
    assert said[by["too close"]] == said[by["above 50"]] == [f"frame 5 of {tmp_path / 'frames.extxyz'}"]
    assert len(said[by["far off"]]) == 1
    assert said[by["far off"]][0].startswith("frame 4 of ")
    assert said[by["in training too"]] == [
        f"frame 18 of {tmp_path}/frames.extxyz = frame 2 of {tmp_path}/frames.extxyz"
    ]
    assert any("there again" in each["what"] for each in found.content["notes"])
    assert found.content["elements"] == {"H": {"frames": 17, "atoms": 34}, "O": {"frames": 17, "atoms": 17}}
    assert found.content["tasks"]["a"]["energy"] == 16
    assert found.suspicious


def test_a_store_is_reported_on_as_its_files_are(tmp_path: Path):
    from janus_train.config import KeyNames
    from janus_train.data.store import Conversion, convert

    frames = [*(replace(frame, split="train") for frame in displaced_series()), *volume_series()]
    of_files = report(tmp_path, frames)
    convert(Conversion(((tmp_path / "frames.extxyz", KeyNames(), ""),)), tmp_path / "store")
    of_store = check(None, [f"data.train={tmp_path / 'store'}", "loss.stress=0"])
    assert not of_files.suspicious
    different = {"fingerprint"}
    assert {k: v for k, v in of_files.content.items() if k not in different} == {
        k: v for k, v in of_store.content.items() if k not in different
    }
    assert of_files.content["series"]["made"]["forces"]["pairs"] == 7


@pytest.mark.parametrize("lost", [True, False])
def test_energies_that_lost_their_digits_before_they_came_here_are_told(lost: bool):
    energies = -51234.5678 + np.random.default_rng(0).normal(size=20)
    atoms = np.full(20, 3)
    step = rounded_to_float32(energies.astype(np.float32).astype(np.float64) if lost else energies, atoms)
    assert (step is not None) == lost
    if lost:
        assert step == pytest.approx(2.0**-8 / 3)
    assert rounded_to_float32(np.array([]), np.array([])) is None
    assert rounded_to_float32(np.arange(20.0), atoms) is None


def test_outliers_are_what_is_far_from_all_others():
    spread = np.random.default_rng(0).normal(size=200)
    assert energy_outliers(spread).tolist() == []
    assert energy_outliers(np.append(spread, [30.0, -90.0])).tolist() == [201, 200]
    assert energy_outliers(np.array([])).tolist() == []


@pytest.mark.skipif(not MLEARN.is_dir(), reason="the DFT data set is not here")
def test_dft_data_raise_no_suspicion_and_their_stress_agrees_with_finite_differences():
    """917 stresses of mlearn agree with energies over the elastic series; turned around, they do not."""
    found = check(None, [f"data.train={MLEARN}/train.extxyz.gz", "data.val_fraction=0.1"])
    verdict = found.content["series"]["default"]["stress"]
    assert verdict["pairs"] > 100
    assert abs(verdict["factor"] - 1) < 0.02
    assert not found.suspicious, found.text
