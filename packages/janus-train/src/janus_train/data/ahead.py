"""Work on the host for the next step while this one is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def ahead(items: Iterable[T], prepare: Callable[[T], U]) -> Iterator[tuple[T, U]]:
    """Each item with what `prepare` makes of it, which is made in another thread while the one before is in use.

    What `prepare` raises is raised where its item would come.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
        waiting = None
        for item in chain(items, [None]):
            now, waiting = waiting, None if item is None else (item, pool.submit(prepare, item))
            if now is not None:
                yield now[0], now[1].result()
