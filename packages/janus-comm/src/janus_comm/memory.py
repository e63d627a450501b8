"""Bytes of named buffers that are alive, over time.

Whoever holds a large buffer for a while (the whole of a sharded weight, say) says so here, and how many bytes were
alive at once is a number that tests and reports can look at, the same on every device and run. What an allocator does
with the storage does not enter.
"""

from __future__ import annotations


class MemoryAccounting:
    """The live bytes of one rank's named buffers: now, at most, and after each event.

    The timeline keeps one entry for each event: make one of these for as long as is to be looked at, a step for
    instance.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, int] = {}
        self._timeline: list[tuple[str, int]] = []
        self._live = 0
        self._peak = 0

    def allocate(self, name: str, bytes: int) -> None:
        """From now on a buffer of this name holds so many bytes.

        Raises ValueError when a buffer of this name is alive already, or the number is negative.
        """
        if name in self._buffers:
            raise ValueError(f"buffer {name!r} is alive already; free it first, or give each copy a name of its own")
        if bytes < 0:
            raise ValueError(f"buffer {name!r} cannot hold {bytes} bytes; give its size, at least 0")
        self._buffers[name] = bytes
        self._live += bytes
        self._peak = max(self._peak, self._live)
        self._timeline.append((f"allocate {name}", self._live))

    def free(self, name: str) -> None:
        """The buffer of this name is gone.

        Raises ValueError when there is none.
        """
        if name not in self._buffers:
            alive = ", ".join(map(repr, self._buffers)) or "none"
            raise ValueError(f"no buffer {name!r} to free; alive: {alive}")
        self._live -= self._buffers.pop(name)
        self._timeline.append((f"free {name}", self._live))

    @property
    def live(self) -> int:
        """Bytes alive now."""
        return self._live

    @property
    def peak(self) -> int:
        """The most bytes that were ever alive at once."""
        return self._peak

    @property
    def timeline(self) -> list[tuple[str, int]]:
        """What happened, ``allocate name`` or ``free name``, with the bytes alive after it."""
        return list(self._timeline)
