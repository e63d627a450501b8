"""Frames of a block of decoded aselmdb rows, made together.

Most of what a frame of few atoms costs is asked of NumPy for a handful of numbers: making an array, looking whether it
is finite. Laid end to end, arrays of all rows of a block cost hardly more than those of one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from janus_graph import structures_end_to_end
from janus_train.config import KeyNames
from janus_train.data.frame import Frame
from janus_train.data.labels import FROM_VOIGT

Row = Mapping[str, Any]
Array = Shaped[np.ndarray, "..."]


class Unusual(ValueError):
    """A row is written in a way that only making frames one by one knows, or something is wrong with it."""


def frames_together(
    rows: Sequence[Row], carried: Sequence[Row], keys: KeyNames, default_task: str, origins: Sequence[str]
) -> list[Frame]:
    """The frames of rows that are all written in the usual way: arrays as `{"__ndarray__": [shape, type, numbers]}`, or
    made arrays of already; the energy as one number; charge and spin as whole ones.

    Args:
        rows: as decoded.
        carried: everything that each row carries beside its structure.
        keys: names of the labels.
        default_task: of rows that name none.
        origins: of the rows.

    Raises:
        Unusual: make frames one by one instead, which says what is wrong, if anything is.
    """
    try:
        return _frames(rows, carried, keys, default_task, origins)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unusual(str(error)) from error


def _frames(
    rows: Sequence[Row], carried: Sequence[Row], keys: KeyNames, default_task: str, origins: Sequence[str]
) -> list[Frame]:
    numbers, shapes = _end_to_end([row["numbers"] for row in rows], "int64")
    counts = [count for (count,) in shapes]
    positions = _of_atoms([row["positions"] for row in rows], counts, 3)
    structures = structures_end_to_end(
        counts,
        numbers,
        positions,
        _alike([row["cell"] for row in rows], "float64", (3, 3)),
        _alike([row["pbc"] for row in rows], "bool", (3,)),
        [(_whole(row.get("charge", 0)), _whole(row.get("spin", 1))) for row in carried],
    )

    def of_present(key: str, make: Callable[[list[Any], list[int]], Iterable[Any]]) -> list[Any]:
        values = [row.get(key) for row in carried]
        present = [place for place, value in enumerate(values) if value is not None]
        found: list[Any] = [None] * len(values)
        if present:
            made = make([values[place] for place in present], [counts[place] for place in present])
            for place, value in zip(present, made, strict=True):
                found[place] = value
        return found

    labels = zip(
        of_present(keys.energy, lambda values, _: [_energy(value) for value in values]),
        of_present(keys.forces, lambda values, atoms: _split(_of_atoms(values, atoms, 3), atoms)),
        of_present(keys.stress, lambda values, _: _stresses(values)),
        of_present(keys.magmoms, lambda values, atoms: _split(_of_atoms(values, atoms), atoms)),
        strict=True,
    )
    return [
        Frame(
            structure, str(row.get(keys.task, default_task)), *own, str(row.get(keys.split, "")),
            str(row.get(keys.group, "")), origin,
        )
        for structure, row, own, origin in zip(structures, carried, labels, origins, strict=True)
    ]  # fmt: skip


def _end_to_end(values: Sequence[Any], kind: str) -> tuple[Array, list[tuple[int, ...]]]:
    """Numbers of all arrays one after the other, and the shapes of the arrays."""
    if all(isinstance(value, np.ndarray) for value in values):
        if any(value.dtype != kind for value in values):
            raise Unusual("another type")
        joined, shapes = np.concatenate([value.ravel() for value in values]), [value.shape for value in values]
    else:
        written = [value.get("array", value)["__ndarray__"] for value in values]
        shapes = [tuple(shape) for shape, _, _ in written]
        sizes = [len(numbers) for _, _, numbers in written]
        if any(own != kind for _, own, _ in written) or sizes != list(map(math.prod, shapes)):
            raise Unusual("another type, or not as many numbers as the shape says")
        joined = np.fromiter(itertools.chain.from_iterable(numbers for _, _, numbers in written), kind, sum(sizes))
    if kind == "float64" and not np.isfinite(joined).all():
        raise Unusual("not finite")
    return joined, shapes


def _alike(values: Sequence[Any], kind: str, shape: tuple[int, ...]) -> Array:
    """Arrays of one shape as one."""
    joined, shapes = _end_to_end(values, kind)
    if any(own != shape for own in shapes):
        raise Unusual("another shape")
    return joined.reshape(len(values), *shape)


def _of_atoms(values: Sequence[Any], counts: Sequence[int], *width: int) -> Array:
    """So many numbers of each atom."""
    joined, shapes = _end_to_end(values, "float64")
    if shapes != [(count, *width) for count in counts]:
        raise Unusual("other numbers of atoms")
    return joined.reshape(-1, *width)


def _stresses(values: Sequence[Any]) -> Array:
    """Six numbers in Voigt order, or nine."""
    joined, shapes = _end_to_end(values, "float64")
    if all(shape == (6,) for shape in shapes):
        return joined.reshape(-1, 6)[:, FROM_VOIGT]
    if all(shape == (3, 3) for shape in shapes):
        return joined.reshape(-1, 3, 3)
    raise Unusual("other shapes")


def _split(joined: Array, counts: Sequence[int]) -> list[Array]:
    ends = itertools.accumulate(counts)
    return [joined[end - count : end] for count, end in zip(counts, ends, strict=True)]


def _energy(value: Any) -> float:
    if not isinstance(value, float) or not math.isfinite(value):
        raise Unusual("no finite number")
    return float(value)  # NumPy's own are floats, too, but written otherwise


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise Unusual("no whole number")
    return value
