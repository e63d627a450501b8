"""Checkpoints of a training: complete or absent, written while it goes on, read on any mesh."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch

from janus_comm import Communicator, torch_group
from janus_train.failure import UserError
from janus_train.pieces import Piece, pieces_of, random_name, random_states, staged
from janus_train.state import Progress, TrainingState

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import FileSystem  # noqa: TID251  a type, for whoever passes one

    from janus_train.checkpoint_files import Stored

# Seconds that a rank which ends by an error waits, at most, for a checkpoint that is being written.
_WAIT_AFTER_AN_ERROR = 20.0


class Checkpoints:
    """Writes the checkpoints of a run, at most one at a time. Used as a context, by every rank.

    What cannot be written for want of space is told, and nothing is lost by it: older checkpoints stay, the training
    goes on. Any other error is raised in the next `check`, `save` or `wait`.

    Args:
        directory: `step-NNNNNN` are made in it.
        world: all ranks. Their talk about files has a group of its own, so that it goes on beside that of the steps.
        keep: how many stay, the newest ones.
        in_background: copy the state, then write the copy while the training goes on; else write, then go on.
        say: told what could not be written.
        files: how files are made.
    """

    def __init__(
        self,
        directory: Path,
        world: Communicator,
        keep: int,
        in_background: bool = True,
        say: Callable[[str], None] = lambda text: None,
        files: FileSystem | None = None,
    ) -> None:
        self.directory, self.keep, self.in_background = directory, keep, in_background
        self._ranks, self._say, self._files = world.split(0), say, files
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:
            # What is being written is good. But the others may be gone, and with them the end of it.
            self._thread.join(_WAIT_AFTER_AN_ERROR)

    def save(self, state: TrainingState) -> None:
        """Begins to write the state as it is now; all ranks call it at the same step."""
        self.wait()
        pieces = pieces_of(state, self._ranks.rank)
        progress = json.dumps({**asdict(state.progress), "mean_updates": state.mean.updates})
        final = self.directory / f"step-{state.progress.step:06d}"
        if not self.in_background:
            self._write(pieces, progress, final)
            self.check()
            return
        arguments = (staged(pieces), progress, final)
        self._thread = threading.Thread(target=self._write, args=arguments, name=final.name, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises, or tells, what went wrong with a checkpoint that has been written meanwhile."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._thread, error, self._error = None, self._error, None
        if error is None:
            return
        from janus_train.checkpoint_files import CannotWrite

        if not isinstance(error, CannotWrite):
            raise error
        self._say(
            f"warning: the checkpoint {error}; older ones are kept, training goes on, and the next checkpoint is "
            "another try"
        )

    def wait(self) -> None:
        """Returns when nothing is being written any more; then as `check`."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def _write(self, pieces: dict[str, Piece], progress: str, final: Path) -> None:
        from janus_train.checkpoint_files import write_checkpoint

        try:
            with torch_group(self._ranks, f"the checkpoint {final.name}") as group:
                write_checkpoint(pieces, progress, final, group, self._files)
            if self._ranks.rank == 0:
                self._tidy()
        except Exception as error:  # noqa: BLE001  whatever it is, it is raised where the training notices
            self._error = error

    def _tidy(self) -> None:
        """Removes what is too old, and what killed processes left behind. Names change first: nothing half removed
        looks like a checkpoint.
        """
        for old in checkpoints_in(self.directory)[: -self.keep]:
            old.rename(old.with_name(f".{old.name}.removed"))
        for leftover in self.directory.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def checkpoints_in(directory: Path) -> list[Path]:
    """The complete checkpoints in a directory, the newest one last."""
    found = [(int(match[1]), path) for path in directory.glob("step-*") if (match := re.search(r"-(\d+)$", path.name))]
    return [path for _, path in sorted(found)]


def newest_checkpoint(directory: Path) -> Path:
    """The newest complete checkpoint in a directory.

    Raises:
        UserError: there is none.
    """
    found = checkpoints_in(directory)
    if not found:
        raise UserError(f"no checkpoint in {directory}; start the run anew in another directory with 'train'")
    return found[-1]


def load_checkpoint(checkpoint: Path, state: TrainingState, rank: int = 0) -> None:
    """Puts a checkpoint into the state, whichever mesh wrote it.

    Random generators go on where they were; those of ranks that had not been there stay as they are.

    Raises:
        UserError: it is damaged or of another model.
    """
    from janus_train.checkpoint_files import PROGRESS, CannotRead, Stored

    try:
        stored = Stored(checkpoint)
        _make_moments(state, stored)
        pieces = pieces_of(state, rank)
        follows = not any(name.startswith("mean.") for name in stored.tensors)
        random = {device: random_name(rank, device) for device in random_states(state.model)}
        left_out = [name for name in pieces if follows and name.startswith("mean.")]
        left_out += [name for name in random.values() if name not in stored.tensors]
        stored.fill({name: piece for name, piece in pieces.items() if name not in left_out})
        saved = json.loads((checkpoint / PROGRESS).read_text())
        updates = saved.pop("mean_updates")
        state.progress = Progress(**saved)
    except (CannotRead, OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error) if isinstance(error, CannotRead) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"the checkpoint {checkpoint} cannot be read ({reason}); remove it to resume from an earlier one"
        ) from error
    if follows:
        state.mean.restart()
    else:
        state.mean.updates = updates
    _set_random_states({device: pieces[name] for device, name in random.items() if name not in left_out})


def _make_moments(state: TrainingState, stored: Stored) -> None:
    """Room for the optimiser's moments that are in the checkpoint: an optimiser makes its own in its first step."""
    for name, parameter in state.model.named_parameters():
        prefix = f"optimizer.{name}."
        moments = [key.removeprefix(prefix) for key in stored.tensors if key.startswith(prefix)]
        for moment in (moment for moment in moments if "." not in moment):
            dtype = stored.dtype(prefix + moment)
            state.optimizer.state[parameter][moment] = (
                torch.zeros((), dtype=dtype, device=parameter.device)
                if moment == "step"
                else torch.zeros_like(parameter, requires_grad=False)
            )


def _set_random_states(pieces: dict[str, Piece]) -> None:
    if "cpu" in pieces:
        torch.set_rng_state(pieces["cpu"].tensor)
    if "cuda" in pieces:
        torch.cuda.set_rng_state(pieces["cuda"].tensor)
