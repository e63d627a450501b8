"""Stores give back what was put in, to the bit; conversions may be killed; training reads them as it reads files."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from hypothesis import given
from hypothesis import strategies as st

from janus_graph import Structure
from janus_graph.packing import CostModel, structure_sizes
from janus_train.config import KeyNames, load_config
from janus_train.data.batch import FrameSource
from janus_train.data.chosen import ChosenColumn, ChosenFrames, Shelf, choose, column_parts, rows_of
from janus_train.data.columns import COLUMN_NAMES, columns_of, formulas
from janus_train.data.frame import Frame
from janus_train.data.load import coverage, data_fingerprint, load_data
from janus_train.data.read import read_frames
from janus_train.data.statistics import fit_statistics
from janus_train.data.store import Conversion, Store, convert, measure_sizes, stored_sizes
from janus_train.data.store.codec import decode_frame, encode_frame
from janus_train.failure import UserError
from made_data import assert_same, crystal, molecule, to_atoms
from test_formats import write_aselmdb

finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(max_size=5)


@st.composite
def any_frame(draw: st.DrawFn) -> Frame:
    count = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    periodic = np.array(draw(st.lists(st.booleans(), min_size=3, max_size=3)))
    cell, charge, spin = np.eye(3) * 3 + rng.normal(0, 0.1, (3, 3)), draw(st.integers(-3, 3)), draw(st.integers(1, 5))
    structure = Structure(rng.integers(1, 119, count), rng.normal(size=(count, 3)), cell, periodic, charge, spin)
    labels = {
        "energy": float(draw(finite)), "forces": rng.normal(size=(count, 3)), "stress": rng.normal(size=(3, 3)),
        "magmoms": rng.normal(size=count),
    }  # fmt: skip
    kept = draw(st.sets(st.sampled_from(sorted(labels))))
    names = {name: draw(text) for name in ("task", "split", "group", "origin")}
    return Frame(structure, **names, **{name: value for name, value in labels.items() if name in kept})


@given(any_frame())
def test_a_frame_comes_back_from_its_bytes_equal_to_the_bit(frame: Frame):
    assert_same(decode_frame(encode_frame(frame)), frame)


def frames_of_two_kinds(count: int) -> list[Frame]:
    """Crystals and molecules in turn; labels are missing here and there; a task, a group and a mark of each kind."""
    frames = []
    for number in range(count):
        frame = crystal(number % 7) if number % 2 else molecule(number % 5)
        frame = replace(
            frame, task="ab"[number % 2], group=f"g{number // 4}", split=("train", "train", "val", "test")[number % 4]
        )
        frames.append(replace(frame, forces=None) if number % 5 == 0 else frame)
    return frames


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    frames = frames_of_two_kinds(24)
    for number in range(3):
        atoms = []
        for frame in frames[8 * number : 8 * number + 8]:
            atoms.append(to_atoms(frame))
            atoms[-1].info.update(split=frame.split, group=frame.group)
        write(directory / f"{number}.extxyz", atoms)
    return directory


def conversion(source: Path, *, per_file: bool = True, cutoffs: tuple[float, float] | None = None) -> Conversion:
    return Conversion(((source, KeyNames(), ""),), cutoffs, shard_bytes=1 if per_file else 1 << 30)


@pytest.mark.parametrize(("workers", "per_file"), [(1, False), (2, True)])
def test_a_store_gives_back_the_frames_of_its_sources_in_order(
    source: Path, tmp_path: Path, workers: int, per_file: bool
):
    told = []
    about = convert(
        conversion(source, per_file=per_file), tmp_path / "store", workers, lambda rows, jobs: told.append((rows, jobs))
    )
    expected = read_frames(source, KeyNames())
    store = Store(tmp_path / "store")
    assert sorted(told) == ([(8, 3)] * 3 if per_file else [(24, 1)])
    assert about["rows"] == len(store) == len(expected) == 24
    for frame, other in zip(store, expected, strict=True):
        assert_same(frame, other)
    columns = columns_of(expected)
    assert store.columns.tasks == columns.tasks
    for name in COLUMN_NAMES:
        np.testing.assert_array_equal(getattr(store.columns, name), getattr(columns, name), err_msg=name)
    assert isinstance(store.columns.energy, np.memmap)
    with pytest.raises(UserError, match="holds a finished store"):
        convert(conversion(source), tmp_path / "store")


def test_an_aselmdb_file_is_shared_by_workers_row_by_row(tmp_path: Path):
    """Ranges of rows, some of them deleted, others none but deleted ones: every row is there once, in order."""
    write_aselmdb(tmp_path / "rows.aselmdb", [molecule(seed) for seed in range(6)], deleted=(1, 2, 4, 9))
    expected = read_frames(tmp_path / "rows.aselmdb", KeyNames())
    size = (tmp_path / "rows.aselmdb").stat().st_size
    for pieces in (1, 3, 10):
        given = Conversion(((tmp_path / "rows.aselmdb", KeyNames(), ""),), shard_bytes=-(-size // pieces))
        about = convert(given, tmp_path / f"store-{pieces}")
        assert len(about["shards"]) == pieces
        for frame, other in zip(Store(tmp_path / f"store-{pieces}"), expected, strict=True):
            assert_same(frame, other)


def test_a_conversion_that_was_killed_goes_on_and_ends_the_same(source: Path, tmp_path: Path):
    """Killed after each shard, and in the middle of one: finished shards are not made again, half ones are."""
    whole = convert(conversion(source), tmp_path / "whole")

    class Killed(BaseException):
        pass

    store = tmp_path / "killed"
    for shards in (1, 2):

        def kill(rows: int, jobs: int, left: list[int] = [shards]) -> None:  # noqa: B006
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        with pytest.raises(Killed):
            convert(conversion(source), store, done=kill)
        assert len(list(store.glob("shard-0000?"))) == shards
        with pytest.raises(UserError, match="is no finished store"):
            Store(store)
    (store / "shard-00002.unfinished").mkdir()
    (store / "shard-00002.unfinished" / "frames.mdb").write_bytes(b"half of it")
    before = [path.stat().st_mtime_ns for path in sorted(store.glob("shard-*/frames.mdb"))[:2]]
    assert convert(conversion(source), store) == whole
    assert before == [path.stat().st_mtime_ns for path in sorted(store.glob("shard-*/frames.mdb"))[:2]]
    assert [path.read_bytes() for path in sorted(store.glob("*.npy"))] == [
        path.read_bytes() for path in sorted((tmp_path / "whole").glob("*.npy"))
    ]
    assert not list(store.rglob("*.raw")) + list(store.glob("plan.json"))


def test_a_conversion_goes_on_only_with_the_same_files_and_settings(source: Path, tmp_path: Path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "plan.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(UserError, match="beginning of another conversion"):
        convert(conversion(source), tmp_path / "store")
    (tmp_path / "store" / "plan.json").rename(tmp_path / "store" / "notes")
    with pytest.raises(UserError, match="is not empty"):
        convert(conversion(source), tmp_path / "store")
    convert(conversion(source), tmp_path / "other")
    about = json.loads((tmp_path / "other" / "store.json").read_text())
    (tmp_path / "other" / "store.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(UserError, match="has format 99"):
        Store(tmp_path / "other")


def test_a_worker_that_fails_says_which_frame_is_wrong(source: Path, tmp_path: Path):
    text = (source / "0.extxyz").read_text()
    (tmp_path / "in").mkdir()
    for name in ("good", "wrong"):
        (tmp_path / "in" / f"{name}.extxyz").write_text(text)
    lines = text.splitlines()
    lines[2] = lines[2].rsplit(" ", 1)[0].rstrip() + " nan"
    (tmp_path / "in" / "wrong.extxyz").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"frame 0 of .*wrong\.extxyz"):
        convert(conversion(tmp_path / "in"), tmp_path / "store", workers=2)


def test_sizes_are_those_of_the_structures_whenever_they_are_counted(source: Path, tmp_path: Path):
    """While converting, or later, in one process or two: numbers of edges by frame and element, and costs."""
    convert(conversion(source, cutoffs=(3.0, 2.5)), tmp_path / "store")
    store = Store(tmp_path / "store")
    measure_sizes(store, 3.4, 2.5, workers=2)
    frames = list(store)
    rows = np.array([1, 4, 5, 11, 20])
    part = [choose([Shelf(store, store.columns)], [np.isin(np.arange(24), rows)])[0]]
    for cutoffs in ((3.0, 2.5), (3.4, 2.5), (2.9, 2.2)):
        assert (stored_sizes(store, *cutoffs) is None) == (cutoffs == (2.9, 2.2))
        expected = structure_sizes([frames[row].structure for row in rows], *cutoffs)
        source_of_rows = FrameSource(ChosenFrames(part, ("a", "b")), *cutoffs)
        for name in ("atoms", "edges"):
            column = getattr(source_of_rows, name)
            np.testing.assert_array_equal(column[[3, 0, 4]], getattr(expected, name)[[3, 0, 4]])
            assert column[2] == getattr(expected, name)[2]
            assert column.max() == getattr(expected, name).max()
        np.testing.assert_array_equal(source_of_rows.costs(range(5)), CostModel()(expected))
        for place in range(5):
            np.testing.assert_array_equal(source_of_rows.rows_by_element[place], expected.by_element[place])
    assert not list((tmp_path / "store").glob("*.partial")) + list((tmp_path / "store").rglob("*.raw"))


def test_training_sees_the_same_frames_from_a_store_as_from_its_files(source: Path, tmp_path: Path):
    convert(conversion(source), tmp_path / "store")
    settings = ["data.val_fraction=0.3", "loss.stress=0", "data.batch_edges=300"]
    for more in ([], ["data.keys.split=nothing"], ["data.split_by=composition"]):
        files = load_data(load_config(None, [f"data.train={source}", *settings, *more]))
        stored = load_data(load_config(None, [f"data.train={tmp_path / 'store'}", *settings, *more]))
        if more != ["data.keys.split=nothing"]:  # a store has its marks from when it was made
            assert len(files.train) == len(stored.train)
            for one, other in zip([*files.train, *files.val], [*stored.train, *stored.val], strict=True):
                assert_same(one, other)
            assert coverage(files) == coverage(stored)
            assert files.elements == stored.elements
        assert data_fingerprint(stored) != data_fingerprint(files)
        del stored
    mixed = load_data(load_config(None, [f"data.train=[{tmp_path / 'store'}, {source / '0.extxyz'}]", *settings]))
    assert len(mixed.train) == 12 + 4
    assert [len(part) for part in column_parts(mixed.train)] == [12, 4]
    assert mixed.train[-1].structure.task == mixed.tasks.index(mixed.train[-1].task)
    fingerprints = {
        data_fingerprint(
            load_data(
                load_config(
                    None, [f"data.train={tmp_path / 'store'}", *settings, f"run.seed={seed}", "data.split_by=frame"]
                )
            )
        )
        for seed in (0, 0, 1)
    }
    assert len(fingerprints) == 1  # marked frames are not set aside at random


def test_statistics_of_a_store_are_those_of_its_frames_and_read_single_atoms_only(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    apart = [Atoms("O", info={"energy": -75.0 - n, "task": "b"}, pbc=n == 1, cell=np.eye(3) * 9) for n in range(3)]
    write(tmp_path / "atoms.extxyz", apart)
    sources = tuple((path, KeyNames(), "") for path in (source, tmp_path / "atoms.extxyz"))
    convert(Conversion(sources), tmp_path / "store")
    frames = [frame for path, keys, _ in sources for frame in read_frames(path, keys)]
    expected = fit_statistics(frames, ["a", "b"])
    read: list[int] = []
    item = Store._item
    monkeypatch.setattr(Store, "_item", lambda store, place: (read.append(place), item(store, place))[1])
    store = Store(tmp_path / "store")
    chosen = ChosenFrames(choose([Shelf(store, store.columns)], [np.ones(len(store), bool)]), ["a", "b"])
    for found in (fit_statistics(store, ["a", "b"]), fit_statistics(chosen, ["a", "b"])):
        np.testing.assert_array_equal(found.references, expected.references)
        np.testing.assert_array_equal(found.scales, expected.scales)
        np.testing.assert_array_equal(found.residuals, expected.residuals)
        np.testing.assert_array_equal(found.atoms, expected.atoms)
        assert found.warnings == expected.warnings
    assert set(read) == {place for place, frame in enumerate(frames) if len(frame.structure) == 1}


def test_frames_of_a_store_that_name_no_task_get_that_of_their_source(tmp_path: Path):
    atoms = [to_atoms(molecule(seed)) for seed in range(4)]
    for each in atoms:
        del each.info["task"]
    write(tmp_path / "plain.extxyz", atoms)
    convert(Conversion(((tmp_path / "plain.extxyz", KeyNames(), ""),)), tmp_path / "store")
    for source_given, expected in (
        (f"{{path: {tmp_path / 'store'}, task: pbe}}", "pbe"),
        (str(tmp_path / "store"), "default"),
    ):
        data = load_data(load_config(None, [f"data.train=[{source_given}]", "loss.stress=0"]))
        assert data.tasks == (expected,)
        assert {frame.task for frame in [*data.train, *data.val]} == {expected}


def test_a_store_may_be_read_for_training_and_validation_at_once_and_beside_files(source: Path, tmp_path: Path):
    convert(conversion(source), tmp_path / "store")
    settings = [f"data.train={tmp_path / 'store'}", "loss.stress=0"]
    both = load_data(load_config(None, [*settings, f"data.val={{path: {tmp_path / 'store'}, task: other}}"]))
    assert both.train[0].energy == both.val[0].energy
    of_files = load_data(load_config(None, [*settings, f"data.val={source}"]))
    assert isinstance(of_files.val, list)
    assert len({data_fingerprint(both), data_fingerprint(of_files)}) == 2
    for one, other in zip(both.val, of_files.val, strict=True):
        assert_same(one, other)


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=4), st.data())
def test_a_column_of_several_shelves_is_their_rows_one_after_the_other(columns: list[list[int]], data: st.DataObject):
    parts, flat = [], []
    for column in columns:
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(column), max_size=len(column))), dtype=bool)
        parts.append((np.array(column, dtype=np.int32), rows_of(mask)))
        flat += np.array(column, dtype=int)[mask].tolist()
    column = ChosenColumn(parts)
    places = data.draw(st.lists(st.integers(0, len(flat) - 1), max_size=5)) if flat else []
    assert len(column) == len(flat)
    assert column[places].tolist() == [flat[place] for place in places]
    assert column.max() == max(flat, default=0)
    assert column[:].tolist() == flat


def test_formulas_do_not_depend_on_how_many_there_are_of_one():
    water = Structure([8, 1, 1], np.eye(3), np.zeros((3, 3)), np.zeros(3, dtype=bool))
    two = Structure([8, 1, 1, 1, 8, 1], np.arange(18).reshape(6, 3), np.zeros((3, 3)), np.zeros(3, dtype=bool))
    peroxide = Structure([8, 1, 1, 8], np.arange(12).reshape(4, 3), np.zeros((3, 3)), np.zeros(3, dtype=bool))
    found = formulas(columns_of([Frame(structure, "a") for structure in (water, two, peroxide)]))
    assert found[0] == found[1] != found[2]
    assert len(formulas(columns_of([]))) == 0


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_a_forked_process_reads_a_store_that_its_parent_has_open(source: Path, tmp_path: Path):
    convert(conversion(source), tmp_path / "store")
    store = Store(tmp_path / "store")
    expected = store[3].energy
    child = os.fork()
    if child == 0:
        os._exit(0 if store[3].energy == expected and store[-1].energy is not None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store[3].energy == expected
    store.close()
    assert store[3].energy == expected
