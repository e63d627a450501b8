"""Files of every kind become the same frames: values to the bit, charge, spin and task with them."""

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from ase.db import connect
from ase.io import write

from janus_graph import Structure
from janus_train.config import KeyNames, load_config
from janus_train.data.aselmdb import frame_of_row, frames_of_rows
from janus_train.data.aselmdb_blocks import frames_together
from janus_train.data.deepmd import stress_of_virial
from janus_train.data.files import files_of
from janus_train.data.frame import Frame, fingerprint
from janus_train.data.load import load_data
from janus_train.data.read import frame_label_names, read_frames
from janus_train.failure import UserError
from made_data import assert_same, crystal, derivative, molecule, pair_energy, to_atoms


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    charged = replace(molecule(3), structure=replace(molecule(3).structure, charge=-1, spin=2))
    return [crystal(1), molecule(2), charged]


def ndarray(array: np.ndarray) -> dict:
    """ASE's JSON for an array."""
    return {"__ndarray__": [list(array.shape), str(array.dtype), array.ravel().tolist()]}


def write_aselmdb(path: Path, frames: list[Frame], deleted: tuple[int, ...] = (), kind: str = "") -> None:
    """An aselmdb file as its description says, by nothing but LMDB, zlib and JSON.

    What is not a number in JSON, plain lists, much and little text are each decoded in a way of its own.
    """
    encoded = (lambda array: array.tolist()) if kind == "plain" else ndarray
    more = {"short": {}, "long": {"text": "much " * 2000}}.get(kind, {"nothing": float("nan")})
    file = lmdb.open(str(path), subdir=False, map_size=1 << 26)
    with file.begin(write=True) as transaction:
        number = 0
        for frame in frames:
            number += 1
            while number in deleted:
                number += 1
            structure = frame.structure
            row = {
                "numbers": encoded(structure.atomic_numbers), "positions": encoded(structure.positions),
                "cell": encoded(structure.cell), "pbc": encoded(structure.periodic), "ctime": 1.0,
                "energy": frame.energy, "forces": encoded(frame.forces), "key_value_pairs": {"task": frame.task},
                "data": {"charge": structure.charge, "spin": structure.spin, "source": "here", **more},
            }  # fmt: skip
            if frame.stress is not None:
                row["stress"] = encoded(frame.stress.reshape(9)[[0, 4, 8, 5, 2, 1]])
            transaction.put(str(number).encode(), zlib.compress(json.dumps(row).encode()))
        for key, value in (("nextid", number + 1), ("deleted_ids", list(deleted)), ("metadata", {"format_version": 1})):
            transaction.put(key.encode(), zlib.compress(json.dumps(value).encode()))
    file.close()


def row_of(frame: Frame, encoded: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """As an aselmdb row is when it has been decoded."""
    structure, labels = frame.structure, {"energy": frame.energy}
    labels |= {
        name: encoded(value)
        for name, value in (("forces", frame.forces), ("stress", frame.stress), ("magmoms", frame.magmoms))
        if value is not None
    }
    return {
        "numbers": encoded(structure.atomic_numbers), "positions": encoded(structure.positions),
        "cell": {"__ase_objtype__": "cell", "array": encoded(structure.cell)}, "pbc": encoded(structure.periodic),
        "key_value_pairs": {"task": frame.task}, "data": {"charge": structure.charge, "spin": structure.spin}, **labels,
    }  # fmt: skip


def symmetric(frames: list[Frame]) -> list[Frame]:
    """With stresses that six numbers hold."""
    return [f if f.stress is None else replace(f, stress=np.triu(f.stress) + np.triu(f.stress, 1).T) for f in frames]


def write_database(path: Path, frames: list[Frame]) -> None:
    database = connect(path)
    for frame in frames:
        charge, spin = frame.structure.charge, frame.structure.spin
        database.write(to_atoms(frame), task=frame.task, data={"charge": charge, "spin": spin})


@pytest.mark.parametrize(
    "kind", ["extxyz", "traj", "db", "json", "aselmdb", "plain aselmdb", "short aselmdb", "long aselmdb"]
)
def test_charge_spin_and_task_travel_with_every_frame_of_every_format(kind: str, frames: list[Frame], tmp_path: Path):
    path = tmp_path / f"frames.{kind.split()[-1]}"
    given = symmetric(frames)
    if path.suffix == ".aselmdb":
        write_aselmdb(path, given, kind=kind.split()[0])
    elif path.suffix in (".db", ".json"):
        write_database(path, given)
    else:
        write(path, [to_atoms(frame) for frame in given])
    # Text has eight digits after the point.
    exact = kind not in ("extxyz", "json")
    for found, expected in zip(read_frames(path, KeyNames()), given, strict=True):
        assert str(path) in found.origin
        assert type(found.energy) is float  # checksums of data are made of how it is written
        if exact:
            assert_same(found, expected, but=("origin",))
            continue
        for name in ("positions", "charge", "spin"):
            np.testing.assert_allclose(getattr(found.structure, name), getattr(expected.structure, name), atol=1e-8)
        assert found.task == expected.task
        np.testing.assert_allclose(found.energy, expected.energy, atol=1e-8)
        np.testing.assert_allclose(found.forces, expected.forces, atol=1e-8)


def test_rows_of_aselmdb_are_those_of_the_reference_reader(frames: list[Frame], tmp_path: Path):
    pytest.importorskip("ase_db_backends")
    path = tmp_path / "frames.aselmdb"
    with connect(path, type="aselmdb", use_lock_file=False) as database:
        for frame in symmetric(frames) * 2:
            structure = frame.structure
            database.write(to_atoms(frame), data={"charge": structure.charge, "spin": structure.spin})
        database.delete([2])
    database = connect(path, type="aselmdb", readonly=True, use_lock_file=False)
    rows = list(database.select())
    database.close()
    found = read_frames(path, KeyNames())
    assert [int(frame.origin.split()[1]) for frame in found] == [row.id for row in rows] == [1, 3, 4, 5, 6]
    for frame, row in zip(found, rows, strict=True):
        atoms = row.toatoms()
        np.testing.assert_array_equal(frame.structure.positions, atoms.positions)
        np.testing.assert_array_equal(frame.structure.cell, atoms.cell.array)
        np.testing.assert_array_equal(frame.structure.periodic, atoms.pbc)
        assert frame.energy == row.energy
        np.testing.assert_array_equal(frame.forces, row.forces)
        assert (frame.structure.charge, frame.structure.spin) == (row.data["charge"], row.data["spin"])
        assert (frame.stress is None) == ("stress" not in row)
        if frame.stress is not None:
            np.testing.assert_array_equal(frame.stress, atoms.get_stress(voigt=False))


def test_rows_of_a_block_become_the_frames_that_each_of_them_becomes_alone(frames: list[Frame]):
    rows = [
        row_of(frame, ndarray) for frame in [*frames, replace(frames[0], magmoms=np.ones(len(frames[0].structure)))]
    ]
    arguments = (KeyNames(), "none", [f"row {place}" for place in range(len(rows))])
    carried = [{**row["data"], **row["key_value_pairs"], **row} for row in rows]
    together = frames_together(rows, carried, *arguments)
    alone = [frame_of_row(row, KeyNames(), "none", f"row {place}") for place, row in enumerate(rows)]
    assert fingerprint(together) == fingerprint(alone)
    assert [frame.origin for frame in together] == [frame.origin for frame in alone]


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("forces", ndarray(np.full((2, 3), np.nan)), "row b: 'forces' is NaN"),
        ("forces", ndarray(np.zeros((3, 3))), r"row b: 'forces' has shape \(3, 3\)"),
        ("energy", math.inf, "row b: 'energy' is NaN or infinite"),
        ("stress", ndarray(np.zeros(5)), r"row b: 'stress' has shape \(5,\)"),
        ("numbers", ndarray(np.array([1, 0])), "row b: atom 1 has atomic number 0"),
        ("positions", ndarray(np.full((2, 3), np.inf)), "row b: the position of atom 0"),
    ],
)
def test_what_is_wrong_with_a_row_of_a_block_is_said_of_that_row(name: str, wrong: Any, message: str):
    structure = Structure(np.array([1, 8]), np.array([[0.0, 0, 0], [1, 0, 0]]), np.eye(3) * 9, np.ones(3, dtype=bool))
    row = row_of(Frame(structure, "a", energy=1.0, forces=np.zeros((2, 3))), ndarray)
    with pytest.raises(UserError, match=message):
        frames_of_rows([row, {**row, name: wrong}], KeyNames(), "none", ["row a", "row b"])


def test_rows_that_were_deleted_are_left_out_and_rows_that_are_missing_are_an_error(
    tmp_path: Path, frames: list[Frame]
):
    write_aselmdb(tmp_path / "some.aselmdb", frames, deleted=(2, 5))
    found = read_frames(tmp_path / "some.aselmdb", KeyNames())
    assert [int(frame.origin.split()[1]) for frame in found] == [1, 3, 4]
    file = lmdb.open(str(tmp_path / "some.aselmdb"), subdir=False)
    with file.begin(write=True) as transaction:
        transaction.delete(b"3")
    file.close()
    with pytest.raises(UserError, match=r"row 3 of .*some\.aselmdb is not there"):
        read_frames(tmp_path / "some.aselmdb", KeyNames())


def write_deepmd(system: Path, frames: list[Frame], *, mixed: bool = False) -> None:
    """A system as DeePMD-kit describes it; its virial is minus the derivative of the energy by strain."""
    (system / "set.000").mkdir(parents=True)
    (system / "type_map.raw").write_text("H\nO\nSi\n")
    types = {1: 0, 8: 1, 14: 2}
    most = max(len(frame.structure) for frame in frames)

    def rows(arrays: list[np.ndarray], fill: float = 0) -> np.ndarray:
        return np.stack(
            [np.pad(a.ravel(), (0, most * (a.size // len(a)) - a.size), constant_values=fill) for a in arrays]
        )

    kinds = [np.array([types[z] for z in frame.structure.atomic_numbers]) for frame in frames]
    (system / "type.raw").write_text("\n".join(map(str, [0] * most if mixed else kinds[0].tolist())))
    if mixed:
        np.save(system / "set.000/real_atom_types.npy", rows(kinds, -1))
    np.save(system / "set.000/coord.npy", rows([frame.structure.positions for frame in frames]))
    np.save(system / "set.000/force.npy", rows([frame.forces for frame in frames]))
    np.save(system / "set.000/energy.npy", np.array([frame.energy for frame in frames]))
    if frames[0].structure.periodic.all():
        np.save(system / "set.000/box.npy", np.stack([frame.structure.cell.ravel() for frame in frames]))
        np.save(system / "set.000/virial.npy", np.stack([virial_by_differences(frame).ravel() for frame in frames]))
    else:
        (system / "nopbc").touch()


def virial_by_differences(frame: Frame) -> np.ndarray:
    structure = frame.structure

    def energy(strain: np.ndarray) -> float:
        deformation = np.eye(3) + (strain + strain.T) / 2
        return pair_energy(
            structure.atomic_numbers, structure.positions @ deformation, structure.cell @ deformation, True
        )

    return -derivative(energy, np.zeros((3, 3)))


def test_deepmd_systems_have_the_stress_of_their_virial_tension_positive(tmp_path: Path):
    given = [crystal(seed) for seed in (1, 2)]
    write_deepmd(tmp_path / "system", given)
    found = read_frames(tmp_path, KeyNames())
    assert len(found) == 2
    for frame, expected in zip(found, given, strict=True):
        assert_same(frame, expected, but=("origin", "task", "stress"))
        np.testing.assert_allclose(frame.stress, expected.stress, atol=1e-12)
    # A stretched crystal pulls back: energy grows with the cell, and tension is positive.
    stretched = crystal(1, 1.1 * given[0].structure.cell)
    assert np.trace(stress_of_virial(virial_by_differences(stretched), stretched.structure.cell)) > 0


def test_deepmd_systems_may_mix_types_and_have_no_cell(tmp_path: Path):
    write_deepmd(tmp_path / "mixed", [crystal(1), crystal(2)], mixed=True)
    write_deepmd(tmp_path / "free", [molecule(1)])
    several = [molecule(1), replace(molecule(2), structure=replace(molecule(2).structure))]
    two = several[1]
    pair = Frame(replace(two.structure, atomic_numbers=[8, 1], positions=two.structure.positions[:2]), "made", 1.0,
                 two.forces[:2])  # fmt: skip
    write_deepmd(tmp_path / "padded", [several[0], pair], mixed=True)
    for name, expected in (
        ("mixed", [crystal(1), crystal(2)]),
        ("free", [molecule(1)]),
        ("padded", [several[0], pair]),
    ):
        for frame, other in zip(read_frames(tmp_path / name, KeyNames()), expected, strict=True):
            assert_same(frame, other, but=("origin", "task", "stress"))


def test_what_is_wrong_with_a_deepmd_system_is_named(tmp_path: Path):
    write_deepmd(tmp_path / "system", [crystal(1)])
    (tmp_path / "system/set.000/box.npy").rename(tmp_path / "box.npy")
    with pytest.raises(UserError, match=r"set\.000 has no box\.npy; add it, or an empty file named nopbc"):
        read_frames(tmp_path / "system", KeyNames())
    np.save(tmp_path / "system/set.000/box.npy", np.zeros((1, 6)))
    with pytest.raises(UserError, match=r"box\.npy has shape \(1, 6\)"):
        read_frames(tmp_path / "system", KeyNames())
    (tmp_path / "system/type_map.raw").write_text("H\nXx\n")
    with pytest.raises(UserError, match="'Xx' is not an element"):
        read_frames(tmp_path / "system", KeyNames())


VASPRUN = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <generator><i name="program" type="string">vasp</i></generator>
 <kpoints><varray name="kpointlist"><v>0 0 0</v></varray><varray name="weights"><v>1</v></varray></kpoints>
 <atominfo><atoms>2</atoms><types>1</types>
  <array name="atoms"><dimension dim="1">ion</dimension><field type="string">element</field>
   <field type="int">atomtype</field><set><rc><c>Si</c><c>1</c></rc><rc><c>Si</c><c>1</c></rc></set></array>
 </atominfo>
 <structure name="initialpos"><crystal><varray name="basis"><v>4 0 0</v><v>0 4 0</v><v>0 0 4</v></varray></crystal>
  <varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray></structure>
 <calculation>
  <scstep><energy><i name="e_fr_energy">-9.0</i><i name="e_wo_entrp">-9.1</i><i name="e_0_energy">-9.05</i>
  </energy></scstep>
  <structure><crystal><varray name="basis"><v>4 0 0</v><v>0 4 0</v><v>0 0 4</v></varray></crystal>
   <varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray></structure>
  <varray name="forces"><v>0.1 0 0</v><v>-0.1 0 0</v></varray>
  <varray name="stress"><v>16.02176634 0 0</v><v>0 16.02176634 3.2</v><v>0 3.2 16.02176634</v></varray>
  <energy><i name="e_fr_energy">-9.0</i><i name="e_wo_entrp">-9.1</i><i name="e_0_energy">-9.05</i></energy>
 </calculation>
</modeling>
"""


def test_vasp_runs_have_tension_positive_and_are_named_by_their_directory(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vasprun.xml").write_text(VASPRUN)
        (tmp_path / name / "OUTCAR").write_text("the same calculation")
        (tmp_path / name / "INCAR").write_text("ENCUT = 500")
    frames = read_frames(tmp_path, KeyNames())
    assert [frame.origin for frame in frames] == [f"frame 0 of {tmp_path}/{name}/vasprun.xml" for name in ("a", "b")]
    # 16 kB of pressure in VASP's file, which is a stress of -0.01 eV/Å³.
    np.testing.assert_allclose(np.diag(frames[0].stress), -0.01, rtol=1e-6)
    np.testing.assert_allclose(frames[0].stress[1, 2], -3.2 / 1602.1766, rtol=1e-6)
    free = read_frames(tmp_path / "a", KeyNames(energy="free_energy"))[0]
    assert (frames[0].energy, free.energy) == (pytest.approx(-9.05), pytest.approx(-9.0))


def test_files_of_directories_and_patterns_come_in_sorted_order(tmp_path: Path):
    for name in ("b/2.extxyz", "b/10.xyz.gz", "a/x.traj", "a/notes.txt", "a/.hidden.xyz", "c.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in files_of(tmp_path)]
    assert names == ["a/x.traj", "b/10.xyz.gz", "b/2.extxyz", "c.db"]
    assert files_of(tmp_path / "*" / "*.xyz*") == [tmp_path / "b/10.xyz.gz"]
    assert files_of(tmp_path / "[ab]") == [tmp_path / "a/x.traj", tmp_path / "b/10.xyz.gz", tmp_path / "b/2.extxyz"]
    (tmp_path / "[1].xyz").touch()
    assert files_of(tmp_path / "[1].xyz") == [tmp_path / "[1].xyz"]
    for nothing, message in (
        ("none*.xyz", "no file matches"),
        ("none.xyz", "no file"),
        ("d", "no data in the directory"),
    ):
        (tmp_path / "d").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            files_of(tmp_path / nothing)


@pytest.mark.parametrize("kind", ["extxyz", "db", "aselmdb", "deepmd"])
def test_labels_under_another_key_are_an_error_that_lists_the_keys_present(kind: str, tmp_path: Path):
    frames = [crystal(seed) for seed in range(4)]
    path = tmp_path / f"frames.{kind}"
    if kind == "aselmdb":
        write_aselmdb(path, frames)
        setting, key, label, there = "data.keys.energy=dft_energy", "dft_energy", "energy", "charge, energy, forces"
    elif kind == "deepmd":
        write_deepmd(path, frames)
        (path / "set.000/force.npy").rename(path / "set.000/forces_dft.npy")
        setting, key, label, there = "data.keys.task=task", "forces", "forces", "energy, forces_dft, virial"
    else:
        atoms = [to_atoms(frame, forces="forces_dft") for frame in frames]
        if kind == "db":
            for each in atoms:
                connect(path).write(each, data={"forces_dft": each.arrays["forces_dft"]})
        else:
            write(path, atoms)
        setting, key, label, there = "data.keys.task=task", "forces", "forces", "forces_dft"
    with pytest.raises(UserError) as caught:
        load_data(load_config(None, [f"data.train={path}", setting]))
    for part in (f"no key '{key}'", there, f"set data.keys.{label}=NAME", f"or loss.{label}=0"):
        assert part in str(caught.value)
    if kind in ("extxyz", "db"):
        found = load_data(load_config(None, [f"data.train={path}", "data.keys.forces=forces_dft"]))
        np.testing.assert_allclose(
            found.train[0].forces, frames[int(found.train[0].origin.split()[1]) - (kind == "db")].forces, atol=1e-8
        )
    assert frame_label_names(path)


def test_energies_stay_float64_until_references_are_subtracted(tmp_path: Path):
    """Eight digits before the point and eight after it, as all-electron codes print: no step of reading loses one."""
    from janus_train.data.batch import FrameSource

    energy = -51234567.12345678
    assert abs(float(np.float32(energy)) - energy) > 0.1
    frames = [replace(crystal(seed), energy=energy + seed) for seed in range(2)]
    write(tmp_path / "large.extxyz", [to_atoms(frame) for frame in frames])
    write_aselmdb(tmp_path / "large.aselmdb", frames)
    for name in ("large.extxyz", "large.aselmdb"):
        found = read_frames(tmp_path / name, KeyNames())
        batch = FrameSource(found, 3.0, 2.0).batch([0, 1])
        assert batch is not None
        np.testing.assert_allclose(batch.energy.numpy(), [energy, energy + 1], rtol=0, atol=1e-8)
