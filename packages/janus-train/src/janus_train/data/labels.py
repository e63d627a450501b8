"""A frame from what a file carries: labels found under their names, and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from janus_graph import Structure
from janus_train.config import KeyNames
from janus_train.data.frame import LABELS, Frame
from janus_train.failure import UserError

FROM_VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
"""Where the entries of a stress are in Voigt order (xx, yy, zz, yz, xz, xy), which is ASE's."""


def make_frame(
    structure: Callable[[], Structure], carried: Mapping[str, Any], keys: KeyNames, default_task: str, origin: str
) -> Frame:
    """The frame of a structure and of everything its file carries beside it.

    Args:
        structure: makes it; may raise ValueError.
        carried: values by the names that the file uses.
        keys: which of these names are labels.
        default_task: of a frame that names none.
        origin: where it comes from.

    Raises:
        UserError: a structure that is not physical, labels that are not numbers, not finite, or of the wrong shape.
            The message names the frame.
    """
    try:
        made = structure()
        labels = {label: _label(carried.get(getattr(keys, label)), label, keys, len(made)) for label in LABELS}
    except ValueError as error:
        raise UserError(f"{origin}: {error}") from error
    return Frame(
        made,
        task=str(carried.get(keys.task, default_task)),
        split=str(carried.get(keys.split, "")),
        group=str(carried.get(keys.group, "")),
        origin=origin,
        **labels,
    )


def _label(value: Any, label: str, keys: KeyNames, count: int) -> Any:
    if value is None:
        return None
    if label == "energy" and isinstance(value, float) and math.isfinite(value):
        return float(value)  # NumPy's own are floats, too, but written otherwise
    key = getattr(keys, label)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"'{key}' is {value!r}, which is not numbers; correct it or set data.keys.{label}") from None
    shape = {"energy": (), "forces": (count, 3), "stress": (3, 3), "magmoms": (count,)}[label]
    if label == "stress":
        array = _full_stress(array)
    if array.shape != shape:
        raise ValueError(f"'{key}' has shape {array.shape} instead of {shape}; correct it or set data.keys.{label}")
    if not math.isfinite(np.vdot(array, array)) and not np.isfinite(array).all():
        where = "" if label in ("energy", "stress") else f" on atom {int(np.argwhere(~np.isfinite(array))[0][0])}"
        raise ValueError(f"'{key}' is NaN or infinite{where}; remove the frame or the label")
    return float(array) if label == "energy" else array


def _full_stress(array: np.ndarray) -> np.ndarray:
    """Nine numbers as a matrix; six in Voigt order (xx, yy, zz, yz, xz, xy), which is ASE's."""
    if array.shape == (6,):
        return array.take(FROM_VOIGT)
    return array.reshape(3, 3) if array.size == 9 else array
