"""Failures that concern several ranks, in a form that can travel between them."""

from __future__ import annotations

import pickle
import traceback


class RankFailed(RuntimeError):
    """Another rank failed, left or called something else, so that this rank cannot go on."""


class LaunchError(ValueError):
    """What was launched does not fit what was asked for: ranks, mesh or device."""


def describe(error: BaseException) -> str:
    """The type and message of an error on one line."""
    return f"{type(error).__name__}: {error}"


def in_phase(phase: str) -> str:
    """The note of an error about where in a step it was raised."""
    return f"in phase {phase!r}"


def phases_of(error: BaseException) -> str:
    """The notes of an error about where in a step it was raised, innermost first, to go behind its message."""
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith(in_phase("")[:-2])]
    return "".join(f", {note}" for note in notes)


def portable(error: BaseException, rank: int, size: int) -> BaseException:
    """An error of the same type and message that can be pickled, with a note of the rank it comes from.

    An error that does not survive pickling (its constructor takes other arguments than it keeps, say) becomes a
    :class:`RankFailed` that quotes it.
    """
    note = f"raised on rank {rank} of {size}"
    trace = "".join(traceback.format_exception(error)).rstrip()
    try:
        copy = pickle.loads(pickle.dumps(error))
        faithful = type(copy) is type(error) and str(copy) == str(error)
    except Exception:  # noqa: BLE001  pickling runs the error's own code, which may raise anything
        faithful = False
    if not faithful:
        copy = RankFailed(f"rank {rank} of {size} failed with {describe(error)}")
    assert isinstance(copy, BaseException)
    copy.add_note(f"{note}:\n{trace}")
    return copy
