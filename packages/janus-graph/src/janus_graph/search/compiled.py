"""Compiling plain loops. Importing this imports numba, so it is imported where it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """The function as machine code, made at the first call and kept on disk where there is a place to keep it.

    Sums and products are rounded one by one, as numpy does. The interpreter is free for other threads meanwhile.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        made: Function = numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither beside the source nor in the user's cache directory can a file be written.
        made = numba.njit(**options)(function)
    return made
