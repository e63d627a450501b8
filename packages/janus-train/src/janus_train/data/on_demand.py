"""Sequences whose items are made when they are asked for, and the places of parts that lie one after the other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

import numpy as np
from jaxtyping import Int64

T = TypeVar("T")


class OnDemand(Sequence[T]):
    """A sequence of which nothing is kept: the item at a place is made each time it is asked for."""

    @abstractmethod
    def _item(self, place: int) -> T:
        """The item at a place, which is there and counted from the beginning."""

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self._item(at) for at in range(*place.indices(len(self)))]
        at = int(place) + (len(self) if place < 0 else 0)
        if not 0 <= at < len(self):
            raise IndexError(f"item {place} of {len(self)}")
        return self._item(at)

    def __iter__(self) -> Iterator[T]:
        return (self._item(place) for place in range(len(self)))


def starts_of(lengths: Sequence[int] | np.ndarray) -> Int64[np.ndarray, "parts+1"]:
    """Where each part begins, and last where all end."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def part_and_row(starts: Int64[np.ndarray, "parts+1"], place: int) -> tuple[int, int]:
    """Which part a place is in, and where in that part."""
    number = int(np.searchsorted(starts, place, side="right")) - 1
    return number, place - int(starts[number])
