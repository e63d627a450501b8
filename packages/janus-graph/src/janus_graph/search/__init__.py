"""Searches for edges. Any `EdgeSearch` can be passed wherever edges are looked for, and all give the same edges.

* `compiled_search`: loops compiled by numba (extra `fast`), for batches of small cells and for large ones.
* `library_search`: vesin, one structure at a time; needs no compiler.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from janus_graph.search.library import library_search
from janus_graph.search.packed import Edges, EdgeSearch, PackedStructures, pack, sorted_edges

__all__ = [
    "EdgeSearch",
    "Edges",
    "PackedStructures",
    "compiled_search",
    "compiler_installed",
    "library_search",
    "pack",
    "preferred_search",
    "sorted_edges",
]


def compiled_search(packed: PackedStructures, cutoff: float, most_by_pairs: int = 96) -> Edges:
    """Edges by compiled loops. The first call in a new installation takes some seconds, for compiling.

    Args:
        packed: structures.
        cutoff: edges are strictly shorter (Å).
        most_by_pairs: in structures of up to so many atoms every pair is looked at, with exactly the images that can be
            in reach; in larger ones only atoms in nearby bins. Both give the same edges.

    Raises:
        ImportError: numba is not installed.
    """
    from janus_graph.search.numba_search import numba_search

    return numba_search(packed, cutoff, most_by_pairs)


@cache
def compiler_installed() -> bool:
    """Whether numba is there and works with what else is installed."""
    if find_spec("numba") is None:
        return False
    try:
        import numba  # noqa: F401
    except ImportError:  # it lags behind new releases of numpy, and then refuses to be imported
        return False
    return True


def preferred_search() -> EdgeSearch:
    """The fastest search that is installed: compiled loops where numba is, at any size, else the library's."""
    return compiled_search if compiler_installed() else library_search
