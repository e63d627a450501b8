"""Checkpoints: complete or absent, the same on any mesh, and nothing is lost where they cannot be written."""

import errno
import multiprocessing
import os
import pickle
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystem  # noqa: TID251  what files are made with
from torch.distributed.checkpoint.metadata import Metadata  # noqa: TID251  what is pickled of a checkpoint

from janus_comm import SingleRank, make_mesh
from janus_comm.sharding import as_dtensors, make_device_mesh
from janus_comm.sharding.layout import bucket_layout
from janus_comm.testing import run_rank_processes
from janus_train import UserError
from janus_train.checkpoint import Checkpoints, checkpoints_in, load_checkpoint, newest_checkpoint
from janus_train.checkpoint_files import CheckpointFailed, Stored
from training_states import SHAPES, assert_whole, elements_of, fill, make_state


@pytest.fixture(autouse=True)
def random_state_stays():
    fill(make_state(1, 0), 1, 0)  # What torch imports at the first step is then there in forked processes too.
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)


def write(directory: Path, ranks, unit: int, in_background: bool = True) -> None:
    """A checkpoint by the ranks of units of this size, each of which has its own random state."""
    state = fill(make_state(unit, ranks.rank % unit), unit, ranks.rank % unit)
    torch.manual_seed(1000 + ranks.rank)
    with Checkpoints(directory, ranks, 2, in_background) as checkpoints:
        checkpoints.save(state)


@pytest.mark.parametrize(("replicas", "unit", "in_background"), [(2, 2, True), (1, 3, False), (1, 1, True)])
def test_what_one_mesh_wrote_any_other_reads(replicas: int, unit: int, in_background: bool, tmp_path: Path):
    size = replicas * unit
    if size == 1:
        write(tmp_path, SingleRank(), unit, in_background)
    else:
        run_rank_processes(size, lambda ranks: write(tmp_path, ranks, unit, in_background))
    (path,) = tmp_path.iterdir()
    stored = Stored(path)
    for name, of in stored.tensors.items():
        elements = sum(chunk.sizes.numel() for chunk in of.chunks)
        assert elements == of.size.numel(), f"{name} is written more or less than once"
    assert stored.tensors["optimizer.experts.exp_avg"].size.numel() == elements_of("experts")
    for readers in (1, 2, 3, 5):
        for rank in range(readers):
            state = make_state(readers, rank)
            torch.manual_seed(5)
            load_checkpoint(newest_checkpoint(tmp_path), state, rank)
            assert_whole(state, readers, rank)
            expected = torch.Generator().manual_seed(1000 + rank if rank < size else 5)
            assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))


def test_dtensors_know_their_portion_themselves(tmp_path: Path):
    def write_and_read(ranks):
        presented = as_dtensors(make_device_mesh(make_mesh(ranks, 1, ranks.size), torch.device("cpu")))

        def present(name, rows):
            return presented(rows, bucket_layout([SHAPES[name]], 1, ranks.size).slots[0])

        with Checkpoints(tmp_path, ranks, 1) as checkpoints:
            checkpoints.save(fill(make_state(ranks.size, ranks.rank, present=present), ranks.size, ranks.rank))
        load_checkpoint(
            newest_checkpoint(tmp_path), read := make_state(ranks.size, ranks.rank, present=present), ranks.rank
        )
        assert_whole(read, ranks.size, ranks.rank)
        return list(read.portions)

    assert run_rank_processes(3, write_and_read) == [[]] * 3
    load_checkpoint(newest_checkpoint(tmp_path), read := make_state(1, 0, present=lambda name, rows: rows))
    assert_whole(read, 1, 0)


class Files(FileSystem):
    """Counts what is done to files, down to each write, and does something instead of the one with this number."""

    def __init__(self, instead=None, at: int = -1) -> None:
        self.done, self._instead, self._at = [], instead, at

    def _note(self, what: str) -> None:
        self.done.append(what)
        if len(self.done) - 1 == self._at:
            self._instead()

    @contextmanager
    def create_stream(self, path, mode):
        self._note("open")
        with super().create_stream(path, mode) as stream:
            yield NotedStream(stream, self._note)
        self._note("close")

    def rename(self, path, new_path):
        self._note("rename")
        super().rename(path, new_path)

    def mkdir(self, path):
        self._note("mkdir")
        super().mkdir(path)


class NotedStream:
    def __init__(self, stream, note) -> None:
        self._stream, self._note = stream, note

    def write(self, data):
        self._note("write")
        self._stream.write(memoryview(data)[: len(data) // 2])
        self._stream.flush()
        self._stream.write(memoryview(data)[len(data) // 2 :])
        return len(data)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def two_steps(directory: Path, files: FileSystem) -> None:
    """A checkpoint of step 12 by ordinary means and one of step 13, with other weights, by these files."""
    torch.set_num_threads(1)  # others do not survive a fork
    state = fill(make_state(1, 0), 1, 0)
    with Checkpoints(directory, SingleRank(), 1) as checkpoints:
        checkpoints.save(state)
    with Checkpoints(directory, SingleRank(), 1, files=files) as checkpoints:
        checkpoints.save(next_step(state))


def next_step(state):
    state.progress.step += 1
    with torch.no_grad():
        state.model["rows"] += 1
    return state


def points(directory: Path) -> list[int]:
    """Some moments in the writing of a checkpoint: all between files, and some between the writes into them."""
    files = Files()
    two_steps(directory, files)
    writes = [place for place, what in enumerate(files.done) if what == "write"]
    return sorted(
        {place for place, what in enumerate(files.done) if what != "write"} | set(writes[:: len(writes) // 3])
    )


def test_a_checkpoint_is_complete_or_absent_whenever_its_process_is_killed(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    found = set()
    for point in points(tmp_path / "counted"):
        directory = tmp_path / str(point)
        files = Files(lambda: os.kill(os.getpid(), signal.SIGKILL), point)
        process = context.Process(target=two_steps, args=(directory, files))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        state = make_state(1, 0)
        load_checkpoint(newest_checkpoint(directory), state)
        found.add(state.progress.step)
        expected = fill(make_state(1, 0), 1, 0)
        if state.progress.step == 13:
            next_step(expected)
        assert torch.equal(state.model["rows"], expected.model["rows"])
        # And whoever goes on from there cleans up.
        with Checkpoints(directory, SingleRank(), 1) as checkpoints:
            checkpoints.save(next_step(state))
        assert [path.name for path in directory.iterdir()] == [f"step-{state.progress.step:06d}"]
    assert 12 in found


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_where_there_is_no_space_nothing_is_lost_and_the_next_checkpoint_is_another_try(tmp_path: Path):
    for point in points(tmp_path / "counted"):
        directory, told = tmp_path / str(point), []
        with Checkpoints(directory, SingleRank(), 1, say=told.append) as checkpoints:
            checkpoints.save(state := fill(make_state(1, 0), 1, 0))
            checkpoints.wait()
            checkpoints._files = Files(no_space, point)
            checkpoints.save(next_step(state))
            checkpoints.wait()
            (message,) = told
            assert "step-000013 cannot be written (rank 0: No space left on device); older ones are kept" in message
            assert [path.name for path in directory.iterdir()] == ["step-000012"]
            checkpoints.save(next_step(state))
        assert told == [message]
        assert [path.name for path in directory.iterdir()] == ["step-000014"]


@pytest.mark.parametrize("in_background", [True, False])
def test_all_ranks_go_on_when_one_has_no_space(in_background: bool, tmp_path: Path):
    def save_twice(ranks):
        told = []
        files = Files(no_space if ranks.rank == 1 else int, 3)
        state = fill(make_state(2, ranks.rank), 2, ranks.rank)
        with Checkpoints(tmp_path, ranks, 2, in_background, told.append, files) as checkpoints:
            checkpoints.save(state)
            checkpoints.save(next_step(state))
        return told

    for told in run_rank_processes(2, save_twice):
        assert len(told) == 1
        assert "(rank 1: No space left on device)" in told[0]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000013"]


def test_any_other_error_is_raised_at_the_next_look_on_every_rank(tmp_path: Path):
    def fail():
        raise ValueError("a mistake in the program")

    def save(ranks):
        state = fill(make_state(2, ranks.rank), 2, ranks.rank)
        files = Files(fail if ranks.rank == 1 else int, 3)
        with Checkpoints(tmp_path, ranks, 2, files=files) as checkpoints:
            checkpoints.save(state)
            with pytest.raises(CheckpointFailed, match="step-000012 on rank 1: ValueError: a mistake in the program"):
                checkpoints.wait()

    run_rank_processes(2, save)


def test_the_state_is_saved_as_it_was_and_the_next_one_waits(tmp_path: Path):
    changed = threading.Event()
    state = fill(make_state(1, 0), 1, 0)
    with Checkpoints(tmp_path, SingleRank(), 2, files=Files(changed.wait, 0)) as checkpoints:
        checkpoints.save(state)
        next_step(state)
        checkpoints.check()
        assert checkpoints_in(tmp_path) == []
        changed.set()
        checkpoints.save(state)
        assert [path.name for path in checkpoints_in(tmp_path)] == ["step-000012"]
    _, step_13 = checkpoints_in(tmp_path)
    step_13.rename(tmp_path / "later")
    load_checkpoint(newest_checkpoint(tmp_path), read := make_state(1, 0))
    assert_whole(read, 1, 0)


class RunsWhereItIsUnpickled:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("hidden", [lambda code: code, lambda code: Metadata({"model.rows": code})])
def test_a_pickled_file_of_a_checkpoint_never_executes_code(hidden, tmp_path: Path):
    """Models are safetensors and JSON; only torch's own metadata of checkpoints are pickled."""
    write(tmp_path, SingleRank(), 1, False)
    (path,) = tmp_path.iterdir()
    code = hidden(RunsWhereItIsUnpickled(tmp_path / "proof"))
    (path / ".metadata").write_bytes(pickle.dumps(code))
    with pytest.raises(UserError, match="open does not belong into the metadata"):
        load_checkpoint(path, make_state(1, 0))
    assert not (tmp_path / "proof").exists()
    pickle.loads(pickle.dumps(code))
    assert (tmp_path / "proof").exists()


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path):
    for name in ("step-1000000", "step-000002", "step-999999", ".step-000003.partial", "step-x"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-000002", "step-999999", "step-1000000"]


def test_a_mean_that_was_not_kept_begins_with_the_weights(tmp_path: Path):
    for saved, read in ((0.0, 0.9), (0.9, 0.0)):
        state = fill(make_state(1, 0, saved), 1, 0)
        with Checkpoints(tmp_path, SingleRank(), 1) as checkpoints:
            checkpoints.save(state)
        load_checkpoint(newest_checkpoint(tmp_path), other := make_state(1, 0, read))
        assert all(torch.equal(mean, state.model[name]) for name, mean in other.mean.weights.items())
        assert bool(other.mean.weights) == bool(read)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / ".metadata").unlink(), "FileNotFoundError"),
        (lambda path: (path / "progress.json").write_text("{"), "JSONDecodeError"),
        (lambda path: (path / "__0_0.distcp").write_bytes(b""), "Error"),
    ],
)
def test_what_is_damaged_or_of_another_model_is_refused_with_the_reason(damage, reason, tmp_path: Path):
    with pytest.raises(UserError, match="no checkpoint in"):
        load_checkpoint(newest_checkpoint(tmp_path), make_state(1, 0))
    write(tmp_path, SingleRank(), 1)
    (path,) = tmp_path.iterdir()
    other = make_state(1, 0)
    other.model["rows"].data = torch.zeros(6, 3)
    with pytest.raises(UserError, match=r"model.rows has shape \[5, 3\] there, \[6, 3\] here"):
        load_checkpoint(newest_checkpoint(tmp_path), other)
    damage(path)
    with pytest.raises(UserError, match=f"step-000012 cannot be read .*{reason}.*remove it"):
        load_checkpoint(newest_checkpoint(tmp_path), make_state(1, 0))
